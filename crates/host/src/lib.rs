//! A host: gate > projects > { runtime, storage } > exec. Runs projects, serves their users, reports to the master.

pub mod config;
pub mod doctor;
pub mod exec;
pub mod files;
pub mod gate;
pub mod join;
pub mod projects;
pub mod runtime;
pub mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

mod start;
mod sweep;
mod uplink;

pub use config::HostConfig;
pub use join::{Identity, join};
pub use start::{RunningHost, start};
