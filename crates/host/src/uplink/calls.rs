//! Calls that the master hands on: asked on this host's own bus in the name of the caller's role, and the answer goes back as it is.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use atoll_contract::{
    Error, ErrorCode,
    call::{self, HostCall},
    claims::stale_assignment,
    subject::Permissions,
};
use atoll_net::bus::{
    Conn, Headers, Message, Router,
    stock::{StockConn, from_stock},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Work, hear};
use crate::projects::Projects;

/// Calls that are asked at once, and bytes of their requests. The master bounds each account's below that.
const MAX_CALLS: usize = 1024;
const MAX_BYTES: usize = 64 << 20;

#[derive(Clone)]
pub(super) struct Calls {
    client: async_nats::Client,
    /// The client as what answers are sent by.
    uplink: StockConn,
    /// May ask every project, and nothing else; each call is checked against its own role's table first. One connection for all of them, since a
    /// connection's coming and going makes all publishers on the bus look up again who gets what.
    bus: Arc<dyn Conn>,
    projects: Projects,
    room: Arc<Semaphore>,
    bytes: Arc<AtomicUsize>,
}

/// A place among the calls that are asked at once.
struct Turn {
    bytes: usize,
    all: Arc<AtomicUsize>,
    #[allow(dead_code, reason = "held for its drop")]
    permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Calls {
    pub(super) fn new(client: async_nats::Client, bus: &Arc<Router>, projects: Projects) -> Self {
        let permissions = Permissions { publish: vec!["project.*.>".into()], ..Permissions::default() };
        Self {
            uplink: StockConn::new(client.clone()),
            client,
            bus: bus.connect("calls", Some(permissions)),
            projects,
            room: Arc::new(Semaphore::new(MAX_CALLS)),
            bytes: Arc::default(),
        }
    }

    /// Serves as long as it is polled.
    pub(super) async fn serve(self, subject: String) {
        hear(self.client.clone(), subject, move |message| self.take(from_stock(message))).await;
    }

    fn take(&self, message: Message) -> Work {
        let Some(reply) = message.reply.clone() else {
            tracing::warn!("a call without a reply subject is ignored");
            return Work::Nothing;
        };
        let calls = self.clone();
        // the master asks whether this host is there, however busy it is
        if message.headers.is_empty() && message.payload.is_empty() {
            return Work::AtOnce(Box::pin(async move { calls.send(Message::new(reply, "")).await }));
        }
        let Some(turn) = self.turn(message.size()) else {
            let error =
                Error::new(ErrorCode::LimitExceeded, "This host has as many calls to answer as it may.").mend("Ask again in a moment.");
            return Work::AtOnce(Box::pin(async move { calls.send(refusal(reply, &error)).await }));
        };
        Work::Apart(Box::pin(async move {
            let answer = match calls.ask(message).await {
                Ok(answer) => pack(answer, reply),
                Err(error) => refusal(reply, &error),
            };
            calls.send(answer).await;
            drop(turn);
        }))
    }

    fn turn(&self, bytes: usize) -> Option<Turn> {
        let permit = self.room.clone().try_acquire_owned().ok()?;
        let more = |all: usize| Some(all + bytes).filter(|all| *all <= MAX_BYTES);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Turn { bytes, all: self.bytes.clone(), permit })
    }

    async fn ask(&self, message: Message) -> Result<Message, Error> {
        let asked = HostCall::read(|name| message.headers.get(name))?;
        let fields = message.headers.fields.iter().filter(|(name, _)| !call::is_own_header(name)).cloned().collect();
        let headers = Headers { fields, ..Headers::default() };
        let question = Message { headers, ..Message::new(self.subject(&asked)?, message.payload) };
        self.bus.request(question, asked.timeout).await
    }

    /// What is asked on the host's bus, if the project is here and the role may.
    fn subject(&self, asked: &HostCall) -> Result<String, Error> {
        match self.projects.generation_in_force(asked.project) {
            Some(in_force) if in_force == asked.generation => {}
            Some(in_force) => return Err(stale_assignment(asked.generation, in_force)),
            None => {
                return Err(Error::new(ErrorCode::StaleAssignment, "This host doesn't have the project.")
                    .mend("Ask the master where the project is now."));
            }
        }
        call::host_subject(asked.project, asked.role, &asked.rest)
    }

    async fn send(&self, answer: Message) {
        let reply = answer.subject.clone();
        let sent = match self.uplink.publish(answer).await {
            Err(error) if matches!(error.code, ErrorCode::TooLarge | ErrorCode::InvalidArgument) => {
                self.uplink.publish(refusal(reply, &error)).await
            }
            sent => sent,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a call's answer can't be sent");
        }
    }
}

/// The project's answer on its way to the master: as it is, with its status line as a header, and without headers that only the host may say.
fn pack(answer: Message, reply: Arc<str>) -> Message {
    let fields = answer.headers.fields.into_iter().filter(|(name, _)| !call::is_own_header(name)).collect();
    let mut headers = Headers { fields, ..Headers::default() };
    if let Some(status) = answer.headers.status {
        let line = format!("{status:03} {}", answer.headers.description);
        headers = headers.with(call::STATUS, line.trim_end());
    }
    Message { headers, ..Message::new(reply, answer.payload) }
}

/// The host's own error.
fn refusal(reply: Arc<str>, error: &Error) -> Message {
    let headers = Headers::default().with(call::ERROR, error.code.as_str());
    // an error is text and JSON: it can always be written
    Message { headers, ..Message::new(reply, serde_json::to_vec(error).unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_carried_with_its_status_and_can_not_pass_for_the_host_s_word() {
        let headers = Headers { status: Some(404), description: "No Messages".into(), fields: Vec::new() };
        let headers = headers.with("Nats-Sequence", "7").with("atoll-error", "stale_assignment").with("Atoll-Status", "200");
        let packed = pack(Message { headers, ..Message::new("_INBOX.a", "x") }, "r".into());
        let fields: Vec<_> = packed.headers.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(fields, [("Nats-Sequence", "7"), ("Atoll-Status", "404 No Messages")]);
        assert_eq!((packed.headers.status, &*packed.subject, &packed.payload[..]), (None, "r", &b"x"[..]));

        let headers = Headers { status: Some(100), ..Headers::default() };
        assert_eq!(pack(Message { headers, ..Message::new("a", "") }, "r".into()).headers.get(call::STATUS), Some("100"));
        assert!(pack(Message::new("a", "x"), "r".into()).headers.is_empty());
    }
}
