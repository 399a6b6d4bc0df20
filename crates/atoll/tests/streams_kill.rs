//! Kills the program that serves streams, again and again, at moments nobody chose, while several writers append and one reader follows.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use atoll_contract::{Error, streams::StreamKind};
use atoll_net::{
    bus::{BoxFuture, Conn, Message, Subscription, client},
    streams::{Change, RawStream, WriteOptions, read_from},
};
use tokio::{net::TcpStream, sync::watch};

const ROUNDS: u64 = 12;
const WRITERS: usize = 6;
const SOON: Duration = Duration::from_mins(2);

/// The program, killed when it is dropped.
struct Served {
    child: Child,
    addr: SocketAddr,
}

impl Served {
    fn start(dir: &Path) -> Self {
        #[allow(clippy::disallowed_methods, reason = "a process to be killed")]
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_atoll"));
        command
            .args(["--json", "dev", "bus", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self { child, addr: said["listen"].as_str().unwrap().parse().unwrap() }
    }

    /// SIGKILL: the program gets no chance to do anything.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that connects again by itself, to wherever the program serves now.
struct Again {
    addr: watch::Receiver<SocketAddr>,
    client: tokio::sync::Mutex<Option<client::WireClient>>,
}

impl Again {
    fn connection(addr: watch::Receiver<SocketAddr>) -> Arc<dyn Conn> {
        Arc::new(Self { addr, client: tokio::sync::Mutex::default() })
    }

    async fn with<T>(&self, work: impl AsyncFnOnce(&client::WireClient) -> Result<T, Error>) -> Result<T, Error> {
        let connected = {
            let mut client = self.client.lock().await;
            match &*client {
                Some(client) => client.clone(),
                None => {
                    let addr = *self.addr.borrow();
                    let away = |error: std::io::Error| Error::new(atoll_contract::ErrorCode::Unavailable, error.to_string());
                    let stream = TcpStream::connect(addr).await.map_err(away)?;
                    stream.set_nodelay(true).map_err(away)?;
                    client.insert(client::connect(stream, client::Options::default()).await?).clone()
                }
            }
        };
        let ended = connected.clone();
        tokio::select! {
            done = work(&connected) => {
                if done.is_err() {
                    *self.client.lock().await = None;
                }
                done
            }
            error = ended.closed() => {
                *self.client.lock().await = None;
                Err(error)
            }
        }
    }
}

impl Conn for Again {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.with(async move |client| client.publish(message).await))
    }

    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(self.with(async move |client| client.subscribe(subject, queue).await))
    }

    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(self.with(async move |client| client.request(message, timeout).await))
    }
}

/// Appends numbered records until it is told to end; each is sent again with its id until it is acknowledged. Returns what was acknowledged.
async fn write(log: RawStream, writer: usize, end: Arc<AtomicBool>) -> BTreeMap<u64, String> {
    let mut acknowledged = BTreeMap::new();
    for number in 0.. {
        let text = format!("{writer}:{number}");
        loop {
            let options = WriteOptions { message_id: Some(text.clone()), ..WriteOptions::default() };
            match log.write("append", text.clone().into(), options).await {
                Ok(written) => {
                    assert_eq!(acknowledged.insert(written.sequence, text.clone()), None, "one sequence was given twice");
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        if end.load(Ordering::SeqCst) {
            break;
        }
    }
    acknowledged
}

/// Follows the log; what it is told, in order. Ends with the record that says so.
async fn follow(log: RawStream) -> Vec<(u64, String)> {
    let (mut feed, mut told) = (log.follow(1), Vec::new());
    loop {
        match feed.next().await.unwrap() {
            Change::Record(record) if record.data == "end" => return told,
            Change::Record(record) => told.push((record.sequence, String::from_utf8_lossy(&record.data).into_owned())),
            Change::Reset => panic!("the log has begun again"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_record_is_lost_or_doubled_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path());
    let (address, addr) = watch::channel(served.addr);
    let log = || RawStream::new(Again::connection(addr.clone()), "dev", StreamKind::Log, &"l".parse().unwrap());
    let end = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(log(), writer, end.clone()))).collect();
    let follower = tokio::spawn(follow(log()));
    let reader = log();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
    let mut last = 0;
    for round in 0..ROUNDS {
        // each round gets somewhere before its end, so that it is appending that is cut off
        let grown = async {
            while reader.info().await.map_or(0, |info| info.last_sequence) < last + 20 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(SOON, grown).await.unwrap_or_else(|_| panic!("nothing is appended in round {round}"));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_micros(random >> 50)).await; // up to 16 ms
        served.kill();
        served = Served::start(dir.path());
        address.send_replace(served.addr);
        last = tokio::time::timeout(SOON, async {
            loop {
                if let Ok(info) = reader.info().await {
                    return info.last_sequence;
                }
            }
        })
        .await
        .unwrap();
    }
    end.store(true, Ordering::SeqCst);
    let mut acknowledged = BTreeMap::new();
    for writer in writers {
        for (sequence, text) in tokio::time::timeout(SOON, writer).await.unwrap().unwrap() {
            assert_eq!(acknowledged.insert(sequence, text), None, "sequence {sequence} was given to two");
        }
    }
    let (mut kept, mut from) = (Vec::new(), 1);
    loop {
        let page = reader.page("read", read_from(from)).await.unwrap();
        kept.extend(
            page.records.map(|record| record.map(|record| (record.sequence, String::from_utf8_lossy(&record.data).into_owned())).unwrap()),
        );
        from = page.next;
        if page.next > page.last {
            break;
        }
    }
    // every record was acknowledged in the end, and is there once, where it was acknowledged: nothing lost, doubled or skipped
    assert_eq!(kept, acknowledged.into_iter().collect::<Vec<_>>());
    assert_eq!(kept.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), (1..=kept.len() as u64).collect::<Vec<_>>());
    assert!(kept.len() as u64 >= ROUNDS * 20, "{}", kept.len());
    reader.write("append", "end".into(), WriteOptions::default()).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, follower).await.unwrap().unwrap(), kept, "the follower was told something else");
}
