//! Requests: from a message to the service that answers it, and back.

use std::sync::Arc;

use atoll_contract::{
    Error, ErrorCode, ProjectId,
    agent::{AgentInfo, Reply},
    subject,
};
use atoll_net::{
    bus::{Conn, Message, Subscription},
    clock::SharedClock,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{environment::Environment, exec::Execs, link::Link, reaper::Reaper, terminal::Terminals, worker::Worker};

/// Requests that are worked on at once; more are refused.
const MAX_REQUESTS: usize = 128;
/// The longest request: what a program's arguments and environment may come to (Linux allows 128 KiB for each one).
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// What every service needs.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) project: ProjectId,
    pub(crate) version: String,
    pub(crate) boot: String,
    pub(crate) environment: Arc<Environment>,
    pub(crate) conn: Link,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) clock: SharedClock,
    pub(crate) stop: CancellationToken,
    /// Tasks that have a program to end.
    pub(crate) tasks: TaskTracker,
}

impl Parts {
    /// The link as streams take it.
    pub(crate) fn conn(&self) -> Arc<dyn Conn> {
        Arc::new(self.conn.clone())
    }

    pub(crate) fn stream(&self, id: &str, part: &str) -> String {
        subject::stream(self.project, id, part)
    }

    /// # Errors
    /// `invalid_argument`.
    pub(crate) fn check_stream(id: &str) -> Result<(), Error> {
        if subject::is_stream_id(id) {
            Ok(())
        } else {
            Err(Error::invalid("The stream id must be 16 to 64 letters and digits.").mend("Choose a new random one for each request."))
        }
    }
}

pub(crate) struct Agent {
    parts: Parts,
    execs: Arc<Execs>,
    terminals: Arc<Terminals>,
    requests: Arc<Semaphore>,
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Self {
        let (execs, terminals) = (Execs::new(parts.clone()), Terminals::new(parts.clone()));
        Self { parts, execs, terminals, requests: Arc::new(Semaphore::new(MAX_REQUESTS)) }
    }

    /// Subscribes to all that is asked of an agent.
    ///
    /// # Errors
    /// Those of [`Conn::subscribe`].
    pub(crate) async fn listen(self: &Arc<Self>) -> Result<(), Error> {
        for rest in ["exec.*", "terminal.*", "agent.info"] {
            let subscription = self.parts.conn.subscribe(&subject::project(self.parts.project, rest), None).await?;
            tokio::spawn(self.clone().take(subscription));
        }
        Ok(())
    }

    /// Tells the host who has connected.
    ///
    /// # Errors
    /// Those of [`Conn::publish`].
    pub(crate) async fn hello(&self) -> Result<(), Error> {
        let payload = serde_json::to_vec(&self.info()).map_err(|error| Error::internal(error.to_string()))?;
        self.parts.conn.publish(Message::new(subject::project(self.parts.project, "agent.hello"), payload)).await
    }

    pub(crate) fn close_terminals(&self) {
        self.terminals.close_all();
    }

    fn info(&self) -> AgentInfo {
        AgentInfo {
            version: self.parts.version.clone(),
            boot: self.parts.boot.clone(),
            terminals: u32::try_from(self.terminals.count()).unwrap_or(u32::MAX),
            execs: u32::try_from(self.execs.count()).unwrap_or(u32::MAX),
        }
    }

    async fn take(self: Arc<Self>, mut requests: Subscription) {
        loop {
            let message = tokio::select! {
                message = requests.next() => message,
                () = self.parts.stop.cancelled() => return,
            };
            let Some(message) = message else { return };
            let permit = self.requests.clone().try_acquire_owned();
            let agent = self.clone();
            match permit {
                Ok(permit) => drop(tokio::spawn(async move {
                    let answer = agent.answer(&message).await;
                    agent.reply(&message, answer).await;
                    drop(permit);
                })),
                Err(_) => {
                    let error = Error::new(ErrorCode::LimitExceeded, format!("The agent works on {MAX_REQUESTS} requests already."));
                    agent.reply(&message, encode::<()>(Err(error))).await;
                }
            }
        }
    }

    async fn reply(&self, request: &Message, payload: Vec<u8>) {
        let Some(reply) = request.reply.clone() else { return };
        if let Err(error) = self.parts.conn.publish(Message::new(reply, payload)).await {
            tracing::debug!(%error, "an answer couldn't be sent");
        }
    }

    async fn answer(self: &Arc<Self>, message: &Message) -> Vec<u8> {
        // project.<id>.<service>.<verb>
        let rest = message.subject.splitn(3, '.').nth(2).unwrap_or_default();
        let payload = &message.payload[..];
        let (execs, terminals) = (&self.execs, &self.terminals);
        match rest {
            "exec.start" => encode(async { execs.start(parse(payload)?).await }.await),
            "exec.cancel" => encode(parse(payload).and_then(|request| execs.cancel(&request))),
            "terminal.open" => encode(async { terminals.open(parse(payload)?).await }.await),
            "terminal.list" => encode(Ok(terminals.list())),
            "terminal.attach" => encode(async { terminals.attach(parse(payload)?).await }.await),
            "terminal.detach" => encode(parse(payload).and_then(|request| terminals.detach(&request))),
            "terminal.resize" => encode(parse(payload).and_then(|request| terminals.resize(&request))),
            "terminal.close" => encode(async { terminals.close(&parse(payload)?).await }.await),
            "agent.info" => encode(Ok(self.info())),
            _ => encode::<()>(Err(Error::new(ErrorCode::Unsupported, format!("This agent doesn't know {rest:?}.")))),
        }
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Error> {
    if payload.len() > MAX_REQUEST_BYTES {
        return Err(Error::invalid(format!("The request has more than {MAX_REQUEST_BYTES} bytes.")));
    }
    serde_json::from_slice(payload).map_err(|error| Error::invalid(format!("The request can't be read: {error}.")))
}

fn encode<T: Serialize>(result: Result<T, Error>) -> Vec<u8> {
    let text = serde_json::to_vec(&Reply::from(result));
    text.unwrap_or_else(|_| br#"{"error":{"code":"internal","message":"The answer can't be written as JSON.","retry":false}}"#.to_vec())
}
