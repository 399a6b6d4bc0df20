//! The road over WebSocket: the real upgrade and the real frames on the bus's side, frames as the input wants them on the client's.

use std::{io, sync::Arc};

use axum::extract::ws::WebSocketUpgrade;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{script::Framing, world::Polls};
use crate::bus::{Authenticator, Router};

/// Where clients come in.
pub(crate) struct Door {
    pipes: mpsc::UnboundedSender<DuplexStream>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.server.abort(); // connections that are there go on
    }
}

struct Pipes(mpsc::UnboundedReceiver<DuplexStream>);

impl axum::serve::Listener for Pipes {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.recv().await {
            Some(pipe) => (pipe, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Door {
    pub(crate) fn open(router: &Arc<Router>, auth: Arc<dyn Authenticator>, cancel: CancellationToken, polls: Polls) -> Self {
        let (pipes, coming) = mpsc::unbounded_channel();
        let router = router.clone();
        let open = move |upgrade: WebSocketUpgrade| async move {
            let upgrade = router.limits().bound_websocket(upgrade);
            upgrade.on_upgrade(move |socket| polls.counted(router.serve_websocket(socket, "pipe".into(), auth, cancel)))
        };
        let app = axum::Router::new().fallback(open);
        let server = tokio::spawn(async move {
            let _ = axum::serve(Pipes(coming), app).await; // never ends by itself
        });
        Self { pipes, server }
    }

    /// A new connection; its request for the upgrade is the first that is sent.
    pub(crate) fn enter(&self, pipe: DuplexStream, unsent: &mut Vec<u8>) -> Wire {
        unsent.extend_from_slice(
            b"GET /bus HTTP/1.1\r\nHost: bus\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        );
        self.pipes.send(pipe).expect("the door is open");
        Wire::Head(Vec::new())
    }
}

/// What is on a client's wire.
pub(crate) enum Wire {
    Bytes,
    /// HTTP, until the upgrade is answered.
    Head(Vec<u8>),
    /// Frames, with the beginning of the next.
    Frames(Vec<u8>),
}

/// Not 0, so that forgetting to unmask is seen.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

impl Wire {
    pub(crate) fn frame(&self, bytes: &[u8], framing: Framing, out: &mut Vec<u8>) {
        match (self, framing) {
            (Self::Bytes, _) | (_, Framing::Raw) => out.extend_from_slice(bytes),
            (_, Framing::Frame { first, masked }) => {
                let mask = if masked { 0x80 } else { 0 };
                out.push(first);
                match bytes.len() {
                    short @ 0..=125 => out.push(mask | short as u8),
                    long => {
                        // 126: two bytes of length follow
                        out.push(mask | 0x7E);
                        out.extend_from_slice(&(long as u16).to_be_bytes()); // inputs are shorter than 64 KiB
                    }
                }
                if masked {
                    out.extend_from_slice(&MASK);
                    out.extend(bytes.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
                } else {
                    out.extend_from_slice(bytes);
                }
            }
        }
    }

    /// Hands on what the frames carry. The bus sends whole binary frames, and PONG and CLOSE.
    pub(crate) fn unframe(&mut self, bytes: &[u8], hear: &mut impl FnMut(&[u8])) {
        if let Self::Bytes = self {
            hear(bytes);
            return;
        }
        if let Self::Head(head) = self {
            head.extend_from_slice(bytes);
            let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") else { return };
            assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
            let rest = head.split_off(end + 4);
            *self = Self::Frames(Vec::new());
            return self.unframe(&rest, hear);
        }
        let Self::Frames(buffer) = self else { return };
        buffer.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((first, start, end)) = frame_at(&buffer[at..]) {
            match first {
                0x82 => hear(&buffer[at + start..at + end]),
                0x88 | 0x8A => assert!(end - start <= 125, "a control frame is short"),
                other => panic!("the bus sends a frame that begins with {other:#x}"),
            }
            at += end;
        }
        buffer.drain(..at);
    }
}

/// The first byte of a frame, and where its payload begins and ends, if it has all arrived.
fn frame_at(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, length) = (*bytes.first()?, *bytes.get(1)?);
    let (start, length) = match length {
        0..=125 => (2, usize::from(length)),
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        _ => panic!("the bus's frames are short and not masked"),
    };
    (bytes.len() >= start + length).then_some((first, start, start + length))
}
