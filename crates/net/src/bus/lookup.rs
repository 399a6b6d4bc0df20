//! Who gets what: the trie of subscriptions, and what each publisher remembers of it.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, atomic::Ordering},
};

use super::{
    bridge::link::Wanted,
    session::Sub,
    stats::Traffic,
    trie::{Leaf, Trie},
};

/// The subscriptions with one pattern.
#[derive(Debug, Default)]
pub(crate) struct Subs {
    plain: Vec<Arc<Sub>>,
    // boxed: most leaves have no queue groups
    #[allow(clippy::box_collection, reason = "40 bytes less in each of a million leaves")]
    groups: Option<Box<Groups>>,
}

type Groups = HashMap<Box<str>, Vec<Arc<Sub>>>;

impl Leaf for Subs {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.groups.is_none()
    }
}

impl Subs {
    pub(crate) fn add(&mut self, sub: &Arc<Sub>) {
        let list = match &sub.queue {
            Some(queue) => self.groups.get_or_insert_default().entry(queue.clone()).or_default(),
            None => &mut self.plain,
        };
        sub.position.store(list.len(), Ordering::Relaxed);
        list.push(sub.clone());
    }

    /// Takes it out without looking for it: it knows its place, and the last one takes that place. Whether it was there.
    pub(crate) fn remove(&mut self, sub: &Arc<Sub>) -> bool {
        let Some(queue) = &sub.queue else { return take_out(&mut self.plain, sub) };
        let Some(groups) = &mut self.groups else { return false };
        let Some(list) = groups.get_mut(queue) else { return false };
        let removed = take_out(list, sub);
        if list.is_empty() {
            groups.remove(queue);
        }
        if groups.is_empty() {
            self.groups = None;
        }
        removed
    }

    pub(crate) fn each(&self, visit: &mut impl FnMut(&Arc<Sub>)) {
        let grouped = self.groups.iter().flat_map(|groups| groups.values().flatten());
        self.plain.iter().chain(grouped).for_each(visit);
    }
}

fn take_out(list: &mut Vec<Arc<Sub>>, sub: &Arc<Sub>) -> bool {
    let position = sub.position.load(Ordering::Relaxed);
    let there = list.get(position).is_some_and(|there| Arc::ptr_eq(there, sub));
    if there {
        list.swap_remove(position);
        if let Some(moved) = list.get(position) {
            moved.position.store(position, Ordering::Relaxed);
        }
    }
    there
}

/// Everyone who is to get a subject's messages.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    pub plain: Vec<Arc<Sub>>,
    /// One of each of these.
    pub groups: Vec<Vec<Arc<Sub>>>,
    /// What the cluster gets, if this router is joined to one that wants it.
    pub cluster: Option<Box<Wanted>>,
}

impl Matched {
    /// Groups of one name are one group, whichever patterns their members subscribed with.
    pub(crate) fn find(trie: &Trie<Subs>, subject: &str) -> Self {
        let mut matched = Self::default();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        trie.matches(subject, &mut |leaf: &Subs| {
            matched.plain.extend_from_slice(&leaf.plain);
            for (name, members) in leaf.groups.iter().flat_map(|groups| groups.iter()) {
                let at = *by_name.entry(name).or_insert(matched.groups.len());
                match matched.groups.get_mut(at) {
                    Some(group) => group.extend_from_slice(members),
                    None => matched.groups.push(members.clone()),
                }
            }
        });
        matched
    }

    fn weight(&self) -> usize {
        1 + self.plain.len() + self.groups.iter().map(|group| 1 + group.len()).sum::<usize>()
    }

    pub(crate) fn receivers(&self) -> usize {
        self.plain.len() + self.groups.len()
    }
}

/// What a publisher found out about one subject.
#[derive(Debug)]
pub(crate) struct Found {
    /// As the publisher says it.
    pub subject: Arc<str>,
    /// As it enters the bus, if that is another; see [`Mapping`](atoll_contract::subject::Mapping).
    pub mapped: Option<Arc<str>>,
    /// Where messages to it are counted.
    pub prefix: Arc<Traffic>,
    pub verdict: Verdict,
    pub matched: Matched,
    /// Whether messages to it may be handed over together, once somebody has asked; see [`runs`](super::run).
    pub in_runs: OnceLock<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Refused,
    Invalid,
}

/// Subjects that a publisher remembers, and receivers in all of them.
const MAX_SUBJECTS: usize = 512;
const MAX_WEIGHT: usize = 8192;

/// One publisher's memory of look-ups. It holds for one generation of the trie and of the publisher's rights; any change there empties it.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    generation: u64,
    /// Most publishers use the same subject many times in a row.
    last: Option<Arc<Found>>,
    found: HashMap<Arc<str>, Arc<Found>>,
    weight: usize,
}

impl Cache {
    pub(crate) fn clear(&mut self) {
        self.last = None;
        self.found.clear();
        self.weight = 0;
    }

    /// Forgets what isn't of this generation.
    pub(crate) fn at(&mut self, generation: u64) {
        if self.generation != generation {
            self.clear();
            self.generation = generation;
        }
    }

    pub(crate) fn get(&mut self, subject: &[u8]) -> Option<&Arc<Found>> {
        if self.last.as_ref().is_none_or(|last| last.subject.as_bytes() != subject) {
            self.last = Some(self.found.get(std::str::from_utf8(subject).ok()?)?.clone());
        }
        self.last.as_ref()
    }

    pub(crate) fn put(&mut self, found: Found) -> &Arc<Found> {
        let found = Arc::new(found);
        let weight = found.matched.weight();
        // an inbox is used once; a giant set would push out all others
        if !found.subject.starts_with("_INBOX.") && weight <= MAX_WEIGHT / 2 {
            if self.found.len() >= MAX_SUBJECTS || self.weight + weight > MAX_WEIGHT {
                self.found.clear();
                self.weight = 0;
            }
            self.weight += weight;
            self.found.insert(found.subject.clone(), found.clone());
        }
        self.last.insert(found)
    }
}

/// A fast source of numbers that needn't be secret: which member of a queue group is next (xorshift64*, Vigna 2016).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * end as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{inlet::Replies, session::Sink};

    fn sub(subject: &str, queue: Option<&str>) -> Arc<Sub> {
        Arc::new(Sub::new(subject, queue, Sink::Replies(Arc::new(Replies::default()))))
    }

    #[test]
    fn subscriptions_leave_without_being_searched_and_leave_nothing() {
        let mut trie = Trie::<Subs>::default();
        let subs: Vec<_> = (0..300).map(|n| sub("a.*", [None, Some("q"), Some("r")][n % 3])).collect();
        for sub in &subs {
            trie.leaf("a.*").add(sub);
        }
        let matched = Matched::find(&trie, "a.b");
        assert_eq!((matched.plain.len(), matched.groups.len(), matched.receivers()), (100, 2, 102));
        // in an order that moves the others about
        for step in 0..300 {
            let gone = &subs[step * 7 % 300];
            for removed in [true, false] {
                trie.change("a.*", |leaf| assert_eq!(leaf.remove(gone), removed));
            }
            let matched = Matched::find(&trie, "a.b");
            assert_eq!(matched.plain.len() + matched.groups.iter().map(Vec::len).sum::<usize>(), 299 - step);
        }
        assert!(trie.is_empty());
    }

    #[test]
    fn groups_of_one_name_are_one_group() {
        let mut trie = Trie::<Subs>::default();
        for (subject, queue) in [("a.*", Some("q")), ("a.b", Some("q")), (">", Some("r")), ("a.b", None)] {
            trie.leaf(subject).add(&sub(subject, queue));
        }
        let matched = Matched::find(&trie, "a.b");
        let mut sizes: Vec<_> = matched.groups.iter().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!((matched.plain.len(), sizes), (1, vec![1, 2]));
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_with_the_generation() {
        let mut cache = Cache::default();
        cache.at(1);
        let found = |n: usize| Found {
            subject: format!("s.{n}").into(),
            mapped: None,
            prefix: Arc::default(),
            verdict: Verdict::Allowed,
            matched: Matched::default(),
            in_runs: OnceLock::new(),
        };
        (0..10_000).for_each(|n| {
            cache.put(found(n));
        });
        assert!(cache.found.len() <= MAX_SUBJECTS);
        assert!(cache.get(b"s.9999").is_some() && cache.get(b"s.0").is_none());
        cache.at(1);
        assert!(cache.get(b"s.9998").is_some());
        cache.at(2);
        assert!(cache.get(b"s.9999").is_none());
    }

    #[test]
    fn dice_are_fair_enough() {
        let mut dice = Dice::new(42);
        let mut counts = [0; 3];
        (0..30_000).for_each(|_| counts[dice.below(3)] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
