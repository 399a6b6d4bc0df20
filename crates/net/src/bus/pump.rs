//! Moves bytes between a transport and a connection's queue, reading and writing in one task without either waiting for the other.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::outbound::{Ending, Outbound, Taken};

/// A stream of bytes, whatever carries it.
pub(crate) trait Transport: Send {
    /// Appends at most about `want` bytes. 0 is the end.
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut BytesMut, want: usize) -> Poll<io::Result<usize>>;
    /// Writes some of the pieces and takes what it wrote out of them.
    fn poll_write(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>) -> Poll<io::Result<()>>;
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Says that no more will be written.
    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// More bytes are in the buffer.
    Data,
    /// The other side writes no more.
    End,
    /// The queue takes in no more. Comes once; then what waits is written, and `Finished` comes.
    Closing,
    /// The queue is closed and all of it has been written.
    Finished,
    /// The connection is to end at once.
    Dead,
    Failed(io::Error),
}

const SMALLEST_READ: usize = 2 << 10;
const LARGEST_READ: usize = 64 << 10;
/// Writes before others get a turn.
const WRITES_IN_A_ROW: usize = 16;

pub(crate) struct Pump<T> {
    transport: T,
    pub buffer: BytesMut,
    /// How much is read at once: follows what arrives, so that idle connections are small and busy ones need few calls.
    read_size: usize,
    pieces: VecDeque<Bytes>,
    unflushed: bool,
    announced: bool,
    /// Since when the transport takes nothing although something waits.
    pub blocked_since: Option<Instant>,
}

impl<T: Transport> Pump<T> {
    pub(crate) fn new(transport: T) -> Self {
        Self {
            transport,
            buffer: BytesMut::new(),
            read_size: SMALLEST_READ,
            pieces: VecDeque::new(),
            unflushed: false,
            announced: false,
            blocked_since: None,
        }
    }

    /// Writes what waits, reads if `reading`, and returns at the first event. May be dropped at any point without losing anything.
    pub(crate) async fn next(&mut self, out: &Outbound, reading: bool) -> Event {
        std::future::poll_fn(|context| self.poll(context, out, reading)).await
    }

    /// Makes room for a frame whose length is known.
    pub(crate) fn expect(&mut self, bytes: usize) {
        if bytes > self.buffer.capacity() {
            self.buffer.reserve(bytes - self.buffer.len());
        }
    }

    /// Gives back memory that a silent connection doesn't need.
    pub(crate) fn relax(&mut self) {
        self.read_size = SMALLEST_READ;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Tells the other side that this is the end, and reads on for a while without looking: closing a socket with unread bytes in it would take
    /// back the last words.
    pub(crate) async fn finish(&mut self, timeout: Duration) {
        let farewell = async {
            std::future::poll_fn(|context| self.transport.poll_shutdown(context)).await?;
            loop {
                self.buffer.clear();
                let read = std::future::poll_fn(|context| self.transport.poll_read(context, &mut self.buffer, LARGEST_READ)).await?;
                if read == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        let _ = tokio::time::timeout(timeout, farewell).await; // whatever went wrong, it's over
    }

    fn poll(&mut self, context: &mut Context<'_>, out: &Outbound, reading: bool) -> Poll<Event> {
        if !self.announced && out.ending() == Ending::Closing {
            self.announced = true;
            return Poll::Ready(Event::Closing);
        }
        if let Poll::Ready(event) = self.poll_writing(context, out) {
            return Poll::Ready(event);
        }
        if !reading {
            return Poll::Pending;
        }
        let before = self.buffer.len();
        match ready!(self.transport.poll_read(context, &mut self.buffer, self.read_size)) {
            Ok(0) => Poll::Ready(Event::End),
            Ok(_) => {
                let read = self.buffer.len() - before;
                if read >= self.read_size {
                    self.read_size = (self.read_size * 2).min(LARGEST_READ);
                } else if read < self.read_size / 8 {
                    self.read_size = (self.read_size / 2).max(SMALLEST_READ);
                }
                Poll::Ready(Event::Data)
            }
            Err(error) => Poll::Ready(Event::Failed(error)),
        }
    }

    /// Pending when there is nothing (more) to do for the writing half.
    fn poll_writing(&mut self, context: &mut Context<'_>, out: &Outbound) -> Poll<Event> {
        for _ in 0..WRITES_IN_A_ROW {
            if self.pieces.is_empty() {
                match out.take(&mut self.pieces, context) {
                    Taken::Some => {}
                    Taken::Dead => return Poll::Ready(Event::Dead),
                    Taken::Nothing => {
                        self.blocked_since = None;
                        return match self.poll_flush(context) {
                            Poll::Ready(Err(error)) => Poll::Ready(Event::Failed(error)),
                            _ => Poll::Pending,
                        };
                    }
                    Taken::Finished => {
                        return match ready!(self.poll_flush(context)) {
                            Ok(()) => Poll::Ready(Event::Finished),
                            Err(error) => Poll::Ready(Event::Failed(error)),
                        };
                    }
                }
            }
            match self.transport.poll_write(context, &mut self.pieces) {
                Poll::Ready(Ok(())) => (self.unflushed, self.blocked_since) = (true, None),
                Poll::Ready(Err(error)) => return Poll::Ready(Event::Failed(error)),
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return match out.wait(context) {
                        Ending::Dead => Poll::Ready(Event::Dead),
                        Ending::Closing if !self.announced => {
                            self.announced = true;
                            Poll::Ready(Event::Closing)
                        }
                        _ => Poll::Pending,
                    };
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(self.transport.poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// A plain byte stream: TCP, TLS, a unix socket, a pipe in a test.
pub(crate) struct Raw<IO>(pub IO);

const SLICES: usize = 64;

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Transport for Raw<IO> {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut BytesMut, want: usize) -> Poll<io::Result<usize>> {
        if buffer.capacity() - buffer.len() < want {
            buffer.reserve(want);
        }
        tokio_util::io::poll_read_buf(Pin::new(&mut self.0), context, buffer)
    }

    fn poll_write(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = pieces.iter().zip(&mut slices).map(|(piece, slice)| *slice = IoSlice::new(piece)).count();
        let mut written = ready!(Pin::new(&mut self.0).poll_write_vectored(context, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        while let Some(piece) = pieces.front_mut() {
            if piece.len() > written {
                piece.advance(written);
                break;
            }
            written -= piece.len();
            pieces.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
