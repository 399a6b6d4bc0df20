//! NATS over WebSocket: each frame carries any piece of the same stream of bytes, as nats-server does it.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::extract::{
    ConnectInfo,
    ws::{Message, WebSocket, WebSocketUpgrade},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Sink, Stream};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Authenticator, limits::BusLimits, pump::Transport, router::Router};
use crate::{
    http::{self, HttpLimits},
    tls::ServerTls,
};

/// Bytes that a client may put into one frame beside a message of the greatest size: clients collect small ones.
const COLLECTED: usize = 256 << 10;
/// Pieces are put together into frames of about this size; larger ones go by themselves without being copied here.
const FRAME: usize = 32 << 10;

impl BusLimits {
    /// Gives an upgrade the bounds of this bus: sizes of frames and of the buffers on both ways.
    pub fn bound_websocket<F>(&self, upgrade: WebSocketUpgrade<F>) -> WebSocketUpgrade<F> {
        let most = self.max_payload + self.max_control_line + COLLECTED;
        upgrade
            .max_message_size(most)
            .max_frame_size(most)
            .read_buffer_size(16 << 10)
            .write_buffer_size(FRAME)
            .max_write_buffer_size(2 * (most + FRAME))
    }
}

impl Router {
    /// Serves WebSockets at every path of a listener of their own, until `cancel`; encrypted where there is a certificate. Masters and hosts serve
    /// theirs beside their HTTP instead; this one is for the bus alone.
    pub fn serve_websocket_tcp(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<ServerTls>>,
        auth: Arc<dyn Authenticator>,
        cancel: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (router, stop) = (self.clone(), cancel.clone());
        let open = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, upgrade: WebSocketUpgrade| async move {
            let upgrade = router.limits().bound_websocket(upgrade);
            upgrade.on_upgrade(move |socket| async move { router.serve_websocket(socket, peer.to_string(), auth, cancel).await })
        };
        let limits = HttpLimits {
            // what is no WebSocket yet; those are bounded by the router
            connections: self.limits().connections.min(HttpLimits::default().connections),
            drain: self.limits().close_timeout,
            ..HttpLimits::default()
        };
        http::serve(listener, tls, axum::Router::new().fallback(open), limits, stop)
    }
}

/// A WebSocket as a stream of bytes. Text frames are taken as binary ones; binary ones are sent.
pub(crate) struct Frames(pub WebSocket);

impl Transport for Frames {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut BytesMut, _want: usize) -> Poll<io::Result<usize>> {
        loop {
            let message = match ready!(Pin::new(&mut self.0).poll_next(context)) {
                Some(message) => message.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(0)),
            };
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Ping(_) | Message::Pong(_) => continue, // the library answers
                Message::Close(_) => return Poll::Ready(Ok(0)),
            };
            if !bytes.is_empty() {
                buffer.extend_from_slice(&bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_ready(context)).map_err(io::Error::other)?;
        let Some(first) = pieces.pop_front() else { return Poll::Ready(Ok(())) };
        let fits = |so_far: usize, next: Option<&Bytes>| next.is_some_and(|next| so_far + next.len() <= FRAME);
        let frame = if fits(first.len(), pieces.front()) {
            let mut frame = BytesMut::with_capacity(FRAME);
            frame.extend_from_slice(&first);
            while fits(frame.len(), pieces.front()) {
                frame.extend_from_slice(&pieces.pop_front().unwrap_or_default());
            }
            frame.freeze()
        } else {
            first
        };
        Poll::Ready(Pin::new(&mut self.0).start_send(Message::Binary(frame)).map_err(io::Error::other))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context).map_err(io::Error::other)
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(context).map_err(io::Error::other)
    }
}
