//! The fixed scripts: every operation and option, and what is wrong with each.

use crate::{
    differences::{
        BEHIND, CASE, COUNTED, ELSEWHERE, EMPTY, FEED, HEADERS, INVALID, LATER, LINE, OTHERS, REPLY, RETURN, TEXT, TOKENS, WIDER, WILDCARD,
    },
    script::{Script, Which},
};

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
const SUB_ALL: &str = "SUB > all\r\n";

pub(crate) fn all() -> Vec<Script> {
    let groups = [
        alone(PLAIN),
        options(),
        connects(),
        tokens(),
        permissions(),
        alone(MALFORMED).into_iter().map(|script| script.after(CONNECT)).collect(),
        sizes(),
        subjects(),
        headers(),
        several(),
        split(),
        impatient(),
        on_purpose(),
    ];
    groups.into_iter().flatten().collect()
}

fn one(which: Which, text: impl Into<Vec<u8>>) -> Script {
    Script::new(which, vec![(0, text.into())])
}

fn alone(texts: &[&str]) -> Vec<Script> {
    texts.iter().map(|text| one(Which::Open, *text)).collect()
}

impl Script {
    fn after(mut self, begin: &str) -> Self {
        self.steps[0].bytes.splice(0..0, begin.bytes());
        self
    }

    fn differs(mut self, name: &'static str) -> Self {
        self.differs = Some(name);
        self
    }
}

/// Operations as they should be, in any case and with odd blanks; without CONNECT, so with +OK.
const PLAIN: &[&str] = &[
    "",
    "PING\r\n",
    "ping\r\nPiNg\r\nPING \r\nPING\t\r\nPING\n",
    "PONG\r\npong\r\n",
    "+OK\r\n+ok\r\n",
    "SUB a 1\r\nPUB a 2\r\nhi\r\n",
    "sub a 1\r\npub a 2\r\nhi\r\n",
    "SUB\ta\t1\r\nPUB\ta\t2\r\nhi\r\n",
    "SUB  a   1  \r\nPUB \t a \t 2 \t \r\nhi\r\n",
    "SUB a q 1\r\nPUB a r 2\r\nhi\r\n",
    "SUB a 1\nPUB a 2\nhi\r\nPING\n",
    "SUB a 1\r\nUNSUB 1\r\nPUB a 2\r\nhi\r\n",
    "SUB a 1\r\nUNSUB 1 2\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\n",
    "SUB a 1\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\nUNSUB 1 1\r\nPUB a 1\r\n3\r\n",
    "SUB a 1\r\nPUB a 1\r\n1\r\nUNSUB 1 3\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\nPUB a 1\r\n4\r\n",
    "SUB a 1\r\nUNSUB 1 3\r\nUNSUB 1 1\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\n",
    "SUB a 1\r\nUNSUB 1 1\r\nUNSUB 1 3\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\n",
    "SUB a 1\r\nUNSUB 1 1\r\nUNSUB 1 0\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\n",
    "SUB a 1\r\nUNSUB 1 0\r\nPUB a 1\r\n1\r\n",
    "SUB a 1\r\nUNSUB 1 1\r\nPUB a 1\r\n1\r\nSUB a 1\r\nPUB a 1\r\n2\r\n",
    "UNSUB 7\r\nUNSUB nobody 3\r\n",
    "SUB a 1\r\nSUB b 1\r\nPUB a 1\r\n1\r\nPUB b 1\r\n2\r\n",
    "SUB a 1\r\nSUB a 2\r\nPUB a 1\r\n1\r\n",
    "SUB a 1\r\nUNSUB 1\r\nSUB b 1\r\nPUB b 1\r\n1\r\n",
    "SUB a verylongidofasubscription-with.dots*and>more\r\nPUB a 1\r\n1\r\n",
    "SUB a 1\r\nPUB a 0\r\n\r\nPUB a 4\r\n\r\n\r\n\r\nPUB a 3\r\n\0\x01\x7f\r\n",
    "SUB a 1\r\nPUB a 002\r\nhi\r\n",
    "SUB a.* 1\r\nSUB a.> 2\r\nSUB * 3\r\nSUB > 4\r\nSUB *.b 5\r\nSUB a.b 6\r\nUNSUB 1\r\nUNSUB 2\r\nUNSUB 3\r\nUNSUB 4\r\nUNSUB 5\r\nPUB a.b 1\r\n1\r\n",
    "SUB a.*.c 1\r\nPUB a.b.c 1\r\n1\r\nPUB a.b 1\r\n2\r\nPUB a.b.c.d 1\r\n3\r\n",
    "SUB a.> 1\r\nPUB a 1\r\n1\r\nPUB a.b 1\r\n2\r\nPUB a.b.c 1\r\n3\r\n",
    "SUB *.> 1\r\nPUB a 1\r\n1\r\nPUB a.b 1\r\n2\r\n",
    "SUB a* 1\r\nPUB ab 1\r\n1\r\nPUB a* 1\r\n2\r\n",
    "SUB a.b> 1\r\nPUB a.b> 1\r\n1\r\n",
    "SUB a q 1\r\nPUB a 1\r\n1\r\n",
    "SUB a q.* 1\r\nPUB a 1\r\n1\r\n",
    "SUB ä.ö 1\r\nPUB ä.ö 4\r\näö\r\n",
    "SUB a ä 1\r\nPUB a ü 4\r\näö\r\n",
    "SUB $SYS.x 1\r\nSUB $JS.API.> 2\r\nSUB _INBOX.> 3\r\nPUB _INBOX.a.b 1\r\n1\r\n",
];

/// Each option of CONNECT, on and off, with operations that it matters to.
fn options() -> Vec<Script> {
    let talk =
        "SUB a 1\r\nPUB a 2\r\nhi\r\nPUB nobody a 0\r\n\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\nUNSUB 1\r\nPUB nobody a 0\r\n\r\nPING\r\n";
    let mut all = Vec::new();
    for bits in 0..32 {
        let on = |bit: usize| bits >> bit & 1 == 1;
        // no responders needs headers: on its own it is among the CONNECTs below
        if on(4) && !on(3) {
            continue;
        }
        let line = format!(
            "CONNECT {{\"verbose\":{},\"pedantic\":{},\"echo\":{},\"headers\":{},\"no_responders\":{}}}\r\n",
            on(0),
            on(1),
            on(2),
            on(3),
            on(4)
        );
        all.push(one(Which::Open, format!("{line}{talk}")));
    }
    all
}

fn connects() -> Vec<Script> {
    let tail = "SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n";
    [
        "CONNECT {}\r\n",
        "connect {}\r\n",
        "CONNECT\t{}\r\n",
        "CONNECT   {\"verbose\":false}   \r\n",
        "CONNECT {\"verbose\":false}\n",
        "CONNECT {\"verbose\":false}\r\nCONNECT {\"verbose\":true}\r\n",
        "CONNECT {\"verbose\":true}\r\nCONNECT {\"verbose\":false}\r\n",
        "CONNECT {\"verbose\":false,\"echo\":false}\r\nCONNECT {\"verbose\":false}\r\n",
        "SUB a 9\r\nCONNECT {\"verbose\":false}\r\n",
        "PING\r\nCONNECT {\"verbose\":false}\r\n",
        "CONNECT {\"verbose\":false,\"unknown\":1,\"more\":{\"a\":[1,2,{}]},\"null\":null}\r\n",
        "CONNECT {\"verbose\":false,\"name\":\"\\u00e4 <b>\",\"lang\":\"x\",\"version\":\"1\",\"protocol\":1}\r\n",
        "CONNECT {\"verbose\":false,\"protocol\":0}\r\n",
        "CONNECT {\"verbose\":false,\"protocol\":2}\r\n",
        "CONNECT {\"verbose\":false,\"protocol\":-1}\r\n",
        "CONNECT {\"verbose\":false,\"protocol\":1000}\r\n",
        "CONNECT {\"verbose\":false,\"no_responders\":true}\r\n",
        "CONNECT {\"verbose\":false,\"no_responders\":true,\"headers\":false}\r\n",
        "CONNECT {\"verbose\":null,\"name\":null,\"auth_token\":null}\r\n",
        "CONNECT {\"verbose\":false,\"verbose\":true}\r\n",
        "CONNECT {\"verbose\":false,\"name\":7}\r\n",
        "CONNECT {\"verbose\":\"no\"}\r\n",
        "CONNECT {\"verbose\":0}\r\n",
        "CONNECT {\"auth_token\":\"unasked\",\"verbose\":false}\r\n",
        "CONNECT {\"user\":\"u\",\"pass\":\"p\",\"verbose\":false}\r\n",
        "CONNECT {\"jwt\":\"x\",\"sig\":\"y\",\"nkey\":\"z\",\"verbose\":false}\r\n",
        "CONNECT {\"tls_required\":false,\"verbose\":false}\r\n",
        "CONNECT\r\n",
        "CONNECT \r\n",
        "CONNECT null\r\n",
        "CONNECT []\r\n",
        "CONNECT 1\r\n",
        "CONNECT \"\"\r\n",
        "CONNECT {\r\n",
        "CONNECT }{\r\n",
        "CONNECT {\"verbose\":false} x\r\n",
        "CONNECT {\"verbose\":false}{}\r\n",
        "CONNECT {\"verbose\":fals\r\n",
        "CONNECT {\"name\":\"\u{1}\"}\r\n",
        "CONNECTX {}\r\n",
    ]
    .iter()
    .map(|text| one(Which::Open, format!("{text}{tail}")))
    .collect()
}

fn tokens() -> Vec<Script> {
    let tail = "SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n";
    [
        "CONNECT {\"auth_token\":\"s3cr3t\",\"verbose\":false}\r\n",
        "CONNECT {\"auth_token\":\"s3cr3t\"}\r\n",
        "CONNECT {\"auth_token\":\"wrong\",\"verbose\":false}\r\n",
        "CONNECT {\"auth_token\":\"\",\"verbose\":false}\r\n",
        "CONNECT {\"auth_token\":null,\"verbose\":false}\r\n",
        "CONNECT {\"verbose\":false}\r\n",
        "CONNECT {}\r\n",
        "CONNECT {\r\n",
        "PING\r\n",
        "PONG\r\n",
        "SUB a 1\r\n",
        "PUB a 0\r\n\r\n",
        "UNSUB 1\r\n",
        "+OK\r\n",
        "GARBAGE\r\n",
        "CONNECT {\"auth_token\":\"wrong\",\"verbose\":false}\r\nCONNECT {\"auth_token\":\"s3cr3t\",\"verbose\":false}\r\n",
    ]
    .iter()
    .map(|text| one(Which::Token, format!("{text}{tail}")))
    .collect()
}

fn user(name: &str, more: &str) -> String {
    format!("CONNECT {{\"user\":\"{name}\",\"pass\":\"{name}\",\"auth_token\":\"{name}\"{more}}}\r\n")
}

fn permissions() -> Vec<Script> {
    let quiet = ",\"verbose\":false,\"headers\":true,\"no_responders\":true";
    let mut all: Vec<_> = [
        "PUB open.a 0\r\n\r\nPUB exact 0\r\n\r\nPUB open 0\r\n\r\nPUB exact.a 0\r\n\r\nPUB other 0\r\n\r\n",
        "SUB open.a 1\r\nSUB open.> 2\r\nSUB open.* 3\r\nSUB one.* 4\r\nSUB one.a 5\r\nPUB open.a 2\r\nhi\r\n",
        "SUB open 1\r\nSUB one 2\r\nSUB one.a.b 4\r\nSUB > 5\r\nSUB * 6\r\nSUB *.a 7\r\nSUB other 8\r\n",
        "SUB open.a q 1\r\nSUB other q 2\r\nPUB open.a 2\r\nhi\r\n",
        "SUB other 1\r\nSUB open.a 1\r\nPUB open.a 2\r\nhi\r\n",
        "PUB open.nobody _INBOX.lim.1 0\r\n\r\nSUB _INBOX.lim.* 1\r\nPUB open.nobody _INBOX.lim.1 0\r\n\r\n",
        "PUB other _INBOX.lim.1 0\r\n\r\nPING\r\n",
        "HPUB other 12 12\r\nNATS/1.0\r\n\r\n\r\nPING\r\n",
    ]
    .iter()
    .flat_map(|text| [quiet, ",\"verbose\":true", ",\"verbose\":false,\"pedantic\":true"].map(|more| (text, more)))
    .map(|(text, more)| one(Which::Users, format!("{}{text}", user("limited", more))))
    .collect();
    all.push(one(Which::Users, user("nobody", quiet)));
    all.push(one(Which::Users, "CONNECT {}\r\n"));
    // an answer only to who asked, where it was asked for
    let steps = [
        (0, user("responder", quiet) + "SUB service.> 1\r\nPUB log 0\r\n\r\nPUB other 0\r\n\r\nPUB _INBOX.x 0\r\n\r\n"),
        (1, user("anyone", quiet) + "SUB _INBOX.x.* 1\r\nPUB service.a _INBOX.x.1 3\r\nask\r\n"),
        (0, "PUB _INBOX.x.2 5\r\nwrong\r\nPUB _INBOX.x.1 6\r\nanswer\r\nPUB _INBOX.x.1 4\r\nmore\r\n".into()),
        (1, "PUB service.b 0\r\n\r\nPUB service.c other 0\r\n\r\n".into()),
        (0, "PUB other 2\r\nhi\r\nPUB others 2\r\nno\r\n".into()),
    ];
    all.push(Script::new(Which::Users, steps.map(|(connection, text)| (connection, text.into_bytes())).into()));
    all
}

/// What isn't the protocol, each after CONNECT and with a PING behind it that must not be answered.
const MALFORMED: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: x\r\n\r\nPING\r\n",
    "X\r\nPING\r\n",
    "PUBX a 0\r\n\r\nPING\r\n",
    "MSG a 1 0\r\n\r\nPING\r\n",
    "RS+ a\r\nPING\r\n",
    "LS+ a\r\nPING\r\n",
    "A+ a\r\nPING\r\n",
    "+XX\r\nPING\r\n",
    "\0\0\0\0\r\nPING\r\n",
    "\u{16}\u{3}\u{1}\0\r\nPING\r\n",
    " PING\r\nPING\r\n",
    "PUB\u{a0}a 0\r\n\r\nPING\r\n",
    "PUB a 2\r\nhix\r\nPING\r\n",
    "PUB a 2\r\nhi\nPING\r\n",
    "PUB a 2\r\nh\r\nPING\r\n",
    "SUB a 1\r\nPUB a 9\r\nPING\r\nPIN\r\nPING\r\n",
];

fn sizes() -> Vec<Script> {
    let begin = format!("{CONNECT}{SUB_ALL}");
    let publish = |size: usize| format!("PUB a {size}\r\n{}\r\nPING\r\n", "x".repeat(size));
    let line = |length: usize| format!("PUB {} 0\r\n\r\nPING\r\n", "a".repeat(length - 6));
    let sub_line = |length: usize| format!("SUB {} 1\r\nPING\r\n", "a".repeat(length - 6));
    let mut all: Vec<_> = [1023, 1024, 1025, 5000, 100_000].map(|size| one(Which::Open, begin.clone() + &publish(size))).into();
    all.extend([4000, 4090].map(|length| one(Which::Open, begin.clone() + &line(length))));
    all.extend([4000, 4090].map(|length| one(Which::Open, begin.clone() + &sub_line(length))));
    all.push(one(Which::Open, begin.clone() + &sub_line(5000)));
    all.push(one(Which::Open, begin.clone() + &line(70_000)));
    all.push(one(Which::Open, begin.clone() + "PUB a 1025\r\n"));
    all.push(one(Which::Open, begin.clone() + "HPUB a 12 1025\r\n"));
    all.push(one(Which::Open, begin.clone() + "PUB a 999999999\r\n"));
    all.push(one(Which::Open, format!("{begin}HPUB a 12 1024\r\nNATS/1.0\r\n\r\n{}\r\nPING\r\n", "x".repeat(1012))));
    all.push(one(Which::Open, begin.clone() + &"PING\r\n".repeat(3000)));
    all.push(one(Which::Open, begin.clone() + &"PONG\r\n".repeat(3000) + "PING\r\n"));
    all.push(one(Which::Open, begin + &"PUB a 10\r\n0123456789\r\n".repeat(2000) + "PING\r\n"));
    all
}

fn subjects() -> Vec<Script> {
    let mut all = Vec::new();
    for pedantic in [false, true] {
        let begin = format!("CONNECT {{\"verbose\":false,\"pedantic\":{pedantic}}}\r\n");
        for pattern in [">.a", "a.>.b", ".", ".a", "a.", "a..b", "..", "a.>.", "*..*"] {
            all.push(one(Which::Open, format!("{begin}SUB {pattern} 1\r\nSUB {pattern} q 2\r\nPING\r\n")));
        }
    }
    all
}

fn headers() -> Vec<Script> {
    let begin = format!("{CONNECT}{SUB_ALL}");
    let bare = "CONNECT {\"verbose\":false}\r\nSUB > all\r\n";
    let publish = |block: &str| format!("HPUB a {} {}\r\n{block}hi\r\nPING\r\n", block.len(), block.len() + 2);
    let mut all: Vec<_> = [
        "",
        "NATS/1.0\r\n\r\n",
        "NATS/1.0\r\nA: b\r\n\r\n",
        "NATS/1.0\r\nA:b\r\nA: c\r\na:\r\n\r\n",
        "NATS/1.0 503\r\n\r\n",
        "NATS/1.0 100 Idle Heartbeat\r\nX: y\r\n\r\n",
        "NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n",
        "NATS/1.0\r\nA: ä\r\n\r\n",
    ]
    .iter()
    .map(|block| one(Which::Open, begin.clone() + &publish(block)))
    .collect();
    all.push(one(Which::Open, bare.to_owned() + &publish("NATS/1.0\r\nA: b\r\n\r\n")));
    // who takes no headers gets the payload alone
    let steps = [(0, bare.to_owned()), (1, CONNECT.to_owned() + &publish("NATS/1.0\r\nA: b\r\n\r\n"))];
    all.push(Script::new(Which::Open, steps.map(|(connection, text)| (connection, text.into_bytes())).into()));
    all
}

fn several() -> Vec<Script> {
    let no_echo = "CONNECT {\"verbose\":false,\"echo\":false,\"headers\":true,\"no_responders\":true}\r\n";
    let mut all: Vec<Script> = [
        vec![
            (0, format!("{CONNECT}SUB a 1\r\n")),
            (1, format!("{CONNECT}SUB a 1\r\nSUB a.* 2\r\nPUB a 2\r\nhi\r\n")),
            (0, "PUB a.b r 2\r\nho\r\n".into()),
        ],
        vec![
            (0, format!("{no_echo}SUB a 1\r\nPUB a r 1\r\n1\r\n")),
            (1, format!("{CONNECT}SUB a 1\r\nPUB a 1\r\n2\r\n")),
            (0, "PUB a r 1\r\n3\r\n".into()),
        ],
        vec![
            (0, format!("{no_echo}SUB a 1\r\nSUB r 2\r\nPUB a r 1\r\n1\r\n")),
            (1, format!("{CONNECT}SUB r 1\r\n")),
            (0, "PUB a r 1\r\n3\r\n".into()),
        ],
        vec![
            (0, format!("{CONNECT}SUB a 1\r\nUNSUB 1 2\r\n")),
            (1, format!("{CONNECT}PUB a 1\r\n1\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\n")),
            (0, "SUB a 1\r\n".into()),
            (1, "PUB a 1\r\n4\r\n".into()),
        ],
        vec![(0, format!("{CONNECT}SUB a 1\r\nUNSUB 1 1\r\n")), (1, format!("{CONNECT}SUB r 1\r\nPUB a r 1\r\n1\r\nPUB a r 1\r\n2\r\n"))],
        // one that goes leaves nothing behind
        vec![(0, format!("{CONNECT}SUB a 1\r\nGARBAGE\r\n")), (1, format!("{CONNECT}SUB r 1\r\nPUB a r 1\r\n1\r\n"))],
    ]
    .into_iter()
    .map(|steps| Script::new(Which::Open, steps.into_iter().map(|(connection, text)| (connection, text.into_bytes())).collect()))
    .collect();
    // ten messages to a group of three, over two connections and two patterns
    let mut group = Script::new(
        Which::Open,
        vec![
            (0, format!("{CONNECT}SUB a.b q q1\r\nSUB a.* q q2\r\nSUB a.b r r1\r\n").into_bytes()),
            (1, format!("{CONNECT}SUB a.> q q3\r\n{}", "PUB a.b x 2\r\nhi\r\n".repeat(10)).into_bytes()),
            (0, b"UNSUB q1\r\nUNSUB q2\r\nUNSUB r1\r\n".to_vec()),
            (1, b"PUB a.b x 1\r\n1\r\nUNSUB q3\r\nPUB a.b x 1\r\n2\r\n".to_vec()),
        ],
    );
    group.queue_sids = ["q1", "q2", "q3", "r1"].map(Into::into).into();
    all.push(group);
    all
}

/// The same in pieces of every size.
fn split() -> Vec<Script> {
    let text = "CONNECT {\"verbose\":true,\"headers\":true}\r\nSUB a.* q 77\r\nPUB a.b r 5\r\nhello\r\nHPUB a.b 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n\
        PUB a.b 6\r\nPING\r\n\r\nPING\r\nUNSUB 77 1\r\nX\r\n";
    (1..text.len()).map(|piece| Script { piece, ..one(Which::Open, text) }).collect()
}

fn impatient() -> Vec<Script> {
    let begin = "CONNECT {\"verbose\":false,\"auth_token\":\"s3cr3t\"}\r\n";
    [String::new(), begin.to_owned(), format!("{begin}PING\r\n")].map(|text| Script { patient: true, ..one(Which::Impatient, text) }).into()
}

/// What differs on purpose, and next to it what doesn't. Both ways to be pedantic: this bus always checks.
fn on_purpose() -> Vec<Script> {
    let mut all = Vec::new();
    for pedantic in [false, true] {
        let begin = format!("CONNECT {{\"verbose\":false,\"pedantic\":{pedantic},\"headers\":true}}\r\n{SUB_ALL}");
        strange_subjects(&begin, pedantic, &mut all);
        strange_lines(&begin, &mut all);
        for block in
            ["\r\n", "NATS/1.0\r\n", "NATS/1.0\r\nA\r\n\r\n", "NATS/1.0\r\n: x\r\n\r\n", "NATS/1.0\r\nA b: x\r\n\r\n", "NATS/2.0\r\n\r\n"]
        {
            let text = format!("{begin}HPUB a {} {}\r\n{block}hi\r\nPING\r\n", block.len(), block.len() + 2);
            all.push(one(Which::Open, text).differs(HEADERS));
        }
        for (length, differs) in [(4094, false), (4096, false), (4097, true), (4100, true), (4110, false)] {
            for name in ["PUB", "SUB"] {
                let end = if name == "PUB" { "0\r\n\r\n" } else { "1\r\n" };
                let script = one(Which::Open, format!("{begin}{name} {} {end}PING\r\n", "a".repeat(length - 6)));
                all.push(if differs { script.differs(LINE) } else { script });
            }
        }
    }
    let talk = "SUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n";
    let right = "CONNECT {\"auth_token\":\"s3cr3t\",\"verbose\":false}\r\n";
    all.push(one(Which::Open, format!("CONNECT {{\"VERBOSE\":false}}\r\n{talk}")).differs(CASE));
    let asked = format!("{CONNECT}SUB r 1\r\nUNSUB 1 1\r\nPUB nobody r 0\r\n\r\nPUB r 2\r\nhi\r\n");
    all.push(one(Which::Open, asked).differs(COUNTED));
    all.push(one(Which::Open, format!("CONNECT{{}}\r\n{talk}")).differs(BEHIND));
    all.push(one(Which::Token, format!("{right}CONNECT {{\"auth_token\":\"wrong\"}}\r\n{talk}")).differs(LATER));
    let limited = user("limited", ",\"verbose\":false");
    all.push(one(Which::Users, format!("{limited}SUB one.> 1\r\n")).differs(WIDER));
    all.push(one(Which::Users, user("anyone", ",\"verbose\":false") + "SUB a..b 1\r\n").differs(INVALID));
    all.push(one(Which::Users, format!("{limited}PUB open.a _INBOX.other.1 0\r\n\r\n")).differs(ELSEWHERE));
    all
}

fn strange_subjects(begin: &str, pedantic: bool, all: &mut Vec<Script>) {
    let of = |text: String, name| one(Which::Open, format!("{begin}{text}PING\r\n")).differs(name);
    for subject in ["a.*", "*", ">", "a.>", "a.>.b"] {
        all.push(of(format!("PUB {subject} 2\r\nhi\r\n"), WILDCARD));
        all.push(of(format!("PUB a {subject} 2\r\nhi\r\n"), REPLY));
    }
    for subject in [".a", "a.", "a..b", ".", ".."] {
        let script = of(format!("PUB {subject} 2\r\nhi\r\n"), EMPTY);
        all.push(if pedantic { Script { differs: None, ..script } } else { script });
        all.push(of(format!("PUB a {subject} 2\r\nhi\r\n"), REPLY));
    }
    for subject in [&b"a\x01b"[..], b"a\x7f", b"a\x0bb", b"\xff", b"a.\xc3"] {
        for (before, after) in
            [("PUB ", " 2\r\nhi\r\n"), ("PUB a ", " 2\r\nhi\r\n"), ("SUB ", " 1\r\n"), ("SUB a ", " 1\r\nPUB a 0\r\n\r\n")]
        {
            let bytes = [begin.as_bytes(), before.as_bytes(), subject, after.as_bytes(), b"PING\r\n"].concat();
            all.push(one(Which::Open, bytes).differs(TEXT));
        }
    }
    for (count, differs) in [(64, false), (65, true), (300, true)] {
        let subject = vec!["a"; count].join(".");
        let script = of(format!("PUB {subject} 2\r\nhi\r\nSUB {subject} 1\r\n"), TOKENS);
        all.push(if differs { script } else { Script { differs: None, ..script } });
    }
}

/// Lines that aren't quite the protocol, and are answered as nats-server answers them.
const STRANGE: &[&str] = &[
    "PUB\r\n",
    "PUB a\r\n",
    "PUB a b c 1\r\n",
    "PUB a b c d e 1\r\n",
    "PUB a x\r\n",
    "PUB a -1\r\n",
    "PUB a +1\r\n",
    "PUB a 1e1\r\n",
    "PUB a 0x1\r\n",
    "PUB a 99999999999999999999\r\n",
    "PUB a 1234567890\r\n",
    "PUB a 1.0\r\n",
    "HPUB\r\n",
    "HPUB a\r\n",
    "HPUB a 1\r\n",
    "HPUB a 3 2\r\n",
    "HPUB a -1 2\r\n",
    "HPUB a 12 x\r\n",
    "HPUB a x 12\r\n",
    "HPUB a b c 12 12\r\n",
    "SUB\r\n",
    "SUB a\r\n",
    "SUB a b c d\r\n",
    "SUB a b c d e f\r\n",
    "SUB \r\n",
    "UNSUB\r\n",
    "UNSUB \r\n",
    "UNSUB 1 2 3\r\n",
    "\r\n",
    "\n",
    "\r\n\r\n",
    "PING x\r\n",
    "PONG x\r\n",
    "+OK x\r\n",
    "-ERR 'x'\r\n",
    "-ERR\r\n",
    "INFO\r\n",
    "PIN\r\n",
    "P\r\n",
    "PU\r\n",
    "UNSU 1\r\n",
    "PUB a 2\r\nhi\r\r\n",
    "PUB a 2\nhi\n",
    "PUB a 2\rhi\r\n",
    "PI\rNG\r\n",
    "SUB a 1\r\r\n",
    "\tPING\r\n",
    "UNSUB all\t\r\n",
    "UNSUB 1 x\r\n",
    "UNSUB all -1\r\nPUB a 0\r\n\r\n",
    "UNSUB all 99999999999999999999\r\nPUB a 0\r\n\r\n",
    "UNSUB 1 1234567890\r\n",
    "PING\r",
    "PING\r\r\n",
    "SUB a\r1\r\nPUB a 0\r\n\r\n",
    "SUB a 1\r\r\nPUB a 0\r\n\r\n",
    "SUB a\rq\r1\r\n",
];

fn strange_lines(begin: &str, all: &mut Vec<Script>) {
    let of = |text: &&str| one(Which::Open, format!("{begin}{text}PING\r\n"));
    all.extend(STRANGE.iter().map(of));
    let others: [(&str, &[&str]); 4] = [
        (OTHERS, &["INFO {}\r\n", "HMSG a 1 0\r\n\r\n"]),
        (BEHIND, &["PINGX\r\n"]),
        (FEED, &["PUB \n 1\r\n1\r\n"]),
        (RETURN, &["PUB a 2\r\r\nhi\r\n"]),
    ];
    for (name, texts) in others {
        all.extend(texts.iter().map(|text| of(text).differs(name)));
    }
}
