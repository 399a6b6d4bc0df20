//! A master's life: check, lock, load, bind, run, drain.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Timestamp,
    api::JoinTokenRequest,
    subject::{CALLS, CALLS_QUEUE},
};
use atoll_net::{
    bus::{Authenticator, BridgeOptions, BusLimits, Router},
    clock::SharedClock,
    http::{self, HttpLimits},
    tls::{Protocol, ServerTls},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{self, Master},
    auth::Auth,
    calls::{self, Calls, StorePlaces},
    config::MasterConfig,
    edge::config_error,
    hosts::{Hosts, MasterAuthenticator, REPORTS, announce_changes, serve_reports, watch_for_silence},
    keys::Signer,
    operations::{Executor, Parts},
    projects::Projects,
    routing::Routing,
    store::{Store, StoreError},
};

const PRUNE_EVERY: Duration = Duration::from_hours(1);
/// How long each stage of a shutdown may take.
const DRAIN: Duration = Duration::from_secs(5);

/// A master that serves. Dropping it stops it without waiting; nothing that was accepted is lost either way.
pub struct RunningMaster {
    addr: SocketAddr,
    bus_addr: Option<SocketAddr>,
    url: String,
    master: Option<Arc<Master>>,
    calls: Option<Calls>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Held as long as the master uses its directory.
    lock: File,
}

impl RunningMaster {
    /// Where HTTP is served.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the bus is served over TCP, if it is.
    pub fn bus_addr(&self) -> Option<SocketAddr> {
        self.bus_addr
    }

    /// How users and hosts reach the master: `http(s)://name:port`, no path.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The token with which the first account is made (`POST /v1/setup`); none when there is an account.
    pub fn setup_token(&self) -> Option<String> {
        self.master.as_ref().and_then(|master| master.auth.setup_token())
    }

    /// A one-time token for the host of this name, good for some minutes: for a process that runs a master and a host together, whose host
    /// joins before there is any account.
    ///
    /// # Errors
    /// `invalid_argument` if it isn't a name, `unavailable` once the master is being shut down.
    pub async fn join_token(&self, name: &str) -> Result<String, Error> {
        let master = self.master.as_ref().ok_or_else(|| Error::new(ErrorCode::Unavailable, "The master is shutting down."))?;
        let request = JoinTokenRequest { name: Some(name.into()), minutes: Some(5) };
        Ok(master.hosts.create_join_token(None, request).await?.token)
    }

    /// Stops accepting, lets requests end, stops operations where they are (they are saved), and closes the store. Bounded: takes at
    /// most some seconds for each.
    pub async fn shutdown(mut self) {
        // first, while whoever waits for an answer is still connected; taken out, since they hold the store
        if let Some(calls) = self.calls.take() {
            calls.stop(DRAIN).await;
        }
        self.stop.cancel();
        let Some(master) = self.master.take() else { return };
        master.projects.executor.stop(DRAIN).await;
        master.bus.drain(DRAIN).await;
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections didn't end in time");
        }
        let store = master.projects.store.clone();
        drop(master);
        store.close(DRAIN).await;
        if let Err(error) = self.lock.unlock() {
            tracing::debug!(%error, "the data directory's lock ends with the process");
        }
    }
}

impl Drop for RunningMaster {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(master) = &self.master {
            master.projects.executor.stop_now();
        }
    }
}

/// Starts a master: checks the configuration, opens the store, binds, takes up the operations that have not ended, and serves.
///
/// # Errors
/// `invalid_config` with the key, file or address; nothing is served or changed then beyond what was brought up to date in the store.
pub async fn start(config: MasterConfig, clock: SharedClock) -> Result<RunningMaster, Error> {
    config.check()?;
    let [tls, bus_tls] = certificates(&config, &clock)?;
    let cluster = cluster(&config).await?;
    let lock = lock_data_dir(&config.data_dir)?;
    let path = config.data_dir.join("master.db");
    let opened = tokio::task::spawn_blocking(move || Store::open(&path).map_err(|error| (path, error))).await;
    let store = opened.map_err(crate::edge::internal)?.map_err(|(path, error)| store_error(&path, &error))?;
    let signer = Arc::new(Signer::load(&config.data_dir, &*clock)?);
    let auth = Auth::load(store.clone(), clock.clone(), &config.data_dir).await?;
    let (hosts, changes) = Hosts::load(store.clone(), clock.clone(), signer.jwks().clone()).await?;

    let listener = bind("master.listen", config.listen).await?;
    let bus_listener = match config.bus_listen {
        Some(address) => Some(bind("master.bus_listen", address).await?),
        None => None,
    };
    let addr = listener.local_addr().map_err(crate::edge::internal)?;
    let bus_addr = bus_listener.as_ref().map(TcpListener::local_addr).transpose().map_err(crate::edge::internal)?;

    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let unless_started = stop.clone().drop_guard();
    let bus = Router::new(BusLimits::default(), clock.clone());
    if let Some(options) = cluster {
        tasks.spawn(bus.join(options, stop.clone())?);
    }
    let conn = bus.connect("master", None);
    let reports = conn.subscribe(REPORTS, None).await?;
    let places = Arc::new(StorePlaces { store: store.clone(), hosts: hosts.clone() });
    let calls = Calls::new(places, conn.clone(), calls::Bounds::default(), &stop);
    let incoming = conn.subscribe(CALLS, Some(CALLS_QUEUE)).await?;
    tasks.spawn(calls::serve(calls.clone(), conn.clone(), incoming));
    tasks.spawn(serve_reports(hosts.clone(), conn.clone(), reports, stop.clone()));
    tasks.spawn(watch_for_silence(hosts.clone(), stop.clone()));
    tasks.spawn(announce_changes(hosts.clone(), store.clone(), conn.clone(), changes, stop.clone()));
    tasks.spawn(prune(store.clone(), clock.clone(), config.history_days, stop.clone()));

    let executor = Executor::new(Parts { store: store.clone(), clock: clock.clone(), hosts: hosts.clone(), conn });
    let routing = Routing { hosts: hosts.clone(), signer: signer.clone(), clock: clock.clone() };
    let projects = Arc::new(Projects { store, clock: clock.clone(), hosts: hosts.clone(), routing, executor });
    let authenticator: Arc<dyn Authenticator> = Arc::new(MasterAuthenticator { hosts: hosts.clone(), auth: auth.clone() });
    let master = Arc::new(Master { clock, auth, hosts, projects, signer, bus, authenticator, stop: stop.clone() });

    let taken_up = master.projects.executor.recover().await?;
    if taken_up > 0 {
        tracing::info!(operations = taken_up, "going on with the operations that have not ended");
    }
    if let Some(listener) = bus_listener {
        tasks.spawn(master.bus.serve_listener(listener, bus_tls, master.authenticator.clone(), stop.clone()));
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let limits = http_limits(config.max_connections);
    tasks.spawn(http::serve(listener, tls, api::router(master.clone()), limits, stop.clone()));
    let url = config.public_url.unwrap_or_else(|| format!("{scheme}://{}", reachable(addr)));
    tracing::info!(%addr, url, "the master serves");
    unless_started.disarm();
    Ok(RunningMaster { addr, bus_addr, url, master: Some(master), calls: Some(calls), tasks, stop, lock })
}

/// Requests are small, and a client may keep its connection between two of them for longer than a host's.
fn http_limits(connections: usize) -> HttpLimits {
    HttpLimits { connections, head: Duration::from_mins(1), buffer: 64 << 10, drain: Duration::from_secs(4), ..HttpLimits::default() }
}

/// Of `listen` and of `bus_listen`.
fn certificates(config: &MasterConfig, clock: &SharedClock) -> Result<[Option<Arc<ServerTls>>; 2], Error> {
    let http = ServerTls::configured(
        ("master.tls_certificate", config.tls_certificate.as_deref()),
        ("master.tls_key", config.tls_key.as_deref()),
        Protocol::Http,
        clock.clone(),
    )?;
    let bus = ServerTls::configured(
        ("master.bus_tls_certificate", config.bus_tls_certificate.as_deref()),
        ("master.bus_tls_key", config.bus_tls_key.as_deref()),
        Protocol::Nats,
        clock.clone(),
    )?;
    Ok([http, bus])
}

/// What crosses between the master's bus and a cluster that other masters are on, too.
const SHARED: [&str; 4] = ["host.>", "account.>", "call.>", "_INBOX.>"];

async fn cluster(config: &MasterConfig) -> Result<Option<BridgeOptions>, Error> {
    if config.cluster_urls.is_empty() {
        return Ok(None);
    }
    let options = BridgeOptions {
        urls: config.cluster_urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?,
        subjects: SHARED.map(Into::into).to_vec(),
        credentials_file: config.cluster_credentials_file.clone(),
        ca_file: config.cluster_ca_file.clone(),
        name: "atoll-master".into(),
        ..BridgeOptions::default()
    };
    options.check().await.map_err(|error| error.mend("Check master.cluster_credentials_file and master.cluster_ca_file."))?;
    Ok(Some(options))
}

/// Makes the directory if need be and takes it for this process.
fn lock_data_dir(dir: &Path) -> Result<File, Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| config_error(dir, &error))?;
    let path = dir.join("lock");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|error| config_error(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(ErrorCode::InvalidConfig, format!("Another master runs on master.data_dir, {}.", dir.display()))
                .mend("Stop it first, or give this one a directory of its own."))
        }
        Err(TryLockError::Error(error)) => Err(config_error(&path, &error)),
    }
}

fn store_error(path: &Path, error: &StoreError) -> Error {
    match error {
        StoreError::TooNew { .. } => {
            Error::new(ErrorCode::InvalidConfig, format!("{} was written by a newer Atoll: {error}.", path.display()))
                .mend("Use that version again, or a newer one.")
        }
        error => config_error(path, error),
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    atoll_net::bus::listen(address).map_err(|error| {
        let text = if error.kind() == std::io::ErrorKind::AddrInUse {
            format!("{key} is {address}, and that port is in use.")
        } else {
            format!("{key} is {address}, which can't be listened on: {error}.")
        };
        Error::new(ErrorCode::InvalidConfig, text).mend("Choose another address or port, or stop what uses it.")
    })
}

/// An address that a client on this machine can use.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// Drops what has expired, at the start and every hour.
async fn prune(store: Store, clock: SharedClock, history_days: u32, stop: CancellationToken) {
    let mut beat = tokio::time::interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let now = clock.now();
        let history = Timestamp::from_millis(now.millis() - i64::from(history_days) * 24 * 3600 * 1000);
        match store.prune(now, history).await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "dropped what has expired"),
            Err(error) => tracing::warn!(%error, "what has expired couldn't be dropped"),
        }
    }
}
