//! Whole clusters in one process, on port 0: a master and hosts with fakes whose faults a test chooses, or with the real podman and
//! btrfs. For tests; nothing of the product depends on it.

pub mod api;
mod fakes;
pub mod real;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atoll_contract::{
    Error, HostId,
    host::{HostState, HostView},
};
use atoll_host::{HostConfig, RunningHost, runtime::Runtime, storage::Storage};
use atoll_master::{MasterConfig, RunningMaster};
use atoll_net::{
    clock::{SharedClock, SystemClock},
    testing::Authority,
    tls::{self, Trust},
};
use tempfile::TempDir;

pub use api::{Api, Remote};
pub use fakes::FakeHost;

/// How long a test waits for what must come. Long, since a busy machine isn't a fault; a wait ends as soon as it comes.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A master and its hosts.
pub struct Cluster {
    // servers first: they go before the directory that they write to
    pub hosts: Vec<Node>,
    master: Option<RunningMaster>,
    master_address: SocketAddr,
    clock: SharedClock,
    pub api: Api,
    /// Of an encrypted cluster.
    pub authority: Option<Authority>,
    dir: TempDir,
}

pub type Parts = (Arc<dyn Runtime>, Arc<dyn Storage>);

/// One host of a cluster.
pub struct Node {
    pub name: String,
    pub id: HostId,
    running: Option<RunningHost>,
    config: HostConfig,
    runtime: Arc<dyn Runtime>,
    storage: Arc<dyn Storage>,
}

impl Node {
    /// The host itself; none while it is stopped.
    pub fn host(&self) -> Option<&RunningHost> {
        self.running.as_ref()
    }
}

impl Cluster {
    /// A master with its first account, without hosts.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn new() -> Result<Self, Error> {
        Self::begin(false).await
    }

    /// As [`Self::new`], with TLS at every port and an authority of its own.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn encrypted() -> Result<Self, Error> {
        Self::begin(true).await
    }

    async fn begin(encrypted: bool) -> Result<Self, Error> {
        let failed = |error: std::io::Error| Error::internal(error.to_string());
        let dir = TempDir::new().map_err(failed)?;
        let authority = if encrypted { Some(Authority::new(dir.path()).map_err(failed)?) } else { None };
        let trust = authority.as_ref().map(|authority| tls::client_config(Trust::Only(&authority.ca_file()))).transpose()?;
        let clock: SharedClock = Arc::new(SystemClock);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let master = atoll_master::start(master_config(dir.path(), any, authority.as_ref()), clock.clone()).await?;
        let master_address = master.addr();
        let token = master.setup_token().ok_or_else(|| Error::internal("a new master has no setup token"))?;
        let api = Api::set_up(master.url(), &token, trust).await?;
        Ok(Self { hosts: Vec::new(), master: Some(master), master_address, clock, api, authority, dir })
    }

    /// With hosts `h0`, `h1`, … on fakes.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn with_fakes(count: usize) -> Result<(Self, Vec<Arc<FakeHost>>), Error> {
        let mut cluster = Self::new().await?;
        let mut fakes = Vec::new();
        for number in 0..count {
            let fake = FakeHost::new(cluster.path(&format!("volumes-{number}")))?;
            cluster.add_host(&format!("h{number}"), fake.runtime.clone(), fake.storage.clone()).await?;
            fakes.push(fake);
        }
        Ok((cluster, fakes))
    }

    /// Joins a host and waits until the master sees it online.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn add_host(&mut self, name: &str, runtime: Arc<dyn Runtime>, storage: Arc<dyn Storage>) -> Result<HostId, Error> {
        self.add_made(self.host_config(name), async |_| Ok((runtime, storage))).await
    }

    /// As [`Self::add_host`], with a configuration of the test's own, and parts that are made once the host's id is known.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn add_made(
        &mut self,
        mut config: HostConfig,
        parts: impl AsyncFnOnce(HostId) -> Result<Parts, Error>,
    ) -> Result<HostId, Error> {
        let token = self.api.join_token(&config.name).await?;
        let identity = atoll_host::join(&config, &token, &*self.clock).await?;
        let id = identity.host;
        let (runtime, storage) = parts(id).await?;
        let running = atoll_host::start(config.clone(), identity, runtime.clone(), storage.clone(), self.clock.clone()).await?;
        // it comes back at the same address after a restart, as a real one does
        config.listen = running.addr();
        self.hosts.push(Node { name: config.name.clone(), id, running: Some(running), config, runtime, storage });
        self.online(id).await?;
        Ok(id)
    }

    /// What hosts of this cluster are told.
    pub fn host_config(&self, name: &str) -> HostConfig {
        HostConfig {
            name: name.into(),
            data_dir: self.path(&format!("host-{name}")),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            master_url: self.master_url(),
            master_ca_file: self.authority.as_ref().map(Authority::ca_file),
            tls_certificate: self.authority.as_ref().map(Authority::certificate),
            tls_key: self.authority.as_ref().map(Authority::key),
            // a test's file system is smaller than what a host would keep for itself
            disk_reserve_bytes: 64 << 20,
            ..HostConfig::default()
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn master_url(&self) -> String {
        self.api.url.clone()
    }

    /// Waits until the master sees a host online.
    ///
    /// # Errors
    /// `timed_out`.
    pub async fn online(&self, id: HostId) -> Result<HostView, Error> {
        self.api
            .wait("the host to be online", async |api: &Api| {
                api.host(id).await.map(|view| (view.state == HostState::Online).then_some(view))
            })
            .await
    }

    /// Ends the master, as a stop would.
    pub async fn stop_master(&mut self) {
        if let Some(master) = self.master.take() {
            master.shutdown().await;
        }
    }

    /// Starts the master again on the same data and address.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn start_master(&mut self) -> Result<(), Error> {
        let config = master_config(self.dir.path(), self.master_address, self.authority.as_ref());
        self.master = Some(atoll_master::start(config, self.clock.clone()).await?);
        Ok(())
    }

    /// Ends a host program. Its containers go on, as they do for a real one.
    pub async fn stop_host(&mut self, number: usize) {
        if let Some(host) = self.hosts[number].running.take() {
            host.shutdown().await;
        }
    }

    /// Starts a host program again on the same data.
    ///
    /// # Errors
    /// Whatever kept it from starting.
    pub async fn start_host(&mut self, number: usize) -> Result<(), Error> {
        let node = &mut self.hosts[number];
        let identity = atoll_host::Identity::load(&node.config.data_dir)?;
        let started =
            atoll_host::start(node.config.clone(), identity, node.runtime.clone(), node.storage.clone(), self.clock.clone()).await?;
        node.running = Some(started);
        Ok(())
    }

    /// Ends everything in order. Dropping a cluster ends it too, less gently.
    pub async fn end(mut self) {
        for number in 0..self.hosts.len() {
            self.stop_host(number).await;
        }
        self.stop_master().await;
    }
}

fn master_config(dir: &Path, listen: SocketAddr, authority: Option<&Authority>) -> MasterConfig {
    MasterConfig {
        data_dir: dir.join("master"),
        listen,
        tls_certificate: authority.map(Authority::certificate),
        tls_key: authority.map(Authority::key),
        ..MasterConfig::default()
    }
}
