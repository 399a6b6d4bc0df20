//! What goes over the wire, byte by byte, as a file: every change of it shows.

use std::fmt::Write;

use atoll_net::bus::{Conn, Headers, Message, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::support::{SOON, open_bus};

/// Collects both sides of a conversation.
struct Transcript {
    io: DuplexStream,
    text: String,
}

impl Transcript {
    async fn say(&mut self, bytes: &str) {
        self.note('>', bytes);
        self.io.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Reads until the other side has sent what ends so.
    async fn hear(&mut self, end: &str) {
        let mut heard = Vec::new();
        let read = async {
            while !heard.ends_with(end.as_bytes()) {
                heard.push(self.io.read_u8().await.unwrap());
            }
        };
        tokio::time::timeout(SOON, read).await.unwrap_or_else(|_| panic!("{end:?} comes"));
        let text = String::from_utf8(heard).unwrap();
        self.note('<', &text);
    }

    fn note(&mut self, mark: char, bytes: &str) {
        for line in bytes.split_inclusive("\r\n") {
            writeln!(self.text, "{mark} {}", line.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'")).unwrap();
        }
    }
}

/// Replaces what differs from run to run.
fn fixed(text: &str) -> String {
    let mut text = text.to_owned();
    for (before, after) in [("\"server_id\":\"", "\""), ("\"nonce\":\"", "\""), ("_INBOX.", ".")] {
        let mut from = 0;
        while let Some(at) = text[from..].find(before) {
            let start = from + at + before.len();
            let end = start + text[start..].find(after).unwrap();
            text.replace_range(start..end, "RANDOM");
            from = start;
        }
    }
    text
}

fn check(name: &str, text: &str) {
    insta::with_settings!({ snapshot_path => "../golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, fixed(text));
    });
}

#[tokio::test]
async fn the_server() {
    let bus = open_bus();
    let mut talk = Transcript { io: bus.pipe(4096), text: String::new() };
    talk.hear("}\r\n").await;
    talk.say("CONNECT {\"verbose\":true,\"headers\":true,\"no_responders\":true}\r\n").await;
    talk.hear("+OK\r\n").await;
    talk.say("SUB a.> 1\r\n").await;
    talk.hear("+OK\r\n").await;
    talk.say("CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n").await;
    talk.hear("PONG\r\n").await;
    for (said, end) in [
        ("PUB a.b 2\r\nhi\r\n", "hi\r\n"),
        ("PUB a.b a.reply 2\r\nhi\r\n", "hi\r\n"),
        ("HPUB a.b 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n", "hi\r\n"),
        ("HPUB a.b a.reply 16 16\r\nNATS/1.0 100\r\n\r\n\r\n", "\r\n\r\n\r\n"),
        ("PUB nobody a.reply 0\r\n\r\n", "\r\n\r\n\r\n"),
        ("PUB a.* 0\r\n\r\n", "'\r\n"),
        ("SUB a..b 2\r\n", "'\r\n"),
        ("XYZ\r\n", "'\r\n"),
    ] {
        talk.say(said).await;
        talk.hear(end).await;
    }
    check("bus_server", &talk.text);
}

#[tokio::test]
async fn our_client() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let mut talk = Transcript { io: ours, text: String::new() };
    let options = client::Options { name: "golden".into(), token: Some("secret".into()), ..client::Options::default() };
    let connecting = tokio::spawn(client::connect(theirs, options));
    talk.say("INFO {\"server_id\":\"x\",\"nonce\":\"y\",\"max_payload\":1000}\r\n").await;
    talk.hear("PING\r\n").await;
    talk.say("PONG\r\n").await;
    let client = connecting.await.unwrap().unwrap();

    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { (client.subscribe("a.*", None).await.unwrap(), client.subscribe("a.>", Some("q")).await.unwrap()) }
    });
    talk.hear("PING\r\n").await;
    talk.say("PONG\r\n").await;
    talk.hear("PING\r\n").await;
    talk.say("PONG\r\n").await;
    let (mut one, _two) = subscribing.await.unwrap();

    let message = Message::new("a.b", "hi");
    client.publish(message.clone()).await.unwrap();
    talk.hear("hi\r\n").await;
    client.publish(Message { reply: Some("r".into()), headers: Headers::default().with("Offset", "5"), ..message }).await.unwrap();
    talk.hear("hi\r\n").await;
    talk.say("MSG a.b 1 2\r\nhi\r\n").await;
    assert_eq!(one.next().await.unwrap().payload, "hi");
    talk.say("PING\r\n").await;
    talk.hear("PONG\r\n").await;
    drop(one);
    talk.hear("UNSUB 1\r\n").await;

    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.request(Message::new("service", "?"), SOON).await.unwrap_err() }
    });
    talk.hear("PING\r\n").await;
    talk.say("PONG\r\n").await;
    talk.hear("?\r\n").await;
    let said = talk.text.lines().last().unwrap_or_default().to_owned();
    let publish = talk.text.lines().rev().nth(1).unwrap_or(&said).to_owned();
    let inbox = publish.split(' ').nth(3).unwrap().to_owned();
    talk.say(&format!("HMSG {inbox} 3 16 16\r\nNATS/1.0 503\r\n\r\n\r\n")).await;
    assert_eq!(asking.await.unwrap().code, atoll_contract::ErrorCode::NoResponders);
    check("bus_client", &talk.text);
}
