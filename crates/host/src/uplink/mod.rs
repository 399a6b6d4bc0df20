//! The way to the master: one connection to its bus, over which commands come and reports go. It comes back by itself, and nothing that
//! users do on this host waits for it.

mod calls;
mod capacity;
mod report;
mod stats;

use std::{path::PathBuf, sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode,
    command::{Command, CommandReply},
    host::HostFacts,
    subject,
};
use atoll_net::{
    bus::{BoxFuture, Router},
    clock::{SharedClock, random_text},
    tls::ClientConfig,
};
use futures_util::StreamExt;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::capacity::Bounds;
use crate::{gate::SharedKeys, join::Identity, projects::Projects, storage::Storage};

/// Commands that are being answered at once. Each takes at most a few seconds to answer, its work apart; the master asks again.
const MAX_COMMANDS: usize = 256;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);

/// What the uplink works with.
pub(crate) struct Uplink {
    pub(crate) identity: Identity,
    pub(crate) data_dir: PathBuf,
    pub(crate) bus_url: String,
    /// Whom it believes to be its master, if the URL is an encrypted one.
    pub(crate) trust: Option<ClientConfig>,
    pub(crate) facts: HostFacts,
    pub(crate) bounds: Bounds,
    pub(crate) projects: Projects,
    /// The host's own bus, which calls are asked on.
    pub(crate) bus: Arc<Router>,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) keys: SharedKeys,
    pub(crate) clock: SharedClock,
}

impl Uplink {
    /// Keeps the connection until `cancel` fires.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(self) {
        let (connections, connection) = watch::channel(0);
        let client = loop {
            match self.options(connections.clone()).connect(&self.bus_url).await {
                Ok(client) => break client,
                // it connects in the background, so this is about the address; a name may become resolvable
                Err(error) => {
                    tracing::error!(url = %self.bus_url, %error, "no uplink to the master");
                    tokio::time::sleep(LAST_DELAY).await;
                }
            }
        };
        let commands = serve_commands(client.clone(), subject::host_command(self.identity.host), self.projects.clone());
        let calls = calls::Calls::new(client.clone(), &self.bus, self.projects.clone());
        let calls = calls.serve(subject::host_call(self.identity.host));
        let stats = stats::serve(client.clone(), subject::host_stats(self.identity.host), self.bus.clone());
        let reporter = report::Reporter::new(self, client);
        tokio::join!(commands, calls, stats, reporter.run(connection));
    }

    fn options(&self, connections: watch::Sender<u64>) -> async_nats::ConnectOptions {
        let (clock, url) = (self.clock.clone(), self.bus_url.clone());
        let options = async_nats::ConnectOptions::with_nkey(self.identity.seed.clone());
        let options = match &self.trust {
            Some(trust) => options.tls_client_config(trust.clone()),
            None => options,
        };
        options
            .name(format!("host {}", self.identity.name))
            .custom_inbox_prefix(format!("_INBOX.{}", self.identity.host))
            .retry_on_initial_connect()
            .ignore_discovered_servers()
            .connection_timeout(Duration::from_secs(5))
            // a connection that died without a word is noticed after two of these
            .ping_interval(Duration::from_secs(5))
            .reconnect_delay_callback(move |attempts| delay(attempts, &random_text(&*clock)))
            .event_callback(move |event| {
                match event {
                    async_nats::Event::Connected => {
                        tracing::info!(%url, "connected to the master");
                        connections.send_modify(|connection| *connection += 1);
                    }
                    async_nats::Event::Disconnected => tracing::warn!(%url, "disconnected from the master"),
                    event => tracing::warn!(%url, %event, "uplink"),
                }
                std::future::ready(())
            })
    }
}

/// How long before the next attempt: doubling from 100 ms to 10 s, of which a random half, so that the hosts of a master that comes back
/// don't all knock at once. The first attempt (number 1) is made at once.
fn delay(attempts: usize, random: &str) -> Duration {
    if attempts <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempts - 2).unwrap_or(u32::MAX).min(16);
    let most = FIRST_DELAY.saturating_mul(1 << doublings).min(LAST_DELAY);
    // 32 letters of 5 bits each
    let share = random.bytes().take(4).fold(0u32, |sum, byte| (sum << 5) | u32::from(byte & 31));
    most.mul_f64(0.5 + f64::from(share) / f64::from(1u32 << 21))
}

/// What a message from the master asks for.
enum Work {
    /// A few words, before the next message is looked at.
    AtOnce(BoxFuture<'static, ()>),
    /// A task of its own, bounded by who gives it.
    Apart(BoxFuture<'static, ()>),
    Nothing,
}

/// Hears what the master sends to a subject. The tasks that it began end with it.
async fn hear(client: async_nats::Client, subject: String, mut take: impl FnMut(async_nats::Message) -> Work) {
    let mut answering = JoinSet::new();
    loop {
        let mut messages = match client.subscribe(subject.clone()).await {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(subject, %error, "the master can't be heard");
                tokio::time::sleep(FIRST_DELAY).await;
                continue;
            }
        };
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                Some(ended) = answering.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(subject, %error, "answering the master broke off");
                    }
                    continue;
                }
            };
            let Some(message) = message else { break };
            match take(message) {
                Work::AtOnce(work) => work.await,
                Work::Apart(work) => drop(answering.spawn(work)),
                Work::Nothing => {}
            }
        }
        tokio::time::sleep(FIRST_DELAY).await;
    }
}

async fn serve_commands(client: async_nats::Client, subject: String, projects: Projects) {
    let room = Arc::new(Semaphore::new(MAX_COMMANDS));
    let answering = client.clone();
    let take = move |message: async_nats::Message| {
        let Some(reply_to) = message.reply else {
            tracing::warn!("a command without a reply subject is ignored");
            return Work::Nothing;
        };
        let (client, projects) = (answering.clone(), projects.clone());
        let Ok(permit) = room.clone().try_acquire_owned() else {
            let error = Error::new(ErrorCode::LimitExceeded, format!("This host answers {MAX_COMMANDS} commands at once."));
            return Work::AtOnce(Box::pin(async move { answer(&client, reply_to, &CommandReply::Failed { error }).await }));
        };
        Work::Apart(Box::pin(async move {
            let reply = match serde_json::from_slice::<Command>(&message.payload) {
                Ok(command) => projects.command(command).await,
                Err(error) => CommandReply::Failed { error: Error::invalid(format!("This isn't a command: {error}.")) },
            };
            answer(&client, reply_to, &reply).await;
            drop(permit);
        }))
    };
    hear(client, subject, take).await;
}

async fn answer(client: &async_nats::Client, to: async_nats::Subject, reply: &impl serde::Serialize) {
    let text = match serde_json::to_vec(reply) {
        Ok(text) => text,
        Err(error) => return tracing::error!(%error, "a reply can't be written"),
    };
    // an answer that gets lost is asked for again
    if let Err(error) = client.publish(to, text.into()).await {
        tracing::warn!(%error, "an answer can't be sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_their_bounds() {
        assert_eq!(delay(1, "aaaa"), Duration::ZERO);
        let most = |attempts| delay(attempts, "????");
        let least = |attempts| delay(attempts, "@@@@");
        assert_eq!(least(2), Duration::from_millis(50));
        assert!(most(2) > Duration::from_millis(99) && most(2) <= Duration::from_millis(100));
        assert_eq!(least(4), Duration::from_millis(200));
        for attempts in [20, 1000, usize::MAX] {
            assert!(least(attempts) == LAST_DELAY / 2 && most(attempts) <= LAST_DELAY);
        }
    }
}

#[cfg(test)]
mod bus_tests;
