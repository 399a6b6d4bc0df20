//! The bus from outside: the published client, our own, bytes by hand, and the router in process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests, helpers included")]

mod bulk;
mod cluster;
mod conn;
mod golden;
mod grants;
mod hub;
mod lifecycle;
mod memory;
mod nats;
mod operator;
mod protocol;
mod rights;
mod slow;
mod stats;
mod stock;
mod support;
mod tls;
