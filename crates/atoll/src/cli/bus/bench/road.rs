//! The way of a load connection's bytes: TCP, below it TLS or WebSocket or both. For a socket that waits as for one that doesn't.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
};

use atoll_contract::{Error, ErrorCode};
use atoll_net::tls;
use rustls::{ClientConnection, pki_types::ServerName};

use super::link::{PATIENCE, Target, failed};
use crate::errors::{Result, plain};

/// More than the longest line of a server, which is its INFO, and than the head of an answer to an upgrade.
const MAX_HEAD: usize = 64 << 10;
/// Payload bytes of one frame, and plaintext that is taken at a time.
const PIECE: usize = 64 << 10;

pub struct Road {
    pub socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    frames: Option<Frames>,
}

impl Road {
    /// Connects, encrypts and upgrades, up to where NATS is spoken; blocking. INFO may have been read by then.
    pub fn open(target: &Target) -> Result<Self> {
        let told = |error: io::Error| tls::handshake_error(&format!("The bus at {}", target.url), &error).unwrap_or_else(|| failed(&error));
        let socket = TcpStream::connect_timeout(&target.address, PATIENCE).map_err(|error| failed(&error))?;
        let prepared = socket.set_nodelay(true).and_then(|()| socket.set_read_timeout(Some(PATIENCE)));
        prepared.and_then(|()| socket.set_write_timeout(Some(PATIENCE))).map_err(|error| failed(&error))?;
        let mut road = Self { socket, tls: None, frames: None };
        match target.url.scheme() {
            "ws" => road.upgrade(target)?,
            "wss" => {
                road.encrypt(target).map_err(told)?;
                road.upgrade(target)?;
            }
            scheme => {
                // nothing is said before it is known whether the server wants TLS
                let line = road.head(b"\n").map_err(|error| failed(&error))?;
                if line.starts_with(b"-ERR") {
                    let words = String::from_utf8_lossy(&line).into_owned();
                    return Err(Error::new(ErrorCode::Unavailable, format!("The bus says {}", plain(words.trim_end()))));
                }
                let info = line.strip_prefix(b"INFO ").and_then(|json| serde_json::from_slice::<serde_json::Value>(json).ok());
                let info = info.ok_or_else(|| Error::new(ErrorCode::Unavailable, format!("{} isn't a NATS server's.", target.url)))?;
                if info["tls_required"] == true {
                    road.encrypt(target).map_err(told)?;
                } else if scheme == "tls" {
                    return Err(Error::new(ErrorCode::Unavailable, format!("The bus at {} doesn't do TLS.", target.url)));
                }
            }
        }
        Ok(road)
    }

    fn encrypt(&mut self, target: &Target) -> io::Result<()> {
        let name = target.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let trust = target.trust.clone().ok_or_else(|| io::Error::other("nobody is trusted"))?;
        let mut connection = ClientConnection::new(Arc::new(trust), name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut self.socket)?;
        }
        self.tls = Some(Box::new(connection));
        Ok(())
    }

    /// RFC 6455, section 4.1. What the server makes of the key isn't checked: this is no protection, and the key is always the same.
    fn upgrade(&mut self, target: &Target) -> Result<()> {
        let url = &target.url;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            url.path(),
            url.host_str().unwrap_or_default()
        );
        self.write_all(request.as_bytes()).map_err(|error| failed(&error))?;
        let head = self.head(b"\r\n\r\n").map_err(|error| failed(&error))?;
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return Err(Error::new(ErrorCode::Unavailable, format!("{url} isn't a WebSocket."))
                .mend("Is that its path? Masters and hosts have it at /bus."));
        }
        self.frames = Some(Frames::default());
        Ok(())
    }

    /// Reads up to this end and nothing further, since what follows is spoken in another way.
    fn head(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        while !head.ends_with(end) {
            let mut byte = [0];
            if head.len() == MAX_HEAD || self.read(&mut byte)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            head.push(byte[0]);
        }
        Ok(head)
    }

    /// NATS's own bytes, one at least; none at the end of the stream.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.read_below(buffer)?;
            let Some(frames) = &mut self.frames else { return Ok(count) };
            if count == 0 {
                return Ok(0);
            }
            match frames.take_heads_out(&mut buffer[..count])? {
                0 => {}
                count => return Ok(count),
            }
        }
    }

    fn read_below(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    /// Whether something is here that the socket doesn't tell of: it has been decrypted already.
    pub fn has_more(&mut self) -> bool {
        // what is wrong is said at the next read
        self.tls.as_mut().is_some_and(|tls| tls.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0))
    }

    /// Takes some of it. After a part, the next write begins with the rest.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(mut frames) = self.frames.take() else { return self.write_below(bytes) };
        let written = frames.write(bytes, |bytes| self.write_below(bytes));
        self.frames = Some(frames);
        written
    }

    fn write_below(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // no more is taken before the last piece is on its way, so that a socket that takes nothing is felt here
        self.flush()?;
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        let count = tls.writer().write(&bytes[..bytes.len().min(PIECE)])?;
        match self.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(count),
        }
    }

    /// Writes it all; blocking.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.flush()
    }

    /// Whether something that was taken isn't written yet, so that it has to be [flushed](Self::flush) when the socket takes more.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// Frames of a WebSocket, as a client has them (RFC 6455, section 5).
#[derive(Default)]
struct Frames {
    /// Of the frame that is being written: what is left of its head, and of its payload.
    head: Vec<u8>,
    to_write: usize,
    /// Of the frame that is being read: what has come of its head, what is left of its payload, and whether that is data.
    coming: Vec<u8>,
    to_read: u64,
    data: bool,
}

impl Frames {
    fn write(&mut self, bytes: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        if self.to_write == 0 {
            self.to_write = bytes.len().min(PIECE);
            // binary, final, masked by zero, which changes nothing: masks are for the sake of caches in between (section 10.3)
            self.head = vec![0x82, 0x80 | 127];
            self.head.extend_from_slice(&(self.to_write as u64).to_be_bytes());
            self.head.extend_from_slice(&[0; 4]);
        }
        while !self.head.is_empty() {
            let count = write(&self.head)?;
            self.head.drain(..count);
        }
        let count = write(&bytes[..bytes.len().min(self.to_write)])?;
        self.to_write -= count;
        Ok(count)
    }

    /// Moves the payloads together; so many bytes they are then.
    fn take_heads_out(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() {
            if self.to_read > 0 {
                let count = usize::try_from(self.to_read).unwrap_or(usize::MAX).min(bytes.len() - from);
                if self.data {
                    bytes.copy_within(from..from + count, to);
                    to += count;
                }
                from += count;
                self.to_read -= count as u64;
                continue;
            }
            self.coming.push(bytes[from]);
            from += 1;
            if let Some(length) = length(&self.coming) {
                self.data = match self.coming[0] & 15 {
                    0..=2 => true,
                    8 => return Err(io::Error::new(ErrorKind::ConnectionAborted, "the bus closed the WebSocket")),
                    _ => false, // neither of the servers sends a ping of this kind
                };
                self.to_read = length;
                self.coming.clear();
            }
        }
        Ok(to)
    }
}

/// The payload's length, if this is a whole head of a server's frame.
fn length(head: &[u8]) -> Option<u64> {
    match head.get(1)? & 127 {
        126 => Some(u64::from(u16::from_be_bytes(head.get(2..4)?.try_into().ok()?))),
        127 => Some(u64::from_be_bytes(head.get(2..10)?.try_into().ok()?)),
        short => Some(u64::from(short)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_taken_out_wherever_the_bytes_are_cut() {
        let mut sent = vec![0x82, 3];
        sent.extend_from_slice(b"abc");
        sent.extend_from_slice(&[0x89, 2, b'n', b'o', 0x82, 126, 1, 4]);
        sent.extend_from_slice(&[b'd'; 260]);
        sent.extend_from_slice(&[0x82, 0, 0x82, 127, 0, 0, 0, 0, 0, 0, 0, 2]);
        sent.extend_from_slice(b"ef");
        let want = [&b"abc"[..], &[b'd'; 260], b"ef"].concat();
        for size in 1..=sent.len() {
            let mut frames = Frames::default();
            let mut got = Vec::new();
            for piece in sent.chunks(size) {
                let mut piece = piece.to_vec();
                let count = frames.take_heads_out(&mut piece).unwrap();
                got.extend_from_slice(&piece[..count]);
            }
            assert_eq!(got, want, "{size}");
        }
        assert!(Frames::default().take_heads_out(&mut [0x88, 0]).is_err());
    }

    #[test]
    fn a_frame_goes_on_where_the_socket_took_no_more() {
        let bytes: Vec<u8> = (0..=255).cycle().take(PIECE + 100).collect();
        let (mut frames, mut sent, mut at, mut turn) = (Frames::default(), Vec::new(), 0, 0);
        while at < bytes.len() {
            let taken = frames.write(&bytes[at..], |bytes| {
                turn += 1;
                if turn % 3 == 0 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                let count = bytes.len().min(7000).min(turn);
                sent.extend_from_slice(&bytes[..count]);
                Ok(count)
            });
            at += taken.unwrap_or(0);
        }
        assert_eq!(&sent[..14], &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&sent[14 + PIECE..28 + PIECE], &[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0]);
        assert_eq!([&sent[14..14 + PIECE], &sent[28 + PIECE..]].concat(), bytes);
    }
}
