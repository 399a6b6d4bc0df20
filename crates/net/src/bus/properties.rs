//! What gets what, against the definitions: whatever order things come in, whatever publishers remember.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use atoll_contract::{Error, Timestamp, subject::Permissions};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{
    Authenticator, BusLimits, Credentials, Grant, Message, Router, Subscription,
    server::Connection,
    subject::{is_literal, is_pattern},
    trie::PatternSet,
    wire::{ClientOp, Publish},
};
use crate::clock::TestClock;

/// Whether a pattern matches a subject, token by token.
fn matches(pattern: &str, subject: &str) -> bool {
    let (pattern, subject): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), subject.split('.').collect());
    match pattern.split_last() {
        Some((&">", before)) => subject.len() > before.len() && before.iter().zip(&subject).all(|(a, b)| *a == "*" || a == b),
        _ => pattern.len() == subject.len() && pattern.iter().zip(&subject).all(|(a, b)| *a == "*" || a == b),
    }
}

struct Open;

impl Authenticator for Open {
    fn connect(&self, _: &Credentials) -> Result<Vec<Grant>, Error> {
        let all = || vec![">".to_owned()];
        let permissions = Permissions { publish: all(), subscribe: all(), ..Permissions::default() };
        Ok(vec![Grant { key: "all".into(), permissions, account: None, expires_at: None }])
    }
}

fn router() -> Arc<Router> {
    Router::new(BusLimits::default(), TestClock::at(Timestamp::from_millis(1_800_000_000_000)))
}

#[derive(Debug, Clone)]
enum Step {
    Subscribe {
        pattern: String,
        queue: Option<&'static str>,
    },
    Unsubscribe(prop::sample::Index),
    /// By the first or second connection in process, or by one on a wire.
    Publish {
        by: usize,
        subject: String,
    },
}

fn tokens(most: usize, from: Vec<&'static str>) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(from), 1..=most).prop_map(|tokens| tokens.join("."))
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => tokens(3, vec!["a", "b", "*"]),
        1 => tokens(2, vec!["a", "b", "*"]).prop_map(|start| format!("{start}.>")),
        1 => Just(">".to_owned()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let queue = prop::sample::select(vec![None, None, Some("q"), Some("r")]);
    prop_oneof![
        3 => (pattern(), queue).prop_map(|(pattern, queue)| Step::Subscribe { pattern, queue }),
        2 => any::<prop::sample::Index>().prop_map(Step::Unsubscribe),
        // few subjects, so that what is remembered gets used
        5 => (0..3usize, tokens(3, vec!["a", "b"])).prop_map(|(by, subject)| Step::Publish { by, subject }),
    ]
}

struct Held {
    pattern: String,
    queue: Option<&'static str>,
    subscription: Subscription,
}

impl Held {
    fn got(&mut self) -> usize {
        std::iter::from_fn(|| self.subscription.try_next().ok()).count()
    }
}

/// Each plain subscription that matches gets the message once, and of each queue group one member does.
fn check(held: &mut [Held], subject: &str) {
    let mut groups = BTreeMap::<&str, (usize, usize)>::new();
    for held in held {
        let (got, matches) = (held.got(), matches(&held.pattern, subject));
        match held.queue {
            None => assert_eq!(got, usize::from(matches), "{} for {subject}", held.pattern),
            Some(queue) => {
                assert!(matches || got == 0, "{} for {subject}", held.pattern);
                let (members, sum) = groups.entry(queue).or_default();
                (*members, *sum) = (*members + usize::from(matches), *sum + got);
            }
        }
    }
    for (queue, (members, got)) in groups {
        assert_eq!(got, usize::from(members > 0), "group {queue} of {members} for {subject}");
    }
}

async fn run(steps: Vec<Step>) {
    let router = router();
    let inside = ["one", "two"].map(|name| router.connect(name, None));
    let session = router.attach("wire".into()).unwrap();
    let mut wire = Connection::new(router.clone(), session.clone(), Arc::new(Open));
    wire.operation(ClientOp::Connect(br#"{"verbose":false}"#), None).unwrap();
    let mut held = Vec::<Held>::new();
    for step in steps {
        match step {
            Step::Subscribe { pattern, queue } => {
                let subscription = inside[0].subscribe(&pattern, queue).await.unwrap();
                held.push(Held { pattern, queue, subscription });
            }
            Step::Unsubscribe(which) if !held.is_empty() => drop(held.swap_remove(which.index(held.len()))),
            Step::Unsubscribe(_) => {}
            Step::Publish { by, subject } => {
                match inside.get(by) {
                    Some(conn) => conn.publish(Message::new(subject.as_str(), "x")).await.unwrap(),
                    None => {
                        let publish =
                            Publish { subject: subject.as_bytes(), reply: None, headers: b"", with_headers: false, payload: b"x" };
                        wire.operation(ClientOp::Publish(publish), None).unwrap();
                    }
                }
                check(&mut held, &subject);
            }
        }
        assert_eq!(router.stats().subscriptions, (held.len() + inside.len()) as u64, "and an inbox of each connection");
    }
    drop((held, inside));
    router.detach(&session);
    assert_eq!(router.stats().subscriptions, 0);
    assert!(router.is_empty());
}

proptest! {
    #[test]
    fn everyone_gets_what_the_definition_says_whatever_came_before(steps in prop::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(run(steps));
    }

    #[test]
    fn subjects_are_valid_by_the_grammar(text in prop::collection::vec(prop::sample::select(vec!['a', '*', '>', '.', ' ', '\t', '\r', '\0', '\x7f', 'é']), 0..9)) {
        let text: String = text.into_iter().collect();
        prop_assert_eq!((is_literal(&text, 3), is_pattern(&text, 3)), grammar(&text, 3), "{:?}", text);
    }

    #[test]
    fn several_patterns_cover_what_one_of_them_covers(held in prop::collection::vec(pattern(), 1..6), asked in pattern()) {
        let set = |patterns: &[String]| {
            let mut set = PatternSet::default();
            patterns.iter().for_each(|pattern| set.insert(pattern));
            set
        };
        let one = held.iter().any(|pattern| set(std::slice::from_ref(pattern)).covers(&asked));
        prop_assert_eq!(set(&held).covers(&asked), one);
    }
}

/// A subject is tokens with dots between them; a token is one or more characters, none of them a dot, blank or control character. In a pattern a
/// token may be `*`, and the last may be `>`. Read character by character, so that it has nothing in common with the code.
fn grammar(text: &str, max_tokens: usize) -> (bool, bool) {
    let (mut literal, mut pattern, mut token, mut count) = (true, true, String::new(), 0);
    let mut characters = text.chars().chain(['.']).peekable();
    while let Some(character) = characters.next() {
        if character != '.' {
            if character <= ' ' || character == '\x7f' {
                return (false, false);
            }
            token.push(character);
            continue;
        }
        count += 1;
        let last = characters.peek().is_none();
        literal &= token != "*" && token != ">";
        pattern &= token != ">" || last;
        if token.is_empty() || count > max_tokens {
            return (false, false);
        }
        token.clear();
    }
    (literal, pattern)
}

/// All sequences of these tokens of 1 to `most`.
fn all(tokens: &[&str], most: usize) -> Vec<String> {
    let mut all: Vec<String> = tokens.iter().map(|token| (*token).to_owned()).collect();
    let mut last = all.clone();
    for _ in 1..most {
        last = last.iter().flat_map(|start| tokens.iter().map(move |token| format!("{start}.{token}"))).collect();
        all.extend(last.iter().cloned());
    }
    all
}

/// Every pattern of up to three tokens against every other. Two named tokens, one that no pattern names, and one token more than the longest pattern has:
/// what holds for these subjects holds for all.
#[test]
fn a_pattern_covers_another_exactly_if_it_matches_all_that_the_other_matches() {
    let mut patterns = all(&["a", "b", "*"], 3);
    patterns.extend(all(&["a", "b", "*"], 2).iter().map(|start| format!("{start}.>")));
    patterns.push(">".into());
    let subjects = all(&["a", "b", "c"], 4);
    let matched: Vec<Vec<bool>> =
        patterns.iter().map(|pattern| subjects.iter().map(|subject| matches(pattern, subject)).collect()).collect();
    for (held, by_held) in patterns.iter().zip(&matched) {
        let mut set = PatternSet::default();
        set.insert(held);
        for (asked, by_asked) in patterns.iter().zip(&matched) {
            let all_of_it = by_asked.iter().zip(by_held).all(|(asked, held)| !asked || *held);
            assert_eq!(set.covers(asked), all_of_it, "{held} and {asked}");
        }
    }
}

const CONNECTIONS: usize = 1000;
const SUBSCRIPTIONS: usize = 100;

/// A small version of `cargo xtask bench scale`, which also measures memory.
#[tokio::test(start_paused = true)]
async fn a_thousand_connections_with_a_hundred_thousand_subscriptions_leave_nothing() {
    let (router, cancel) = (router(), CancellationToken::new());
    let mut clients = Vec::new();
    for i in 0..CONNECTIONS {
        let (mut ours, theirs) = tokio::io::duplex(16 << 10);
        tokio::spawn(router.serve(theirs, "pipe".into(), Arc::new(Open), cancel.clone()));
        let subs: Vec<_> = (1..SUBSCRIPTIONS)
            .map(|n| format!("SUB {}.{i}.{n}{} {n}\r\n", if n % 10 == 0 { "*" } else { "site" }, if n % 7 == 0 { ".>" } else { "" }))
            .collect();
        ours.write_all(format!("CONNECT {{\"verbose\":false}}\r\n{}SUB to.{i} 100\r\nPING\r\n", subs.concat()).as_bytes()).await.unwrap();
        hear(&mut ours, b"PONG\r\n").await;
        clients.push(ours);
    }
    let stats = router.stats();
    assert_eq!((stats.connections, stats.subscriptions), (CONNECTIONS as u64, (CONNECTIONS * SUBSCRIPTIONS) as u64));
    for i in 0..CONNECTIONS {
        let publications = format!("PUB to.{i} 5\r\nhello\r\n");
        clients[(i + 1) % CONNECTIONS].write_all(publications.as_bytes()).await.unwrap();
        hear(&mut clients[i], format!("MSG to.{i} 100 5\r\nhello\r\n").as_bytes()).await;
    }
    assert_eq!(router.budget.used(), 0, "what waits is charged, and nothing waits");
    // half of them say goodbye, half are just gone
    for client in clients.iter_mut().step_by(2) {
        client.shutdown().await.unwrap();
    }
    drop(clients);
    tokio::time::sleep(Duration::from_secs(5)).await; // paused time: comes when all is quiet
    let stats = router.stats();
    assert_eq!((stats.connections, stats.subscriptions, stats.slow_consumers), (0, 0, 0));
    assert!(router.is_empty());
}

/// Reads until the other side has said what ends so.
async fn hear(io: &mut tokio::io::DuplexStream, end: &[u8]) {
    let mut heard = Vec::new();
    while !heard.ends_with(end) {
        assert!(io.read_buf(&mut heard).await.unwrap() > 0, "{}", heard.escape_ascii());
    }
}
