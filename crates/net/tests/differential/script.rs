//! What is sent, and sending it.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use crate::transcript::{Reader, Transcript};

/// Which pair of servers a script is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Which {
    /// Everybody may do everything.
    Open,
    /// The token `s3cr3t` opens.
    Token,
    /// `limited`, `responder` and `anyone`, by name and password there, by token here.
    Users,
    /// As `Open`, and impatient.
    Impatient,
}

#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) connection: usize,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) which: Which,
    pub(crate) steps: Vec<Step>,
    /// How the bytes are cut up on their way; 0 for not at all.
    pub(crate) piece: usize,
    /// Waits for the server to close instead of closing.
    pub(crate) patient: bool,
    /// The name of the difference that it shows.
    pub(crate) differs: Option<&'static str>,
    /// Ids of subscriptions that are members of queue groups; who of a group gets a message is free.
    pub(crate) queue_sids: Vec<String>,
}

/// The bound of every wait: far beyond what a slow machine needs.
const SOON: Duration = Duration::from_secs(20);

impl Script {
    pub(crate) fn new(which: Which, steps: Vec<(usize, Vec<u8>)>) -> Self {
        let steps = steps.into_iter().map(|(connection, bytes)| Step { connection, bytes }).collect();
        Self { which, steps, piece: 0, patient: false, differs: None, queue_sids: Vec::new() }
    }

    pub(crate) fn shown(&self) -> String {
        let mut text = format!("to {:?}, in pieces of {}:", self.which, self.piece);
        for step in &self.steps {
            let _ = write!(text, "\n  [{}] {}", step.connection, crate::transcript::shown(&step.bytes));
        }
        text
    }

    /// Whether a subscription of it ends after a number of messages.
    pub(crate) fn limits(&self) -> bool {
        self.steps.iter().any(|step| step.bytes.to_ascii_uppercase().windows(5).any(|word| word == b"UNSUB"))
    }

    /// Sends it and gives what came back on each connection.
    ///
    /// With one connection all is sent, then the sending half closed. With several, each step is followed by a PING whose PONG says that the
    /// server is done with it, so that the order between connections is fixed.
    pub(crate) fn play(&self, server: SocketAddr) -> Transcript {
        let count = self.steps.iter().map(|step| step.connection + 1).max().unwrap_or(1);
        let mut talks: Vec<_> = (0..count).map(|_| Talk::begin(server)).collect();
        for step in &self.steps {
            let talk = &mut talks[step.connection];
            talk.send(&step.bytes, self.piece);
            if count > 1 {
                talk.settle(&step.bytes, self);
            }
        }
        if !self.patient {
            talks.iter_mut().for_each(|talk| talk.settle_last(count, self));
        }
        let mut all: Vec<_> = talks.into_iter().map(|talk| talk.end(self)).collect();
        let shared = crate::transcript::take_queued(&mut all, &self.queue_sids);
        all.iter_mut().for_each(|events| crate::transcript::order_subscriptions(events));
        Transcript { connections: all, shared }
    }
}

struct Talk {
    stream: TcpStream,
    reader: Reader,
    /// PONGs that have been asked for.
    asked: usize,
    ended: bool,
}

impl Talk {
    fn begin(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        let mut talk = Self { stream, reader: Reader::default(), asked: 0, ended: false };
        while !talk.ended && talk.reader.events.is_empty() {
            talk.read("INFO");
        }
        talk
    }

    /// A server that has closed may refuse what is still sent: what it said before counts.
    fn send(&mut self, bytes: &[u8], piece: usize) {
        let size = if piece == 0 { bytes.len().max(1) } else { piece };
        for chunk in bytes.chunks(size) {
            if self.ended || self.stream.write_all(chunk).is_err() {
                return;
            }
        }
    }

    fn settle(&mut self, bytes: &[u8], script: &Script) {
        let pings = bytes.split(|byte| *byte == b'\n').filter(|line| line.trim_ascii().eq_ignore_ascii_case(b"PING")).count();
        self.asked += pings + 1;
        self.send(b"PING\r\n", 0);
        while !self.ended && self.reader.pongs() < self.asked {
            self.read(&script.shown());
        }
    }

    /// Once more each, so that what others caused has come.
    fn settle_last(&mut self, count: usize, script: &Script) {
        if count > 1 {
            self.settle(b"", script);
        }
    }

    fn end(mut self, script: &Script) -> Vec<String> {
        if !script.patient {
            let _ = self.stream.shutdown(Shutdown::Write); // it may be closed already
        }
        while !self.ended {
            self.read(&script.shown());
        }
        self.reader.events
    }

    fn read(&mut self, doing: &str) {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.reader.take(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no answer in time; so far {:?}, after {doing}", self.reader.events)
            }
            Err(_) => self.ended = true, // reset: what it said before has been read
        }
    }
}
