//! HTTP/1.1 connections, plain and encrypted: bounded in number, in the time that a handshake and a request's head may take, and at shutdown.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use http::Request;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::tls::{HANDSHAKE, ServerTls};

/// What one listener's connections are bounded by.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// At once, those in their handshake included; one more waits in the system's queue until one ends. A WebSocket stops counting once it is one:
    /// the bus bounds its connections itself.
    pub connections: usize,
    /// From the connection to the end of its TLS handshake.
    pub handshake: Duration,
    /// For a request's head to arrive, also the next one on a connection that is kept.
    pub head: Duration,
    /// Bytes that are read ahead, at most.
    pub buffer: usize,
    /// For requests that are being answered at shutdown; what isn't done then is cut off.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            buffer: 256 << 10,
            drain: Duration::from_secs(2),
        }
    }
}

/// Bytes of a request's head.
const HEAD_BYTES: usize = 32 << 10;
/// After an accept that failed for want of descriptors or memory: that passes and must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is read of a client that speaks plain HTTP where TLS is spoken, so that it gets to read its answer.
const PLAIN_BYTES: u64 = 64 << 10;
/// The answer to it: an error of the contract's form.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 132\r\n\r\n\
    {\"code\":\"invalid_argument\",\"message\":\"Plain HTTP was spoken to a port of HTTPS.\",\"mend\":\"Write https:// for http://.\",\"retry\":false}";

/// Serves until `cancel`, then lets requests that are under way end. Each request has its client's address as [`ConnectInfo`]. With `tls` all
/// connections are encrypted: a client that speaks plain HTTP is told so and closed.
pub async fn serve(listener: TcpListener, tls: Option<Arc<ServerTls>>, router: Router, limits: HttpLimits, cancel: CancellationToken) {
    let turns = Arc::new(Semaphore::new(limits.connections));
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = accept(&listener, &turns) => accepted,
        };
        let Some((stream, peer, turn)) = accepted else { continue };
        let (tls, router, cancel, cut) = (tls.clone(), router.clone(), cancel.clone(), cut.clone());
        connections.spawn(async move {
            // the handshake is in here, so that a slow one holds up nobody
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection(stream, peer, tls, router, limits, cancel) => {}
            }
            drop(turn);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "some requests don't end in time and are cut off");
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection, when there is room for one; none if accepting failed, which passes.
async fn accept(listener: &TcpListener, turns: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let turn = turns.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            let _ = stream.set_nodelay(true); // only slower without
            Some((stream, peer, turn))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection couldn't be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    limits: HttpLimits,
    cancel: CancellationToken,
) {
    let Some(tls) = tls else { return converse(stream, peer, router, limits, cancel).await };
    let encrypted = tokio::select! {
        () = cancel.cancelled() => return, // nothing is under way
        encrypted = tokio::time::timeout(limits.handshake, encrypt(stream, &tls)) => encrypted,
    };
    match encrypted {
        Ok(Ok(stream)) => converse(stream, peer, router, limits, cancel).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// The handshake, or a refusal in words that a client without TLS understands.
async fn encrypt(mut stream: TcpStream, tls: &ServerTls) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first == [HANDSHAKE] {
        return TlsAcceptor::from(tls.config()).accept(stream).await;
    }
    stream.write_all(PLAIN_ANSWER).await?;
    stream.shutdown().await?;
    // closing with something unread would take the answer away
    tokio::io::copy(&mut stream.take(PLAIN_BYTES), &mut tokio::io::sink()).await?;
    Err(io::Error::new(io::ErrorKind::InvalidData, "the client doesn't begin TLS"))
}

async fn converse<S>(stream: S, peer: SocketAddr, router: Router, limits: HttpLimits, cancel: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(HEAD_BYTES)
        .max_buf_size(limits.buffer)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = pin!(connection);
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
