//! TLS below the bus's TCP, as NATS clients do it: INFO in the clear says that TLS is required, then the client begins the handshake. Clients that
//! begin with it are served, too: a short wait for the first byte tells which it is.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};

use super::server::error_line;
use crate::tls::{HANDSHAKE, ServerTls};

/// How long a client may take to begin a handshake before INFO is sent in the clear (as nats-server's `handshake_first: auto`).
const FIRST_BYTE: Duration = Duration::from_millis(50);

/// A connection that becomes encrypted. What is written first is the line of INFO; nothing else is written or read in the clear. Time is bounded by
/// the connection's own limit for CONNECT.
pub(super) struct Secure {
    state: State,
    tls: Arc<ServerTls>,
}

enum State {
    /// Waiting for the first byte or for the end of the wait.
    Deciding(TcpStream, Pin<Box<Sleep>>),
    /// INFO is being written in the clear.
    Greeting(TcpStream),
    /// The client's handshake must come now.
    Greeted(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// A client that goes on in the clear is told so: what is left of that.
    Refusing(TcpStream, bytes::Bytes),
    Over,
}

impl Secure {
    pub(super) fn new(socket: TcpStream, tls: Arc<ServerTls>) -> Self {
        Self { state: State::Deciding(socket, Box::pin(tokio::time::sleep(FIRST_BYTE))), tls }
    }

    /// Goes on as far as it can. Ready when something can be written (in the clear, or encrypted).
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Over) {
                State::Deciding(socket, mut wait) => match first_byte(&socket, context) {
                    Poll::Ready(Ok(Some(HANDSHAKE))) => self.begin(socket),
                    Poll::Ready(Ok(_)) => State::Greeting(socket),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if wait.as_mut().poll(context).is_ready() => State::Greeting(socket),
                    Poll::Pending => {
                        self.state = State::Deciding(socket, wait);
                        return Poll::Pending;
                    }
                },
                State::Greeted(socket) => match first_byte(&socket, context) {
                    Poll::Ready(Ok(Some(HANDSHAKE))) => self.begin(socket),
                    Poll::Ready(Ok(Some(_))) => State::Refusing(socket, error_line("Secure Connection - TLS Required")),
                    Poll::Ready(Ok(None)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.state = State::Greeted(socket);
                        return Poll::Pending;
                    }
                },
                State::Handshake(mut accept) => match Pin::new(&mut *accept).poll(context) {
                    Poll::Ready(Ok(stream)) => State::Encrypted(Box::new(stream)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        self.state = State::Handshake(accept);
                        return Poll::Pending;
                    }
                },
                State::Refusing(mut socket, mut words) => match Pin::new(&mut socket).poll_write(context, &words) {
                    Poll::Ready(Ok(written)) if written > 0 && written < words.len() => {
                        drop(words.split_to(written));
                        State::Refusing(socket, words)
                    }
                    Poll::Ready(_) => {
                        // kept, so that the end is an orderly one; all that is read from now on is an error
                        self.state = State::Refusing(socket, bytes::Bytes::new());
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the client doesn't begin TLS")));
                    }
                    Poll::Pending => {
                        self.state = State::Refusing(socket, words);
                        return Poll::Pending;
                    }
                },
                State::Over => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                state @ (State::Greeting(_) | State::Encrypted(_)) => {
                    self.state = state;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn begin(&self, socket: TcpStream) -> State {
        State::Handshake(Box::new(TlsAcceptor::from(self.tls.config()).accept(socket)))
    }

    fn greeted(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Over) {
            State::Greeting(socket) => State::Greeted(socket),
            state => state,
        };
    }
}

/// Looks at the first byte without taking it. None at the end of the stream.
fn first_byte(socket: &TcpStream, context: &mut Context<'_>) -> Poll<io::Result<Option<u8>>> {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let count = ready!(socket.poll_peek(context, &mut buffer))?;
    Poll::Ready(Ok((count > 0).then_some(byte[0])))
}

impl AsyncRead for Secure {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let State::Refusing(socket, words) = &mut self.state
            && words.is_empty()
        {
            return Pin::new(socket).poll_read(context, buffer); // for an orderly end; nobody looks at it
        }
        ready!(self.poll_ready(context))?;
        match &mut self.state {
            State::Encrypted(stream) => Pin::new(stream).poll_read(context, buffer),
            _ => Poll::Pending, // INFO is written first, and that wakes the task
        }
    }
}

impl AsyncWrite for Secure {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(context))?;
        match &mut self.state {
            State::Encrypted(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            State::Greeting(socket) => {
                // up to the end of the line and no further
                let Some(first) = slices.iter().find(|slice| !slice.is_empty()) else { return Poll::Ready(Ok(0)) };
                let end = memchr::memchr(b'\n', first).map_or(first.len(), |end| end + 1);
                let written = ready!(Pin::new(socket).poll_write(context, &first[..end]))?;
                if first[..written].ends_with(b"\n") {
                    self.greeted();
                    context.waker().wake_by_ref(); // a reader waits for this
                }
                Poll::Ready(Ok(written))
            }
            _ => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Encrypted(stream) => Pin::new(stream).poll_flush(context),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            State::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
            State::Deciding(socket, _) | State::Greeting(socket) | State::Greeted(socket) | State::Refusing(socket, _) => {
                Pin::new(socket).poll_shutdown(context)
            }
            State::Handshake(_) | State::Over => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}
