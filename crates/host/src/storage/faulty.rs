//! A storage that fails where a test says so, and is another one otherwise.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use atoll_contract::{
    Error, Generation, ProjectId, VolumeId,
    host::{Finding, StorageCapabilities, StorageKind},
};
use atoll_net::bus::BoxFuture;

use super::{Space, Storage, Volumes};
use crate::runtime::Owner;

/// A verb of [`Storage`] that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StorageVerb {
    Create,
    Open,
    Delete,
    List,
    Usage,
    Space,
}

struct Fault {
    error: Error,
    /// Times it still happens.
    left: u32,
    /// Whether the verb is done all the same, as if its answer was lost.
    after: bool,
}

pub struct FaultyStorage {
    inner: Arc<dyn Storage>,
    faults: Mutex<BTreeMap<StorageVerb, Fault>>,
}

impl FaultyStorage {
    pub fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, faults: Mutex::default() })
    }

    /// The next `times` calls of the verb fail with this and do nothing.
    pub fn fail(&self, verb: StorageVerb, error: Error, times: u32) {
        self.set(verb, Fault { error, left: times, after: false });
    }

    /// The next `times` calls of the verb are done, and fail with this all the same.
    pub fn fail_after(&self, verb: StorageVerb, error: Error, times: u32) {
        self.set(verb, Fault { error, left: times, after: true });
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn set(&self, verb: StorageVerb, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).insert(verb, fault);
    }

    async fn pass<T>(&self, verb: StorageVerb, call: BoxFuture<'_, Result<T, Error>>) -> Result<T, Error> {
        let fault = {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            faults.get_mut(&verb).filter(|fault| fault.left > 0).map(|fault| {
                fault.left -= 1;
                (fault.error.clone(), fault.after)
            })
        };
        match fault {
            None => call.await,
            Some((error, after)) => {
                if after {
                    call.await?;
                }
                Err(error)
            }
        }
    }
}

impl Storage for FaultyStorage {
    fn kind(&self) -> StorageKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.capabilities()
    }

    fn findings(&self) -> Vec<Finding> {
        self.inner.findings()
    }

    fn create(
        &self,
        project: ProjectId,
        generation: Generation,
        volume: VolumeId,
        quota_bytes: u64,
        owner: Owner,
    ) -> BoxFuture<'_, Result<Volumes, Error>> {
        Box::pin(self.pass(StorageVerb::Create, self.inner.create(project, generation, volume, quota_bytes, owner)))
    }

    fn open(&self, project: ProjectId, generation: Generation, quota_bytes: u64) -> BoxFuture<'_, Result<Volumes, Error>> {
        Box::pin(self.pass(StorageVerb::Open, self.inner.open(project, generation, quota_bytes)))
    }

    fn delete(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.pass(StorageVerb::Delete, self.inner.delete(project)))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ProjectId>, Error>> {
        Box::pin(self.pass(StorageVerb::List, self.inner.list()))
    }

    fn usage(&self, project: ProjectId) -> BoxFuture<'_, Result<Option<u64>, Error>> {
        Box::pin(self.pass(StorageVerb::Usage, self.inner.usage(project)))
    }

    fn space(&self) -> BoxFuture<'_, Result<Space, Error>> {
        Box::pin(self.pass(StorageVerb::Space, self.inner.space()))
    }
}
