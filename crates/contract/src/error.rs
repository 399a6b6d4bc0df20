//! What a user or another part is told when something fails: a stable code, one sentence, what to do, and whether the
//! same call may succeed later.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Stable codes, on the wire in snake case. A code is never reused with another meaning; clients branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or breaks a documented bound.
    InvalidArgument,
    /// No valid credential came with the request.
    Unauthenticated,
    /// The credential is valid and does not allow this.
    Forbidden,
    /// The thing doesn't exist, or the caller may not know that it does.
    NotFound,
    /// A thing of that name is there already.
    AlreadyExists,
    /// Something has changed since the caller looked (an `If-Match`, an upload offset).
    Conflict,
    /// Another operation holds this project; `details.operation` names it.
    OperationInProgress,
    /// The generation isn't the one in force: ask the master again for the project's place. HTTP 421.
    StaleAssignment,
    /// The host that has the project doesn't answer, so the project's state is unknown.
    HostUnavailable,
    /// No host can take the project; `details.refusals` says why for each.
    NoRoom,
    /// The image can't be obtained: unknown name, no such registry, no permission there.
    ImageUnavailable,
    /// The container started and died, or its agent never reported.
    StartFailed,
    /// The container runtime (podman) doesn't work on this host.
    RuntimeFailed,
    /// The storage refused: an I/O error, a missing volume, a file system that can't do what was asked.
    StorageFailed,
    /// The volume on this host isn't the one that the assignment names; nothing was started on it.
    WrongVolume,
    /// The project's disk limit is reached.
    QuotaExceeded,
    /// The host's disk is full.
    DiskFull,
    /// A bound of this server: too many, too large, too fast.
    LimitExceeded,
    /// The body or message is larger than allowed.
    TooLarge,
    /// Nobody serves this right now (NATS status 503).
    NoResponders,
    /// It took longer than the caller or the bound allows.
    TimedOut,
    /// It was cancelled on request.
    Cancelled,
    /// The project isn't running, and this needs its container.
    NotRunning,
    /// This host or its storage can't do that at all.
    Unsupported,
    /// The configuration is wrong; the message names key and file.
    InvalidConfig,
    /// The server's certificate isn't accepted: an unknown authority, another name, expired. Nothing was sent.
    Untrusted,
    /// The server is shutting down or not ready yet.
    Unavailable,
    /// A defect in Atoll. The log has the rest, under the request id.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that carries this code.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::InvalidConfig => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::TimedOut => 408,
            Self::AlreadyExists | Self::Conflict | Self::OperationInProgress | Self::NotRunning | Self::Cancelled => 409,
            Self::TooLarge => 413,
            Self::StaleAssignment => 421,
            Self::ImageUnavailable | Self::WrongVolume => 422,
            Self::LimitExceeded => 429,
            Self::Internal | Self::StorageFailed | Self::RuntimeFailed | Self::StartFailed => 500,
            Self::Unsupported => 501,
            Self::HostUnavailable | Self::NoResponders | Self::Unavailable | Self::NoRoom => 503,
            Self::Untrusted => 502,
            Self::QuotaExceeded | Self::DiskFull => 507,
        }
    }

    /// The status of a bus message that carries this code, in its status line (`NATS/1.0 421 stale_assignment`). The numbers are HTTP's on purpose:
    /// NATS took its own from there, 503 ("no responders") and 408 among them. The payload, this error as JSON, is what tells such a message from
    /// the bus's own 503, which has none.
    pub const fn nats_status(self) -> u16 {
        self.http_status()
    }

    /// The code that a status stands for if the message says no more; none for a status that isn't an error.
    pub const fn from_nats_status(status: u16) -> Option<Self> {
        Some(match status {
            0..400 => return None,
            400 => Self::InvalidArgument,
            401 => Self::Unauthenticated,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            408 => Self::TimedOut,
            409 => Self::Conflict,
            413 => Self::TooLarge,
            421 => Self::StaleAssignment,
            429 => Self::LimitExceeded,
            501 => Self::Unsupported,
            503 => Self::NoResponders,
            _ => Self::Internal,
        })
    }

    /// Whether the same call may well succeed later without anyone mending anything.
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            Self::OperationInProgress
                | Self::HostUnavailable
                | Self::LimitExceeded
                | Self::NoResponders
                | Self::TimedOut
                | Self::Unavailable
        )
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::OperationInProgress => "operation_in_progress",
            Self::StaleAssignment => "stale_assignment",
            Self::HostUnavailable => "host_unavailable",
            Self::NoRoom => "no_room",
            Self::ImageUnavailable => "image_unavailable",
            Self::StartFailed => "start_failed",
            Self::RuntimeFailed => "runtime_failed",
            Self::StorageFailed => "storage_failed",
            Self::WrongVolume => "wrong_volume",
            Self::QuotaExceeded => "quota_exceeded",
            Self::DiskFull => "disk_full",
            Self::LimitExceeded => "limit_exceeded",
            Self::TooLarge => "too_large",
            Self::NoResponders => "no_responders",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::NotRunning => "not_running",
            Self::Unsupported => "unsupported",
            Self::InvalidConfig => "invalid_config",
            Self::Untrusted => "untrusted",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// The one error form at every edge: HTTP bodies, bus replies, operations, `--json` output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: ErrorCode,
    /// One sentence: what happened, with the names that matter.
    pub message: String,
    /// What to do about it, as one sentence; empty where nothing can be advised.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mend: String,
    /// Whether the same call may succeed later by itself.
    pub retry: bool,
    /// Facts for programs, by code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<serde_json::Value>>,
}

impl Error {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), mend: String::new(), retry: code.retryable(), details: None }
    }

    /// Adds what to do about it.
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = mend.into();
        self
    }

    /// Adds facts for programs.
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("There is no such {what}, or you may not see it."))
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }
}
