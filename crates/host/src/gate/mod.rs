//! The door to a host: HTTP for files and uploads, and the way to the bus. Nothing passes without a connect token but the question whether
//! the host is there.

mod auth;
mod body;
mod conditions;
mod download;
mod files;
mod limits;
mod reply;
mod request;
mod uploads;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use atoll_contract::{Error, Generation, HostId, KeySet, ProjectId, api::Health};
use atoll_net::{bus, clock::SharedClock};
use axum::{
    Extension, Json,
    extract::{ConnectInfo, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    middleware,
    response::Response,
    routing::{any, get},
};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

pub use self::auth::UserAuth;
use self::{limits::Shares, reply::Refusal};
pub use crate::files::Home;
use crate::files::UploadLimits;

/// What the gate needs to know of projects.
pub trait Places: Send + Sync + 'static {
    /// The generation in force here; none if this host doesn't have the project.
    fn generation(&self, project: ProjectId) -> Option<Generation>;

    /// Where its volumes are, whether it runs or not.
    ///
    /// # Errors
    /// `not_found` if it has none here, `storage_failed`.
    fn home(&self, project: ProjectId) -> Result<Home, Error>;
}

/// The keys that connect tokens are verified with; replaced as a whole when the master sends others.
#[derive(Clone, Default)]
pub struct SharedKeys(Arc<RwLock<Arc<KeySet>>>);

impl SharedKeys {
    pub fn new(keys: KeySet) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(keys))))
    }

    pub fn get(&self) -> Arc<KeySet> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, keys: KeySet) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }
}

/// Every bound of the gate.
#[derive(Debug, Clone)]
pub struct GateLimits {
    /// Requests that one project may have under way at once.
    pub requests_per_project: usize,
    /// Folders that are being packed or unpacked for one project at once; each holds a thread.
    pub archives_per_project: usize,
    /// The same for the whole host.
    pub archives: usize,
    /// Blocking steps (a lookup, a page, a chunk) of all requests together.
    pub jobs: usize,
    /// How long a request waits for its turn before it is refused.
    pub turn: Duration,
    /// A body, either way, of which nothing moves for so long is given up.
    pub idle: Duration,
    /// How long one step on the file system may take.
    pub quick: Duration,
    /// The same for removing a tree, and for making a file durable and putting it in place.
    pub long: Duration,
    pub uploads: UploadLimits,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self {
            requests_per_project: 32,
            archives_per_project: 4,
            archives: 32,
            jobs: 64,
            turn: Duration::from_secs(10),
            idle: Duration::from_mins(1),
            quick: Duration::from_mins(1),
            long: Duration::from_mins(30),
            uploads: UploadLimits::default(),
        }
    }
}

/// What a [`Gate`] is made of.
pub struct GateParts {
    pub places: Arc<dyn Places>,
    pub keys: SharedKeys,
    /// This host: tokens for another are refused.
    pub host: HostId,
    pub clock: SharedClock,
    pub bus: Arc<bus::Router>,
    pub limits: GateLimits,
    /// Fires when the host program ends: bus connections are closed, and long work stops.
    pub cancel: CancellationToken,
}

/// The gate of one host. Made once, shared by all its requests.
pub struct Gate {
    places: Arc<dyn Places>,
    users: Arc<UserAuth>,
    clock: SharedClock,
    bus: Arc<bus::Router>,
    limits: GateLimits,
    shares: Shares,
    cancel: CancellationToken,
}

impl Gate {
    pub fn new(parts: GateParts) -> Arc<Self> {
        let GateParts { places, keys, host, clock, bus, limits, cancel } = parts;
        let users = Arc::new(UserAuth::new(keys, host, places.clone(), clock.clone()));
        Arc::new(Self { places, users, clock, bus, shares: Shares::new(&limits), limits, cancel })
    }

    /// The authenticator of users on this host's bus, for other roads to it than the WebSocket here.
    pub fn users(&self) -> Arc<UserAuth> {
        self.users.clone()
    }

    /// Removes a project's stale uploads. They also go when a new one begins; this is for projects that are never uploaded to again.
    ///
    /// # Errors
    /// `storage_failed` and others of the volume `state`.
    pub async fn sweep_uploads(&self, project: ProjectId) -> Result<(), Error> {
        let home = self.places.home(project)?;
        let (limits, clock) = (self.limits.uploads, self.clock.clone());
        let sweep = move || crate::files::Uploads::open_if_any(&home, limits, clock)?.map_or(Ok((0, 0)), |uploads| uploads.sweep());
        // none begins meanwhile: what has just been made would look like what was cut off
        let turn = self.shares.request(project).await?;
        let _beginning = turn.share.beginnings.lock().await;
        self.shares.job(self.limits.quick, sweep).await?.map(drop).map_err(|fault| fault.about(&"uploads"))
    }
}

/// All routes. Whoever serves them bounds the time for a request's headers (hyper's `header_read_timeout`) and the number of connections.
pub fn router(gate: Arc<Gate>) -> axum::Router {
    let panicked = |_: Box<dyn std::any::Any + Send>| Refusal::from(Error::internal("The host failed at this request.")).into_response();
    axum::Router::new()
        .route("/v1/health", get(health))
        .route("/bus", get(open_bus))
        .route("/v1/projects/{id}/files", any(files::handle))
        .route("/v1/projects/{id}/files/", any(files::handle))
        .route("/v1/projects/{id}/files/{*path}", any(files::handle))
        .route("/v1/projects/{id}/uploads", any(uploads::handle))
        .route("/v1/projects/{id}/uploads/{upload}", any(uploads::handle))
        .fallback(|| async { Refusal::from(Error::not_found("page on this host")) })
        .method_not_allowed_fallback(|| async { Refusal::method("GET") })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(gate.clone(), reply::finish))
        .with_state(gate)
}

async fn health() -> Json<Health> {
    Json(Health { role: "host".into(), version: env!("CARGO_PKG_VERSION").into(), setup_needed: None })
}

/// The bus over a WebSocket. Who it is comes as the client's CONNECT, so that stock clients work.
async fn open_bus(
    State(gate): State<Arc<Gate>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return Refusal::invalid("The bus is reached by a WebSocket.").status(rejection.status()).into_response(),
    };
    let peer = peer.map_or_else(|| "unknown".to_owned(), |Extension(ConnectInfo(address))| address.to_string());
    let (bus, auth, cancel) = (gate.bus.clone(), gate.users.clone(), gate.cancel.clone());
    let upgrade = bus.limits().bound_websocket(upgrade);
    upgrade.on_upgrade(move |socket| async move { bus.serve_websocket(socket, peer, auth, cancel).await })
}
