//! Commands from the master to a host: idempotent `ensure_*` verbs, keyed by project, generation and operation.
//!
//! A command is a request on [`crate::subject::host_command`]. The host answers within [`COMMAND_WAIT_MILLIS`], with
//! `working` if the verb needs longer; the master asks again with the same key and gets the same work's outcome. So a
//! master that was killed in between simply asks again, and nothing runs twice.

use serde::{Deserialize, Serialize};

use crate::{
    Error, Generation, OperationId, ProjectId,
    operation::Progress,
    project::{ObservedProject, ProjectSpec},
};

/// How long a host lets a command wait before it answers `working`.
pub const COMMAND_WAIT_MILLIS: u64 = 2000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    pub project: ProjectId,
    pub generation: Generation,
    pub operation: OperationId,
    pub verb: Verb,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// The host knows the project at this generation, with this spec, and has its volumes. The only verb that may raise the
    /// generation that a host knows. `fresh` says that no volume of the project exists anywhere yet: only then are empty ones
    /// made; otherwise a missing volume is `wrong_volume`, since an empty tree is never shown as success.
    EnsureVolumes { spec: ProjectSpec, fresh: bool },
    /// The spec's image is on the host; pulled if it isn't.
    EnsureImage {},
    /// The container runs with the spec's limits and its agent answers. With `restart`, a container that was started by another
    /// operation is stopped first.
    EnsureRunning {
        #[serde(default)]
        restart: bool,
    },
    /// No container of the project runs. Volumes stay.
    EnsureStopped {},
    /// Neither a container nor volumes nor a record of the project are left. Done, too, on a host that never had it.
    EnsureAbsent {},
    /// Gives up what this operation is still doing (a pull, a start), and answers when nothing of it runs any more.
    Cancel {},
}

impl Verb {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::EnsureVolumes { .. } => "ensure_volumes",
            Self::EnsureImage {} => "ensure_image",
            Self::EnsureRunning { .. } => "ensure_running",
            Self::EnsureStopped {} => "ensure_stopped",
            Self::EnsureAbsent {} => "ensure_absent",
            Self::Cancel {} => "cancel",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum CommandReply {
    Done { observed: ObservedProject },
    Working { progress: Progress },
    Failed { error: Error },
}
