//! What the bus counts: in all, by account, by connection and by the first tokens of subjects.
//!
//! Publishers count for themselves while they work through a batch ([`Tally`]) and add it to what others read once at its end, so that counting
//! costs no shared write for each message.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use atoll_contract::bus::{BusAccount, BusConnection, BusPrefix, BusReport, BusTraffic, MAX_ROWS};

use super::{router::Router, session::Session};

/// A [`BusTraffic`] that many may add to.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    in_messages: AtomicU64,
    in_bytes: AtomicU64,
    out_messages: AtomicU64,
    out_bytes: AtomicU64,
}

impl Traffic {
    pub(crate) fn add(&self, more: &BusTraffic) {
        self.in_messages.fetch_add(more.in_messages, Ordering::Relaxed);
        self.in_bytes.fetch_add(more.in_bytes, Ordering::Relaxed);
        self.out_messages.fetch_add(more.out_messages, Ordering::Relaxed);
        self.out_bytes.fetch_add(more.out_bytes, Ordering::Relaxed);
    }

    pub(crate) fn view(&self) -> BusTraffic {
        BusTraffic {
            in_messages: self.in_messages.load(Ordering::Relaxed),
            in_bytes: self.in_bytes.load(Ordering::Relaxed),
            out_messages: self.out_messages.load(Ordering::Relaxed),
            out_bytes: self.out_bytes.load(Ordering::Relaxed),
        }
    }
}

/// What a publisher has counted and not yet told.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    all: BusTraffic,
    /// What of it isn't yet told to the prefix that it is about.
    of_prefix: BusTraffic,
    prefix: Option<Arc<Traffic>>,
}

impl Tally {
    /// Counts messages of so many bytes together, and how many messages and bytes were delivered of them.
    pub(crate) fn count(&mut self, prefix: &Arc<Traffic>, messages: usize, bytes: usize, delivered: (usize, usize)) {
        if self.prefix.as_ref().is_none_or(|current| !Arc::ptr_eq(current, prefix)) {
            self.tell_prefix();
            self.prefix = Some(prefix.clone());
        }
        self.of_prefix.in_messages += messages as u64;
        self.of_prefix.in_bytes += bytes as u64;
        self.of_prefix.out_messages += delivered.0 as u64;
        self.of_prefix.out_bytes += delivered.1 as u64;
    }

    fn tell_prefix(&mut self) {
        let part = std::mem::take(&mut self.of_prefix);
        if let Some(prefix) = self.prefix.as_ref().filter(|_| part.in_messages > 0) {
            prefix.add(&part);
            add(&mut self.all, &part);
        }
    }

    /// Ends the batch: what has been counted since the last one.
    pub(crate) fn take(&mut self) -> BusTraffic {
        self.tell_prefix();
        std::mem::take(&mut self.all)
    }
}

fn add(sum: &mut BusTraffic, more: &BusTraffic) {
    sum.in_messages += more.in_messages;
    sum.in_bytes += more.in_bytes;
    sum.out_messages += more.out_messages;
    sum.out_bytes += more.out_bytes;
}

/// Whom connections count for.
#[derive(Debug)]
pub(crate) struct Account {
    name: Box<str>,
    connections: AtomicUsize,
    /// What its connections published, and what those that have ended received.
    traffic: Traffic,
}

impl Account {
    pub(crate) fn published(&self, batch: &BusTraffic) {
        self.traffic.add(&BusTraffic { out_messages: 0, out_bytes: 0, ..*batch });
    }

    /// A connection of this account has ended, having received so much.
    pub(crate) fn left(&self, received: &BusTraffic) {
        self.traffic.add(&BusTraffic { in_messages: 0, in_bytes: 0, ..*received });
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The counts of one router.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub traffic: Traffic,
    pub slow_consumers: AtomicU64,
    prefixes: RwLock<HashMap<Box<str>, Arc<Traffic>>>,
    /// All prefixes beyond [`MAX_PREFIXES`].
    other: Arc<Traffic>,
    accounts: Mutex<HashMap<Box<str>, Arc<Account>>>,
}

/// Prefixes that are counted apart; what comes later is counted as [`OTHER`].
const MAX_PREFIXES: usize = 4096;
const OTHER: &str = "(other)";
/// Accounts that are remembered beyond those that are connected.
const MAX_ACCOUNTS: usize = 4096;
/// Grants of a connection that a report names. With [`MAX_ROWS`] connections the whole stays well below what the bus takes as one message.
const MAX_GRANTS: usize = 16;
/// Bytes of a subject's tokens that count as its prefix.
const MAX_PREFIX: usize = 128;

impl Stats {
    /// Where messages to this subject are counted. For subjects that somebody may publish to: prefixes are remembered as long as the router lives.
    pub(crate) fn prefix(&self, subject: &str) -> Arc<Traffic> {
        let prefix = prefix_of(subject);
        if let Some(known) = self.prefixes.read().unwrap_or_else(PoisonError::into_inner).get(prefix) {
            return known.clone();
        }
        let mut all = self.prefixes.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_PREFIXES && !all.contains_key(prefix) {
            return self.other.clone();
        }
        all.entry(prefix.into()).or_default().clone()
    }

    /// For what is refused: nothing is counted there, and nobody fills the table with what they may not say.
    pub(crate) fn nowhere(&self) -> Arc<Traffic> {
        self.other.clone()
    }

    /// Takes in one more connection of an account. None if it has as many as it may.
    pub(crate) fn join(&self, name: &str, at_most: usize) -> Option<Arc<Account>> {
        let mut all = self.accounts();
        if all.len() >= MAX_ACCOUNTS {
            all.retain(|_, account| account.connections.load(Ordering::Acquire) > 0);
        }
        let new = || Arc::new(Account { name: name.into(), connections: AtomicUsize::new(0), traffic: Traffic::default() });
        let account = all.entry(name.into()).or_insert_with(new);
        // joined under the lock, left without: the number is never too small here
        (account.connections.load(Ordering::Acquire) < at_most).then(|| {
            account.connections.fetch_add(1, Ordering::AcqRel);
            account.clone()
        })
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_prefix(&self) -> Vec<BusPrefix> {
        let row = |prefix: &str, traffic: &Traffic| BusPrefix { prefix: prefix.into(), traffic: traffic.view() };
        let mut rows: Vec<_> =
            self.prefixes.read().unwrap_or_else(PoisonError::into_inner).iter().map(|(prefix, traffic)| row(prefix, traffic)).collect();
        rows.push(row(OTHER, &self.other));
        busiest(rows, |row| &row.traffic)
    }

    fn by_account(&self, sessions: &[Arc<Session>]) -> Vec<BusAccount> {
        let row = |account: &Arc<Account>| BusAccount {
            account: account.name.to_string(),
            connections: account.connections.load(Ordering::Acquire) as u64,
            subscriptions: 0,
            traffic: account.traffic.view(),
        };
        let mut rows: HashMap<Box<str>, BusAccount> = self.accounts().iter().map(|(name, account)| (name.clone(), row(account))).collect();
        for session in sessions {
            let Some(row) = session.account.get().and_then(|account| rows.get_mut(&account.name)) else { continue };
            row.subscriptions += session.held().subs.len() as u64;
            add(&mut row.traffic, &BusTraffic { in_messages: 0, in_bytes: 0, ..session.traffic() });
        }
        busiest(rows.into_values().collect(), |row| &row.traffic)
    }
}

/// The first two tokens; of what the bus and its clients name themselves (`_INBOX`, `_ATOLL`) the first alone.
fn prefix_of(subject: &str) -> &str {
    let tokens = if subject.starts_with('_') { 1 } else { 2 };
    let end = subject.match_indices('.').nth(tokens - 1).map_or(subject.len(), |(dot, _)| dot);
    let mut end = end.min(MAX_PREFIX);
    while !subject.is_char_boundary(end) {
        end -= 1;
    }
    &subject[..end]
}

/// The rows with the most bytes, those without any traffic left out if there are too many.
fn busiest<R>(mut rows: Vec<R>, traffic: impl Fn(&R) -> &BusTraffic) -> Vec<R> {
    let weight = |row: &R| {
        let traffic = traffic(row);
        (traffic.in_bytes + traffic.out_bytes, traffic.in_messages + traffic.out_messages)
    };
    rows.sort_by_key(|row| std::cmp::Reverse(weight(row)));
    rows.truncate(MAX_ROWS);
    rows
}

impl Router {
    /// What this bus does, for people who look: see `atoll bus top`.
    pub fn report(&self) -> BusReport {
        let sessions = self.all();
        let stats = self.stats();
        let by_connection = sessions.iter().map(|session| connection(session)).collect();
        BusReport {
            at: self.clock.now(),
            server_id: self.server_id.clone(),
            connections: stats.connections,
            subscriptions: stats.subscriptions,
            slow_consumers: stats.slow_consumers,
            memory_used: self.budget.used() as u64,
            memory_limit: self.budget.limit() as u64,
            traffic: self.stats.traffic.view(),
            bridge: self.bridge_view(),
            by_connection: busiest(by_connection, |row: &BusConnection| &row.traffic),
            by_account: self.stats.by_account(&sessions),
            by_prefix: self.stats.by_prefix(),
        }
    }
}

fn connection(session: &Session) -> BusConnection {
    let (pending_bytes, pending_messages) = session.out.pending();
    let (mut grants, subscriptions) = {
        let held = session.held();
        (held.grants.keys(), held.subs.len())
    };
    let more = grants.len().saturating_sub(MAX_GRANTS);
    if more > 0 {
        grants.truncate(MAX_GRANTS);
        grants.push(format!("({more} more)"));
    }
    BusConnection {
        id: session.id,
        name: session.name.get().cloned().unwrap_or_default(),
        peer: session.peer.clone(),
        account: session.account.get().map(|account| account.name.to_string()),
        grants,
        subscriptions: subscriptions as u64,
        pending_messages: pending_messages as u64,
        pending_bytes: pending_bytes as u64,
        traffic: session.traffic(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (subject, prefix) in
            [("a", "a"), ("a.b", "a.b"), ("project.7.exec.start", "project.7"), ("_INBOX.x.y", "_INBOX"), ("_ATOLL.ping", "_ATOLL")]
        {
            assert_eq!(prefix_of(subject), prefix);
        }
        let long = "ä".repeat(200);
        assert_eq!(prefix_of(&long).len(), MAX_PREFIX);
        assert_eq!(prefix_of(&format!("a{long}")).len(), MAX_PREFIX - 1, "cut between characters");
    }

    #[test]
    fn tallies_reach_their_prefixes_and_the_whole() {
        let stats = Stats::default();
        let (a, b) = (stats.prefix("a.1.x"), stats.prefix("b.1"));
        let mut tally = Tally::default();
        tally.count(&a, 1, 10, (2, 20));
        tally.count(&a, 1, 5, (0, 0));
        tally.count(&b, 1, 1, (1, 1));
        tally.count(&a, 1, 1, (1, 1));
        let all = tally.take();
        assert_eq!((all.in_messages, all.in_bytes, all.out_messages, all.out_bytes), (4, 17, 4, 22));
        assert_eq!(tally.take(), BusTraffic::default());
        assert_eq!((a.view().in_messages, a.view().out_bytes, b.view().in_bytes), (3, 21, 1));
        assert_eq!(stats.by_prefix()[0].prefix, "a.1");
    }

    #[test]
    fn prefixes_and_accounts_are_bounded() {
        let stats = Stats::default();
        (0..2 * MAX_PREFIXES).for_each(|n| drop(stats.prefix(&format!("s.{n}"))));
        assert!(Arc::ptr_eq(&stats.prefix("more.1"), &stats.other));
        assert!(!Arc::ptr_eq(&stats.prefix("s.1"), &stats.other));
        for n in 0..2 * MAX_ACCOUNTS {
            stats.join(&n.to_string(), 1).unwrap().left(&BusTraffic::default());
        }
        assert!(stats.accounts().len() <= MAX_ACCOUNTS);
        let first = stats.join("a", 2).unwrap();
        let _second = stats.join("a", 2).unwrap();
        assert!(stats.join("a", 2).is_none());
        first.left(&BusTraffic::default());
        assert!(stats.join("a", 2).is_some());
    }
}
