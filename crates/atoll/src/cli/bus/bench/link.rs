//! A connection of the load program: bare sockets and the least work for each message, since it shares the machine with the bus that it measures.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use atoll_contract::{Error, ErrorCode};
use atoll_net::tls::ClientConfig;

use super::road::Road;
use crate::errors::{Result, plain};

/// How long the bus may take to connect, and to do nothing while it should.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Room for what has been read; larger than a message with its line.
const BUFFER: usize = 256 << 10;
/// More than the longest line of a server, which is its INFO.
const MAX_LINE: usize = 64 << 10;

/// Whom to connect to, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// nats, tls, ws or wss.
    pub url: reqwest::Url,
    pub address: SocketAddr,
    /// Whom to trust, where that is needed.
    pub trust: Option<ClientConfig>,
    /// CONNECT, with the credentials.
    pub connect: String,
}

/// What a look at the socket gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Messages, each of the size that all should have.
    pub messages: u64,
    pub pongs: u64,
    /// PINGs that are to be answered.
    pub pings: u64,
}

/// A connection that has said CONNECT.
pub struct Link {
    pub road: Road,
    buffer: Vec<u8>,
    filled: usize,
    /// The line of the last message: the next one's is most often the same.
    line: Vec<u8>,
    /// Bytes that every payload must have.
    size: usize,
    /// Waits for its socket, for [`PATIENCE`] at most.
    blocking: bool,
}

impl Link {
    /// Connects and waits for the first PONG; blocking.
    pub fn open(target: &Target, size: usize) -> Result<Self> {
        let road = Road::open(target)?;
        let buffer = vec![0; BUFFER.max(2 * size + MAX_LINE)];
        let mut link = Self { road, buffer, filled: 0, line: Vec::new(), size, blocking: true };
        link.write(format!("{}PING\r\n", target.connect).as_bytes())?;
        link.wait_for_pong(0)?;
        Ok(link)
    }

    /// Whether reading waits for something to come.
    pub fn set_blocking(&mut self, blocking: bool) -> Result<()> {
        self.blocking = blocking;
        self.road.socket.set_nonblocking(!blocking).map_err(|error| failed(&error))
    }

    /// Writes it all; blocking.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.road.write_all(bytes).map_err(|error| failed(&error))
    }

    /// Writes on with what has been taken and not written, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<()> {
        match self.road.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// A round trip, so that the bus knows all that was sent before; blocking. `messages` are still to come; if it is another number, that is an error.
    pub fn wait_for_pong(&mut self, messages: u64) -> Result<()> {
        let mut seen = Seen::default();
        while seen.pongs == 0 {
            let more = self.read(|_, _| Ok(()))?;
            if more.pings > 0 {
                self.write(b"PONG\r\n")?;
            }
            seen.messages += more.messages;
            seen.pongs += more.pongs;
        }
        if seen.messages == messages {
            return Ok(());
        }
        Err(Error::internal(format!("{} messages came where {messages} should have.", seen.messages)))
    }

    /// Reads what the socket has now and looks at each whole message with `each(line, payload)`. Nothing seen if it has nothing.
    pub fn read(&mut self, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<Seen> {
        let mut seen = self.read_once(&mut each)?;
        while self.road.has_more() {
            let more = self.read_once(&mut each)?;
            seen.messages += more.messages;
            seen.pongs += more.pongs;
            seen.pings += more.pings;
        }
        Ok(seen)
    }

    fn read_once(&mut self, each: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<Seen> {
        match self.road.read(&mut self.buffer[self.filled..]) {
            Ok(0) => return Err(Error::new(ErrorCode::Unavailable, "The bus closed a connection.")),
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Seen::default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && !self.blocking => return Ok(Seen::default()),
            // this is how a socket says that its time-out is over
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(Error::new(ErrorCode::TimedOut, format!("The bus did nothing for {} s.", PATIENCE.as_secs())));
            }
            Err(error) => return Err(failed(&error)),
        }
        self.parse(each)
    }

    fn parse(&mut self, each: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut at = 0;
        loop {
            let rest = &self.buffer[at..self.filled];
            if !self.line.is_empty() && rest.starts_with(&self.line) {
                let start = self.line.len();
                let Some(end) = rest.get(start + self.size..start + self.size + 2) else { break };
                if end != b"\r\n" {
                    return Err(garbled(rest));
                }
                each(&self.line, &rest[start..start + self.size])?;
                seen.messages += 1;
                at += start + self.size + 2;
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', rest) else {
                if rest.len() > MAX_LINE {
                    return Err(garbled(rest));
                }
                break;
            };
            let line = &rest[..=end];
            match line.first() {
                Some(b'M') if size_of(line) == Some(self.size) => {
                    self.line.clear();
                    self.line.extend_from_slice(line);
                    continue;
                }
                Some(b'P') if line.starts_with(b"PING") => seen.pings += 1,
                Some(b'P') if line.starts_with(b"PONG") => seen.pongs += 1,
                Some(b'I' | b'+') => {}
                Some(b'-') => {
                    let text = String::from_utf8_lossy(line);
                    return Err(Error::new(ErrorCode::Unavailable, format!("The bus says {}", plain(text.trim_end()))));
                }
                _ => return Err(garbled(rest)),
            }
            at += end + 1;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(seen)
    }
}

/// The payload's size in a MSG line: its last word.
fn size_of(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"\r\n")?.strip_prefix(b"MSG ")?;
    let digits = line.iter().rposition(|byte| *byte == b' ').map(|at| &line[at + 1..])?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn garbled(rest: &[u8]) -> Error {
    let text = String::from_utf8_lossy(&rest[..rest.len().min(80)]).into_owned();
    Error::internal(format!("The bus sent what nobody sent it: {:?}.", plain(&text)))
}

pub fn failed(error: &std::io::Error) -> Error {
    let code = if error.kind() == ErrorKind::TimedOut { ErrorCode::TimedOut } else { ErrorCode::Unavailable };
    Error::new(code, format!("The connection to the bus: {error}.")).mend("Is it running, and is that its address?")
}
