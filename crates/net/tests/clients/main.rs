//! The published clients, unchanged, against the bus: the same list of checks for each, and the examples of the reference page.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests, helpers included")]

mod examples;
mod javascript;
mod matrix;
mod python;
mod rust;
mod stand;
mod tools;
mod websocket;
