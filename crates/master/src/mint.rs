//! The one place where ids of accounts, keys, projects, hosts and operations are made: UUIDv7 (RFC 9562) from the clock and the
//! system's random source, so that ids sort by the time of their making.

use atoll_contract::id::{Id, Kind};
use atoll_net::clock::Clock;

/// A new id. Unique by its 74 random bits, whatever the clock does.
pub(crate) fn id<K: Kind>(clock: &dyn Clock) -> Id<K> {
    let millis = u64::try_from(clock.now().millis()).unwrap_or(0);
    let mut random = [0u8; 10];
    clock.random(&mut random);
    Id::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use atoll_contract::{ProjectId, Timestamp};
    use atoll_net::clock::TestClock;

    use super::*;

    #[test]
    fn later_ids_sort_later_and_are_version_7() {
        let clock = TestClock::at(Timestamp::from_millis(1_795_000_000_000));
        let first: ProjectId = id(&*clock);
        clock.advance(Duration::from_millis(1));
        let second: ProjectId = id(&*clock);
        assert!(first < second);
        assert_eq!(first.uuid().get_version_num(), 7);
        assert_eq!(first.to_string().parse::<ProjectId>().unwrap(), first);
    }
}
