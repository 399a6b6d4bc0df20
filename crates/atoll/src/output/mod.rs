//! What commands print: results on standard output, as tables or as the contract's JSON; everything else on standard error.

pub mod bus;
pub mod progress;
pub mod tables;

use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::errors::{self, Result};

/// How this run of the program prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// A result: as JSON on one line, or as `text` makes it.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json {
            let line = serde_json::to_string(value)
                .map_err(|error| atoll_contract::Error::internal(format!("The answer can't be written as JSON: {error}.")))?;
            print(&line)
        } else {
            print(&text(value))
        }
    }

    /// A sentence for people about what was done; nothing with `--json`.
    pub fn note(self, text: &str) {
        if !self.json {
            say(text);
        }
    }
}

/// A line on standard error. A standard error that is closed is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Text and a newline on standard output.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let newline: &[u8] = if text.is_empty() || text.ends_with('\n') { b"" } else { b"\n" };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(newline)).and_then(|()| out.flush());
    match written {
        // the reader has seen what it wanted, as with `| head`
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| errors::io("Standard output", &error)),
    }
}

pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
