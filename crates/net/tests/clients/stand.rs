//! A bus for clients: over TCP and WebSocket, with a token, an echo, the streams of a project, and a restart when a client asks for it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Role,
    subject::{self, Permissions},
};
use atoll_net::{
    bus::{Authenticator, BusLimits, Conn, Credentials, Grant, Message, Router},
    clock::SystemClock,
    streams::{Roots, StreamLimits, StreamService},
    tls::{Protocol, ServerTls},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) const TOKEN: &str = "a-connect-token";
/// The token's id.
const JTI: &str = "alice";
pub(crate) const INBOX: &str = "_INBOX.alice";
/// A project on which the token's holder collaborates.
pub(crate) const PROJECT: &str = "0198c0de-0000-7000-8000-000000000003";

/// Ends with its value.
pub(crate) struct Stand {
    pub(crate) tcp: SocketAddr,
    pub(crate) websocket: SocketAddr,
    /// Where all is encrypted: a directory with the certificate, which is for localhost.
    certificate: Option<TempDir>,
    _stop: DropGuard,
}

impl Stand {
    pub(crate) async fn start() -> Self {
        Self::begin(None).await
    }

    /// With TLS over TCP and below WebSocket.
    pub(crate) async fn encrypted() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self::begin(Some(directory)).await
    }

    async fn begin(certificate: Option<TempDir>) -> Self {
        let load = |directory: &TempDir| {
            let path = |name| directory.path().join(name);
            let load = |protocol| ServerTls::load(&path("cert.pem"), &path("key.pem"), protocol, Arc::new(SystemClock));
            [Protocol::Nats, Protocol::Http].map(|protocol| Arc::new(load(protocol).unwrap()))
        };
        let tls = certificate.as_ref().map(load);
        let (tcp, websocket) = (listen(any()).await, listen(any()).await);
        let addresses = (tcp.local_addr().unwrap(), websocket.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(serve(tcp, websocket, tls, stop.clone()));
        Self { tcp: addresses.0, websocket: addresses.1, certificate, _stop: stop.drop_guard() }
    }

    pub(crate) fn tcp_url(&self) -> String {
        format!("nats://{}", self.tcp)
    }

    pub(crate) fn tls_url(&self) -> String {
        format!("tls://localhost:{}", self.tcp.port())
    }

    /// Who trusts this file trusts this bus.
    pub(crate) fn certificate(&self) -> Option<PathBuf> {
        self.certificate.as_ref().map(|directory| directory.path().join("cert.pem"))
    }

    pub(crate) fn websocket_url(&self) -> String {
        match self.certificate {
            Some(_) => format!("wss://localhost:{}/bus", self.websocket.port()),
            None => format!("ws://{}/bus", self.websocket),
        }
    }
}

fn any() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// An address that was free a moment ago may be that of somebody's connection for another moment.
async fn listen(address: SocketAddr) -> TcpListener {
    let bound = async {
        loop {
            match TcpListener::bind(address).await {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => tokio::time::sleep(Duration::from_millis(20)).await,
                bound => break bound.unwrap(),
            }
        }
    };
    tokio::time::timeout(SOON, bound).await.expect("in time")
}

/// One bus after the other at the same addresses, each without a memory of the one before.
async fn serve(mut tcp: TcpListener, mut websocket: TcpListener, tls: Option<[Arc<ServerTls>; 2]>, stop: CancellationToken) {
    let addresses = (tcp.local_addr().unwrap(), websocket.local_addr().unwrap());
    loop {
        let (router, auth, cancel) = (Router::new(BusLimits::default(), Arc::new(SystemClock)), Arc::new(Door), stop.child_token());
        let conn = router.connect("the test", None);
        let mut restart = conn.subscribe("control.restart", None).await.unwrap();
        tokio::spawn(echo(conn.clone()));
        let streams = serve_streams(&router, cancel.clone()).await;
        let [for_tcp, for_websocket] = tls.clone().map_or([None, None], |both| both.map(Some));
        let by_tcp = tokio::spawn(router.serve_listener(tcp, for_tcp, auth.clone(), cancel.clone()));
        let by_websocket = tokio::spawn(router.serve_websocket_tcp(websocket, for_websocket, auth, cancel.clone()));
        tokio::select! {
            _ = restart.next() => {}
            () = stop.cancelled() => return,
        }
        cancel.cancel();
        by_tcp.await.unwrap();
        by_websocket.await.unwrap();
        streams.await.unwrap();
        (tcp, websocket) = (listen(addresses.0).await, listen(addresses.1).await);
    }
}

async fn echo(conn: Arc<dyn Conn>) {
    let mut asked = conn.subscribe("svc.echo", None).await.unwrap();
    while let Some(Message { reply: Some(reply), headers, payload, .. }) = asked.next().await {
        if conn.publish(Message { subject: reply, reply: None, headers, payload }).await.is_err() {
            return;
        }
    }
}

/// Serves the streams of projects as a host does.
async fn serve_streams(router: &Arc<Router>, cancel: CancellationToken) -> JoinHandle<()> {
    let states = tempfile::tempdir().unwrap();
    let service = StreamService::new(router.connect("streams", None), Arc::new(SystemClock), StreamLimits::default());
    let serving = service.listen("project.*", Arc::new(States(states.path().into()))).await.unwrap();
    tokio::spawn(async move {
        serving.run(cancel).await;
        drop(states); // all files are closed
    })
}

/// Where all projects' streams are: each has a folder.
struct States(PathBuf);

impl Roots for States {
    fn root(&self, owner: &str) -> Result<Arc<Path>, Error> {
        Ok(self.0.join(owner).into())
    }
}

/// Lets in who has the token, with what a user typically may.
struct Door;

impl Authenticator for Door {
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        if credentials.token.as_deref() != Some(TOKEN) {
            return Err(Error::new(ErrorCode::Unauthenticated, "The token isn't valid."));
        }
        let all = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let permissions = Permissions {
            publish: all(&["svc.>", "control.>", "t.>", "demo.>"]),
            subscribe: all(&["t.>", "demo.>", &format!("{INBOX}.>")]),
            responses: true,
            ..Permissions::default()
        };
        let project = PROJECT.parse().unwrap();
        let of_project = subject::project_permissions(project, Role::Collaborator, JTI);
        let grant = |key: &str, permissions| Grant { key: key.into(), permissions, account: None, expires_at: None };
        Ok(vec![grant("alice", permissions), grant(PROJECT, of_project)])
    }
}

/// The bound of every wait in these tests: far beyond what a slow machine needs.
pub(crate) const SOON: Duration = Duration::from_secs(20);
