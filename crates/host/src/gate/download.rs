//! Bodies of answers. A task of its own feeds each through a short queue, so that a client that stops reading is noticed and holds nothing for long.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Gate,
    limits::{ArchiveTurn, Turn},
};
use crate::files::{Fault, OpenFile};

/// Bytes of one piece.
const CHUNK: usize = 256 << 10;
/// Pieces in the queue: one is being sent while the next is read.
const QUEUE: usize = 2;

/// What the feeder sends. A queue that ends without `End` is a body that broke off: the connection is then closed, so that nobody takes half a
/// file for the whole.
enum Piece {
    Data(Bytes),
    End,
    /// Why there is nothing to send; only ever the first piece.
    Failed(Fault),
}

/// A part of a file, from `offset` on. If the file has shrunk meanwhile the body breaks off, since its length is announced.
pub(super) fn file(gate: Arc<Gate>, turn: Arc<Turn>, file: OpenFile, offset: u64, length: u64) -> Body {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let feed = async move {
        let _turn = turn;
        let file = Arc::new(file);
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let (reader, part) = (file.clone(), usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK));
            let Ok(Ok(bytes)) = gate.shares.job(gate.limits.quick, move || reader.read(at, part)).await else { return };
            if bytes.len() < part {
                return;
            }
            at += part as u64;
            if !send(&sender, Piece::Data(bytes.into()), &gate).await {
                return;
            }
        }
        send(&sender, Piece::End, &gate).await;
    };
    tokio::spawn(feed.in_current_span());
    body(None, receiver)
}

/// A folder that `pack` writes out on a thread of its own.
///
/// # Errors
/// What `pack` fails with before its first piece; what goes wrong later breaks the body off.
pub(super) async fn archive<F>(gate: Arc<Gate>, turn: Arc<Turn>, archive_turn: ArchiveTurn, pack: F) -> Result<Body, Fault>
where
    F: FnOnce(&mut dyn Write, &CancellationToken) -> Result<(), Fault> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let (span, handle) = (tracing::Span::current(), Handle::current());
    tokio::task::spawn_blocking(move || {
        let _turns = (turn, archive_turn);
        let mut out = Feeder { sender, handle, buffer: BytesMut::new(), begun: false, idle: gate.limits.idle, cancel: gate.cancel.clone() };
        match pack(&mut out, &gate.cancel).and_then(|()| out.finish().map_err(Fault::Stream)) {
            // the client has gone, or the host stops
            Ok(()) | Err(Fault::Stream(_) | Fault::Cancelled) => {}
            Err(fault) if !out.begun => {
                let _ = out.push(Piece::Failed(fault)); // the client may have gone
            }
            Err(fault) => span.in_scope(|| tracing::warn!("a folder couldn't be packed to its end: {fault}")),
        }
    });
    match receiver.recv().await {
        Some(Piece::Failed(fault)) => Err(fault),
        first => Ok(body(first, receiver)),
    }
}

async fn send(sender: &mpsc::Sender<Piece>, piece: Piece, gate: &Gate) -> bool {
    tokio::select! {
        sent = timeout(gate.limits.idle, sender.send(piece)) => matches!(sent, Ok(Ok(()))),
        () = gate.cancel.cancelled() => false,
    }
}

/// The first piece, if it was waited for already, and the others as they come.
fn body(first: Option<Piece>, receiver: mpsc::Receiver<Piece>) -> Body {
    Body::from_stream(stream::unfold(Some((first, receiver)), |queue| async move {
        let (first, mut receiver) = queue?;
        let piece = match first {
            Some(piece) => Some(piece),
            None => receiver.recv().await,
        };
        match piece {
            Some(Piece::Data(bytes)) => Some((Ok(bytes), Some((None, receiver)))),
            Some(Piece::End) => None,
            Some(Piece::Failed(_)) | None => Some((Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source broke off")), None)),
        }
    }))
}

/// Writes into the queue from a thread that may block.
struct Feeder {
    sender: mpsc::Sender<Piece>,
    handle: Handle,
    buffer: BytesMut,
    /// Whether a piece has been handed over.
    begun: bool,
    idle: Duration,
    cancel: CancellationToken,
}

impl Feeder {
    fn push(&self, piece: Piece) -> io::Result<()> {
        self.handle.block_on(async {
            tokio::select! {
                sent = timeout(self.idle, self.sender.send(piece)) => match sent {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
                () = self.cancel.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
            }
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.push(Piece::End)
    }
}

impl Write for Feeder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::take(&mut self.buffer).freeze();
        self.begun = true;
        self.push(Piece::Data(full))
    }
}
