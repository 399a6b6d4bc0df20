//! A host program that is killed and comes back: nothing ends, nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use atoll_agent::ConfigSource;
use atoll_contract::{
    Generation,
    agent::{AgentConfig, ExecStart, TerminalOpen},
};
use atoll_net::{
    bus::{Conn, stock},
    remote::{Exec, Terminal},
};
use bytes::Bytes;
use common::{BOUND, SECRET, USER, World, command, project};
use tokio::time::timeout;

/// A user with the published client, which reconnects by itself and loses what was on its way.
async fn user(world: &World) -> Arc<dyn Conn> {
    let options = async_nats::ConnectOptions::with_token(USER.into()).custom_inbox_prefix(format!("_INBOX.{USER}"));
    let client = stock::connect(&format!("nats://127.0.0.1:{}", world.host.port), options).await.unwrap();
    Arc::new(client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_goes_on_and_no_byte_of_it_is_lost() {
    let mut world = World::new().await;
    let conn = user(&world).await;
    let exec = Exec::start(&conn, project(), ExecStart { stdin: true, ..command(&["cat"]) }).await.unwrap();
    let data: Bytes = (0..6_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut stdin, sent) = (exec.stdin.unwrap(), data.clone());
    let writer = tokio::spawn(async move {
        stdin.send(sent).await?;
        stdin.finish(Ok(())).await
    });
    let mut stdout = exec.stdout;
    let mut got: Vec<u8> = vec![];
    for restart_at in [1_000_000, 3_000_000, usize::MAX] {
        while got.len() < restart_at {
            match timeout(BOUND * 2, stdout.next()).await.expect("output goes on") {
                Some(bytes) => got.extend_from_slice(&bytes.unwrap()),
                None => break,
            }
        }
        if restart_at != usize::MAX {
            world = world.restart_host().await;
        }
    }
    assert!(got == data);
    drop(exec.stderr);
    let exit = timeout(BOUND * 2, exec.exit.wait()).await.unwrap().unwrap();
    assert!(exit.code == 0 && !exit.cancelled, "{exit:?}");
    timeout(BOUND, writer).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_goes_on_too() {
    let world = World::new().await;
    let conn = user(&world).await;
    let argv = ["sh", "-c", "while read x; do echo got $x; done"].map(str::to_owned).to_vec();
    let request = TerminalOpen {
        name: "main".into(),
        argv,
        env: std::collections::BTreeMap::new(),
        cwd: String::new(),
        size: atoll_contract::agent::Size::default(),
    };
    let (terminal, _) = Terminal::open(&conn, project(), &request).await.unwrap();
    let mut viewer = terminal.attach(None, None).await.unwrap();
    let world = world.restart_host().await;
    viewer.input.send(Bytes::from_static(b"this\n")).await.unwrap();
    let mut text = String::new();
    while !text.contains("got this") {
        let (_, bytes) = timeout(BOUND, viewer.output.next()).await.expect("output goes on").unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    world.stop().await;
}

#[tokio::test]
async fn a_new_secret_is_read_at_the_next_attempt() {
    let world = World::with(|options| {
        let ConfigSource::Fixed(config) = &options.config else { panic!("a world's agent is told its configuration") };
        let path = options.socket.with_file_name("agent.json");
        let write = |config: &AgentConfig| std::fs::write(&path, serde_json::to_vec(config).unwrap()).unwrap();
        write(&AgentConfig { secret: "of a start before".into(), generation: Generation::FIRST, ..AgentConfig::clone(config) });
        let right = AgentConfig { secret: SECRET.into(), ..AgentConfig::clone(config) };
        options.config = ConfigSource::Path(path.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::fs::write(path, serde_json::to_vec(&right).unwrap()).unwrap();
        });
    })
    .await;
    world.stop().await;
}
