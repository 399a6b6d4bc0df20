//! What one connection may do: its grants together, as sets that a subject is looked up in.

use std::{collections::BTreeMap, sync::Arc};

use atoll_contract::{Timestamp, subject::Permissions};

use super::{Grant, subject::is_pattern, trie::PatternSet};

/// The grants that a connection holds.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    held: BTreeMap<String, Grant>,
    /// Inboxes of the grants that it connected with. A client's inbox prefix stays the same as long as its connection lives, while the token that
    /// named it is renewed by others; nobody else knows the prefix, and all it allows is reading replies.
    inboxes: Vec<String>,
    max: usize,
}

/// The sum of grants, looked up at every new subject.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    publish: PatternSet,
    subscribe: PatternSet,
    everything: bool,
    /// Whether it may answer what was delivered to it, wherever the reply goes.
    pub responses: bool,
    /// A pattern each, and what is put before the subjects that it covers.
    mappings: Vec<(PatternSet, Box<str>)>,
}

const INBOX: &str = "_INBOX.";

impl Grants {
    /// What a connection begins with.
    pub(crate) fn new(grants: Vec<Grant>, max: usize) -> Self {
        let inboxes = grants.iter().flat_map(|grant| &grant.permissions.subscribe).filter(|pattern| pattern.starts_with(INBOX));
        let inboxes = inboxes.cloned().collect();
        Self { held: grants.into_iter().map(|grant| (grant.key.clone(), grant)).collect(), inboxes, max }
    }

    /// Adds one or replaces the one of its key. `false` if there are too many.
    pub(crate) fn add(&mut self, grant: Grant) -> bool {
        if self.held.len() >= self.max && !self.held.contains_key(&grant.key) {
            return false;
        }
        self.held.insert(grant.key.clone(), grant);
        true
    }

    pub(crate) fn remove(&mut self, key: &str) -> bool {
        self.held.remove(key).is_some()
    }

    /// Takes out what has expired. Whether there was any.
    pub(crate) fn expire(&mut self, now: Timestamp) -> bool {
        let before = self.held.len();
        self.held.retain(|_, grant| grant.expires_at.is_none_or(|end| end > now));
        self.held.len() != before
    }

    pub(crate) fn next_expiry(&self) -> Option<Timestamp> {
        self.held.values().filter_map(|grant| grant.expires_at).min()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }

    /// Their sum. A connection without grants may do nothing, not even read its inbox.
    pub(crate) fn rights(&self) -> Arc<Rights> {
        let mut rights = Rights::default();
        self.held.values().for_each(|grant| rights.allow(&grant.permissions));
        if !self.held.is_empty() {
            self.inboxes.iter().for_each(|pattern| rights.subscribe.insert(pattern));
        }
        Arc::new(rights)
    }
}

impl Rights {
    pub(crate) fn of(permissions: Option<&Permissions>) -> Self {
        let mut rights = Self { everything: permissions.is_none(), ..Self::default() };
        if let Some(permissions) = permissions {
            rights.allow(permissions);
        }
        rights
    }

    fn allow(&mut self, permissions: &Permissions) {
        // what isn't a pattern allows nothing
        let good = |pattern: &&String| is_pattern(pattern, usize::from(u8::MAX));
        permissions.publish.iter().filter(good).for_each(|pattern| self.publish.insert(pattern));
        permissions.subscribe.iter().filter(good).for_each(|pattern| self.subscribe.insert(pattern));
        self.responses |= permissions.responses;
        for mapping in permissions.mappings.iter().filter(|mapping| good(&&mapping.pattern) && good(&&mapping.prefix)) {
            let mut set = PatternSet::default();
            set.insert(&mapping.pattern);
            self.mappings.push((set, mapping.prefix.as_str().into()));
        }
    }

    pub(crate) fn may_publish(&self, subject: &str) -> bool {
        self.everything || self.publish.covers(subject)
    }

    /// The subject under which a publication to this one enters the bus, if it is another.
    pub(crate) fn mapped(&self, subject: &str) -> Option<String> {
        let (_, prefix) = self.mappings.iter().find(|(patterns, _)| patterns.covers(subject))?;
        Some(format!("{prefix}.{subject}"))
    }

    pub(crate) fn may_subscribe(&self, pattern: &str) -> bool {
        self.everything || self.subscribe.covers(pattern)
    }

    /// Whether a reply may be asked for at this subject: only at an inbox of the asker's own, or where it could publish itself. Otherwise whoever
    /// answers with wider rights could be made to publish in the asker's place, where others take it for something else.
    pub(crate) fn may_ask_reply(&self, subject: &str) -> bool {
        self.everything || self.publish.covers(subject) || subject.starts_with(INBOX) && self.subscribe.covers(subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(key: &str, publish: &str, subscribe: &str, end: Option<i64>) -> Grant {
        let permissions = Permissions { publish: vec![publish.into()], subscribe: vec![subscribe.into()], ..Permissions::default() };
        Grant { key: key.into(), permissions, account: None, expires_at: end.map(Timestamp::from_millis) }
    }

    #[test]
    fn grants_add_up_are_renewed_and_end() {
        let mut grants = Grants::new(vec![grant("1", "p1.>", "_INBOX.one.>", Some(10))], 2);
        assert!(grants.add(grant("2", "p2.>", "p2.x", Some(20))));
        assert!(!grants.add(grant("3", "p3.>", "p3.x", None)), "over the bound");
        assert_eq!((grants.keys(), grants.next_expiry()), (vec!["1".into(), "2".into()], Some(Timestamp::from_millis(10))));
        let rights = grants.rights();
        assert!(rights.may_publish("p1.a") && rights.may_publish("p2.a") && !rights.may_publish("p3.a"));
        assert!(rights.may_ask_reply("_INBOX.one.1") && rights.may_ask_reply("p1.x") && !rights.may_ask_reply("p3.x"));
        assert!(rights.may_subscribe("p2.x") && Rights::of(Some(&grant("r", "q", "r.>", None).permissions)).may_subscribe("r.state"));
        assert!(
            !Rights::of(Some(&grant("r", "q", "r.>", None).permissions)).may_ask_reply("r.state"),
            "read by others, written by none of them"
        );

        assert!(grants.add(grant("1", "p1.b", "_INBOX.two.>", Some(30))));
        let rights = grants.rights();
        assert!(!rights.may_publish("p1.a") && rights.may_publish("p1.b"), "a renewal replaces");
        assert!(rights.may_subscribe("_INBOX.one.*") && rights.may_subscribe("_INBOX.two.*"), "the first inbox stays");

        assert!(!grants.expire(Timestamp::from_millis(19)));
        assert!(grants.expire(Timestamp::from_millis(20)));
        assert!(grants.rights().may_subscribe("_INBOX.one.*"));
        assert!(grants.remove("1") && !grants.remove("1") && grants.is_empty());
        assert!(!grants.rights().may_subscribe("_INBOX.one.*"), "without a grant nothing is left");
    }

    #[test]
    fn a_pattern_that_is_none_allows_nothing() {
        let rights = Rights::of(Some(&Permissions { publish: vec!["a.>.b".into(), String::new()], ..Permissions::default() }));
        assert!(!rights.may_publish("a.x") && !rights.may_publish("a.x.b"));
        assert!(Rights::of(None).may_publish("a") && Rights::of(None).may_subscribe(">"));
    }
}
