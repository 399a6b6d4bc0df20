//! How many bytes may be on their way to one host at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use atoll_contract::HostId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bus takes a connection for a slow consumer and cuts it when more waits for it than it may, and a host's connection carries its reports and
/// commands as well. So calls stay well below that, whoever makes how many of them.
#[derive(Debug)]
pub(super) struct Lanes {
    bytes: u32,
    hosts: Mutex<HashMap<HostId, Arc<Semaphore>>>,
}

impl Lanes {
    pub(super) fn new(bytes: u32) -> Self {
        Self { bytes, hosts: Mutex::default() }
    }

    /// Waits until there is room for so many bytes; they are on their way until the permit is dropped. What is larger than the lane has it for itself.
    pub(super) async fn enter(&self, host: HostId, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let lane = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            // those that nobody uses or waits for are all alike
            if !hosts.contains_key(&host) {
                hosts.retain(|_, lane| Arc::strong_count(lane) > 1);
            }
            hosts.entry(host).or_insert_with(|| Arc::new(Semaphore::new(self.bytes as usize))).clone()
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.bytes);
        lane.acquire_many_owned(bytes).await.ok() // never closed
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_lane_is_bounded_and_each_host_has_its_own() {
        let lanes = Lanes::new(100);
        let host = |n: u8| format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap();
        let first = lanes.enter(host(1), 60).await.unwrap();
        assert!(lanes.enter(host(1), 50).now_or_never().is_none());
        let other = lanes.enter(host(2), 1000).now_or_never().unwrap();
        assert!(lanes.enter(host(2), 0).now_or_never().is_none(), "the largest has it for itself");
        drop(first);
        let again = lanes.enter(host(1), 100).now_or_never().unwrap();
        drop((other, again));
        drop(lanes.enter(host(3), 1).await.unwrap());
        assert_eq!(lanes.hosts.lock().unwrap().len(), 1, "unused ones are forgotten");
    }
}
