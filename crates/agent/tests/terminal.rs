//! Terminals, over a real bus on a unix socket.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use atoll_contract::{
    ErrorCode,
    agent::{MAX_VIEWERS, SCROLLBACK_BYTES, Size, TerminalEvent, TerminalOpen, TerminalView},
};
use atoll_net::remote::{Terminal, TerminalOutput, Viewer};
use bytes::Bytes;
use common::{BOUND, World, gone, project};
use tokio::time::timeout;

fn request(name: &str, argv: &[&str]) -> TerminalOpen {
    TerminalOpen {
        name: name.into(),
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: BTreeMap::from([("PS1".to_owned(), "$ ".to_owned())]),
        cwd: String::new(),
        size: Size::default(),
    }
}

async fn open(world: &World, name: &str, argv: &[&str]) -> (Terminal, TerminalView) {
    timeout(BOUND, Terminal::open(&world.conn, project(), &request(name, argv))).await.unwrap().unwrap()
}

async fn attach(terminal: &Terminal, from: Option<u64>) -> Viewer {
    timeout(BOUND, terminal.attach(from, None)).await.unwrap().unwrap()
}

/// Reads until the text has come; returns all that came.
async fn until(output: &mut TerminalOutput, text: &str) -> String {
    let mut all = String::new();
    let read = async {
        while !all.contains(text) {
            let (_, bytes) = output.next().await.expect("more output").unwrap();
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
    };
    let done = timeout(BOUND, read).await;
    assert!(done.is_ok(), "{text:?} doesn't come, but {all:?}");
    all
}

async fn enter(viewer: &mut Viewer, line: &str) {
    viewer.input.send(Bytes::from(format!("{line}\n"))).await.unwrap();
}

/// The output to its end, with the offset of each piece.
async fn rest(output: &mut TerminalOutput) -> Vec<(u64, Bytes)> {
    let mut all = vec![];
    while let Some(piece) = timeout(BOUND, output.next()).await.expect("the output ends") {
        all.push(piece.unwrap());
    }
    all
}

#[tokio::test]
async fn two_viewers_see_and_type_the_same() {
    let world = World::new().await;
    let (terminal, view) = open(&world, "main", &[]).await;
    assert_eq!(view.argv, ["/bin/sh"]);
    let (again, same) = open(&world, "main", &["ignored"]).await;
    assert_eq!((again.id, same.pid), (terminal.id, view.pid));
    let (mut one, mut two) = (attach(&terminal, None).await, attach(&terminal, None).await);
    assert_eq!(two.view.viewers, 2);
    enter(&mut one, "echo $((40 + 2)) $TERM").await;
    until(&mut one.output, "42 xterm-256color").await;
    until(&mut two.output, "42 xterm-256color").await;
    enter(&mut two, "echo $((50 + 7)); tty").await;
    until(&mut one.output, "57\r\n/dev/pts/").await;
    until(&mut two.output, "57\r\n/dev/pts/").await;
    one.detach().await.unwrap();
    rest(&mut one.output).await;
    assert_eq!(one.detach().await.unwrap_err().code, ErrorCode::NotFound);
    drop(two); // gone without a word, and found out
    common::eventually(|| true, "").await;
    let mut viewers = 1;
    for _ in 0..200 {
        viewers = Terminal::list(&world.conn, project()).await.unwrap()[0].viewers;
        if viewers == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(viewers, 0);
    world.stop().await;
    gone(view.pid).await;
}

#[tokio::test]
async fn a_new_size_reaches_the_program_and_the_viewers() {
    let world = World::new().await;
    let script = "trap 'echo changed to $(stty size)' WINCH; stty size; while true; do sleep 0.1; done";
    let (terminal, _) = open(&world, "main", &["sh", "-c", script]).await;
    let (mut one, mut two) = (attach(&terminal, None).await, attach(&terminal, None).await);
    until(&mut one.output, "24 80").await;
    let size = Size { rows: 40, cols: 100 };
    assert_eq!(terminal.resize(size).await.unwrap().size, size);
    for viewer in [&mut one, &mut two] {
        let event = timeout(BOUND, viewer.events.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event, TerminalEvent::Resized { size });
    }
    until(&mut two.output, "changed to 40 100").await;
    let viewer = timeout(BOUND, terminal.attach(None, Some(Size { rows: 5, cols: 6 }))).await.unwrap().unwrap();
    assert_eq!(viewer.view.size, Size { rows: 5, cols: 6 });
    assert_eq!(terminal.resize(Size { rows: 0, cols: 6 }).await.unwrap_err().code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn the_scrollback_is_there_from_any_offset() {
    let world = World::new().await;
    let (terminal, _) = open(&world, "main", &["sh", "-c", "seq 1 2000; read x"]).await;
    let mut first = attach(&terminal, None).await;
    let text = until(&mut first.output, "\r\n2000\r\n").await;
    assert_eq!(first.output.offset(), text.len() as u64);
    let mut second = attach(&terminal, Some(1000)).await;
    assert_eq!(second.output.offset(), 1000);
    assert_eq!(until(&mut second.output, "\r\n2000\r\n").await, text[1000..]);
    // an offset beyond the end, as from another terminal of the name, is the end
    assert_eq!(attach(&terminal, Some(1 << 40)).await.output.offset(), text.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_that_sleeps_skips_and_the_program_goes_on() {
    let world = World::new().await;
    let lines = 600_000; // of 7 bytes and two ends: five times the scrollback
    let (terminal, _) = open(&world, "main", &["sh", "-c", &format!("read x; seq -w 1 {lines}; echo done; read x")]).await;
    let (mut sleeper, mut watcher) = (attach(&terminal, None).await, attach(&terminal, None).await);
    enter(&mut watcher, "").await;
    until(&mut watcher.output, "done\r\n").await;
    let end = Terminal::list(&world.conn, project()).await.unwrap()[0].output_bytes;
    assert!(end > 4 * SCROLLBACK_BYTES as u64);
    let (mut at, mut skips, mut tail) = (0, vec![], vec![]);
    while at < end {
        let (begin, bytes) = timeout(BOUND, sleeper.output.next()).await.unwrap().unwrap().unwrap();
        if begin != at {
            skips.push(begin);
            tail.clear();
        }
        at = begin + bytes.len() as u64;
        tail.extend_from_slice(&bytes);
    }
    assert_eq!((at, skips.len()), (end, 1));
    let event = timeout(BOUND, sleeper.events.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(event, TerminalEvent::Skipped { offset: skips[0] });
    assert!(tail.len() <= SCROLLBACK_BYTES);
    let expected = (1..=lines).fold(String::new(), |all, line| all + &format!("{line:06}\r\n"));
    let text = String::from_utf8(tail).unwrap();
    assert!((expected + "done\r\n").ends_with(&text));
}

#[tokio::test]
async fn a_program_that_ends_leaves_its_terminal_to_be_read() {
    let world = World::new().await;
    let (terminal, view) = open(&world, "main", &["sh", "-c", "read x; echo last words; exit 5"]).await;
    let mut viewer = attach(&terminal, None).await;
    enter(&mut viewer, "").await;
    let shown: Vec<u8> = rest(&mut viewer.output).await.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert!(String::from_utf8_lossy(&shown).ends_with("last words\r\n"));
    let event = timeout(BOUND, viewer.events.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, TerminalEvent::Exited { exit } if exit.code == 5 && !exit.cancelled));
    assert!(timeout(BOUND, viewer.events.next()).await.unwrap().is_none());
    assert_eq!(Terminal::list(&world.conn, project()).await.unwrap()[0].exit.as_ref().unwrap().code, 5);
    // who comes later sees the same
    let mut late = attach(&terminal, None).await;
    let again: Vec<u8> = rest(&mut late.output).await.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert_eq!(again, shown);
    assert!(matches!(late.events.next().await.unwrap().unwrap(), TerminalEvent::Exited { .. }));
    let (new, other) = open(&world, "main", &["cat"]).await;
    assert!(new.id != terminal.id && other.pid != view.pid);
    assert_eq!(Terminal::list(&world.conn, project()).await.unwrap().len(), 1);
    assert_eq!(terminal.attach(None, None).await.err().unwrap().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn close_ends_even_who_ignores_the_hangup() {
    let world = World::new().await;
    let script = "trap '' HUP TERM; (trap '' HUP TERM; echo child $(exec sh -c 'echo $PPID'); sleep 1000) & sleep 1000";
    let (terminal, view) = open(&world, "stubborn", &["sh", "-c", script]).await;
    let mut viewer = attach(&terminal, None).await;
    let text = until(&mut viewer.output, "\r\n").await;
    let child: u32 = text.trim().strip_prefix("child ").unwrap().parse().unwrap();
    let last = timeout(BOUND, terminal.close()).await.unwrap().unwrap();
    assert!(last.exit.is_some_and(|exit| exit.code == 137 && exit.cancelled));
    gone(view.pid).await;
    gone(child).await;
    rest(&mut viewer.output).await;
    assert!(Terminal::list(&world.conn, project()).await.unwrap().is_empty());
    assert_eq!(terminal.close().await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn terminals_outlive_the_host_program() {
    let mut world = World::new().await;
    let (terminal, view) = open(&world, "main", &["sh", "-c", "echo before; read x; echo after $x; read x"]).await;
    let mut viewer = attach(&terminal, None).await;
    until(&mut viewer.output, "before\r\n").await;
    let offset = viewer.output.offset();
    let id = terminal.id;
    drop(viewer);
    for _ in 0..3 {
        world = world.restart_host().await;
    }
    let list = Terminal::list(&world.conn, project()).await.unwrap();
    assert_eq!((list[0].id, list[0].pid), (id, view.pid));
    let terminal = Terminal::of(&world.conn, project(), id);
    let mut viewer = attach(&terminal, Some(offset)).await;
    enter(&mut viewer, "all").await;
    assert!(!until(&mut viewer.output, "after all\r\n").await.contains("before"));
    world.stop().await;
}

#[tokio::test]
async fn a_container_without_a_shell_says_so() {
    let world = World::with(|options| options.env = vec![("PATH".into(), "/nonexistent".into())]).await;
    let error = Terminal::open(&world.conn, project(), &request("main", &[])).await.err().unwrap();
    assert!(error.code == ErrorCode::NotFound && error.mend.contains("argv"), "{error:?}");
    let (terminal, _) = open(&world, "main", &["/bin/echo", "own", "program"]).await;
    until(&mut attach(&terminal, None).await.output, "own program").await;
}

#[tokio::test]
async fn viewers_have_a_bound() {
    let world = World::new().await;
    let (terminal, _) = open(&world, "main", &["cat"]).await;
    let mut viewers = vec![];
    while viewers.len() < MAX_VIEWERS {
        viewers.push(attach(&terminal, None).await);
    }
    assert_eq!(terminal.attach(None, None).await.err().unwrap().code, ErrorCode::LimitExceeded);
}
