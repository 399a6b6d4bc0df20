//! Publishing as fast as the bus takes it. One thread does all reading and writing, so that the load costs as little as it can.

use std::{
    io::ErrorKind,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;

use super::{
    link::{Link, PATIENCE, Target, failed},
    load::{CHURN_EVERY, Load, SUBJECT, churn, wildcards},
};
use crate::errors::Result;

/// How often a wait looks whether it should stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

pub struct Shape {
    pub publishers: u16,
    pub subscribers: u16,
    pub groups: Option<u16>,
    pub wildcards: bool,
    pub churn: bool,
    pub size: usize,
    pub batch: usize,
    pub window: u64,
}

/// What a phase did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flowed {
    pub published: u64,
    pub delivered: u64,
    /// From the first publication to the last arrival.
    pub time: Duration,
}

pub struct Flow {
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    churner: Option<Churner>,
    load: Load,
    /// Whether every subscriber gets all, so that the slowest one can be told.
    every: bool,
    /// Deliveries that may be under way: to one subscriber if each gets all, else to all together.
    window: u64,
    published: u64,
    expected: u64,
}

struct Publisher {
    link: Link,
    batch: usize,
    /// Of the batch's bytes: what has been written. None between two batches.
    written: Option<usize>,
    owes_pong: bool,
}

struct Subscriber {
    link: Link,
    received: u64,
}

struct Churner {
    link: Link,
    number: u64,
    waiting: Vec<u8>,
}

impl Flow {
    pub fn open(target: &Target, shape: &Shape) -> Result<Self> {
        let load = if shape.wildcards {
            Load::of_many_subjects(shape.size, shape.batch)
        } else {
            Load::of_one_subject(shape.size, shape.batch, u64::from(shape.groups.unwrap_or(shape.subscribers)))
        };
        let every = !shape.wildcards && shape.groups.is_none();
        let open = |_| -> Result<Link> { Link::open(target, shape.size) };
        let mut links = (0..shape.subscribers).map(open).collect::<Result<Vec<_>>>()?;
        subscribe(&mut links, shape)?;
        let subscribers = links.into_iter().map(|link| Ok(Subscriber { link: awake(link)?, received: 0 })).collect::<Result<_>>()?;
        let publisher = |link| Ok(Publisher { link: awake(link)?, batch: 0, written: None, owes_pong: false });
        let publishers = (0..shape.publishers).map(|number| publisher(open(number)?)).collect::<Result<_>>()?;
        let churner = if shape.churn { Some(Churner { link: awake(open(0)?)?, number: 0, waiting: Vec::new() }) } else { None };
        let window = (shape.window / load.frame()).max(1);
        Ok(Self { publishers, subscribers, churner, load, every, window, published: 0, expected: 0 })
    }

    /// Publishes for this long, then waits until all has arrived. `stop` ends the publishing earlier.
    pub fn run(&mut self, duration: Duration, stop: &AtomicBool) -> Result<Flowed> {
        let begin = Instant::now();
        let (published, delivered) = (self.published, self.received());
        let mut last = begin;
        loop {
            let now = Instant::now();
            let publishing = now - begin < duration && !stop.load(Ordering::Relaxed);
            let idle = !publishing && self.publishers.iter().all(|publisher| publisher.written.is_none());
            if idle && self.received() >= self.expected {
                break;
            }
            if self.turn(publishing)? {
                last = now;
            } else if now - last > PATIENCE {
                let missing = self.expected.saturating_sub(self.received());
                return Err(Error::new(ErrorCode::TimedOut, format!("{missing} messages of {} didn't arrive.", self.expected)));
            }
        }
        let time = begin.elapsed();
        self.check()?;
        Ok(Flowed { published: self.published - published, delivered: self.received() - delivered, time })
    }

    /// All has arrived, nothing twice, and no more is to come: a round trip on every connection shows it.
    fn check(&mut self) -> Result<()> {
        for subscriber in &mut self.subscribers {
            subscriber.link.set_blocking(true)?;
            subscriber.link.write(b"PING\r\n")?;
            subscriber.link.wait_for_pong(0)?;
            subscriber.link.set_blocking(false)?;
        }
        let equal = !self.every || self.subscribers.iter().all(|subscriber| subscriber.received == self.published);
        if equal && self.received() == self.expected {
            return Ok(());
        }
        Err(Error::internal(format!("{} messages arrived where {} should have.", self.received(), self.expected)))
    }

    fn received(&self) -> u64 {
        self.subscribers.iter().map(|subscriber| subscriber.received).sum()
    }

    /// Whether another batch may be sent.
    fn has_room(&self) -> bool {
        let waits = self.churner.as_ref().is_some_and(|churner| !churner.waiting.is_empty());
        let slowest = self.subscribers.iter().map(|subscriber| subscriber.received).min().unwrap_or(0);
        let under_way = if self.every { self.published - slowest } else { self.expected - self.received() };
        under_way < self.window && !waits
    }

    /// Waits until something can be read or written, and does that. Whether something was done.
    fn turn(&mut self, publishing: bool) -> Result<bool> {
        let room = publishing && self.has_room();
        let readable = PollFlags::IN;
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.publishers.len() + self.subscribers.len() + 1);
        for publisher in &self.publishers {
            let writes = room || publisher.written.is_some() || publisher.link.road.has_unsent();
            let wants = if writes { readable | PollFlags::OUT } else { readable };
            fds.push(PollFd::from_borrowed_fd(publisher.link.road.socket.as_fd(), wants));
        }
        fds.extend(self.subscribers.iter().map(|subscriber| PollFd::from_borrowed_fd(subscriber.link.road.socket.as_fd(), readable)));
        if let Some(churner) = &self.churner {
            let writes = !churner.waiting.is_empty() || churner.link.road.has_unsent();
            let wants = if writes { readable | PollFlags::OUT } else { readable };
            fds.push(PollFd::from_borrowed_fd(churner.link.road.socket.as_fd(), wants));
        }
        match poll(&mut fds, Some(&LOOK)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(failed(&error.into())),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let mut done = false;
        let (publishers, subscribers) = (self.publishers.len(), self.subscribers.len());
        for (subscriber, flags) in self.subscribers.iter_mut().zip(&ready[publishers..]) {
            if !flags.is_empty() {
                let seen = subscriber.link.read(|_, _| Ok(()))?;
                subscriber.received += seen.messages;
                done |= seen.messages > 0;
                if seen.pings > 0 {
                    // nothing else is written here, so that there is room for this
                    subscriber.link.write(b"PONG\r\n")?;
                }
            }
        }
        if let (Some(churner), Some(flags)) = (&mut self.churner, ready.get(publishers + subscribers)) {
            churner.turn(*flags)?;
        }
        for (number, flags) in ready[..publishers].iter().enumerate() {
            done |= self.publish(number, *flags, publishing)?;
        }
        Ok(done)
    }

    fn publish(&mut self, number: usize, flags: PollFlags, publishing: bool) -> Result<bool> {
        let room = publishing && self.has_room();
        let Some(publisher) = self.publishers.get_mut(number) else { return Ok(false) };
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            publisher.owes_pong |= publisher.link.read(|_, _| Ok(()))?.pings > 0;
        }
        if publisher.written.is_none() && std::mem::take(&mut publisher.owes_pong) {
            publisher.link.write(b"PONG\r\n")?;
        }
        if flags.contains(PollFlags::OUT) {
            publisher.link.flush()?;
        }
        if !flags.contains(PollFlags::OUT) || !(room || publisher.written.is_some()) {
            return Ok(false);
        }
        let batch = self.load.batches[publisher.batch];
        let begins = publisher.written.is_none();
        let written = publisher.written.unwrap_or(0);
        let bytes = &self.load.bytes[batch.start..batch.end];
        let count = match publisher.link.road.write(&bytes[written..]) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(failed(&error)),
        };
        if begins && count > 0 {
            self.published += batch.messages;
            self.expected += batch.deliveries;
            if let Some(churner) = &mut self.churner {
                churner.keep_up(self.published);
            }
        }
        if written + count == bytes.len() {
            publisher.written = None;
            publisher.batch = (publisher.batch + 1) % self.load.batches.len();
        } else if count > 0 {
            publisher.written = Some(written + count);
        }
        Ok(count > 0)
    }
}

impl Churner {
    fn keep_up(&mut self, published: u64) {
        while self.number < published / CHURN_EVERY {
            self.waiting.extend_from_slice(churn(self.number).as_bytes());
            self.number += 1;
        }
    }

    fn turn(&mut self, flags: PollFlags) -> Result<()> {
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.link.read(|_, _| Ok(()))?.pings > 0 {
            self.waiting.extend_from_slice(b"PONG\r\n");
        }
        if flags.contains(PollFlags::OUT) && self.waiting.is_empty() {
            self.link.flush()?;
        } else if flags.contains(PollFlags::OUT) {
            match self.link.road.write(&self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(())
    }
}

/// From now on it waits for nothing.
fn awake(mut link: Link) -> Result<Link> {
    link.set_blocking(false)?;
    Ok(link)
}

fn subscribe(links: &mut [Link], shape: &Shape) -> Result<()> {
    let count = links.len();
    let patterns = if shape.wildcards { wildcards() } else { Vec::new() };
    for (number, link) in links.iter_mut().enumerate() {
        let text = match shape.groups {
            Some(groups) => format!("SUB {SUBJECT} group{} 1\r\n", number % usize::from(groups)),
            None if shape.wildcards => {
                let own = patterns.iter().enumerate().skip(number).step_by(count);
                own.map(|(id, pattern)| format!("SUB {pattern} {}\r\n", id + 1)).collect::<Vec<_>>().concat()
            }
            None => format!("SUB {SUBJECT} 1\r\n"),
        };
        link.write(text.as_bytes())?;
        link.write(b"PING\r\n")?;
        link.wait_for_pong(0)?;
    }
    Ok(())
}
