//! The one place that reads the wall clock and the system's random source. Everything else is handed a [`Clock`].

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use atoll_contract::Timestamp;

pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
    /// Fills the buffer with bytes that nobody can guess.
    fn random(&self, buffer: &mut [u8]);
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clock and random source.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the clock")]
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    #[expect(clippy::expect_used, reason = "a machine whose getrandom(2) fails can't make a secret; going on would make guessable ones")]
    fn random(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the system's random source works");
    }
}

/// A clock for tests that stands still until it is told. Its random bytes are those of the system: tests that need equal bytes pass
/// ids themselves.
#[derive(Debug)]
pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(now.millis())))
    }

    pub fn advance(&self, by: std::time::Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn random(&self, buffer: &mut [u8]) {
        SystemClock.random(buffer);
    }
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Random text of 26 characters of `a-z2-7`: 130 bits. Token ids, stream ids, boots, secrets.
pub fn random_text(clock: &dyn Clock) -> String {
    let mut bytes = [0u8; 26];
    clock.random(&mut bytes);
    bytes.iter().map(|byte| BASE32[usize::from(byte & 31)] as char).collect()
}
