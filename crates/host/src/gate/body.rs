//! Reading a request's body: in pieces, and never waiting for ever.

use std::{io, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::files::Fault;

/// Small pieces are put together until they make this many bytes, so that one step on the disk isn't for a few of them.
const CHUNK: usize = 256 << 10;
/// Of a body that nobody wants, so much is read so that the sender comes to read the answer.
const MAX_UNWANTED: usize = 16 << 20;
const UNWANTED_TIME: Duration = Duration::from_secs(5);

/// A body with a bound on the time between two of its pieces.
pub(super) struct IdleBody {
    body: Body,
    idle: Duration,
    /// What went wrong after the last bytes that were given out.
    broken: Option<io::Error>,
    ended: bool,
}

impl IdleBody {
    pub(super) fn new(body: Body, idle: Duration) -> Self {
        Self { body, idle, broken: None, ended: false }
    }

    /// The next bytes: some 256 KiB if they come at once, fewer if the sender is slow; none at the end.
    ///
    /// # Errors
    /// [`Fault::Stream`] with `TimedOut` if nothing came in time, or if the connection broke.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some(first) = self.piece().await.map_err(Fault::Stream)? else { return Ok(None) };
        if first.len() >= CHUNK {
            return Ok(Some(first));
        }
        let mut chunk = BytesMut::from(first);
        let deadline = tokio::time::Instant::now() + Duration::from_millis(200);
        while chunk.len() < CHUNK {
            match tokio::time::timeout_at(deadline, self.piece()).await {
                Ok(Ok(Some(piece))) => chunk.extend_from_slice(&piece),
                Ok(Ok(None)) | Err(_) => break,
                Ok(Err(error)) => {
                    // what came before it is good: an upload keeps it, and the next call says what happened
                    self.broken = Some(error);
                    break;
                }
            }
        }
        Ok(Some(chunk.freeze()))
    }

    /// As a stream of pieces.
    pub(super) fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin {
        Box::pin(stream::unfold(self, |mut body| async move {
            let piece = body.piece().await.transpose()?;
            Some((piece, body))
        }))
    }

    /// Reads on for a bounded while and drops what comes.
    pub(super) async fn discard(mut self) {
        let read = async {
            let mut total = 0;
            while let Ok(Some(piece)) = self.piece().await {
                total += piece.len();
                if total > MAX_UNWANTED {
                    break;
                }
            }
        };
        // in both cases the answer is sent next
        let _ = timeout(UNWANTED_TIME, read).await;
    }

    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        while !self.ended {
            match timeout(self.idle, self.body.frame()).await {
                Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long")),
                Ok(None) => self.ended = true,
                Ok(Some(Err(error))) => {
                    self.ended = true;
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string()));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
        Ok(None)
    }
}
