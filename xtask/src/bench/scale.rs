//! `bench scale`: memory of a bus with 10,000 connections and 1,000,000 subscriptions, and how it serves in that state, beside nats-server.
//!
//! The clients are this process: a server and its clients together would need more open files than many machines allow one process.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Options,
    bus::server::{Kind, Server},
    idle::resident,
    now, percentiles,
};
use crate::{
    machine,
    sh::{self, Done, Fail, fail},
    testbed::until,
};

const CONNECTIONS: usize = 10_000;
/// Of each connection.
const SUBSCRIPTIONS: usize = 100;
/// Clients that are waited for together.
const BATCH: usize = 250;
/// Publications whose way is timed.
const TIMED: usize = 2000;
/// How often all clients are looked after at least: both servers take a client for stale that doesn't answer for longer.
const TEND: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_mins(5);

pub fn scale(options: &Options) -> Done<Value> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if most.is_some_and(|most| most < CONNECTIONS as u64 + 100) {
        return fail(format!("{} open files are too few for {CONNECTIONS} connections: `ulimit -n 20000`", most.unwrap_or(0)));
    }
    let atoll = match std::env::var_os("SCALE_BINARY") {
        Some(path) => path.into(),
        None => machine::build(!options.debug)?,
    };
    let nats = sh::find("nats-server").ok_or_else(|| Fail("nats-server isn't installed (apt-get install nats-server)".into()))?;
    let ours = measure(Kind::Atoll, &atoll, &nats)?;
    let theirs = measure(Kind::Nats, &atoll, &nats)?;
    let ratio = |figure: &str| ours[figure].as_f64().unwrap_or(f64::NAN) / theirs[figure].as_f64().unwrap_or(f64::NAN);
    let ratios: serde_json::Map<String, Value> =
        ["per_connection_bytes", "per_subscription_bytes", "full_bytes", "latency_p50_s", "latency_p95_s", "subscribe_s"]
            .iter()
            .map(|figure| ((*figure).to_owned(), ratio(figure).into()))
            .collect();
    Ok(json!({
        "bench": "scale", "connections": CONNECTIONS, "subscriptions": CONNECTIONS * SUBSCRIPTIONS,
        "atoll": ours, "anchor": { "what": sh::read(&nats, &["--version"])?, "figures": theirs }, "ratio": ratios,
    }))
}

fn measure(kind: Kind, atoll: &Path, nats: &Path) -> Done<Value> {
    let server = Server::start(kind, atoll, nats)?;
    let memory = || resident(server.pid());
    let mut crowd = Crowd::new();
    let before = memory()?;

    let begin = now();
    crowd.connect(server.address)?;
    let (connect, connected) = (begin.elapsed(), memory()?);

    let begin = now();
    crowd.subscribe()?;
    let (subscribe, full) = (begin.elapsed(), memory()?);

    let begin = now();
    crowd.one_message_each()?;
    let (each, after_messages) = (begin.elapsed(), memory()?);
    let mut latency = crowd.latency()?;
    let (p50, p95) = percentiles(&mut latency);

    drop(crowd);
    let files = format!("/proc/{}/fd", server.pid());
    let all_gone = || until(PATIENCE, || Ok((std::fs::read_dir(&files)?.count() < 100).then_some(())));
    all_gone()?;
    let gone = memory()?;
    // an allocator that keeps memory is no leak if the same again needs no more
    let mut crowd = Crowd::new();
    crowd.connect(server.address)?;
    crowd.subscribe()?;
    let again = memory()?;
    drop(crowd);
    all_gone()?;
    Ok(json!({
        "before_bytes": before, "connected_bytes": connected, "full_bytes": full, "after_messages_bytes": after_messages, "gone_bytes": gone, "again_bytes": again,
        "per_connection_bytes": connected.saturating_sub(before) / CONNECTIONS as u64,
        "per_subscription_bytes": full.saturating_sub(connected) / (CONNECTIONS * SUBSCRIPTIONS) as u64,
        "connect_s": connect.as_secs_f64(), "subscribe_s": subscribe.as_secs_f64(), "one_message_each_s": each.as_secs_f64(),
        "latency_p50_s": p50, "latency_p95_s": p95,
    }))
}

/// Pattern `n` of client `i`: nine in ten are subjects as they stand, the others have either wildcard.
fn pattern(i: usize, n: usize) -> String {
    match n {
        0 => format!("to.{i}"),
        1..90 => format!("site.{}.device.{i}.value.{n}", i % 100),
        90..95 => format!("site.*.device.{i}.value.{n}"),
        _ => format!("site.{}.device.{i}.{n}.>", i % 100),
    }
}

struct Crowd {
    clients: Vec<Client>,
    tended: Instant,
}

impl Crowd {
    fn new() -> Self {
        Self { clients: Vec::with_capacity(CONNECTIONS), tended: now() }
    }

    fn connect(&mut self, address: SocketAddr) -> Done {
        while self.clients.len() < CONNECTIONS {
            let from = self.clients.len();
            for _ in 0..BATCH {
                let mut client = Client::open(address)?;
                client.say(b"CONNECT {\"verbose\":false}\r\nPING\r\n")?;
                self.clients.push(client);
            }
            self.wait(from, |client| client.pongs == 1)?;
        }
        Ok(())
    }

    fn subscribe(&mut self) -> Done {
        for from in (0..CONNECTIONS).step_by(BATCH) {
            for i in from..from + BATCH {
                let subs: Vec<_> = (0..SUBSCRIPTIONS).map(|n| format!("SUB {} {}\r\n", pattern(i, n), n + 1)).collect();
                self.clients[i].say(format!("{}PING\r\n", subs.concat()).as_bytes())?;
            }
            self.wait(from, |client| client.pongs == 2)?;
        }
        Ok(())
    }

    /// One client publishes to each in turn.
    fn one_message_each(&mut self) -> Done {
        for from in (0..CONNECTIONS).step_by(BATCH) {
            let publications: Vec<_> = (from..from + BATCH).map(|i| format!("PUB to.{i} 5\r\nhello\r\n")).collect();
            self.clients[0].say(publications.concat().as_bytes())?;
            self.wait(from, |client| client.messages == 1)?;
        }
        Ok(())
    }

    /// From the writing of a publication to the reading of what it brings, one at a time, to clients all over.
    fn latency(&mut self) -> Done<Vec<Duration>> {
        let mut times = Vec::with_capacity(TIMED);
        for round in 0..TIMED {
            self.tend()?;
            let i = 1 + round * 7919 % (CONNECTIONS - 1);
            let before = self.clients[i].messages;
            self.clients[i].socket.set_nonblocking(false)?;
            let begin = now();
            self.clients[0].say(format!("PUB site.{}.device.{i}.value.7 5\r\nhello\r\n", i % 100).as_bytes())?;
            while self.clients[i].messages == before {
                self.clients[i].look()?;
            }
            times.push(begin.elapsed());
            self.clients[i].socket.set_nonblocking(true)?;
        }
        Ok(times)
    }

    /// Waits until the clients of a batch have heard what they wait for.
    fn wait(&mut self, from: usize, done: impl Fn(&Client) -> bool) -> Done {
        until(PATIENCE, || {
            self.tend()?;
            for client in &mut self.clients[from..from + BATCH] {
                if !done(client) {
                    client.look()?;
                }
            }
            Ok(self.clients[from..from + BATCH].iter().all(&done).then_some(()))
        })
    }

    /// Answers PINGs if it is time.
    fn tend(&mut self) -> Done {
        if self.tended.elapsed() >= TEND {
            self.tended = now();
            self.clients.iter_mut().try_for_each(Client::look)?;
        }
        Ok(())
    }
}

/// The least of a client: says lines, counts what comes.
struct Client {
    socket: TcpStream,
    /// A line that hasn't all arrived.
    rest: Vec<u8>,
    pongs: usize,
    messages: usize,
}

impl Client {
    fn open(address: SocketAddr) -> Done<Self> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, rest: Vec::new(), pongs: 0, messages: 0 })
    }

    /// What is said here always fits into the socket's buffer.
    fn say(&mut self, bytes: &[u8]) -> Done {
        Ok(self.socket.write_all(bytes)?)
    }

    /// Reads what is there.
    fn look(&mut self) -> Done {
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer) {
            Ok(0) => return fail(format!("the server closed a connection: {}", self.rest.escape_ascii())),
            Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            match &line[..] {
                b"PONG\r\n" => self.pongs += 1,
                b"PING\r\n" => self.say(b"PONG\r\n")?,
                b"hello\r\n" => self.messages += 1,
                line if line.starts_with(b"INFO ") || line.starts_with(b"MSG ") => {}
                line => return fail(format!("the server says {}", line.escape_ascii())),
            }
        }
        if self.rest.is_empty() {
            self.rest = Vec::new(); // 10,000 of them
        }
        Ok(())
    }
}
