//! Hosts with the real podman and btrfs, in this process. The binary that goes into containers and the image come from the environment, which
//! `cargo xtask test` sets.

use std::sync::Arc;

use atoll_contract::{Error, HostId};
use atoll_host::{
    runtime::podman::{PodmanConfig, PodmanRuntime},
    storage::{self, StorageChoice, StorageConfig},
    testing::LoopBtrfs,
};
use atoll_net::clock::SystemClock;

use crate::Cluster;

/// What a real cluster needs of its machine.
pub struct Machine {
    pub binary: String,
    pub image: String,
    /// Dropped after the cluster that uses it.
    pub btrfs: LoopBtrfs,
}

impl Machine {
    /// None if this machine can't; the test is then listed as skipped.
    pub async fn find(test: &str) -> Option<Self> {
        let found = Self::look().await;
        found.inspect_err(|reason| atoll_host::testing::skipped(test, reason)).ok()
    }

    async fn look() -> Result<Self, String> {
        let set = |name: &str| std::env::var(name).map_err(|_| format!("{name} isn't set; `cargo xtask test` sets it"));
        Ok(Self { binary: set("ATOLL_TEST_BINARY")?, image: set("ATOLL_TEST_IMAGE")?, btrfs: LoopBtrfs::new(2 << 30).await? })
    }

    /// # Errors
    /// Whatever kept the host from starting.
    pub async fn add_host(&self, cluster: &mut Cluster, name: &str) -> Result<HostId, Error> {
        let parts = async |id: HostId| {
            let runtime = PodmanRuntime::open(PodmanConfig::new(id, &self.binary), Arc::new(SystemClock)).await;
            let storage = storage::open(StorageConfig { kind: StorageChoice::Btrfs, path: self.btrfs.path().join(name), unshare: None })?;
            Ok((runtime as Arc<_>, storage))
        };
        cluster.add_made(cluster.host_config(name), parts).await
    }
}
