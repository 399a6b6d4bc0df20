//! Connections over TCP, plain and encrypted.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Authenticator, BoxFuture, Router, pump::Raw, secure::Secure, server};
use crate::tls::ServerTls;

/// Connections beyond those that may be there at once: they are told so.
const REFUSED_AT_ONCE: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that the kernel holds until they are accepted. When a server comes back all of its clients come at once, and each that finds the queue
/// full waits for a second or more. Linux takes no more than net.core.somaxconn, by default the same 4096.
const BACKLOG: u32 = 4096;

/// Listens as [`TcpListener::bind`] does, which holds 128 connections only.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Router {
    /// Accepts connections until `cancel`, then waits for them to end, each within [`BusLimits::close_timeout`](super::BusLimits).
    pub fn serve_tcp(
        self: &Arc<Self>,
        listener: TcpListener,
        auth: Arc<dyn Authenticator>,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (router, stop) = (self.clone(), cancel.clone());
        let serve = move |socket, peer: SocketAddr| -> BoxFuture<'static, ()> {
            Box::pin(router.serve(socket, peer.to_string(), auth.clone(), stop.clone()))
        };
        accept(self.limits().connections, listener, serve, cancel)
    }

    /// As [`serve_tcp`](Self::serve_tcp), encrypted, as NATS clients do it: INFO in the clear says that TLS is required, and the client begins the
    /// handshake. One that begins with it at once (`tls_first`) is served, too. A client that goes on in the clear is told and closed.
    pub fn serve_tls(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Arc<ServerTls>,
        auth: Arc<dyn Authenticator>,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (router, stop) = (self.clone(), cancel.clone());
        let serve = move |socket, peer: SocketAddr| -> BoxFuture<'static, ()> {
            let transport = Raw(Secure::new(socket, tls.clone()));
            Box::pin(server::serve(router.clone(), transport, true, peer.to_string(), auth.clone(), stop.clone()))
        };
        accept(self.limits().connections, listener, serve, cancel)
    }

    /// Either of these: encrypted where there is a certificate.
    pub fn serve_listener(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<ServerTls>>,
        auth: Arc<dyn Authenticator>,
        cancel: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        match tls {
            Some(tls) => Box::pin(self.serve_tls(listener, tls, auth, cancel)),
            None => Box::pin(self.serve_tcp(listener, auth, cancel)),
        }
    }
}

async fn accept(
    connections: usize,
    listener: TcpListener,
    serve: impl Fn(TcpStream, SocketAddr) -> BoxFuture<'static, ()> + Send,
    cancel: CancellationToken,
) {
    // a few more than may connect, so that those are told; beyond that the kernel's backlog holds them
    let slots = Arc::new(Semaphore::new(connections + REFUSED_AT_ONCE));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accepted => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            // both may have happened at once
            Ok(_) if cancel.is_cancelled() => break,
            Ok((socket, peer)) => {
                let _ = socket.set_nodelay(true); // without it things work, later
                let connection = serve(socket, peer);
                tasks.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                // out of descriptors, most likely: trying again at once would only burn the processor
                tracing::warn!(%error, "the bus can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const CROWD: usize = 500;

    /// A connection that isn't accepted is there nevertheless, as long as the queue has room.
    #[tokio::test]
    async fn a_crowd_is_let_in_before_anyone_is_accepted() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
        if most.is_none_or(|most: usize| most < CROWD) {
            eprintln!("skipped: a_crowd_is_let_in_before_anyone_is_accepted: net.core.somaxconn is below {CROWD}");
            return;
        }
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let begin = tokio::time::Instant::now();
        let crowd: Vec<_> = (0..CROWD).map(|_| TcpStream::connect(address).unwrap()).collect();
        // a queue of 128 makes some wait for the kernel's next try, of which each takes twice as long as the one before
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
        for _ in &crowd {
            listener.accept().await.unwrap();
        }
    }
}
