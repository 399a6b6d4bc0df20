//! Durable operations: create, start, stop, restart, delete.
//!
//! [`plan`] has their steps as a table, [`advance`] says purely what comes next, [`drive`] does it for one operation and saves before and
//! after, [`executor`] keeps all that run and takes them up again after a restart. Who wants to know what an operation does reads the
//! first two.

mod advance;
mod ask;
mod backoff;
mod drive;
mod executor;
mod model;
pub(crate) mod plan;
#[cfg(test)]
mod tests;

pub(crate) use executor::{Executor, Parts};
pub(crate) use model::{Operation, State};
