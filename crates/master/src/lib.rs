//! The master: it decides. Accounts, hosts, placement, durable operations, and the way to each project.
//!
//! `api > auth > calls > projects > placement > operations > routing > store`; the modules use those to their right, never to their left.

mod api;
mod auth;
mod calls;
mod config;
mod edge;
mod hosts;
mod keys;
mod mint;
mod operations;
mod placement;
mod projects;
mod routing;
mod run;
mod store;
#[cfg(test)]
mod testing;

pub use config::MasterConfig;
pub use run::{RunningMaster, start};
