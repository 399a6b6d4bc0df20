//! Durable operations: long work that the master finishes or undoes whatever crashes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AccountId, Error, HostId, OperationId, ProjectId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Create,
    Start,
    Stop,
    Restart,
    Delete,
}

impl OperationKind {
    pub const ALL: [Self; 5] = [Self::Create, Self::Start, Self::Stop, Self::Restart, Self::Delete];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Delete => "delete",
        }
    }
}

/// Where an operation is. The step that is named is the one to be done next (or being done); each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Choose a host and assign the project to it, at the next generation.
    Place,
    /// Volumes on the host.
    Volumes,
    /// Image on the host.
    Image,
    /// Container up, agent connected.
    Run,
    /// No container any more.
    Halt,
    /// Nothing of the project left on the host.
    Remove,
    /// The master forgets the project.
    Forget,
    /// Undo: tell the host to give up what it still does for this operation.
    UndoWork,
    /// Undo: no container.
    UndoRun,
    /// Undo: nothing left on the host.
    UndoVolumes,
    /// Undo: the master forgets the project.
    UndoPlace,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationStatus {
    /// Being advanced, or waiting for a host to answer.
    Running,
    /// On its way back after a failure or a cancel, before the point of no return.
    Undoing,
    Done,
    Failed,
    Cancelled,
}

impl OperationStatus {
    pub const fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Undoing => "undoing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far a step is. Bytes where the work is bytes; `rate` and `eta` then follow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is going on, for people: "pulling docker.io/library/debian:12".
    pub phase: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

/// An operation as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    #[schema(value_type = String)]
    pub id: OperationId,
    pub kind: OperationKind,
    #[schema(value_type = String)]
    pub project: ProjectId,
    pub project_name: String,
    /// Who asked for it.
    #[schema(value_type = String)]
    pub account: AccountId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host: Option<HostId>,
    pub status: OperationStatus,
    pub step: Step,
    /// The steps of this kind of operation in order, for a reader to see how far it is.
    pub steps: Vec<Step>,
    /// From this step on it only goes forward; cancel is refused.
    pub point_of_no_return: Step,
    pub progress: Progress,
    /// Why it failed, or why it keeps trying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Attempts of the present step that have failed in a way that is tried again.
    pub attempts: u32,
    /// Counts up with every change; `GET /v1/operations/{id}?after=VERSION&wait=SECONDS` answers when it is above.
    pub version: u64,
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}
