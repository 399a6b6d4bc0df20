//! Messages from arguments and onto standard output.

use std::io::{ErrorKind, Read, Write};

use atoll_contract::{Error, ErrorCode};
use atoll_net::bus::{Headers, Message};
use serde::Serialize;

use crate::{
    args::BusMessageArgs,
    errors::{self, Result, plain},
    output::Output,
};

/// A payload larger than this isn't read; buses take far less.
const MAX_PAYLOAD: u64 = 64 << 20;
/// Bytes of a payload that is no text, as people see it.
const SHOWN_BYTES: usize = 256;

/// The message that the arguments describe.
pub fn from_args(args: &BusMessageArgs) -> Result<Message> {
    let payload = match (&args.payload, args.file.as_deref()) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some("-")) => read(std::io::stdin().lock(), "Standard input")?,
        (None, Some(path)) => read(std::fs::File::open(path).map_err(|error| errors::io(path, &error))?, path)?,
        (None, None) => Vec::new(),
    };
    let headers = args.headers.iter().fold(Headers::default(), |headers, line| headers.with(&line.name, line.value.clone()));
    Ok(Message { headers, ..Message::new(args.subject.as_str(), payload) })
}

fn read(from: impl Read, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_PAYLOAD + 1).read_to_end(&mut bytes).map_err(|error| errors::io(what, &error))?;
    if bytes.len() as u64 > MAX_PAYLOAD {
        return Err(Error::new(ErrorCode::TooLarge, format!("{what} is too large for a message.")));
    }
    Ok(bytes)
}

/// A message as one line of JSON. The payload is there once: as text if it is UTF-8.
#[derive(Debug, Serialize)]
struct View<'a> {
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// In order, and with repetitions.
    headers: &'a [(String, String)],
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> View<'a> {
    fn of(message: &'a Message) -> Self {
        use base64::Engine;
        let text = std::str::from_utf8(&message.payload);
        Self {
            subject: &message.subject,
            reply: message.reply.as_deref(),
            status: message.headers.status,
            headers: &message.headers.fields,
            payload: text.ok(),
            payload_base64: text.is_err().then(|| base64::engine::general_purpose::STANDARD.encode(&message.payload)),
        }
    }
}

/// How messages are printed.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    json: bool,
    raw: bool,
}

impl Printer {
    /// # Errors
    /// `invalid_argument` for both at once.
    pub fn new(output: Output, raw: bool) -> Result<Self> {
        if raw && output.json {
            return Err(Error::invalid("--raw and --json exclude each other."));
        }
        Ok(Self { json: output.json, raw })
    }

    /// Whether somebody still reads.
    pub fn print(self, number: u64, message: &Message) -> Result<bool> {
        let mut bytes = match (self.raw, self.json) {
            (true, _) => message.payload.to_vec(),
            (_, true) => serde_json::to_vec(&View::of(message))
                .map_err(|error| Error::internal(format!("The message can't be written as JSON: {error}.")))?,
            _ => for_people(number, message).into_bytes(),
        };
        bytes.push(b'\n');
        let mut out = std::io::stdout().lock();
        match out.write_all(&bytes).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(errors::io("Standard output", &error)),
        }
    }
}

/// `#1 subject (reply to …)`, headers, payload, an empty line.
fn for_people(number: u64, message: &Message) -> String {
    let mut lines = vec![format!("#{number} {}", message.subject)];
    if let Some(reply) = &message.reply {
        lines[0].push_str(" (reply to ");
        lines[0].push_str(reply);
        lines[0].push(')');
    }
    lines.extend(message.headers.status.map(|status| format!("  status {status}")));
    lines.extend(message.headers.fields.iter().map(|(name, value)| format!("  {name}: {value}")));
    lines.extend(Some(&message.payload).filter(|payload| !payload.is_empty()).map(|payload| payload_text(payload)));
    let mut text = plain(&lines.join("\n"));
    text.push('\n');
    text
}

/// Text as it is; other bytes in hexadecimal, the first of them if there are many.
fn payload_text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) => text.trim_end_matches('\n').to_owned(),
        Err(_) => {
            let some = &payload[..payload.len().min(SHOWN_BYTES)];
            let hex: Vec<String> =
                some.chunks(32).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")).collect();
            let more = if some.len() < payload.len() { format!("\n… {} bytes in all", payload.len()) } else { String::new() };
            format!("{}{more}", hex.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &[u8]) -> Message {
        let headers = Headers::default().with("A", "1").with("A", "2");
        Message { reply: Some("r.1".into()), headers, ..Message::new("s", payload.to_vec()) }
    }

    #[test]
    fn people_see_subject_headers_and_payload() {
        assert_eq!(for_people(3, &message(b"hello\n")), "#3 s (reply to r.1)\n  A: 1\n  A: 2\nhello\n");
        assert_eq!(for_people(1, &Message::new("s", "")), "#1 s\n");
        assert_eq!(for_people(1, &Message::new("s", "a\u{1b}[2Jb")), "#1 s\na\u{fffd}[2Jb\n");
        let status = Message { headers: Headers { status: Some(503), ..Headers::default() }, ..Message::new("s", "") };
        assert_eq!(for_people(1, &status), "#1 s\n  status 503\n");
    }

    #[test]
    fn bytes_are_shown_in_hexadecimal_up_to_a_bound() {
        assert_eq!(payload_text(&[0xff, 0, 0x10]), "ff 00 10");
        let long = payload_text(&[0xfe; 1000]);
        assert!(long.ends_with("… 1000 bytes in all") && long.matches("fe").count() == SHOWN_BYTES, "{long}");
    }

    #[test]
    fn json_has_text_or_base64() {
        let json = |message: &Message| serde_json::to_value(View::of(message)).unwrap();
        let text = json(&message(b"hello"));
        let expected = serde_json::json!({"subject": "s", "reply": "r.1", "headers": [["A", "1"], ["A", "2"]], "payload": "hello"});
        assert_eq!(text, expected);
        let bytes = json(&Message::new("s", vec![0xff, 0xfe]));
        assert_eq!(bytes, serde_json::json!({"subject": "s", "headers": [], "payload_base64": "//4="}));
    }
}
