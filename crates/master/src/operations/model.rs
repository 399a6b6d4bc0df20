//! An operation as it is saved.

use atoll_contract::{
    AccountId, Error, Generation, HostId, OperationId, ProjectId, Timestamp,
    operation::{OperationKind, OperationStatus, OperationView, Progress, Step},
    placement::Placement,
    project::{Intent, ProjectSpec},
};
use serde::{Deserialize, Serialize};

use super::plan;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub project: ProjectId,
    pub project_name: String,
    /// The project's owner, who may see the operation.
    pub owner: AccountId,
    /// Who asked for it.
    pub account: AccountId,
    pub host: HostId,
    pub generation: Generation,
    pub status: OperationStatus,
    /// The step to be done next, or being done.
    pub step: Step,
    pub state: State,
    /// Counts up with every change, also with those that are in memory only.
    pub version: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What else is saved of an operation, in one column as JSON. Fields are added with a default; anything else is a new `v`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub v: Version1,
    /// Of create: start the project when it is there.
    #[serde(default)]
    pub start: bool,
    /// Of create: what the host is to make volumes for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ProjectSpec>,
    /// Of create: why it went where it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What was intended before, to be set back by an undo.
    pub before: Intent,
    /// Why it goes back, or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Error>,
    /// Goes back because somebody asked for it.
    #[serde(default)]
    pub cancelled: bool,
    /// Whether it has gone back, all the way: the intent is then set back in the same transaction that says so.
    #[serde(default)]
    pub undone: bool,
    /// Why the present step is being tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Error>,
    #[serde(default)]
    pub attempts: u32,
    /// When the present trouble began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trying_since: Option<Timestamp>,
    /// When the present step began.
    pub step_since: Timestamp,
}

/// The number 1 and no other, so that a later form isn't misread by this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub(crate) struct Version1;

impl From<Version1> for u8 {
    fn from(_: Version1) -> Self {
        1
    }
}

impl TryFrom<u8> for Version1 {
    type Error = String;

    fn try_from(version: u8) -> Result<Self, String> {
        if version == 1 { Ok(Self) } else { Err(format!("operation state of version {version}")) }
    }
}

impl State {
    pub(crate) fn new(before: Intent, now: Timestamp) -> Self {
        Self {
            v: Version1,
            start: false,
            spec: None,
            placement: None,
            before,
            failure: None,
            cancelled: false,
            undone: false,
            trouble: None,
            attempts: 0,
            trying_since: None,
            step_since: now,
        }
    }
}

impl Operation {
    pub(crate) fn ended(&self) -> bool {
        self.status.ended()
    }

    /// The intent that is to be saved with this operation, if it has just been undone. A create that was undone has no project left.
    pub(crate) fn intent_to_restore(&self) -> Option<Intent> {
        (self.ended() && self.state.undone && self.kind != OperationKind::Create).then_some(self.state.before)
    }

    pub(crate) fn view(&self, progress: Progress) -> OperationView {
        let plan = plan::of(self.kind, self.state.start);
        OperationView {
            id: self.id,
            kind: self.kind,
            project: self.project,
            project_name: self.project_name.clone(),
            account: self.account,
            host: Some(self.host),
            status: self.status,
            step: self.step,
            steps: plan.steps.to_vec(),
            point_of_no_return: plan.point_of_no_return,
            progress,
            error: self.state.failure.clone().or_else(|| self.state.trouble.clone()),
            attempts: self.state.attempts,
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}
