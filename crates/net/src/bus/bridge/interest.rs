//! What is subscribed to here and the hub should know: counted, and told in lines that are made when they are sent, so that what comes and
//! goes at once is told once or not at all.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::BytesMut;
use tokio::sync::Notify;

use crate::bus::wire::put_number;

/// All local interest that crosses.
#[derive(Debug, Default)]
pub(super) struct Interest {
    state: Mutex<State>,
    /// Whether there is something to tell; so that publishers look without the lock.
    dirty: AtomicBool,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    all: HashMap<Arc<str>, Entry>,
    /// What changed since it was told, each once; also what has gone since, which is passed over.
    waiting: VecDeque<Arc<str>>,
    told: bool,
    /// Which connection is told: one that has ended may still be in a publisher's hands, and must not take what is another's.
    connection: u64,
}

/// One subject, or one queue group of a subject.
#[derive(Debug, Default)]
struct Entry {
    count: usize,
    /// What the hub knows: 0 for nothing.
    told: usize,
    waits: bool,
    group: bool,
}

impl Entry {
    /// A queue group is told with its size, which the cluster weighs; of others it is enough that they are.
    fn due(&self) -> usize {
        if self.group { self.count } else { self.count.min(1) }
    }
}

/// How far a telling came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    All,
    /// There is more.
    Some,
    /// The lines were not taken.
    Refused,
}

/// `waiting` may hold this many that have gone, and as many again as there are, before it is gone through.
const STALE: usize = 1024;

impl Interest {
    pub(super) fn begin(&self, subject: &str, queue: Option<&str>) {
        self.change(subject, queue, |count| count + 1);
    }

    pub(super) fn end(&self, subject: &str, queue: Option<&str>) {
        self.change(subject, queue, |count| count.saturating_sub(1));
    }

    fn change(&self, subject: &str, queue: Option<&str>, change: impl FnOnce(usize) -> usize) {
        let key: Arc<str> = match queue {
            Some(queue) => format!("{subject} {queue}").into(),
            None => subject.into(),
        };
        let mut state = self.lock();
        let told = state.told;
        let entry = state.all.entry(key.clone()).or_default();
        entry.group = queue.is_some();
        entry.count = change(entry.count);
        if entry.count == 0 && entry.told == 0 {
            state.all.remove(&key);
            return;
        }
        if !told || entry.waits || entry.due() == entry.told {
            return;
        }
        entry.waits = true;
        state.waiting.push_back(key);
        if state.waiting.len() > STALE + 2 * state.all.len() {
            state.sort_out();
        }
        self.dirty.store(true, Ordering::Release);
        drop(state);
        self.changed.notify_one();
    }

    /// From now on changes are told, to the connection of this number; all that there is waits to be.
    pub(super) fn start(&self, connection: u64) {
        let mut state = self.lock();
        (state.told, state.connection) = (true, connection);
        let State { all, waiting, .. } = &mut *state;
        *waiting = all.keys().cloned().collect();
        all.values_mut().for_each(|entry| (entry.told, entry.waits) = (0, true));
        self.dirty.store(true, Ordering::Release);
    }

    /// Nobody is told any more.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.told = false;
        state.waiting = VecDeque::new();
        state.all.retain(|_, entry| {
            (entry.told, entry.waits) = (0, false);
            entry.count > 0
        });
        self.dirty.store(false, Ordering::Release);
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Returns when something waits to be told.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes up to about `most` bytes of lines of what waits and hands them to `send`, which says whether they were taken. What the hub doesn't
    /// `allow` is left out. Until this returns, `is_dirty` holds for others: whoever sees that it doesn't finds the lines sent.
    pub(super) fn tell(&self, connection: u64, most: usize, allow: impl Fn(&str) -> bool, send: impl FnOnce(&[u8]) -> bool) -> Told {
        let mut state = self.lock();
        if state.connection != connection {
            return Told::All;
        }
        let mut lines = BytesMut::new();
        while lines.len() < most {
            let Some(key) = state.waiting.pop_front() else { break };
            let Some(entry) = state.all.get_mut(&key).filter(|entry| entry.waits) else { continue };
            entry.waits = false;
            let due = entry.due();
            let before = std::mem::replace(&mut entry.told, due);
            let group = entry.group;
            if due == 0 {
                state.all.remove(&key);
            }
            let subject = key.split(' ').next().unwrap_or_default();
            if due == before || !allow(subject) {
                continue;
            }
            lines.extend_from_slice(if due > 0 { b"LS+ " } else { b"LS- " });
            lines.extend_from_slice(key.as_bytes());
            if group && due > 0 {
                lines.extend_from_slice(b" ");
                put_number(&mut lines, due);
            }
            lines.extend_from_slice(b"\r\n");
        }
        if !lines.is_empty() && !send(&lines) {
            return Told::Refused;
        }
        if state.waiting.is_empty() {
            state.waiting = VecDeque::new(); // a storm's memory isn't kept
            self.dirty.store(false, Ordering::Release);
            return Told::All;
        }
        Told::Some
    }

    /// Subjects and groups that there are.
    pub(super) fn len(&self) -> usize {
        self.lock().all.values().filter(|entry| entry.count > 0).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes what has gone (and what came again, and so is in twice) out of what waits.
    fn sort_out(&mut self) {
        let mut seen = std::collections::HashSet::new();
        let State { all, waiting, .. } = self;
        waiting.retain(|key| all.get(key).is_some_and(|entry| entry.waits) && seen.insert(key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(interest: &Interest) -> String {
        let mut text = String::new();
        loop {
            let told = interest.tell(
                1,
                16,
                |subject| !subject.starts_with("secret"),
                |lines| {
                    text.push_str(std::str::from_utf8(lines).unwrap());
                    true
                },
            );
            if told == Told::All {
                return text;
            }
        }
    }

    #[test]
    fn interest_is_told_when_it_begins_and_when_the_last_has_gone() {
        let interest = Interest::default();
        interest.begin("a", None);
        assert!(!interest.is_dirty(), "nobody is there to be told");
        interest.start(1);
        assert_eq!(told(&interest), "LS+ a\r\n");
        interest.begin("a", None);
        assert!(!interest.is_dirty());
        interest.end("a", None);
        assert_eq!(told(&interest), "");
        interest.end("a", None);
        assert!(interest.is_dirty());
        assert_eq!(told(&interest), "LS- a\r\n");
        assert!(!interest.is_dirty() && interest.len() == 0);
    }

    #[test]
    fn groups_are_told_with_their_size() {
        let interest = Interest::default();
        interest.start(1);
        interest.begin("a", Some("q"));
        assert_eq!(told(&interest), "LS+ a q 1\r\n");
        interest.begin("a", Some("q"));
        interest.begin("a", None);
        assert_eq!(told(&interest), "LS+ a q 2\r\nLS+ a\r\n");
        interest.end("a", Some("q"));
        interest.end("a", Some("q"));
        assert_eq!(told(&interest), "LS- a q\r\n");
    }

    #[test]
    fn what_comes_and_goes_in_between_is_not_told_and_not_kept() {
        let interest = Interest::default();
        interest.start(1);
        told(&interest);
        for n in 0..100_000 {
            let subject = format!("_INBOX.{n}");
            interest.begin(&subject, None);
            interest.end(&subject, None);
        }
        assert!(interest.lock().waiting.len() <= STALE + 2 && interest.lock().all.is_empty());
        interest.begin("x", None);
        interest.end("x", None);
        interest.begin("x", None);
        assert_eq!(told(&interest), "LS+ x\r\n");
    }

    #[test]
    fn a_new_hub_is_told_everything_and_a_lost_one_nothing() {
        let interest = Interest::default();
        interest.start(1);
        interest.begin("a", None);
        interest.begin("secret.b", None);
        assert_eq!(told(&interest), "LS+ a\r\n");
        interest.end("a", None); // waits when the connection ends
        interest.stop();
        interest.begin("c", None);
        assert!(!interest.is_dirty());
        interest.start(1);
        assert_eq!(told(&interest), "LS+ c\r\n");
        assert_eq!(interest.tell(1, 100, |_| true, |_| panic!("there is nothing")), Told::All);
        interest.end("c", None);
        assert_eq!(interest.tell(0, 100, |_| true, |_| panic!("it has ended")), Told::All);
        assert_eq!(interest.tell(1, 100, |_| true, |_| false), Told::Refused);
    }

    proptest! {
        /// Whatever happens and whenever it is told: a hub that follows the lines ends up with what there is.
        #[test]
        fn the_hub_knows_what_there_is(steps in prop::collection::vec((0..4usize, 0..3usize, any::<bool>(), any::<bool>()), 0..60)) {
            let interest = Interest::default();
            interest.start(1);
            let (mut real, mut known) = (HashMap::<String, usize>::new(), HashMap::<String, usize>::new());
            let mut hear = |interest: &Interest| for line in told(interest).lines() {
                let (op, rest) = line.split_at(4);
                match (op, rest.split(' ').collect::<Vec<_>>().as_slice()) {
                    ("LS+ ", [subject]) => drop(known.insert((*subject).to_owned(), 1)),
                    ("LS+ ", [subject, queue, weight]) => drop(known.insert(format!("{subject} {queue}"), weight.parse().unwrap())),
                    ("LS- ", _) => assert!(known.remove(rest).is_some(), "{line}"),
                    _ => panic!("{line}"),
                }
            };
            for (subject, queue, begins, tell) in steps {
                let (subject, queue) = (format!("s{subject}"), ["", "q", "r"][queue]);
                let key = if queue.is_empty() { subject.clone() } else { format!("{subject} {queue}") };
                let count = real.entry(key).or_default();
                let queue = Some(queue).filter(|queue| !queue.is_empty());
                if begins {
                    *count += 1;
                    interest.begin(&subject, queue);
                } else if *count > 0 {
                    *count -= 1;
                    interest.end(&subject, queue);
                }
                if tell {
                    hear(&interest);
                }
            }
            hear(&interest);
            let due: HashMap<_, _> = real.into_iter().filter(|(_, count)| *count > 0)
                .map(|(key, count)| { let due = if key.contains(' ') { count } else { 1 }; (key, due) }).collect();
            prop_assert_eq!(known, due);
        }
    }
}
