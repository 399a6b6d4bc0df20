//! Failed logins by name, so that a password can't be guessed by trying.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, Timestamp};

/// Failures for one name within [`WINDOW`], after which the name has to wait for the window's end.
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_mins(5);
/// Names that are remembered at once. Beyond it the oldest windows are dropped first; whoever makes so many names up has to spend
/// a password hash for each.
const NAMES: usize = 10_000;

#[derive(Default)]
pub(super) struct Attempts(Mutex<HashMap<String, Tries>>);

struct Tries {
    since: Timestamp,
    count: u32,
}

impl Attempts {
    /// Counts an attempt, which [`Attempts::forget`] takes back if it succeeds. Counted before the password is looked at, so that
    /// many at once don't all pass.
    ///
    /// # Errors
    /// `limit_exceeded`, with the seconds to wait in `details.retry_after_seconds`.
    pub(super) fn begin(&self, name: &str, now: Timestamp) -> Result<(), Error> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = key(name);
        if names.len() >= NAMES && !names.contains_key(&name) {
            names.retain(|_, tries| now.since(tries.since) < WINDOW);
            let oldest = names.iter().min_by_key(|(_, tries)| tries.since).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest.filter(|_| names.len() >= NAMES) {
                names.remove(&oldest);
            }
        }
        let tries = names.entry(name).or_insert(Tries { since: now, count: 0 });
        if now.since(tries.since) >= WINDOW {
            *tries = Tries { since: now, count: 0 };
        }
        if tries.count < MOST {
            tries.count += 1;
            return Ok(());
        }
        let wait = WINDOW.saturating_sub(now.since(tries.since)).as_secs() + 1;
        Err(Error::new(ErrorCode::LimitExceeded, "Too many logins have failed for this name.")
            .mend(format!("Try again in {wait} seconds."))
            .details(serde_json::json!({ "retry_after_seconds": wait })))
    }

    pub(super) fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(name));
    }
}

/// Names are one whatever their case; a long one isn't kept in full.
fn key(name: &str) -> String {
    name.chars().take(64).collect::<String>().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_to_wait_and_others_have_not() {
        let (attempts, start) = (Attempts::default(), Timestamp::from_millis(0));
        for _ in 0..MOST {
            attempts.begin("Ann", start).unwrap();
        }
        assert_eq!(attempts.begin("ANN", start).unwrap_err().code, ErrorCode::LimitExceeded);
        attempts.begin("bob", start).unwrap();
        attempts.begin("ann", start.saturating_add(WINDOW)).unwrap();
        attempts.forget("ann");
        attempts.begin("ann", start).unwrap();
    }

    #[test]
    fn the_memory_is_bounded() {
        let attempts = Attempts::default();
        for n in 0..NAMES as i64 + 10 {
            attempts.begin(&n.to_string(), Timestamp::from_millis(n)).unwrap();
        }
        assert!(attempts.0.lock().unwrap().len() <= NAMES);
    }
}
