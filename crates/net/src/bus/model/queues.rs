//! Queues between publishers and one writer or reader.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use atoll_contract::{Error, ErrorCode};
use bytes::Bytes;
use loom::{future::block_on, thread};
use tokio::sync::mpsc::error::TryRecvError;

use super::explore;
use crate::bus::{
    Message,
    budget::Budget,
    inlet::{Inlet, Replies},
    outbound::{Ending, Outbound, Pushed, Taken, Wakers},
    wire::Frame,
};

const FRAME: Frame<'static> =
    Frame { plain: b"MSG ", headed: b"HMSG ", subject: b"a", sid: b"1", reply: None, headers: b"", payload: b"x", shared: None };
const SENT: &str = "MSG a 1 1\r\nx\r\n";
const LAST: &str = "-ERR 'x'\r\n";

fn outbound(messages: usize) -> Arc<Outbound> {
    Arc::new(Outbound::new(1000, messages, &Budget::unlimited()))
}

fn push(out: &Outbound) -> Pushed {
    out.push(&FRAME, &mut Wakers::default())
}

/// What a writer does: takes until there is no more, and sleeps in between.
fn write_all(out: &Outbound) -> (String, Taken) {
    let mut written = Vec::new();
    let mut pieces = VecDeque::<Bytes>::new();
    let end = block_on(poll_fn(|context: &mut Context<'_>| {
        loop {
            match out.take(&mut pieces, context) {
                Taken::Some => pieces.drain(..).for_each(|piece| written.extend_from_slice(&piece)),
                Taken::Nothing => return Poll::Pending,
                end => return Poll::Ready(end),
            }
        }
    }));
    (String::from_utf8(written).unwrap(), end)
}

#[test]
fn a_writer_that_sleeps_is_woken_by_every_push() {
    explore(|| {
        let out = outbound(10);
        let publishers = [(); 2].map(|()| {
            let out = out.clone();
            thread::spawn(move || assert_eq!(push(&out), Pushed::Done))
        });
        // sleeps for ever, which loom reports, if a wake-up is lost
        let (mut count, mut pieces) = (0, VecDeque::new());
        block_on(poll_fn(|context| {
            while out.take(&mut pieces, context) == Taken::Some {
                count += pieces.drain(..).map(|piece| piece.len()).sum::<usize>();
            }
            if count == 2 * SENT.len() { Poll::Ready(()) } else { Poll::Pending }
        }));
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        assert_eq!(out.pending(), (0, 0));
    });
}

#[test]
fn a_writer_whose_socket_takes_nothing_is_woken_by_the_end() {
    explore(|| {
        let out = outbound(10);
        let killer = thread::spawn({
            let out = out.clone();
            move || out.kill()
        });
        block_on(poll_fn(|context| if out.wait(context) == Ending::Dead { Poll::Ready(()) } else { Poll::Pending }));
        killer.join().unwrap();
    });
}

#[test]
fn whoever_waits_for_room_gets_it() {
    explore(|| {
        let out = outbound(2);
        let publisher = thread::spawn({
            let out = out.clone();
            move || {
                assert_eq!(push(&out), Pushed::Done);
                // crowded if the writer hasn't taken the first yet
                let crowded = push(&out);
                assert!(matches!(crowded, Pushed::Done | Pushed::Crowded));
                block_on(out.room());
                assert!(matches!(push(&out), Pushed::Done | Pushed::Crowded), "there is room after the wait");
                out.close(LAST.as_bytes());
            }
        });
        assert_eq!(write_all(&out), (format!("{SENT}{SENT}{SENT}{LAST}"), Taken::Finished));
        publisher.join().unwrap();
        assert_eq!(out.pending(), (0, 0));
    });
}

#[test]
fn whoever_waits_for_room_is_let_go_when_the_connection_ends() {
    for end in [(|out: &Outbound| out.cut(b"")) as fn(&Outbound), |out| out.close(b""), Outbound::kill] {
        explore(move || {
            let out = outbound(2);
            assert_eq!((push(&out), push(&out)), (Pushed::Done, Pushed::Crowded));
            let ender = thread::spawn({
                let out = out.clone();
                move || end(&out)
            });
            block_on(out.room()); // nobody writes
            ender.join().unwrap();
            assert_eq!(push(&out), Pushed::Closed);
        });
    }
}

#[test]
fn a_cut_in_the_middle_leaves_whole_messages_and_exact_counts() {
    explore(|| {
        let out = outbound(10);
        let publisher = thread::spawn({
            let out = out.clone();
            move || (0..2).filter(|_| push(&out) == Pushed::Done).count()
        });
        let cutter = thread::spawn({
            let out = out.clone();
            move || out.cut(LAST.as_bytes())
        });
        let (written, end) = write_all(&out);
        let (pushed, ()) = (publisher.join().unwrap(), cutter.join().unwrap());
        assert_eq!(end, Taken::Finished);
        assert!((0..=pushed).any(|count| written == format!("{}{LAST}", SENT.repeat(count))), "{written:?}");
        assert_eq!(out.pending(), (0, 0));
    });
}

#[test]
fn an_orderly_end_loses_nothing_and_a_kill_ends_all() {
    explore(|| {
        let out = outbound(10);
        let publisher = thread::spawn({
            let out = out.clone();
            move || (0..2).filter(|_| push(&out) == Pushed::Done).count()
        });
        let closer = thread::spawn({
            let out = out.clone();
            move || out.close(LAST.as_bytes())
        });
        let (written, end) = write_all(&out);
        let pushed = publisher.join().unwrap();
        closer.join().unwrap();
        assert_eq!((written, end), (format!("{}{LAST}", SENT.repeat(pushed)), Taken::Finished));
        out.kill();
        assert_eq!((write_all(&out).1, out.pending()), (Taken::Dead, (0, 0)));
    });
}

#[test]
fn an_inlet_has_no_gap_and_an_end() {
    explore(|| {
        let (inlet, mut messages) = Inlet::new(2, 1 << 20, &Budget::unlimited());
        let inlet = Arc::new(inlet);
        let publisher = thread::spawn({
            let inlet = inlet.clone();
            move || (0..3u8).filter(|n| matches!(inlet.push(Message::new("a", vec![*n])), Pushed::Done | Pushed::Crowded)).count()
        });
        let closer = thread::spawn({
            let inlet = inlet.clone();
            move || inlet.close()
        });
        let mut read = Vec::new();
        read.extend(messages.try_recv().ok());
        let taken = publisher.join().unwrap();
        closer.join().unwrap();
        let end = loop {
            match messages.try_recv() {
                Ok(message) => read.push(message),
                Err(end) => break end,
            }
        };
        let read: Vec<_> = read.iter().map(|message| message.payload[0]).collect();
        assert_eq!(read, (0..taken as u8).collect::<Vec<_>>(), "what was taken in is read, in order and without a gap");
        assert_eq!(end, TryRecvError::Disconnected);
        assert_eq!(inlet.push(Message::new("a", "")), Pushed::Closed);
    });
}

#[test]
fn a_request_has_one_outcome_and_leaves_nothing() {
    explore(|| {
        let replies = Arc::new(Replies::default());
        let mut answer = replies.expect("t", "s").unwrap();
        let answerer = thread::spawn({
            let replies = replies.clone();
            move || replies.answer(Message::new("_INBOX.x.t", "yes"))
        });
        let failer = thread::spawn({
            let replies = replies.clone();
            move || replies.fail(Some("s"), &Error::new(ErrorCode::Forbidden, "no"))
        });
        let gave_up = answer.try_recv().is_err();
        if gave_up {
            replies.forget("t");
        }
        answerer.join().unwrap();
        failer.join().unwrap();
        if gave_up {
            // it came in the moment before, or never will
            match answer.try_recv() {
                Ok(Ok(message)) => assert_eq!(message.payload, "yes"),
                Ok(Err(error)) => assert_eq!(error.code, ErrorCode::Forbidden),
                Err(none) => assert_eq!(none, tokio::sync::oneshot::error::TryRecvError::Closed),
            }
        }
        assert!(replies.is_empty());
    });
}
