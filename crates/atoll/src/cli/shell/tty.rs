//! This process's own terminal.

use std::{collections::BTreeMap, io::IsTerminal};

use atoll_contract::agent::Size;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::errors::{self, Result};

pub fn is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Rows and columns; 24 by 80 where the terminal doesn't know.
pub fn size() -> Size {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Size { rows: size.ws_row, cols: size.ws_col },
        _ => Size::default(),
    }
}

/// What a program must know of this terminal.
pub fn environment() -> BTreeMap<String, String> {
    let set = ["TERM", "COLORTERM"].iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
    set.collect()
}

/// The terminal in raw mode as long as this lives: every key is a byte for the program.
pub struct Raw(Termios);

impl Raw {
    pub fn enter() -> Result<Self> {
        let failed = |error: rustix::io::Errno| errors::io("The terminal", &error.into());
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}
