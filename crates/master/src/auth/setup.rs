//! The one-time token with which the first account is made.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use atoll_contract::Error;
use atoll_net::clock::Clock;
use subtle::ConstantTimeEq;

use super::token::{Token, TokenKind};
use crate::edge::{config_error, write_secret};

pub(super) const FILE: &str = "setup-token";

/// The token is in memory and in a file of the data directory, not in the store: who can read that directory owns the master anyway,
/// and a file is what an unattended installation can read.
pub(super) struct Setup {
    path: PathBuf,
    token: Mutex<Option<String>>,
}

impl Setup {
    /// If setup is needed, takes the token of an earlier start or makes one, so that a printed token stays good until it is used.
    pub(super) fn load(data_dir: &Path, needed: bool, clock: &dyn Clock) -> Result<Self, Error> {
        let path = data_dir.join(FILE);
        let setup = Self { path, token: Mutex::new(None) };
        if !needed {
            setup.finish();
            return Ok(setup);
        }
        let known = fs::read_to_string(&setup.path).ok().map(|text| text.trim().to_owned());
        let token = match known.filter(|text| TokenKind::Setup.parse(text).is_some()) {
            Some(token) => token,
            None => {
                let token = Token::new(TokenKind::Setup, clock).reveal();
                write_secret(&setup.path, format!("{token}\n").as_bytes()).map_err(|error| config_error(&setup.path, &error))?;
                token
            }
        };
        *setup.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(setup)
    }

    pub(super) fn token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn needed(&self) -> bool {
        self.token().is_some()
    }

    pub(super) fn accepts(&self, text: &str) -> bool {
        self.token().is_some_and(|token| token.as_bytes().ct_eq(text.as_bytes()).into())
    }

    /// The token is good no more.
    pub(super) fn finish(&self) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "the used setup token's file couldn't be removed; it opens nothing any more");
            }
            _ => {}
        }
    }
}
