//! `atoll bus` at a bus of its own (`atoll dev bus`), and at nats-server where there is one.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]
#![allow(clippy::disallowed_methods, reason = "tests run the program")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use assert_cmd::assert::OutputAssertExt;
use atoll_net::testing::Authority;
use serde_json::Value;

/// Ended with the test that has it.
struct Running(Child);

impl Running {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    fn output(mut self) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        Output { status: self.0.wait().unwrap(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bus {
    home: tempfile::TempDir,
    tcp: SocketAddr,
    websocket: SocketAddr,
    /// Of one that is encrypted.
    authority: Option<Authority>,
    _server: Running,
}

impl Bus {
    fn start() -> Self {
        Self::begin("127.0.0.1:0", false)
    }

    fn start_at(listen: &str) -> Self {
        Self::begin(listen, false)
    }

    fn encrypted() -> Self {
        Self::begin("127.0.0.1:0", true)
    }

    fn begin(listen: &str, encrypted: bool) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = atoll(home.path());
        command.args(["dev", "bus", "--json", "--listen", listen, "--websocket", "127.0.0.1:0"]);
        let authority = encrypted.then(|| Authority::new(home.path()).unwrap());
        if let Some(authority) = &authority {
            command.arg("--tls-certificate").arg(authority.certificate()).arg("--tls-key").arg(authority.key());
        }
        let (mut line, mut tries) = (String::new(), 0);
        let server = loop {
            let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
            BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if !line.is_empty() {
                break server;
            }
            // an address that was another bus's a moment ago may be that of somebody's connection for another moment
            tries += 1;
            assert!(tries < 100, "no bus can be had at {listen}");
        };
        let said: Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| said[name].as_str().unwrap().parse().unwrap();
        Self { home, tcp: address("listen"), websocket: address("websocket"), authority, _server: server }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = atoll(self.home.path());
        command.arg("bus").args(args);
        match &self.authority {
            Some(authority) => command.args(["--server", &format!("tls://{}", self.tcp)]).arg("--ca-file").arg(authority.ca_file()),
            None => command.args(["--server", &format!("nats://{}", self.tcp)]),
        };
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).assert().success().get_output().clone()
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&self.run(&["top", "--once", "--json"]).stdout).unwrap()
    }

    /// Starts a subscriber and waits until the bus has it.
    fn subscriber(&self, args: &[&str]) -> Running {
        let before = self.report()["subscriptions"].as_u64().unwrap();
        let child = Running(self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        // `top` itself has its inbox there both times
        for _ in 0..600 {
            if self.report()["subscriptions"].as_u64().unwrap() > before {
                return child;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no subscription came");
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn atoll(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Answers requests at a subject with these protocol bytes, in which `@` stands for the reply subject.
fn responder(address: SocketAddr, subject: &str, answer: &'static str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    write!(stream, "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB {subject} 1\r\nPING\r\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "PONG");
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["MSG" | "HMSG", _, _, reply, ..] = *words {
                let _ = stream.write_all(answer.replace('@', reply).as_bytes());
            }
        }
    });
}

#[test]
fn what_is_published_is_printed_as_json() {
    let bus = Bus::start();
    let subscriber = bus.subscriber(&["sub", "orders.>", "--count", "3", "--json"]);
    bus.run(&["pub", "orders.new", "seven", "-H", "A: 1", "-H", "A:2", "--reply", "answers"]);
    let binary = bus.file("binary", &[0xff, 0xfe]);
    let output = bus.run(&["pub", "orders.old", "--file", binary.to_str().unwrap(), "--count", "2", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, serde_json::json!({"subject": "orders.old", "published": 2, "bytes": 2}));
    let output = subscriber.output();
    assert!(output.status.success());
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = serde_json::json!({"subject": "orders.new", "reply": "answers", "headers": [["A", "1"], ["A", "2"]], "payload": "seven"});
    let other = serde_json::json!({"subject": "orders.old", "headers": [], "payload_base64": "//4="});
    assert_eq!(lines, [first, other.clone(), other]);
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn people_see_messages_and_a_sum() {
    let bus = Bus::start();
    let subscriber = bus.subscriber(&["sub", "a.*", "--count", "1"]);
    // over the other road, and from standard input
    let mut publisher = atoll(bus.home.path());
    publisher.args(["bus", "pub", "a.b", "--file", "-", "--server", &format!("ws://{}", bus.websocket)]).stdin(Stdio::piped());
    let mut publisher = publisher.stdout(Stdio::piped()).spawn().unwrap();
    publisher.stdin.take().unwrap().write_all(b"hello").unwrap();
    assert_eq!(text(&publisher.wait_with_output().unwrap().stdout), "Published 5 bytes to a.b.\n");
    let output = subscriber.output();
    assert_eq!(text(&output.stdout), "#1 a.b\nhello\n\n");
    assert_eq!(text(&output.stderr), "Subscribed to a.*. Ctrl-C ends it.\n1 messages, 5B of payload.\n");
}

#[test]
fn raw_payloads_go_as_they_are_and_an_interrupt_ends_it() {
    let bus = Bus::start();
    let mut subscriber = bus.subscriber(&["sub", "a", "--raw", "--queue", "q"]);
    let payload = bus.file("payload", &[0, 0xff, b'x']);
    bus.run(&["pub", "a", "--file", payload.to_str().unwrap()]);
    let mut seen = [0; 4];
    subscriber.0.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(seen, [0, 0xff, b'x', b'\n']);
    subscriber.signal(rustix::process::Signal::INT);
    let output = subscriber.output();
    assert!(output.status.success());
    assert!(text(&output.stderr).ends_with("1 messages, 3B of payload.\n"), "{}", text(&output.stderr));
}

#[test]
fn answers_are_printed_and_errors_are_errors() {
    let bus = Bus::start();
    responder(bus.tcp, "twice", "PUB @ 3\r\none\r\nPUB @ 3\r\ntwo\r\n");
    responder(bus.tcp, "moved", "HPUB @ 39 39\r\nNATS/1.0 421 stale_assignment\r\nA: b\r\n\r\n\r\n");
    responder(bus.tcp, "silent", "");
    assert_eq!(text(&bus.run(&["req", "twice", "--raw"]).stdout), "one\n");
    assert_eq!(text(&bus.run(&["req", "twice", "x", "--replies", "2", "--raw"]).stdout), "one\ntwo\n");
    // fewer than were asked for are no error
    let output = bus.run(&["req", "twice", "--replies", "3", "--timeout", "300ms", "--json"]);
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["payload"]), (2, &"two".into()));
    for (args, exit, code) in [
        (&["req", "nobody"][..], 6, "no_responders"),
        (&["req", "nobody", "--replies", "2"], 6, "no_responders"),
        (&["req", "silent", "--timeout", "100ms"], 6, "timed_out"),
        (&["req", "silent", "--timeout", "100ms", "--replies", "2"], 6, "timed_out"),
        (&["req", "moved"], 5, "stale_assignment"),
        (&["req", "moved", "--replies", "2"], 5, "stale_assignment"),
        (&["req", "a.*"], 2, "invalid_argument"),
        (&["sub", "a..b"], 2, "invalid_argument"),
        (&["pub", "a.>", "x"], 2, "invalid_argument"),
        (&["sub", "a", "--raw", "--json"], 2, "invalid_argument"),
    ] {
        let output = bus.command(args).arg("--json").assert().code(exit).get_output().clone();
        let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{args:?}: {}", text(&output.stderr)));
        assert_eq!(error["code"], code, "{args:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn top_shows_who_uses_the_bus() {
    let bus = Bus::start();
    let _subscriber = bus.subscriber(&["sub", "project.7.>"]);
    bus.run(&["pub", "project.7.state", "hello", "--count", "5"]);
    let report = bus.report();
    let of = |rows: &Value, prefix: &str| rows.as_array().unwrap().iter().find(|row| row["prefix"] == prefix).cloned().unwrap();
    let traffic = &of(&report["by_prefix"], "project.7")["traffic"];
    assert_eq!((&traffic["in_messages"], &traffic["out_bytes"]), (&5.into(), &25.into()));
    let output = bus.run(&["top", "--once", "--interval", "200ms"]);
    let table = text(&output.stdout);
    for word in ["2 connections", "CONNECTION", "SUBJECTS", "project.7", "IN MSG/S", "atoll/"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let output = bus.command(&["top", "--interval", "1ms"]).assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("200ms"));
}

#[test]
fn top_goes_on_when_the_bus_is_back() {
    let bus = Bus::start();
    let mut command = bus.command(&["top", "--json", "--interval", "200ms"]);
    let mut top = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut looks = BufReader::new(top.0.stdout.take().unwrap()).lines();
    let mut look = || serde_json::from_str::<Value>(&looks.next().unwrap().unwrap()).unwrap()["server_id"].clone();
    let (first, listen) = (look(), bus.tcp.to_string());
    drop(bus);
    let mut said = String::new();
    BufReader::new(top.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(!said.is_empty(), "it says that it can't look");
    let _again = Bus::start_at(&listen);
    while look() == first {} // what was on its way when the bus ended
    top.signal(rustix::process::Signal::TERM);
    assert!(top.0.wait().unwrap().success());
}

#[test]
fn a_wrong_server_is_said() {
    let home = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("nats://127.0.0.1:{port}");
    for (server, exit, word) in [(&*url, 6, "unavailable"), ("http://a", 2, "isn't a bus's URL"), ("nats://ada:pw@a", 2, "--password-file")]
    {
        let output = atoll(home.path()).args(["bus", "sub", "a", "--server", server]).assert().code(exit).get_output().clone();
        assert!(text(&output.stderr).contains(word) && !text(&output.stderr).contains("pw@"), "{}", text(&output.stderr));
    }
    // the master's bus is for those who are logged in
    let output = atoll(home.path()).args(["bus", "top"]).assert().code(4).get_output().clone();
    assert!(text(&output.stderr).contains("atoll login"), "{}", text(&output.stderr));
}

#[test]
fn the_load_counts_every_message() {
    let bus = Bus::start();
    for (args, fan) in [
        (&[][..], Some(1)),
        (&["--publishers", "3", "--subscribers", "2", "--size", "4K"], Some(2)),
        (&["--subscribers", "4", "--groups", "1", "--size", "0"], Some(1)),
        (&["--subscribers", "4", "--groups", "2"], Some(2)),
        (&["--request"], Some(1)),
        (&["--request", "--in-flight", "16"], Some(1)),
        (&["--wildcards", "--churn", "--subscribers", "4", "--size", "16"], None),
    ] {
        let mut all = vec!["bench", "--json", "--duration", "100ms", "--warm-up", "20ms"];
        all.extend(args);
        let report: Value = serde_json::from_slice(&bus.run(&all).stdout).unwrap();
        let (published, delivered) = (report["published"].as_u64().unwrap(), report["delivered"].as_u64().unwrap());
        assert!(published > 0, "{args:?}: {report}");
        match fan {
            Some(fan) => assert_eq!(delivered, fan * published, "{args:?}"),
            None => assert!(delivered > 2 * published && delivered < 3 * published, "{args:?}: {report}"),
        }
        assert_eq!(report["latency"]["p99_us"].is_number(), args.contains(&"--request"), "{args:?}");
        assert!(report["total_delivered"].as_u64().unwrap() > delivered);
    }
}

#[test]
fn every_command_does_tls_over_both_roads() {
    let bus = Bus::encrypted();
    let ca_file = bus.authority.as_ref().unwrap().ca_file();
    let tls = format!("tls://{}", bus.tcp);
    let wss = format!("wss://localhost:{}/any/path", bus.websocket.port());
    let command = |server: &str, args: &[&str]| {
        let mut command = atoll(bus.home.path());
        command.arg("bus").args(args).args(["--server", server]);
        command
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::new(elsewhere.path()).unwrap();
    for server in [&tls, &wss] {
        let trusting = |args: &[&str]| {
            let mut command = command(server, args);
            command.env("ATOLL_CA_FILE", &ca_file);
            command
        };
        let subscriber = bus.subscriber(&["sub", "a.*", "--count", "2", "--raw"]);
        for _ in 0..2 {
            trusting(&["pub", "a.b", "hello"]).assert().success();
        }
        assert_eq!(text(&subscriber.output().stdout), "hello\nhello\n");
        let output = trusting(&["req", "nobody", "--json"]).assert().code(6).get_output().clone();
        assert!(text(&output.stderr).contains("no_responders"), "{}", text(&output.stderr));
        trusting(&["top", "--once", "--json"]).assert().success();
        for load in [
            &[][..],
            &["--publishers", "3", "--subscribers", "3", "--size", "40K", "--window", "8M"],
            &["--request", "--in-flight", "16"],
            &["--wildcards", "--churn", "--subscribers", "4", "--size", "16"],
        ] {
            let args = [&["bench", "--json", "--duration", "100ms", "--warm-up", "20ms"], load].concat();
            let output = trusting(&args).assert().success().get_output().clone();
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(report["published"].as_u64().unwrap() > 0, "{server} {load:?}: {report}");
        }
        // without trust nothing is said to it
        for args in [&["sub", "a"][..], &["pub", "a"], &["req", "a"], &["top"], &["bench"]] {
            let mut command = command(server, &[args, &["--json"]].concat());
            let output = command.env("ATOLL_CA_FILE", stranger.ca_file()).assert().code(6).get_output().clone();
            let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{args:?}: {}", text(&output.stderr)));
            assert_eq!((&error["code"], &error["retry"]), (&"untrusted".into(), &false.into()), "{args:?}");
            assert!(error["mend"].as_str().unwrap().contains("--ca-file"), "{error}");
        }
    }
    // a plain WebSocket's load, and what isn't there
    let plain = Bus::start();
    let ws = format!("ws://{}", plain.websocket);
    command(&ws, &["bench", "--duration", "50ms", "--warm-up", "0s", "--subscribers", "2"]).assert().success();
    let missing = bus.home.path().join("none.pem");
    let output = command(&wss, &["pub", "a"]).arg("--ca-file").arg(&missing).assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("none.pem") && text(&output.stderr).contains("--ca-file"), "{}", text(&output.stderr));
    let no_tls = format!("tls://{}", plain.tcp);
    let output = command(&no_tls, &["bench"]).env("ATOLL_CA_FILE", &ca_file).assert().code(6).get_output().clone();
    assert!(text(&output.stderr).contains("doesn't do TLS"), "{}", text(&output.stderr));
    let no_websocket = format!("ws://{}", plain.tcp);
    command(&no_websocket, &["bench"]).assert().code(6);
}

/// nats-server with a user that may publish and subscribe to `may.>` and little else.
fn nats_server(home: &Path, test: &str) -> Option<(Running, SocketAddr)> {
    let program =
        ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"].into_iter().find(|path| Path::new(path).exists());
    let Some(program) = program else {
        eprintln!("skipped: {test}: nats-server isn't installed");
        return None;
    };
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = home.join("nats.conf");
    let permissions = "{ publish: [\"may.>\", \"_ATOLL.>\", \"_INBOX.>\"], subscribe: [\"may.>\", \"_INBOX.>\"] }";
    let user = format!("{{ user: ada, password: secret, permissions: {permissions} }}");
    fs::write(&config, format!("listen: \"{address}\"\nauthorization: {{ users: [ {user} ] }}\n")).unwrap();
    let server = Running(Command::new(program).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    for _ in 0..500 {
        if TcpStream::connect(address).is_ok() {
            return Some((server, address));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nats-server didn't come up");
}

#[test]
fn any_nats_server_will_do_and_what_it_refuses_is_said() {
    let home = tempfile::tempdir().unwrap();
    let Some((_server, address)) = nats_server(home.path(), "any_nats_server_will_do_and_what_it_refuses_is_said") else { return };
    let password = home.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let wrong = home.path().join("wrong");
    fs::write(&wrong, "guess\n").unwrap();
    let command = |args: &[&str], password: &Path| {
        let mut command = atoll(home.path());
        command.arg("bus").args(args).args(["--server", &format!("nats://{address}"), "--user", "ada", "--password-file"]).arg(password);
        command
    };
    command(&["pub", "may.a", "x"], &password).assert().success();
    responder_as_ada(address);
    let output = command(&["req", "may.ask", "--raw"], &password).assert().success().get_output().clone();
    assert_eq!(text(&output.stdout), "yes\n");
    for (args, exit, word) in [
        (&["pub", "other", "x"][..], 4, "Permissions Violation"),
        (&["sub", "other"], 4, "Permissions Violation"),
        (&["req", "may.nobody"], 6, "no_responders"),
        (&["top"], 1, "isn't an Atoll bus"),
    ] {
        let output = command(args, &password).assert().code(exit).get_output().clone();
        assert!(text(&output.stderr).contains(word), "{args:?}: {}", text(&output.stderr));
    }
    let output = command(&["sub", "may.a"], &wrong).assert().code(4).get_output().clone();
    assert!(text(&output.stderr).contains("unauthenticated"), "{}", text(&output.stderr));
    let load = ["bench", "--duration", "50ms", "--warm-up", "0s"];
    let output = command(&load, &wrong).assert().failure().get_output().clone();
    assert!(text(&output.stderr).contains("Authorization Violation"), "{}", text(&output.stderr));
}

fn responder_as_ada(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    write!(stream, "CONNECT {{\"verbose\":false,\"user\":\"ada\",\"pass\":\"secret\"}}\r\nSUB may.ask 1\r\nPING\r\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "PONG");
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let ["MSG", _, _, reply, _] = *line.split(' ').collect::<Vec<_>>() {
                let _ = write!(stream, "PUB {reply} 3\r\nyes\r\n");
            }
        }
    });
}
