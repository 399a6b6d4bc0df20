//! Commands, over a real bus on a unix socket.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    agent::{ExecExit, ExecStart, KILL_GRACE_MILLIS, MAX_EXECS, Reply},
    subject,
};
use atoll_net::{
    bus::{Conn, Message},
    byte_stream::Sender,
    remote::{self, Exec, ExecOutput},
};
use bytes::Bytes;
use common::{BOUND, Mutable, World, command, gone, project, shell};
use tokio::time::{Instant, timeout};

const LIMIT: usize = 1 << 20;

async fn start(world: &World, request: ExecStart) -> Result<Exec, Error> {
    timeout(BOUND, Exec::start(&world.conn, project(), request)).await.expect("the agent answers")
}

async fn output(world: &World, request: ExecStart) -> ExecOutput {
    let exec = start(world, request).await.unwrap();
    timeout(BOUND, exec.output(LIMIT)).await.expect("the program ends").unwrap()
}

fn exit(code: i32) -> ExecExit {
    ExecExit { code, signal: (code > 128).then(|| code - 128), timed_out: false, cancelled: false }
}

async fn execs(world: &World) -> u32 {
    remote::agent_info(&world.conn, project()).await.unwrap().execs
}

#[tokio::test]
async fn both_outputs_and_the_exit_code_arrive() {
    let world = World::new().await;
    let got = output(&world, shell("echo out; echo err >&2; exit 3")).await;
    assert_eq!(got, ExecOutput { stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec(), exit: exit(3) });
    let got = output(&world, shell("kill -9 $$")).await;
    assert_eq!(got.exit, exit(137));
    assert_eq!(execs(&world).await, 0);
    world.stop().await;
}

#[tokio::test]
async fn a_program_gets_its_directory_and_environment_and_nothing_else() {
    let world = World::new().await;
    assert_eq!(output(&world, shell("echo $OF_THE_SPEC")).await.stdout, b"yes\n");
    std::fs::create_dir(world.home().join("sub")).unwrap();
    let mut request = shell("pwd; echo $HOME $A $USER; ls /proc/self/fd | wc -l; ps -o pgid= -p $$ | tr -d ' '; echo $$; cat");
    request.cwd = "sub".into();
    request.env.insert("A".into(), "b c".into());
    let got = output(&world, request).await;
    let text = String::from_utf8(got.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let home = world.home();
    assert_eq!(lines[0], home.join("sub").to_str().unwrap());
    assert!(lines[1].starts_with(&format!("{} b c ", home.display())), "{text}");
    #[expect(clippy::disallowed_methods, reason = "what this program itself was given, its starter may have been careless")]
    let inherited = std::process::Command::new("sh").args(["-c", "ls /proc/self/fd | wc -l"]).output().unwrap();
    assert_eq!(lines[2], String::from_utf8(inherited.stdout).unwrap().trim());
    assert_eq!(lines[3], lines[4], "it leads its own group");
    assert_eq!(got.exit, exit(0), "without stdin, cat is at the end at once");
}

#[tokio::test]
async fn what_cant_be_run_is_said_clearly() {
    let world = World::new().await;
    std::fs::write(world.home().join("plain"), "x").unwrap();
    let script = world.home().join("lost");
    std::fs::write(&script, "#!/nowhere/python\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (argv, cwd, code, word) in [
        (&["no-such-program"][..], "", ErrorCode::NotFound, "no-such-program"),
        (&["./plain"], "", ErrorCode::InvalidArgument, "executable"),
        (&["./lost"], "", ErrorCode::NotFound, "interpreter"),
        (&["true"], "nowhere", ErrorCode::NotFound, "nowhere"),
        (&["true"], "plain", ErrorCode::InvalidArgument, "directory"),
        (&[], "", ErrorCode::InvalidArgument, "name"),
    ] {
        let request = ExecStart { cwd: cwd.into(), ..command(argv) };
        let error = start(&world, request).await.err().unwrap();
        assert!(error.code == code && error.message.contains(word), "{argv:?} in {cwd:?}: {error:?}");
    }
    let long = "x".repeat(200 << 10);
    assert_eq!(start(&world, command(&["echo", &long])).await.err().unwrap().code, ErrorCode::TooLarge);
    assert_eq!(execs(&world).await, 0);
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let world = World::new().await;
    let huge = format!(r#"{{"stream":"{}"}}"#, "x".repeat(300 << 10));
    for (verb, payload) in [
        ("exec.start", ""),
        ("exec.start", "{}"),
        ("exec.start", r#"{"stream":"short","argv":["true"]}"#),
        ("exec.start", r#"{"stream":"a.b.c.d.e.f.g.h.i.j.k","argv":["true"]}"#),
        ("exec.start", r#"{"stream":"abcdefghijklmnopqrst","argv":["true"],"what":1}"#),
        ("exec.start", r#"{"stream":"abcdefghijklmnopqrst","argv":["true"],"env":{"A=B":"x"}}"#),
        ("exec.cancel", "[]"),
        ("exec.cancel", &huge),
        ("terminal.open", r#"{"name":"../x"}"#),
        ("terminal.open", r#"{"name":"x","size":{"rows":0,"cols":80}}"#),
        ("terminal.open", r#"{"name":"x","size":{"rows":70000,"cols":80}}"#),
        ("terminal.attach", "\0"),
    ] {
        let message = Message::new(subject::project(project(), verb), payload.as_bytes().to_vec());
        let answer = world.conn.request(message, BOUND).await.unwrap();
        let Reply::Error(error) = serde_json::from_slice::<Reply<serde_json::Value>>(&answer.payload).unwrap() else {
            panic!("{verb} took {payload}")
        };
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{verb} {payload}");
    }
    let message = Message::new(subject::project(project(), "exec.dance"), "{}");
    let answer = world.conn.request(message, BOUND).await.unwrap();
    let reply: Reply<()> = serde_json::from_slice(&answer.payload).unwrap();
    assert!(matches!(reply, Reply::Error(error) if error.code == ErrorCode::Unsupported));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_through_cat_to_a_slow_reader() {
    let world = World::new().await;
    let exec = start(&world, ExecStart { stdin: true, ..command(&["cat"]) }).await.unwrap();
    let data: Bytes = (0..20_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = Arc::new(AtomicU64::new(0));
    let (mut stdin, rest, count) = (exec.stdin.unwrap(), data.clone(), sent.clone());
    let writer = tokio::spawn(async move {
        for chunk in rest.chunks(100_000) {
            stdin.send(rest.slice_ref(chunk)).await?;
            count.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        stdin.finish(Ok(())).await
    });
    // nobody reads yet: two windows, two pipes and what cat holds may fill, and no more
    let mut before = u64::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 2_000_000, "{before} bytes went somewhere while nobody read");
    let mut stdout = exec.stdout;
    let read = async {
        let mut got = Vec::new();
        while let Some(bytes) = stdout.next().await {
            got.extend_from_slice(&bytes.unwrap());
            if got.len() % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        got
    };
    assert!(timeout(BOUND * 3, read).await.unwrap() == data);
    drop(exec.stderr);
    assert_eq!(timeout(BOUND, exec.exit.wait()).await.unwrap().unwrap(), exit(0));
    writer.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_time_out_ends_the_program_and_its_children() {
    let world = World::new().await;
    let request = ExecStart { timeout_millis: Some(300), ..shell("sleep 1000 & echo $!; wait") };
    let got = output(&world, request).await;
    assert_eq!(got.exit, ExecExit { timed_out: true, ..exit(143) });
    gone(String::from_utf8(got.stdout).unwrap().trim().parse().unwrap()).await;
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_after_the_grace() {
    let world = World::new().await;
    let began = Instant::now();
    let exec = start(&world, shell("trap '' TERM; echo ready; while true; do sleep 0.1; done")).await.unwrap();
    let mut stdout = exec.stdout;
    assert_eq!(timeout(BOUND, stdout.next()).await.unwrap().unwrap().unwrap(), "ready\n");
    exec.canceller.cancel().await.unwrap();
    assert!(timeout(BOUND, stdout.next()).await.unwrap().is_none());
    drop(exec.stderr);
    assert_eq!(timeout(BOUND, exec.exit.wait()).await.unwrap().unwrap(), ExecExit { cancelled: true, ..exit(137) });
    assert!(began.elapsed() >= Duration::from_millis(KILL_GRACE_MILLIS));
    gone(exec.pid).await;
    exec.canceller.cancel().await.unwrap(); // once more does no harm
}

#[tokio::test]
async fn a_process_in_the_background_doesnt_hold_the_exit_up() {
    let world = World::new().await;
    let began = Instant::now();
    let got = output(&world, shell("sleep 300 & echo $!")).await;
    assert_eq!(got.exit, exit(0));
    assert!(began.elapsed() < Duration::from_secs(5));
    let pid: u32 = String::from_utf8(got.stdout).unwrap().trim().parse().unwrap();
    assert!(common::is_alive(pid), "what a program leaves in the background is left alone");
    output(&world, shell(&format!("kill {pid}"))).await;
}

#[tokio::test]
async fn a_closed_output_is_a_broken_pipe() {
    let world = World::new().await;
    let exec = start(&world, command(&["yes"])).await.unwrap();
    drop(exec.stdout);
    drop(exec.stderr);
    assert_eq!(timeout(BOUND, exec.exit.wait()).await.unwrap().unwrap(), exit(141));
}

#[tokio::test]
async fn an_input_that_breaks_off_is_not_an_input_that_ends() {
    let world = World::new().await;
    let exec = start(&world, ExecStart { stdin: true, ..shell("cat; echo complete") }).await.unwrap();
    let mut stdin: Sender = exec.stdin.unwrap();
    stdin.send(Bytes::from_static(b"half")).await.unwrap();
    let mut stdout = exec.stdout;
    assert_eq!(timeout(BOUND, stdout.next()).await.unwrap().unwrap().unwrap(), "half");
    drop(stdin);
    assert!(timeout(BOUND, stdout.next()).await.unwrap().is_none());
    drop(exec.stderr);
    assert!(timeout(BOUND, exec.exit.wait()).await.unwrap().unwrap().cancelled);
}

#[tokio::test]
async fn a_caller_that_vanishes_is_an_orphans_end() {
    let world = World::new().await;
    let conn = Arc::new(Mutable { conn: world.conn.clone(), mute: AtomicBool::new(false) });
    let dynamic: Arc<dyn Conn> = conn.clone();
    let exec = timeout(BOUND, Exec::start(&dynamic, project(), shell("exec sleep 1000"))).await.unwrap().unwrap();
    conn.mute.store(true, Ordering::SeqCst);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(common::is_alive(exec.pid), "a caller may be away for a while");
    tokio::time::sleep(Duration::from_secs(30)).await;
    gone(exec.pid).await;
}

#[tokio::test]
async fn there_is_a_bound_and_an_id_is_used_once() {
    let world = World::new().await;
    let first = ExecStart { stream: remote::stream_id(), ..command(&["sleep", "1000"]) };
    let mut running = vec![start(&world, first.clone()).await.unwrap()];
    let again = Message::new(subject::project(project(), "exec.start"), serde_json::to_vec(&first).unwrap());
    let answer = world.conn.request(again, BOUND).await.unwrap();
    let reply: Reply<()> = serde_json::from_slice(&answer.payload).unwrap();
    assert!(matches!(reply, Reply::Error(error) if error.code == ErrorCode::AlreadyExists));
    while running.len() < MAX_EXECS {
        running.push(start(&world, command(&["sleep", "1000"])).await.unwrap());
    }
    assert_eq!(start(&world, command(&["true"])).await.err().unwrap().code, ErrorCode::LimitExceeded);
    let last = running.pop().unwrap();
    last.canceller.cancel().await.unwrap();
    assert!(timeout(BOUND, last.output(LIMIT)).await.unwrap().unwrap().exit.cancelled);
    output(&world, command(&["true"])).await;
    let pids: Vec<u32> = running.iter().map(|exec| exec.pid).collect();
    world.stop().await;
    for pid in pids {
        gone(pid).await;
    }
}
