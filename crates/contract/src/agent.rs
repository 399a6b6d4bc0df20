//! What is said with the agent in a project's container, over the host's bus: running commands and terminals.
//!
//! Requests go to the subjects of [`crate::subject`] and are answered with [`Reply`]. Bytes flow in streams (see
//! `atoll_net::byte_stream`): who wants to receive chooses a random stream id, subscribes, and only then asks, so that nothing is missed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, TerminalId, Timestamp};

/// The answer to every request to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    Ok(T),
    Error(Error),
}

impl<T> From<Reply<T>> for Result<T, Error> {
    fn from(reply: Reply<T>) -> Self {
        match reply {
            Reply::Ok(value) => Ok(value),
            Reply::Error(error) => Err(error),
        }
    }
}

impl<T> From<Result<T, Error>> for Reply<T> {
    fn from(result: Result<T, Error>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(error) => Self::Error(error),
        }
    }
}

/// Rows and columns of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub rows: u16,
    pub cols: u16,
}

impl Default for Size {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// Runs a program. Subject: `project.<id>.exec.start`.
///
/// With the stream id `S` the agent reads stdin from the stream `S.in` (only if `stdin`), and writes `S.out` and `S.err`. The exit
/// comes as a message on `project.<id>.stream.S.exit` ([`ExecExit`]) after both outputs have ended and were acknowledged. A caller that
/// doesn't send a heartbeat (an acknowledgement counts) for [`EXEC_ORPHAN_SECONDS`] is taken to be gone, and the program is ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// Chosen by the caller; see [`crate::subject::is_stream_id`].
    pub stream: String,
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Relative to the home directory, or absolute. Empty for home.
    #[serde(default)]
    pub cwd: String,
    #[serde(default)]
    pub stdin: bool,
    /// After so many milliseconds the program and its children get SIGTERM, [`KILL_GRACE_MILLIS`] later SIGKILL.
    #[serde(default)]
    pub timeout_millis: Option<u64>,
}

pub const EXEC_ORPHAN_SECONDS: u64 = 60;
pub const KILL_GRACE_MILLIS: u64 = 2000;
/// Programs that run by exec at once in one project.
pub const MAX_EXECS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStarted {
    /// Process id inside the container.
    pub pid: u32,
}

/// Ends a program that was started with this stream id: SIGTERM, then SIGKILL. Subject: `project.<id>.exec.cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecCancel {
    pub stream: String,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct ExecExit {
    /// The exit code, or 128 + the signal's number, as a shell says it.
    pub code: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(default)]
    pub timed_out: bool,
    #[serde(default)]
    pub cancelled: bool,
}

/// Opens a terminal, or finds the one of that name. Subject: `project.<id>.terminal.open`; answered with [`TerminalView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalOpen {
    /// 1 to 63 characters as in [`crate::project::check_name`]; one terminal a name.
    pub name: String,
    /// Empty for the login shell: `$SHELL`, else the first of bash, zsh, ash and sh that is there.
    #[serde(default)]
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub cwd: String,
    #[serde(default)]
    pub size: Size,
}

pub const MAX_TERMINALS: usize = 64;
pub const MAX_VIEWERS: usize = 32;
/// Bytes of output that a terminal keeps for viewers that come later.
pub const SCROLLBACK_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalView {
    pub id: TerminalId,
    pub name: String,
    pub argv: Vec<String>,
    pub pid: u32,
    pub size: Size,
    pub viewers: u32,
    /// Bytes of output since it was opened.
    pub output_bytes: u64,
    pub opened_at: Timestamp,
    /// Set when its program has ended; the terminal then stays until it is closed or its name is opened again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExecExit>,
}

/// Becomes a viewer. Subject: `project.<id>.terminal.attach`; answered with [`TerminalAttached`].
///
/// The agent then writes the stream `S.out`, beginning at `from`. A viewer that falls further behind than the scrollback
/// skips ahead: the stream says so with a message of its own ([`TerminalEvent::Skipped`] on `S.event`). Input goes to the agent as the stream `S.in`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalAttach {
    pub terminal: TerminalId,
    pub stream: String,
    /// Offset in the terminal's output to begin at; absent for the oldest that is kept. A viewer that comes back gives the
    /// offset up to which it has shown the output.
    #[serde(default)]
    pub from: Option<u64>,
    /// Whether the terminal takes this viewer's size.
    #[serde(default)]
    pub size: Option<Size>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalAttached {
    pub terminal: TerminalView,
    /// Offset of the first byte that the stream carries.
    pub from: u64,
}

/// What happens to a terminal, to each viewer on `project.<id>.stream.S.event`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TerminalEvent {
    Resized {
        size: Size,
    },
    /// The stream goes on at this offset; what was before is no longer kept.
    Skipped {
        offset: u64,
    },
    Exited {
        exit: ExecExit,
    },
}

/// Subject: `project.<id>.terminal.resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalResize {
    pub terminal: TerminalId,
    pub size: Size,
}

/// Stops being a viewer. Subject: `project.<id>.terminal.detach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalDetach {
    pub terminal: TerminalId,
    pub stream: String,
}

/// Ends the program (SIGHUP, then SIGKILL) and forgets the terminal. Subject: `project.<id>.terminal.close`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalClose {
    pub terminal: TerminalId,
}

/// What the agent says of itself. Subject: `project.<id>.agent.info`, and published to `project.<id>.agent.hello` at every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    pub version: String,
    /// New at every start of the container.
    pub boot: String,
    pub terminals: u32,
    pub execs: u32,
}

/// What the agent is told at its start, in the file [`AGENT_CONFIG_PATH`] that the host writes before the container starts. It holds a
/// secret, so only the container's root reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentConfig {
    pub project: crate::ProjectId,
    pub generation: crate::Generation,
    /// Proves to the host that who speaks at the socket is this container. Presented as `auth_token`.
    pub secret: String,
    /// Home directory inside the container.
    pub home: String,
    /// The spec's environment, for every program that the agent starts. Here and not among the container's own variables, which other users
    /// of the host could read while it is being started.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// The directory with the host's socket, as the container sees it.
pub const AGENT_DIR: &str = "/run/atoll";
/// The host's bus: a unix socket.
pub const AGENT_SOCKET_PATH: &str = "/run/atoll/host.sock";
pub const AGENT_CONFIG_PATH: &str = "/run/atoll/agent.json";
/// The `atoll` binary, as the container sees it; run as `atoll agent`.
pub const AGENT_BINARY_PATH: &str = "/.atoll/atoll";
/// Where the volume `home` is mounted.
pub const HOME_PATH: &str = "/home/user";
