//! Runs inside a project's container: reaps orphans as process 1, runs commands, and keeps terminals. A client of its host's bus over a
//! unix socket; no ports, no network.
//!
//! It is the same static binary in every image, so it relies on nothing there: no shell, no libc, no `/etc/passwd`.
//!
//! A lost connection ends nothing: commands and terminals go on, the agent dials until the host is there again, and the streams repeat
//! what was on its way (see [`atoll_net::byte_stream`]). What nobody listens to for `EXEC_ORPHAN_SECONDS` is ended.

mod environment;
mod exec;
mod link;
mod reaper;
mod serve;
mod spawn;
mod terminal;
mod worker;

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use atoll_contract::agent::{AGENT_CONFIG_PATH, AGENT_SOCKET_PATH, AgentConfig, KILL_GRACE_MILLIS};
use atoll_net::clock::{SharedClock, SystemClock, random_text};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{environment::Environment, link::Link, reaper::Reaper, serve::Agent, worker::Worker};

/// Where the agent learns who it is.
#[derive(Debug, Clone)]
pub enum ConfigSource {
    /// A file, read again at every connection: a host that has restarted may have written another secret.
    Path(PathBuf),
    Fixed(Box<AgentConfig>),
}

/// How an agent runs.
#[derive(Clone)]
pub struct AgentOptions {
    pub config: ConfigSource,
    /// The host's bus.
    pub socket: PathBuf,
    /// Process 1 of a container: reaps every child, listens to SIGTERM, and ends everything there is when it ends. Otherwise only what it has
    /// started itself is waited for and ended, so that it can live in another program.
    pub init: bool,
    /// What the environment of every program begins with.
    pub env: Vec<(OsString, OsString)>,
    pub version: String,
    pub clock: SharedClock,
    /// Ends the agent.
    pub cancel: CancellationToken,
}

impl AgentOptions {
    /// As process 1 of a container.
    pub fn container(version: &str) -> Self {
        Self {
            config: ConfigSource::Path(AGENT_CONFIG_PATH.into()),
            socket: AGENT_SOCKET_PATH.into(),
            init: true,
            env: std::env::vars_os().collect(),
            version: version.to_owned(),
            clock: Arc::new(SystemClock),
            cancel: CancellationToken::new(),
        }
    }

    /// Inside another program, such as a test of a whole cluster.
    pub fn in_process(config: AgentConfig, socket: impl Into<PathBuf>, cancel: CancellationToken) -> Self {
        Self {
            config: ConfigSource::Fixed(Box::new(config)),
            socket: socket.into(),
            init: false,
            cancel,
            ..Self::container(env!("CARGO_PKG_VERSION"))
        }
    }
}

/// How long the tasks have, after their programs have ended, to tell their callers.
const FAREWELL: Duration = Duration::from_millis(500);
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs until it is cancelled, or as process 1 until SIGTERM, SIGINT or SIGQUIT. Nothing else ends it. Returns the exit code.
///
/// Needs a tokio runtime with I/O, time and signals; one thread is enough.
pub async fn run(mut options: AgentOptions) -> i32 {
    if options.init && !rustix::process::getpid().is_init() {
        // what process 1 does at its end would end every process of the machine
        tracing::warn!("the agent isn't process 1 and won't act as if it were");
        options.init = false;
    }
    let stop = options.cancel.clone();
    let (reaper, worker) = match (Reaper::start(options.init), Worker::start()) {
        (Ok(reaper), Ok(worker)) => (reaper, Arc::new(worker)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "the agent can't listen to SIGCHLD or start its thread");
            return 1;
        }
    };
    if options.init {
        listen_for_the_end(&stop);
    }
    let Some(config) = link::first_config(&options, &stop).await else { return 0 };
    let tasks = TaskTracker::new();
    let own = config.env.iter().map(|(name, value)| (name.into(), value.into()));
    let env = options.env.iter().cloned().chain(own).collect();
    let link = Link::new();
    let agent = Arc::new(Agent::new(serve::Parts {
        project: config.project,
        version: options.version.clone(),
        boot: random_text(&*options.clock),
        environment: Arc::new(Environment::new(env, &config.home)),
        conn: link.clone(),
        reaper: reaper.clone(),
        worker,
        clock: options.clock.clone(),
        stop: stop.clone(),
        tasks: tasks.clone(),
    }));
    // ready before the first connection, so that the hello is true
    if let Err(error) = agent.listen().await {
        tracing::error!(%error, "the agent can't listen to requests");
        return 1;
    }
    stay_connected(&link, &options, &agent, &stop).await;
    end_all(&options, &agent, &reaper, &tasks).await;
    link.end(FAREWELL).await;
    0
}

/// Returns when the agent is to stop; the connection is kept until the link is ended.
async fn stay_connected(link: &Link, options: &AgentOptions, agent: &Arc<Agent>, stop: &CancellationToken) {
    loop {
        let keeper = tokio::spawn(link.clone().keep(options.clone(), agent.clone()));
        tokio::select! {
            () = stop.cancelled() => return,
            // it has no end of its own; a panic in it must not leave the container without a connection
            ended = keeper => tracing::error!(?ended, "the connection's task has failed; it is started again"),
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// Process 1 has no default actions: a signal that it doesn't listen to does nothing.
fn listen_for_the_end(stop: &CancellationToken) {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()] {
        match signal(kind) {
            Ok(mut stream) => {
                let stop = stop.clone();
                tokio::spawn(async move {
                    if stream.recv().await.is_some() {
                        stop.cancel();
                    }
                });
            }
            Err(error) => tracing::warn!(%error, ?kind, "the agent can't listen to a signal"),
        }
    }
}

/// SIGTERM, the grace, SIGKILL: to everything in the container as process 1, to one's own otherwise.
async fn end_all(options: &AgentOptions, agent: &Arc<Agent>, reaper: &Arc<Reaper>, tasks: &TaskTracker) {
    tasks.close();
    // `stop` has told the commands already; each ends its own group
    agent.close_terminals();
    let grace = Duration::from_millis(KILL_GRACE_MILLIS);
    if options.init {
        spawn::signal_everyone(Signal::TERM);
        // whoever is not done by then isn't asked again
        let _ = tokio::time::timeout(grace, reaper.childless()).await;
        spawn::signal_everyone(Signal::KILL);
        let _ = tokio::time::timeout(FAREWELL, reaper.childless()).await;
        let _ = tokio::time::timeout(FAREWELL, tasks.wait()).await;
    } else {
        let _ = tokio::time::timeout(grace * 2 + FAREWELL, tasks.wait()).await;
    }
}
