//! How long to wait before another attempt.

use std::time::Duration;

use atoll_net::clock::Clock;

const FIRST: Duration = Duration::from_millis(100);

/// The wait after the `attempts`th failure: doubling from 100 ms up to `cap`, of which a random half is taken off, so that many who
/// lost the same host don't all come at once.
pub(super) fn wait(attempts: u32, cap: Duration, clock: &dyn Clock) -> Duration {
    let full = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(cap);
    let mut random = [0u8; 4];
    clock.random(&mut random);
    let share = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
    full.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use atoll_net::clock::SystemClock;

    use super::*;

    #[test]
    fn grows_to_the_cap_and_never_beyond() {
        let cap = Duration::from_secs(30);
        for attempts in [0, 1, 2, 5, 9, 10, 40, u32::MAX] {
            let full = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(cap);
            let wait = wait(attempts, cap, &SystemClock);
            assert!(wait >= full / 2 && wait <= full, "{attempts}: {wait:?}");
        }
    }
}
