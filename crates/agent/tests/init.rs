//! The agent as process 1 of a PID namespace: this test program runs itself once more under unshare(1).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use atoll_agent::{AgentOptions, ConfigSource};
use atoll_contract::{Generation, agent::AgentConfig};
use atoll_net::{
    bus::Conn,
    remote::{Exec, ExecOutput},
};
use common::{BOUND, Host, SECRET, command, project, shell};
use tokio::time::{Instant, timeout};

/// Names the directory with the socket, and says to the test below that it is process 1.
const DIR: &str = "ATOLL_TEST_INIT";

async fn output(conn: &Arc<dyn Conn>, script: &str) -> ExecOutput {
    let exec = timeout(BOUND, Exec::start(conn, project(), shell(script))).await.unwrap().unwrap();
    timeout(BOUND, exec.output(1 << 20)).await.unwrap().unwrap()
}

fn run_as_init(dir: PathBuf) -> i32 {
    let options =
        AgentOptions { config: ConfigSource::Path(dir.join("agent.json")), socket: dir.join("host.sock"), ..AgentOptions::container("1") };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(atoll_agent::run(options))
}

#[test]
fn process_one_reaps_everyone_and_ends_everyone() {
    match std::env::var_os(DIR) {
        Some(dir) => std::process::exit(run_as_init(dir.into())),
        None => tokio::runtime::Runtime::new().unwrap().block_on(outside()),
    }
}

async fn outside() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::start(dir.path(), 0).await;
    let config = AgentConfig {
        project: project(),
        generation: Generation::FIRST,
        secret: SECRET.into(),
        home: dir.path().to_str().unwrap().into(),
        env: [].into(),
    };
    std::fs::write(dir.path().join("agent.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the test's own namespace")]
    let mut init = tokio::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "process_one_reaps_everyone_and_ends_everyone", "--nocapture"])
        .env(DIR, dir.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    tokio::select! {
        _ = host.hello() => {}
        // says by itself why: unshare(1) needs the right to make namespaces
        status = init.wait() => {
            // past the test harness, which keeps what a passing test prints
            let line = format!("skipped: init: no PID namespace can be made here ({})\n", status.unwrap());
            std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
            return;
        }
    }
    let conn = host.conn();
    assert_eq!(output(&conn, "cat /proc/1/cmdline").await.stdout.split(|byte| *byte == 0).nth(1), Some(&b"--exact"[..]));
    // orphans, by the dozen, and statuses beside them
    for code in 0..20 {
        let got = output(&conn, &format!("(setsid sleep 0.0{code} >/dev/null 2>&1 &); exit {code}")).await;
        assert_eq!(got.exit.code, code);
    }
    let began = Instant::now();
    loop {
        let left = output(&conn, "cat /proc/[0-9]*/stat 2>/dev/null | grep -c -e ') Z ' -e '(sleep)'").await;
        if left.stdout == b"0\n" {
            break;
        }
        assert!(began.elapsed() < BOUND, "zombies stay: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // someone in the background who takes no hint
    let mark = format!("{}", 1_000_000 + std::process::id());
    output(&conn, &format!("setsid sh -c \"trap '' TERM HUP INT; sleep {mark}\" >/dev/null 2>&1 &")).await;
    let running = timeout(BOUND, Exec::start(&conn, project(), command(&["sleep", &mark]))).await.unwrap().unwrap();
    let started = Instant::now();
    while processes_with(&mark) != 3 {
        assert!(started.elapsed() < BOUND, "a shell and its child, and the command, are {}", processes_with(&mark));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    let inner = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.id().unwrap())).unwrap();
    let inner = rustix::process::Pid::from_raw(inner.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(inner, rustix::process::Signal::TERM).unwrap();
    let exit = timeout(BOUND, running.output(1000)).await.unwrap().unwrap().exit;
    assert!(exit.cancelled && exit.code == 143, "the caller is told: {exit:?}");
    assert!(timeout(BOUND, init.wait()).await.unwrap().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(processes_with(&mark), 0);
}

fn processes_with(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(mark)).count()
}
