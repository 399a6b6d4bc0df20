//! Puts a host together, in the order in which things can go wrong: check, lock, bind, load, run.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, HostId, KeySet, host::HostFacts};
use atoll_net::{
    bus::{BusLimits, Router},
    clock::SharedClock,
    http::{self, HttpLimits},
    streams::{StreamLimits, StreamService},
    tls::{Protocol, ServerTls},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::HostConfig,
    gate::{self, Gate, GateLimits, GateParts, SharedKeys},
    join::{Identity, file_error, make_private_dir, master_trust},
    projects::{Parts, Projects, records::Records},
    runtime::Runtime,
    storage::Storage,
    sweep,
    uplink::{Bounds, Uplink},
};

/// How long a shutdown waits for work that is being done; what isn't done by then is finished after the next start.
const GRACE: Duration = Duration::from_secs(5);

/// A host that runs. Dropping it ends the host as a crash would: at once, with nothing lost.
pub struct RunningHost {
    id: HostId,
    addr: SocketAddr,
    bus_addr: Option<SocketAddr>,
    public_url: String,
    projects: Projects,
    router: Arc<Router>,
    cancel: CancellationToken,
    tasks: TaskTracker,
    /// Held while the host runs, so that no other host program uses its directory.
    #[allow(dead_code, reason = "held for its drop")]
    lock: File,
}

/// Starts a host: binds its ports, adopts the containers that run, connects to the master in the background.
///
/// # Errors
/// `invalid_config` for a wrong configuration, a port in use or a directory in use; those of the records.
pub async fn start(
    config: HostConfig,
    identity: Identity,
    runtime: Arc<dyn Runtime>,
    storage: Arc<dyn Storage>,
    clock: SharedClock,
) -> Result<RunningHost, Error> {
    config.check()?;
    let [tls, bus_tls] = certificates(&config, &clock)?;
    let bus_url = config.bus_url(&identity.master_url);
    let bus_trust = master_trust(&config, &bus_url)?;
    make_private_dir(&config.data_dir)?;
    let lock = lock(&config.data_dir)?;
    let listener = bind("listen", config.listen).await?;
    let addr = local_addr(&listener)?;
    let bus_listener = match config.bus_listen {
        Some(address) => Some(bind("bus_listen", address).await?),
        None => None,
    };
    let bus_addr = bus_listener.as_ref().map(local_addr).transpose()?;
    let public_url = match config.public_url.trim_end_matches('/') {
        "" => format!("{}://{addr}", if tls.is_some() { "https" } else { "http" }),
        given => given.into(),
    };

    let keys = SharedKeys::new(KeySet::new(&identity.jwks));
    let router = Router::new(BusLimits::default(), clock.clone());
    let streams = StreamService::new(router.connect("streams", None), clock.clone(), StreamLimits::default());
    let projects = Projects::load(Parts {
        runtime: runtime.clone(),
        storage: storage.clone(),
        records: Records::open(&config.data_dir.join("records.db"))?,
        router: router.clone(),
        streams: streams.clone(),
        clock: clock.clone(),
        agents_dir: agents_dir(&config.data_dir)?,
        max_running: config.max_running,
        agent_wait: config.agent_wait,
        reconcile_every: config.reconcile_every,
    })
    .await?;
    let serving = streams.listen("project.*", Arc::new(projects.clone())).await?;
    let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
    let gate = Gate::new(GateParts {
        places: Arc::new(projects.clone()),
        keys: keys.clone(),
        host: identity.host,
        clock: clock.clone(),
        bus: router.clone(),
        limits: GateLimits::default(),
        cancel: cancel.clone(),
    });
    let uplink = Uplink {
        data_dir: config.data_dir.clone(),
        bus_url,
        trust: bus_trust,
        facts: facts(&config, &public_url, &*runtime, &*storage),
        bounds: Bounds { max_running: config.max_running, disk_reserve_bytes: config.disk_reserve_bytes },
        projects: projects.clone(),
        bus: router.clone(),
        storage,
        keys,
        clock,
        identity: identity.clone(),
    };

    if let Some(listener) = bus_listener {
        tasks.spawn(router.serve_listener(listener, bus_tls, gate.users(), cancel.clone()));
    }
    tasks.spawn(sweep::uploads(gate.clone(), projects.clone(), cancel.clone()));
    tasks.spawn(http::serve(listener, tls, gate::router(gate), HttpLimits::default(), cancel.clone()));
    tasks.spawn(serving.run(cancel.clone()));
    tasks.spawn(projects.clone().run(cancel.clone()));
    tasks.spawn(uplink.run(cancel.clone()));
    tracing::info!(host = %identity.host, name = %identity.name, %addr, %public_url, "host started");
    Ok(RunningHost { id: identity.host, addr, bus_addr, public_url, projects, router, cancel, tasks, lock })
}

impl RunningHost {
    pub fn id(&self) -> HostId {
        self.id
    }

    /// Where HTTP and WebSocket are served.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where plain NATS is served, if it is.
    pub fn bus_addr(&self) -> Option<SocketAddr> {
        self.bus_addr
    }

    /// Where users are told to come.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Ends the host program's part: connections are closed, work that is being done gets a few seconds. Containers go on running.
    pub async fn shutdown(self) {
        self.projects.shutdown(GRACE).await;
        self.router.drain(Duration::from_secs(1)).await;
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some of the host's tasks don't end");
        }
    }
}

impl Drop for RunningHost {
    fn drop(&mut self) {
        self.projects.halt();
        self.cancel.cancel();
    }
}

/// Of `listen` and of `bus_listen`.
fn certificates(config: &HostConfig, clock: &SharedClock) -> Result<[Option<Arc<ServerTls>>; 2], Error> {
    let http = ServerTls::configured(
        ("host.tls_certificate", config.tls_certificate.as_deref()),
        ("host.tls_key", config.tls_key.as_deref()),
        Protocol::Http,
        clock.clone(),
    )?;
    let bus = ServerTls::configured(
        ("host.bus_tls_certificate", config.bus_tls_certificate.as_deref()),
        ("host.bus_tls_key", config.bus_tls_key.as_deref()),
        Protocol::Nats,
        clock.clone(),
    )?;
    Ok([http, bus])
}

fn lock(data_dir: &Path) -> Result<File, Error> {
    let path = data_dir.join("lock");
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open.map_err(|error| file_error(&path, &error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::new(ErrorCode::InvalidConfig, format!("Another host program uses {}.", data_dir.display()))
                .mend("Stop it, or give this one another data_dir."))
        }
        Err(error) => Err(file_error(&path, &error.into())),
    }
}

/// Others may pass through and not look: a container's root is another user of this machine.
fn agents_dir(data_dir: &Path) -> Result<std::path::PathBuf, Error> {
    let path = data_dir.join("run");
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&path).map_err(|error| file_error(&path, &error))?;
    Ok(path)
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    atoll_net::bus::listen(address).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::AddrInUse => "the port is in use".into(),
            std::io::ErrorKind::AddrNotAvailable => "this machine doesn't have that address".into(),
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need a right that this user doesn't have".into(),
            _ => error.to_string(),
        };
        Error::new(ErrorCode::InvalidConfig, format!("The host can't listen on {address} ({key}): {why}."))
            .mend(format!("Set {key} to a free address, or stop what uses it."))
    })
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|error| Error::internal(format!("A bound port has no address: {error}.")))
}

fn facts(config: &HostConfig, public_url: &str, runtime: &dyn Runtime, storage: &dyn Storage) -> HostFacts {
    HostFacts {
        version: env!("CARGO_PKG_VERSION").into(),
        public_url: public_url.into(),
        region: config.region.clone(),
        labels: config.labels.clone(),
        storage: storage.kind(),
        capabilities: storage.capabilities(),
        arch: rustix::system::uname().machine().to_string_lossy().into_owned(),
        findings: [runtime.findings(), storage.findings()].concat(),
    }
}
