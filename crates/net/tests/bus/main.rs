//! The bus from outside: the published client, our own, bytes by hand, and the router in process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests, helpers included")]

mod conn;
mod golden;
mod grants;
mod lifecycle;
mod protocol;
mod rights;
mod slow;
mod stock;
mod support;
