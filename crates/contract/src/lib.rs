//! The words that every part of Atoll shares: typed ids, claims and their verification, requests, replies,
//! operations and error codes.
//!
//! No I/O, no clock, no randomness, no tokio: a function here gets all that it needs as arguments. Every type that
//! crosses a process boundary is here, and every change of its wire form shows in `tests/golden/`.

pub mod agent;
pub mod api;
pub mod bus;
pub mod call;
pub mod claims;
pub mod command;
pub mod error;
pub mod files;
pub mod host;
pub mod id;
pub mod operation;
pub mod placement;
pub mod project;
pub mod streams;
pub mod subject;
pub mod time;

pub use claims::{Access, ConnectClaims, KeySet, Read, Role, Write};
pub use error::{Error, ErrorCode, Result};
pub use id::{AccountId, ApiKeyId, HostId, OperationId, ProjectId, TerminalId, VolumeId};
pub use project::Generation;
pub use time::Timestamp;
