//! Serves HTTP connections, each bounded: how many at once, how long a request's headers may take.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// Connections at once, WebSockets included. A connection more waits in the system's queue until one ends.
const MAX_CONNECTIONS: usize = 10_000;
/// A client that is slower than this with a request's headers, or keeps an idle connection for longer, is closed.
const HEADERS_WAIT: Duration = Duration::from_secs(30);
/// How long requests that are being answered may go on after `cancel`.
const GRACE: Duration = Duration::from_secs(2);

/// Accepts until `cancel` fires, then lets the requests that are under way end, within a bound.
pub(crate) async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let (router, cancel, stop) = (router.clone(), cancel.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, peer, router, cancel) => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        stop.cancel();
        tasks.wait().await;
    }
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            // the client was gone already, or the descriptors are used up; that passes and must not spin
            tracing::warn!(%error, "a connection can't be accepted");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, cancel: CancellationToken) {
    let _ = stream.set_nodelay(true); // only makes small answers slower
    let service = router.map_request(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WAIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an HTTP connection broke off");
    }
}
