//! Passwords: argon2id with the parameters that RFC 9106 and OWASP name for a server (19 MiB, 2 passes, 1 lane), a few at a time.

use std::{sync::Arc, time::Duration};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use atoll_contract::{Error, ErrorCode};
use atoll_net::clock::SharedClock;
use tokio::sync::Semaphore;

use crate::edge::internal;

const LEAST_LEN: usize = 8;
const MOST_LEN: usize = 256;
/// Hashes at once: each takes 19 MiB and a processor for some tens of milliseconds.
const AT_ONCE: usize = 4;
/// How long one waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of salt, as RFC 9106 recommends.
const SALT: usize = 16;

/// # Errors
/// `invalid_argument` if it is too short to be kept secret or longer than makes sense.
pub(super) fn check(password: &str) -> Result<(), Error> {
    if password.chars().count() < LEAST_LEN || password.len() > MOST_LEN {
        return Err(Error::invalid(format!("A password has at least {LEAST_LEN} characters and at most {MOST_LEN} bytes.")));
    }
    Ok(())
}

pub(super) struct Passwords {
    clock: SharedClock,
    turns: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new(clock: SharedClock) -> Self {
        Self { clock, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The hash in PHC form.
    pub(super) async fn hash(&self, password: String) -> Result<String, Error> {
        let mut salt = [0u8; SALT];
        self.clock.random(&mut salt);
        self.in_turn(move || {
            let hash: Result<PasswordHash, _> = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(internal)
        })
        .await?
    }

    /// Whether the password is the one of `hash`. Without a hash it does the same work and says no, so that the time doesn't tell
    /// which names exist.
    pub(super) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, Error> {
        if password.len() > MOST_LEN {
            return Ok(false);
        }
        let mut salt = [0u8; SALT];
        self.clock.random(&mut salt);
        self.in_turn(move || match hash {
            Some(hash) => {
                let hash = PasswordHash::new(&hash).map_err(internal)?;
                Ok(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
            }
            None => {
                let hash: Result<PasswordHash, _> = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
                hash.map(|_| false).map_err(internal)
            }
        })
        .await?
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let turn = tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(Error::new(ErrorCode::LimitExceeded, "Too many log in at this moment.").mend("Try again in some seconds."));
        };
        tokio::task::spawn_blocking(move || {
            let _turn = turn; // kept until the work is done, even if the caller has gone
            work()
        })
        .await
        .map_err(internal)
    }
}
