//! Volumes behind one trait: `btrfs` and `dir`. Nothing else touches volume paths' parents; files inside `home` are `files`'s.

mod btrfs;
mod dir;
pub mod faulty;
mod ioctl;
mod open;
mod receipt;
mod remove;
mod tree;

use std::path::PathBuf;

use atoll_contract::{
    Error, Generation, ProjectId, VolumeId,
    host::{Finding, StorageCapabilities, StorageKind},
};
use atoll_net::bus::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::runtime::Owner;

#[cfg(feature = "testing")]
pub use open::open_interrupted;
pub use open::{StorageChoice, StorageConfig, inspect, open};
pub use tree::InterruptFn;

/// Proof that a volume is the one that the assignment names; kept beside the two volumes, written with fsync before the volumes are
/// said to exist, and checked before every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentReceipt {
    pub project: ProjectId,
    pub volume: VolumeId,
    pub generation: Generation,
    /// The newest snapshot of both volumes; none yet in this version.
    #[serde(default)]
    pub last_snapshot: Option<String>,
}

/// A project's two sibling volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volumes {
    /// What the container sees as its home directory.
    pub home: PathBuf,
    /// The host's own state of the project: its logs and key-value stores. Never mounted into the container.
    pub state: PathBuf,
    pub receipt: ContentReceipt,
}

/// Bytes on the file system that holds the volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

/// All verbs are idempotent and crash-safe: one that was cut off anywhere is finished or undone by calling it again.
pub trait Storage: Send + Sync + 'static {
    fn kind(&self) -> StorageKind;
    fn capabilities(&self) -> StorageCapabilities;
    fn findings(&self) -> Vec<Finding>;

    /// Makes both volumes, empty but for a home owned by `owner`, with the quota and a receipt. If they are there already (same project), brings
    /// quota and the receipt's generation up to date and changes nothing else.
    ///
    /// # Errors
    /// `disk_full`, `storage_failed`, `wrong_volume` if what is there has another project's receipt.
    fn create(
        &self,
        project: ProjectId,
        generation: Generation,
        volume: VolumeId,
        quota_bytes: u64,
        owner: Owner,
    ) -> BoxFuture<'_, Result<Volumes, Error>>;

    /// Finds existing volumes and sets the receipt's generation and the quota.
    ///
    /// # Errors
    /// `wrong_volume` if they are missing, incomplete, or their receipt names another project or a newer generation.
    fn open(&self, project: ProjectId, generation: Generation, quota_bytes: u64) -> BoxFuture<'_, Result<Volumes, Error>>;

    /// Deletes both volumes and the receipt, also half-made ones. Done if there are none.
    fn delete(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>>;

    /// Projects that have something here, also half-made.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ProjectId>, Error>>;

    /// Bytes that both volumes use together; none where that would need a walk (`cheap_usage` is false).
    fn usage(&self, project: ProjectId) -> BoxFuture<'_, Result<Option<u64>, Error>>;

    fn space(&self) -> BoxFuture<'_, Result<Space, Error>>;
}
