//! Which subjects cross a bridge: patterns, and what they have in common with those that somebody subscribes to.

use crate::bus::trie::PatternSet;

/// The configured patterns.
#[derive(Debug)]
pub(super) struct Crossing {
    patterns: Vec<Box<str>>,
    set: PatternSet,
}

impl Crossing {
    pub(super) fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let patterns: Vec<Box<str>> = patterns.into_iter().map(Into::into).collect();
        let mut set = PatternSet::default();
        patterns.iter().for_each(|pattern| set.insert(pattern));
        Self { patterns, set }
    }

    /// Whether all of this subject or pattern crosses.
    pub(super) fn covers(&self, pattern: &str) -> bool {
        self.set.covers(pattern)
    }

    /// The parts of a pattern that cross, as patterns; most are one part or none.
    pub(super) fn parts(&self, pattern: &str) -> Vec<Box<str>> {
        if self.covers(pattern) {
            return vec![pattern.into()];
        }
        let mut parts: Vec<Box<str>> = self.patterns.iter().filter_map(|own| intersect(own, pattern)).collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }
}

/// What matches both patterns, which is one pattern again, or nothing.
fn intersect(a: &str, b: &str) -> Option<Box<str>> {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    let mut common: Vec<&str> = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Some(common.join(".").into()),
            // `>` stands for one token or more: all that is left of the other
            (Some(">"), Some(token)) => {
                common.push(token);
                common.extend(right);
                return Some(common.join(".").into());
            }
            (Some(token), Some(">")) => {
                common.push(token);
                common.extend(left);
                return Some(common.join(".").into());
            }
            (Some("*"), Some(token)) | (Some(token), Some("*")) => common.push(token),
            (Some(one), Some(other)) if one == other => common.push(one),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_two_patterns_have_in_common() {
        for (a, b, common) in [
            ("a.>", ">", Some("a.>")),
            ("a.>", "*.b", Some("a.b")),
            ("a.>", "a", None),
            ("a.*", "*.b", Some("a.b")),
            ("a.*", "a.b.c", None),
            ("a.*.>", "*.b.*.d", Some("a.b.*.d")),
            ("a.>", "b.>", None),
            ("a.b", "a.b", Some("a.b")),
            ("*.*", "a.>", Some("a.*")),
        ] {
            assert_eq!(intersect(a, b).as_deref(), common, "{a} {b}");
            assert_eq!(intersect(b, a).as_deref(), common, "{b} {a}");
        }
    }

    #[test]
    fn parts_of_wide_patterns() {
        let crossing = Crossing::new(["host.>", "account.>", "_INBOX.>"]);
        let parts = |pattern: &str| crossing.parts(pattern).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(parts("host.*.report"), ["host.*.report"]);
        assert_eq!(parts(">"), ["_INBOX.>", "account.>", "host.>"]);
        assert_eq!(parts("*.x"), ["_INBOX.x", "account.x", "host.x"]);
        assert!(parts("project.>").is_empty() && parts("host").is_empty() && parts("*").is_empty());
        assert!(crossing.covers("host.a") && !crossing.covers("host") && !crossing.covers(">"));
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop::sample::select(vec!["a", "b", "*"]);
        (prop::collection::vec(token, 0..4), any::<bool>()).prop_map(|(mut tokens, open)| {
            if open || tokens.is_empty() {
                tokens.push(">");
            }
            tokens.join(".")
        })
    }

    proptest! {
        #[test]
        fn a_subject_matches_the_common_pattern_if_it_matches_both(
            a in pattern(), b in pattern(), subject in prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..6),
        ) {
            let subject = subject.join(".");
            let matches = |pattern: &str| Crossing::new([pattern]).covers(&subject);
            let common = intersect(&a, &b).is_some_and(|common| matches(&common));
            prop_assert_eq!(common, matches(&a) && matches(&b));
        }
    }
}
