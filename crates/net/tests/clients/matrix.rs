//! What was tried with which client, shown when the last one is done.

use std::{
    fmt::Write as _,
    io::Write as _,
    sync::{Mutex, PoisonError},
};

/// What every client is tried with, in this order.
pub(crate) const CHECKS: [&str; 8] =
    ["connect", "requests", "queue groups", "headers", "no responders", "large payloads", "reconnect", "drain"];

pub(crate) const CLIENTS: [&str; 10] = [
    "async-nats, TCP",
    "async-nats, WebSocket",
    "nats-py, TCP",
    "nats-py, TLS",
    "nats-py, WebSocket",
    "nats-py, WebSocket with TLS",
    "@nats-io/transport-node, TCP",
    "@nats-io/nats-core, WebSocket in Node",
    "@nats-io/nats-core, WebSocket with TLS in Node",
    "@nats-io/nats-core, WebSocket in Chromium",
];

static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// One client's results. Noted when it is dropped, so also if the test fails.
pub(crate) struct Row {
    client: &'static str,
    passed: Vec<String>,
    skipped: bool,
}

impl Row {
    pub(crate) fn new(client: &'static str) -> Self {
        assert!(CLIENTS.contains(&client));
        Self { client, passed: Vec::new(), skipped: false }
    }

    pub(crate) fn passed(&mut self, check: &str) {
        self.passed.push(check.into());
    }

    /// Says that this machine lacks something, past the test harness, for `cargo xtask test` to list.
    pub(crate) fn skip(mut self, reason: &str) {
        skipped(self.client, reason);
        self.skipped = true;
    }

    /// # Panics
    /// If a check is missing.
    pub(crate) fn all_passed(self) {
        assert_eq!(self.passed, CHECKS, "{}", self.client);
    }
}

pub(crate) fn skipped(test: &str, reason: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: clients: {test}: {reason}\n").as_bytes()); // nobody may be reading
}

impl Drop for Row {
    fn drop(&mut self) {
        let row = Self { client: self.client, passed: std::mem::take(&mut self.passed), skipped: self.skipped };
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push(row);
        if rows.len() == CLIENTS.len() {
            let _ = std::io::stderr().write_all(table(&rows).as_bytes()); // nobody may be reading
            std::mem::take(&mut *rows).into_iter().for_each(std::mem::forget);
        }
    }
}

fn table(rows: &[Row]) -> String {
    let width = CLIENTS.iter().map(|client| client.len()).max().unwrap_or_default();
    let mut text = format!("\n{:width$}  {}\n", "stock clients", CHECKS.join("  "));
    for client in CLIENTS {
        let _ = write!(text, "{client:width$}");
        let row = rows.iter().find(|row| row.client == client);
        for check in CHECKS {
            let mark = match row {
                Some(row) if row.skipped => "–",
                Some(row) if row.passed.iter().any(|passed| passed == check) => "yes",
                _ => "NO",
            };
            let _ = write!(text, "  {mark:0$}", check.len());
        }
        text.push('\n');
    }
    text
}
