//! Requests and replies: one client asks, one answers, each on a thread that waits in its socket, as a program that asks does.

use std::{
    net::Shutdown,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use atoll_contract::Error;
use tokio::time::Instant;

use super::link::{Link, Target};
use crate::errors::Result;

const SUBJECT: &str = "bench.ask";
/// Below it each request has a reply subject of its own, as clients do it.
const INBOX: &str = "_INBOX.bench";
/// Digits of the last token of a reply subject, which numbers the request.
const DIGITS: usize = 12;

#[derive(Debug, Default)]
pub struct Asked {
    pub replies: u64,
    pub time: Duration,
    /// From the write of a request to its reply, nanoseconds, in no order.
    pub latencies: Vec<u64>,
}

pub struct Asker {
    link: Link,
    size: usize,
    in_flight: usize,
    asked: u64,
    /// When each request under way was sent, by its number modulo the requests that may be.
    sent: Vec<Option<Instant>>,
}

/// Answers until its connection is shut down.
pub struct Responder {
    link: Link,
    size: usize,
}

impl Responder {
    pub fn open(target: &Target, size: usize) -> Result<Self> {
        let mut link = Link::open(target, size)?;
        link.write(format!("SUB {SUBJECT} 1\r\nPING\r\n").as_bytes())?;
        link.wait_for_pong(0)?;
        Ok(Self { link, size })
    }

    /// Runs beside `work` until that is done.
    pub fn beside<T>(self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let socket = self.link.road.socket.try_clone().map_err(|error| super::link::failed(&error))?;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let over = &over;
            let responder = scope.spawn(move || self.answer(over));
            let done = work();
            over.store(true, Ordering::Release);
            let _ = socket.shutdown(Shutdown::Both); // the bus may have closed it
            let answered = responder.join().unwrap_or_else(|_| Err(Error::internal("The responder panicked.")));
            done.and_then(|done| answered.map(|()| done))
        })
    }

    fn answer(mut self, over: &AtomicBool) -> Result<()> {
        let mut out = Vec::new();
        let end = format!(" {}\r\n", self.size);
        loop {
            out.clear();
            let seen = self.link.read(|line, payload| {
                let reply = line.split(|byte| *byte == b' ').nth(3).ok_or_else(|| Error::internal("A request has no reply subject."))?;
                out.extend_from_slice(b"PUB ");
                out.extend_from_slice(reply);
                out.extend_from_slice(end.as_bytes());
                out.extend_from_slice(payload);
                out.extend_from_slice(b"\r\n");
                Ok(())
            });
            match seen {
                Ok(seen) => {
                    if seen.pings > 0 {
                        out.extend_from_slice(b"PONG\r\n");
                    }
                    self.link.write(&out)?;
                }
                Err(_) if over.load(Ordering::Acquire) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Asker {
    pub fn open(target: &Target, size: usize, in_flight: u16) -> Result<Self> {
        let mut link = Link::open(target, size)?;
        link.write(format!("SUB {INBOX}.* 1\r\nPING\r\n").as_bytes())?;
        link.wait_for_pong(0)?;
        let in_flight = usize::from(in_flight);
        Ok(Self { link, size, in_flight, asked: 0, sent: vec![None; in_flight] })
    }

    /// Keeps so many requests under way for this long, then waits for the last replies. `stop` ends it earlier.
    pub fn run(&mut self, duration: Duration, stop: &AtomicBool) -> Result<Asked> {
        let mut asked = Asked::default();
        let mut out = Vec::new();
        let payload = vec![b'x'; self.size];
        let begin = Instant::now();
        for _ in 0..self.in_flight {
            self.ask(begin, &payload, &mut out);
        }
        let mut under_way = self.in_flight;
        while under_way > 0 {
            self.link.write(&out)?;
            out.clear();
            let Self { link, sent, in_flight, .. } = &mut *self;
            let mut now = None;
            let seen = link.read(|line, _| {
                let number = number_of(line).ok_or_else(|| Error::internal("A reply came to no request's inbox."))?;
                let slot = usize::try_from(number % *in_flight as u64).ok().and_then(|slot| sent.get_mut(slot)).and_then(Option::take);
                let sent = slot.ok_or_else(|| Error::internal("A reply came that nobody waits for."))?;
                let now = *now.get_or_insert_with(Instant::now);
                asked.latencies.push(u64::try_from((now - sent).as_nanos()).unwrap_or(u64::MAX));
                Ok(())
            })?;
            if seen.pings > 0 {
                out.extend_from_slice(b"PONG\r\n");
            }
            under_way -= seen.messages as usize;
            let now = now.unwrap_or_else(Instant::now);
            if now - begin < duration && !stop.load(Ordering::Relaxed) {
                for _ in 0..seen.messages {
                    self.ask(now, &payload, &mut out);
                    under_way += 1;
                }
            }
        }
        asked.time = begin.elapsed();
        asked.replies = asked.latencies.len() as u64;
        // one more would be one too many
        self.link.write(b"PING\r\n")?;
        self.link.wait_for_pong(0)?;
        Ok(asked)
    }

    fn ask(&mut self, now: Instant, payload: &[u8], out: &mut Vec<u8>) {
        // a number whose place is free: replies may come in another order
        while self.sent[self.asked as usize % self.in_flight].is_some() {
            self.asked += 1;
        }
        let number = self.asked;
        self.sent[number as usize % self.in_flight] = Some(now);
        self.asked += 1;
        out.extend_from_slice(format!("PUB {SUBJECT} {INBOX}.{number:0DIGITS$} {}\r\n", payload.len()).as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}

/// The request's number in the MSG line of its reply.
fn number_of(line: &[u8]) -> Option<u64> {
    let subject = line.split(|byte| *byte == b' ').nth(1)?;
    let token = subject.strip_prefix(INBOX.as_bytes())?.strip_prefix(b".")?;
    std::str::from_utf8(token).ok()?.parse().ok()
}
