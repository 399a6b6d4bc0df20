//! Scripts made at random, always the same for one seed.

use crate::script::{Script, Which};

/// Where a script comes from: operations, which can be left out one by one.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) which: Which,
    connects: Vec<String>,
    /// A connection and what is sent on it.
    operations: Vec<(usize, Vec<u8>)>,
    piece: usize,
    queue_sids: Vec<String>,
}

impl Plan {
    pub(crate) fn script(&self) -> Script {
        let begin = self.connects.iter().enumerate().map(|(connection, line)| (connection, line.clone().into_bytes()));
        let mut script = Script::new(self.which, begin.chain(self.operations.iter().cloned()).collect());
        script.piece = self.piece;
        script.queue_sids.clone_from(&self.queue_sids);
        script
    }

    /// Leaves out one operation after the other as long as `fails` holds.
    pub(crate) fn shrink(mut self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut at = self.operations.len();
        while at > 0 {
            at -= 1;
            let mut smaller = self.clone();
            smaller.operations.remove(at);
            if fails(&smaller) {
                self = smaller;
                at = at.min(self.operations.len());
            }
        }
        let whole = Self { piece: 0, ..self.clone() };
        if fails(&whole) { whole } else { self }
    }
}

/// xorshift64* (Vigna 2016).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize) % end
    }

    fn of(&mut self, all: &[&'static str]) -> &'static str {
        all[self.below(all.len())]
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

pub(crate) fn plan(seed: u64, number: u64) -> Plan {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1);
    (0..8).for_each(|_| {
        dice.below(2);
    });
    match dice.below(4) {
        0 | 1 => several(&mut dice),
        2 => alone(&mut dice),
        _ => damaged(&mut dice),
    }
}

const PATTERNS: &[&str] =
    &["a", "a.b", "a.*", "a.>", "*", "*.b", ">", "a.b.c", "a.*.c", "*.*", "b", "*.>", "open.x", "open.>", "one.*", "service.x"];
const SUBJECTS: &[&str] =
    &["a", "a.b", "a.b.c", "b", "b.b", "a.x", "open.x", "open.y.z", "exact", "one.x", "service.x", "a*b", "a>", "log"];
const REPLIES: &[&str] = &["r", "a", "a.b", "_INBOX.1", "_INBOX.lim.1", "open.r"];
/// Where limited users may ask for a reply; the fixed scripts have the others.
const LIMITED_REPLIES: &[&str] = &["open.r", "open.x", "exact", "_INBOX.lim.1"];
const RESPONDER_REPLIES: &[&str] = &["log", "service.r", "service.x"];
const SIDS: &[&str] = &["1", "2", "3", "x9"];
const USERS: &[&str] = &["anyone", "limited", "responder"];

fn connect(dice: &mut Dice, which: Which, user: &str, headers: bool) -> String {
    let mut members = vec![format!("\"headers\":{headers}")];
    for option in ["verbose", "pedantic", "echo", "no_responders"] {
        match (option, dice.below(4)) {
            ("verbose", 0) => members.push("\"verbose\":true".to_owned()),
            ("verbose", _) => members.push("\"verbose\":false".to_owned()),
            (_, 0) => {}
            (_, 1) => members.push(format!("\"{option}\":false")),
            _ => members.push(format!("\"{option}\":true")),
        }
    }
    // asking for it without headers isn't let in; the fixed scripts have that
    if !headers {
        members.retain(|member| !member.starts_with("\"no_responders\""));
    }
    if which == Which::Users {
        members.push(format!("\"user\":\"{user}\",\"pass\":\"{user}\",\"auth_token\":\"{user}\""));
    }
    if dice.chance(20) {
        members.push("\"something\":{\"new\":[1,null]}".into());
    }
    format!("CONNECT {{{}}}\r\n", members.join(","))
}

fn case(dice: &mut Dice, name: &str) -> String {
    match dice.below(6) {
        0 => name.to_ascii_lowercase(),
        1 => name.chars().map(|letter| if dice.chance(50) { letter.to_ascii_lowercase() } else { letter }).collect(),
        _ => name.into(),
    }
}

fn blank(dice: &mut Dice) -> &'static str {
    if dice.chance(80) { " " } else { dice.of(&["  ", "\t", " \t ", "   "]) }
}

fn end(dice: &mut Dice) -> &'static str {
    dice.of(&["\r\n", "\r\n", "\r\n", "\r\n", " \r\n", "\t\r\n"])
}

fn line(dice: &mut Dice, words: &[&str]) -> String {
    let mut text = case(dice, words[0]);
    for word in &words[1..] {
        text.push_str(blank(dice));
        text.push_str(word);
    }
    text.push_str(end(dice));
    text
}

fn publication(dice: &mut Dice, number: usize, user: &str) -> Vec<u8> {
    let (subject, payload) = (dice.of(SUBJECTS), format!("{number}{}", "x".repeat(dice.below(3) * dice.below(40))));
    let replies = match user {
        "limited" => LIMITED_REPLIES,
        "responder" => RESPONDER_REPLIES,
        _ => REPLIES,
    };
    let reply = dice.chance(40).then(|| dice.of(replies));
    let headers = dice.of(&["NATS/1.0\r\n\r\n", "NATS/1.0\r\nA: b\r\n\r\n", "NATS/1.0 100 Idle\r\nA:b\r\na: c\r\n\r\n"]);
    let (head, total) = (headers.len().to_string(), (headers.len() + payload.len()).to_string());
    let size = payload.len().to_string();
    let with_headers = dice.chance(25);
    let mut words = vec![if with_headers { "HPUB" } else { "PUB" }, subject];
    words.extend(reply);
    if with_headers {
        words.extend([&*head, &*total]);
    } else {
        words.push(&size);
    }
    let mut bytes = line(dice, &words).into_bytes();
    if with_headers {
        bytes.extend_from_slice(headers.as_bytes());
    }
    bytes.extend_from_slice(payload.as_bytes());
    bytes.extend_from_slice(b"\r\n");
    bytes
}

fn operation(dice: &mut Dice, connection: usize, user: &str, number: usize, queue_sids: &mut Vec<String>) -> Vec<u8> {
    match dice.below(20) {
        0..=4 => {
            let (pattern, sid) = (dice.of(PATTERNS), dice.of(SIDS));
            line(dice, &["SUB", pattern, sid]).into_bytes()
        }
        5..=6 => {
            // ids of their own: which member gets what is free
            let sid = format!("q{connection}{}", dice.below(3));
            let (pattern, queue) = (dice.of(PATTERNS), dice.of(&["q", "r", "q.*"]));
            queue_sids.push(sid.clone());
            line(dice, &["SUB", pattern, queue, &sid]).into_bytes()
        }
        7..=9 => {
            let sid = dice.of(SIDS);
            match dice.below(4) {
                0 => line(dice, &["UNSUB", sid]).into_bytes(),
                1 => line(dice, &["UNSUB", sid, "0"]).into_bytes(),
                _ => {
                    let max = dice.of(&["1", "2", "3", "007"]);
                    line(dice, &["UNSUB", sid, max]).into_bytes()
                }
            }
        }
        10 => line(dice, &["PING"]).into_bytes(),
        11 => line(dice, &[dice_of_quiet(number)]).into_bytes(),
        _ => publication(dice, number, user),
    }
}

fn dice_of_quiet(number: usize) -> &'static str {
    ["PONG", "+OK"][number % 2]
}

fn user_of(which: Which, user: &'static str) -> &'static str {
    if which == Which::Users { user } else { "anyone" }
}

fn which(dice: &mut Dice) -> Which {
    if dice.chance(35) { Which::Users } else { Which::Open }
}

/// Well-formed operations on two or three connections.
fn several(dice: &mut Dice) -> Plan {
    let which = which(dice);
    let count = 2 + dice.below(2);
    let users: Vec<_> = (0..count).map(|_| dice.of(USERS)).collect();
    // alike for all: a member of a queue group without headers gets a message in another form, and which one gets it is free
    let headers = dice.chance(80);
    let connects = users.iter().map(|user| connect(dice, which, user, headers)).collect();
    let mut queue_sids = Vec::new();
    let operations = (0..4 + dice.below(14))
        .map(|number| {
            let connection = dice.below(count);
            (connection, operation(dice, connection, user_of(which, users[connection]), number, &mut queue_sids))
        })
        .collect();
    Plan { which, connects, operations, piece: [0, 0, 0, 1, 7][dice.below(5)], queue_sids }
}

/// Well-formed operations on one connection, not waited for one by one.
fn alone(dice: &mut Dice) -> Plan {
    let which = which(dice);
    let (user, headers) = (dice.of(USERS), dice.chance(80));
    let connects = if which == Which::Open && dice.chance(20) { vec![] } else { vec![connect(dice, which, user, headers)] };
    let mut queue_sids = Vec::new();
    let operations = (0..2 + dice.below(20)).map(|number| (0, operation(dice, 0, user_of(which, user), number, &mut queue_sids))).collect();
    Plan { which, connects, operations, piece: [0, 0, 1, 3, 50][dice.below(5)], queue_sids }
}

/// Operations of which one is damaged: bytes changed, left out, doubled.
fn damaged(dice: &mut Dice) -> Plan {
    let mut plan = alone(dice);
    let at = dice.below(plan.operations.len());
    let operation = &mut plan.operations[at].1;
    // what stands behind these names is in the list of differences
    let quiet = [&b"PING"[..], b"PONG", b"+OK"].iter().any(|name| operation[..name.len()].eq_ignore_ascii_case(name));
    // a member of a queue group under another id would no longer be known for one
    let queued = plan.queue_sids.iter().any(|sid| operation.windows(sid.len()).any(|part| part == sid.as_bytes()));
    if quiet || queued {
        return plan;
    }
    let mut bytes = operation.clone();
    for _ in 0..=dice.below(2) {
        let place = dice.below(bytes.len().max(1));
        match dice.below(4) {
            0 => {
                bytes.remove(place);
            }
            1 => bytes.insert(place, bytes[place]),
            2 => bytes[place] = dice.of(&["0", "9", "-", "+", ".", "*", ">", " ", "\n", "\t", "{", "\"", "x"]).as_bytes()[0],
            _ => bytes[place] ^= 1 << dice.below(7),
        }
    }
    // so are control characters, carriage returns elsewhere than at an end, and a line that ends right behind a name
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words = first.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
    let plain = bytes.iter().all(|byte| b" \t\r\n".contains(byte) || byte.is_ascii_graphic());
    if words > 1 && plain && bytes.windows(2).all(|pair| pair[0] != b'\r' || pair[1] == b'\n') {
        *operation = bytes;
    }
    plan
}
