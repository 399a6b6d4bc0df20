//! The real podman: what a container gets, and what is said when something is wrong.
//!
//! Everything carries the label of a host id made for one test, and is removed at its end, also by a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod containers;
mod images;
mod probe;
mod support;
