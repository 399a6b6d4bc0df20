//! What a server said, as events, without what is free.

/// What came back on each connection, and what the members of queue groups got together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transcript {
    pub(crate) connections: Vec<Vec<String>>,
    pub(crate) shared: Vec<String>,
}

impl Transcript {
    pub(crate) fn no_responders(&self) -> bool {
        self.connections.iter().flatten().any(|event| event.contains("NATS/1.0 503"))
    }

    pub(crate) fn shown(&self) -> String {
        let mut all: Vec<_> = self.connections.iter().map(|events| events.join(" ; ")).collect();
        if !self.shared.is_empty() {
            all.push(format!("groups: {}", self.shared.join(" ; ")));
        }
        all.join("\n               ")
    }
}

/// Cuts a server's bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    rest: Vec<u8>,
    pub(crate) events: Vec<String>,
}

impl Reader {
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        while let Some((event, size)) = event(&self.rest) {
            self.rest.drain(..size);
            // when a server asks whether one is there is its own affair, and newer ones send INFO again after CONNECT
            let free = event == "PING" || event == "INFO" && !self.events.is_empty();
            if !free {
                self.events.push(event);
            }
        }
    }

    pub(crate) fn pongs(&self) -> usize {
        self.events.iter().filter(|event| *event == "PONG").count()
    }
}

fn event(bytes: &[u8]) -> Option<(String, usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, next) = (&bytes[..end], end + 2);
    if line.starts_with(b"INFO ") {
        let text = String::from_utf8_lossy(line);
        let lame = text.contains("\"ldm\":true");
        return Some((if lame { "INFO ldm" } else { "INFO" }.into(), next));
    }
    if line.starts_with(b"MSG ") || line.starts_with(b"HMSG ") {
        let size: usize = std::str::from_utf8(line.rsplit(|byte| *byte == b' ').next()?).ok()?.parse().ok()?;
        let body = bytes.get(next..next + size + 2)?;
        if is_no_responders(body) {
            let subject = line.split(|byte| *byte == b' ').nth(1)?;
            return Some((format!("HMSG {} 16 16 | {}", shown(subject), shown(NO_RESPONDERS)), next + size + 2));
        }
        // leading zeros of a size are sent on there, and aren't here
        let head = line.iter().rposition(|byte| *byte == b' ').map_or(line, |at| &line[..at]);
        let text = format!("{} {size} | {}", shown(head), shown(body));
        return Some((text, next + size + 2));
    }
    Some((shown(line), next))
}

/// Puts messages in a row that differ in the subscription alone into one order: which of a client's subscriptions gets a message first is free.
pub(crate) fn order_subscriptions(events: &mut [String]) {
    let mut start = 0;
    while start < events.len() {
        let what = without_sid(&events[start]);
        let count = events[start..].iter().take_while(|event| what.is_some() && without_sid(event) == what).count().max(1);
        events[start..start + count].sort();
        start += count;
    }
}

pub(crate) fn shown(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    if text.len() > 300 { format!("{}… ({} bytes)", text.chars().take(200).collect::<String>(), bytes.len()) } else { text }
}

/// Which of a client's subscriptions got it left out; `None` if it isn't a message.
fn without_sid(event: &str) -> Option<String> {
    let mut words = event.splitn(4, ' ');
    let name = words.next().filter(|name| matches!(*name, "MSG" | "HMSG"))?;
    let (subject, _sid, rest) = (words.next()?, words.next()?, words.next()?);
    Some(format!("{name} {subject} {rest}"))
}

/// A message's body, when it says that nobody responds.
const NO_RESPONDERS: &[u8] = b"NATS/1.0 503\r\n\r\n\r\n";

/// Whether it says that; newer servers name the subject in it. Which of the client's subscriptions gets it is free.
fn is_no_responders(body: &[u8]) -> bool {
    body == NO_RESPONDERS
        || body.strip_prefix(b"NATS/1.0 503\r\nNats-Subject: ").is_some_and(|rest| {
            // one line, and the end of headers and payload behind it
            rest.strip_suffix(b"\r\n\r\n\r\n").is_some_and(|subject| !subject.contains(&b'\r'))
        })
}

/// Takes what members of queue groups got out of the connections, sorted: which member gets a message is free, that one does isn't.
pub(crate) fn take_queued(connections: &mut [Vec<String>], sids: &[String]) -> Vec<String> {
    let mut taken = Vec::new();
    for events in connections {
        events.retain(|event| {
            let mut words = event.split(' ');
            let (name, subject, sid) = (words.next(), words.next(), words.next());
            let queued = matches!(name, Some("MSG" | "HMSG")) && sid.is_some_and(|sid| sids.iter().any(|queued| queued == sid));
            if queued {
                taken.push(format!("{} {}", subject.unwrap_or_default(), words.collect::<Vec<_>>().join(" ")));
            }
            !queued
        });
    }
    taken.sort();
    taken
}
