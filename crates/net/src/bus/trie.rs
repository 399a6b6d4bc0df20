//! Subjects with wildcards as a tree of tokens: a look-up follows the subject's own tokens and never walks through all that is stored.

use std::collections::HashMap;

/// What is stored at a pattern. An empty leaf is taken out of the tree.
pub(crate) trait Leaf: Default {
    fn is_empty(&self) -> bool;
}

/// Patterns with a leaf each.
///
/// The depth is bounded by whoever inserts (see [`BusLimits::subject_tokens`](super::BusLimits)), so recursion is bounded, too. The maps
/// keep the standard hasher with its random keys, since tokens come from strangers.
#[derive(Debug)]
pub(crate) struct Trie<L> {
    root: Node<L>,
}

#[derive(Debug)]
struct Node<L> {
    // boxed, because most nodes of a big tree have one leaf and nothing else
    #[allow(clippy::box_collection, reason = "40 bytes less in each of a million nodes")]
    children: Option<Box<HashMap<Box<str>, Node<L>>>>,
    /// `*`
    star: Option<Box<Node<L>>>,
    /// `>` after this node
    tail: Option<Box<L>>,
    /// patterns that end here
    here: Option<Box<L>>,
}

impl<L> Default for Node<L> {
    fn default() -> Self {
        Self { children: None, star: None, tail: None, here: None }
    }
}

impl<L: Leaf> Default for Trie<L> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<L: Leaf> Trie<L> {
    /// Calls `visit` for the leaf of every pattern that matches the literal subject.
    pub(crate) fn matches<'a>(&'a self, subject: &str, visit: &mut impl FnMut(&'a L)) {
        self.root.matches(subject.split('.'), visit);
    }

    /// Whether one stored pattern alone matches everything that `pattern` (which may be a literal) matches.
    pub(crate) fn covers(&self, pattern: &str) -> bool {
        self.root.covers(pattern.split('.'))
    }

    /// The leaf of this pattern, made if it isn't there.
    pub(crate) fn leaf(&mut self, pattern: &str) -> &mut L {
        let mut node = &mut self.root;
        for token in pattern.split('.') {
            node = match token {
                ">" => return node.tail.get_or_insert_default(),
                "*" => node.star.get_or_insert_default(),
                _ => {
                    let children = node.children.get_or_insert_default();
                    // two look-ups for a new token, none of them allocating for a known one
                    if !children.contains_key(token) {
                        children.insert(token.into(), Node::default());
                    }
                    match children.get_mut(token) {
                        Some(child) => child,
                        None => unreachable!("it was inserted above"),
                    }
                }
            };
        }
        node.here.get_or_insert_default()
    }

    /// Changes the leaf of this pattern if it is there, and takes out what is empty afterwards.
    pub(crate) fn change(&mut self, pattern: &str, change: impl FnOnce(&mut L)) {
        self.root.change(pattern.split('.'), change);
    }

    /// Calls `visit` for all leaves.
    pub(crate) fn each(&self, visit: &mut impl FnMut(&L)) {
        self.root.each(visit);
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

type Tokens<'s> = std::str::Split<'s, char>;

impl<L: Leaf> Node<L> {
    fn matches<'a>(&'a self, mut tokens: Tokens<'_>, visit: &mut impl FnMut(&'a L)) {
        let Some(token) = tokens.next() else {
            if let Some(leaf) = &self.here {
                visit(leaf);
            }
            return;
        };
        if let Some(leaf) = &self.tail {
            visit(leaf);
        }
        if let Some(star) = &self.star {
            star.matches(tokens.clone(), visit);
        }
        if let Some(child) = self.children.as_ref().and_then(|children| children.get(token)) {
            child.matches(tokens, visit);
        }
    }

    fn each(&self, visit: &mut impl FnMut(&L)) {
        self.here.iter().chain(&self.tail).for_each(|leaf| visit(leaf));
        self.star.iter().for_each(|star| star.each(visit));
        self.children.iter().flat_map(|children| children.values()).for_each(|child| child.each(visit));
    }

    fn covers(&self, mut tokens: Tokens<'_>) -> bool {
        let Some(token) = tokens.next() else { return self.here.is_some() };
        if self.tail.is_some() {
            return true;
        }
        match token {
            ">" => false,
            "*" => self.star.as_ref().is_some_and(|star| star.covers(tokens)),
            _ => {
                self.star.as_ref().is_some_and(|star| star.covers(tokens.clone()))
                    || self.children.as_ref().and_then(|children| children.get(token)).is_some_and(|child| child.covers(tokens))
            }
        }
    }

    fn change(&mut self, mut tokens: Tokens<'_>, change: impl FnOnce(&mut L)) {
        match tokens.next() {
            None => change_leaf(&mut self.here, change),
            Some(">") => change_leaf(&mut self.tail, change),
            Some("*") => {
                if let Some(star) = &mut self.star {
                    star.change(tokens, change);
                    if star.is_empty() {
                        self.star = None;
                    }
                }
            }
            Some(token) => {
                let Some(children) = &mut self.children else { return };
                let Some(child) = children.get_mut(token) else { return };
                child.change(tokens, change);
                if child.is_empty() {
                    children.remove(token);
                    if children.is_empty() {
                        self.children = None;
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_none() && self.star.is_none() && self.tail.is_none() && self.here.is_none()
    }
}

fn change_leaf<L: Leaf>(place: &mut Option<Box<L>>, change: impl FnOnce(&mut L)) {
    if let Some(leaf) = place {
        change(leaf);
        if leaf.is_empty() {
            *place = None;
        }
    }
}

/// A set of patterns, for permissions.
#[derive(Debug, Default)]
pub(crate) struct PatternSet(Trie<Here>);

#[derive(Debug, Default)]
struct Here;

impl Leaf for Here {
    fn is_empty(&self) -> bool {
        false
    }
}

impl PatternSet {
    pub(crate) fn insert(&mut self, pattern: &str) {
        self.0.leaf(pattern);
    }

    /// Whether one of the patterns alone covers this subject or pattern.
    pub(crate) fn covers(&self, pattern: &str) -> bool {
        self.0.covers(pattern)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Ids(BTreeSet<usize>);

    impl Leaf for Ids {
        fn is_empty(&self) -> bool {
            self.0.is_empty()
        }
    }

    /// The definition, one pattern at a time.
    fn naive(pattern: &str, subject: &str) -> bool {
        let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
        loop {
            match (pattern.next(), subject.next()) {
                (None, None) | (Some(">"), Some(_)) => return true,
                (Some("*"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    fn token() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "c", "ä", "a*"]).prop_map(Into::into)
    }

    fn literal() -> impl Strategy<Value = String> {
        prop::collection::vec(token(), 1..5).prop_map(|tokens| tokens.join("."))
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![3 => token(), 2 => Just("*".to_owned())];
        (prop::collection::vec(token, 0..4), any::<bool>()).prop_map(|(mut tokens, open)| {
            if open || tokens.is_empty() {
                tokens.push(">".into());
            }
            tokens.join(".")
        })
    }

    fn found(trie: &Trie<Ids>, subject: &str) -> Vec<usize> {
        let mut all = Vec::new();
        trie.matches(subject, &mut |leaf| all.extend(&leaf.0));
        all.sort_unstable();
        all
    }

    proptest! {
        #[test]
        fn the_trie_finds_what_a_linear_scan_finds(
            patterns in prop::collection::vec(pattern(), 0..40),
            removed in prop::collection::vec(any::<bool>(), 40),
            subjects in prop::collection::vec(literal(), 1..20),
        ) {
            let mut trie = Trie::<Ids>::default();
            for (id, pattern) in patterns.iter().enumerate() {
                trie.leaf(pattern).0.insert(id);
            }
            for (id, pattern) in patterns.iter().enumerate().filter(|(id, _)| removed[*id]) {
                trie.change(pattern, |leaf| { leaf.0.remove(&id); });
            }
            for subject in &subjects {
                let expected: Vec<_> = (0..patterns.len()).filter(|id| !removed[*id] && naive(&patterns[*id], subject)).collect();
                prop_assert_eq!(found(&trie, subject), expected, "{}", subject);
            }
            for (id, pattern) in patterns.iter().enumerate() {
                trie.change(pattern, |leaf| { leaf.0.remove(&id); });
            }
            prop_assert!(trie.is_empty(), "what is taken out leaves nothing behind");
        }

        #[test]
        fn a_covered_pattern_matches_nothing_beyond_its_cover(
            held in prop::collection::vec(pattern(), 1..4),
            asked in pattern(),
            subjects in prop::collection::vec(literal(), 50),
        ) {
            let mut set = PatternSet::default();
            for pattern in &held {
                set.insert(pattern);
            }
            if set.covers(&asked) {
                for subject in subjects.iter().filter(|subject| naive(&asked, subject)) {
                    prop_assert!(held.iter().any(|pattern| naive(pattern, subject)), "{} by {:?}", subject, held);
                }
            }
        }

        #[test]
        fn a_literal_is_covered_exactly_if_it_is_matched(held in prop::collection::vec(pattern(), 1..4), subject in literal()) {
            let mut set = PatternSet::default();
            for pattern in &held {
                set.insert(pattern);
            }
            prop_assert_eq!(set.covers(&subject), held.iter().any(|pattern| naive(pattern, &subject)));
        }
    }

    #[test]
    fn broader_subscriptions_are_not_covered() {
        let mut set = PatternSet::default();
        for pattern in ["project.1.stream.>", "project.1.state", "a.*.c"] {
            set.insert(pattern);
        }
        for (pattern, covered) in [
            ("project.1.stream.x", true),
            ("project.1.stream.*.out", true),
            ("project.1.stream.>", true),
            ("project.1.stream", false),
            ("project.1.*", false),
            ("project.1.>", false),
            ("project.*.state", false),
            ("project.1.state", true),
            ("project.1.state.>", false),
            (">", false),
            ("*", false),
            ("a.*.c", true),
            ("a.b.c", true),
            ("a.*.*", false),
            ("a.>", false),
        ] {
            assert_eq!(set.covers(pattern), covered, "{pattern}");
        }
    }
}
