//! The router with connections that subscribe, publish and lose their rights at the same time.

use std::sync::{Arc, atomic::Ordering};

use atoll_contract::{Error, Timestamp, subject::Permissions};
use loom::{sync::atomic::AtomicBool, thread};

use super::explore;
use crate::{
    bus::{
        Authenticator, BusLimits, Credentials, Grant, Router,
        server::Connection,
        session::{Session, Sink, Sub},
        wire::{ClientOp, Publish},
    },
    clock::TestClock,
};

/// Gives a connection two grants, so that it lives on without one.
struct Two;

impl Authenticator for Two {
    fn connect(&self, _: &Credentials) -> Result<Vec<Grant>, Error> {
        let grant = |key: &str, subject: &str| Grant {
            key: key.into(),
            permissions: Permissions { publish: vec![subject.into()], subscribe: vec![subject.into()], ..Permissions::default() },
            account: None,
            expires_at: None,
        };
        Ok(vec![grant("a", "a.*"), grant("b", "b.*")])
    }
}

fn router(subscriptions: usize) -> Arc<Router> {
    let limits = BusLimits { subscriptions, ..BusLimits::default() };
    Router::new(limits, TestClock::at(Timestamp::from_millis(1_800_000_000_000)))
}

/// A connection as the server has it after CONNECT.
fn connected(router: &Arc<Router>) -> Connection {
    let session = router.attach("model".into()).unwrap();
    let mut connection = Connection::new(router.clone(), session, Arc::new(Two));
    connection.operation(ClientOp::Connect(br#"{"verbose":false,"headers":true}"#), None).unwrap();
    connection
}

/// Subscriptions of a connection that nobody attached: what it gets is seen in its queue.
fn receiver(router: &Router) -> Arc<Session> {
    Arc::new(Session::new(1000, "receiver".into(), crate::bus::outbound::Outbound::new(1 << 20, 1000, &router.budget)))
}

fn sub(session: &Arc<Session>, sid: &[u8], max: usize) -> Arc<Sub> {
    let sub = Arc::new(Sub::new("a.*", None, Sink::Wire { session: session.clone(), sid: sid.into() }));
    sub.max.store(max, Ordering::Relaxed);
    sub
}

/// A router, a connection that publishes, and who is to get it.
fn scene() -> (Arc<Router>, Arc<Session>, Connection) {
    let router = router(10);
    let (receiver, publisher) = (receiver(&router), connected(&router));
    (router, receiver, publisher)
}

fn subscribed(router: &Router, session: &Arc<Session>, max: usize) -> Arc<Sub> {
    let sub = sub(session, b"1", max);
    assert!(router.insert(&sub));
    sub
}

/// Does something in a thread of its own, which tells when it is done.
fn apart<T: 'static>(act: impl FnOnce() -> T + 'static) -> (Arc<AtomicBool>, thread::JoinHandle<T>) {
    let done = Arc::new(AtomicBool::new(false));
    let acting = thread::spawn({
        let done = done.clone();
        move || {
            let made = act();
            done.store(true, Ordering::Release);
            made
        }
    });
    (done, acting)
}

fn publish(connection: &mut Connection) {
    let publish = Publish { subject: b"a.x", reply: None, headers: b"", with_headers: false, payload: b"x" };
    connection.operation(ClientOp::Publish(publish), None).unwrap();
    connection.hand.wakers.wake();
}

fn got(session: &Session) -> usize {
    session.out.pending().1
}

fn nothing_is_left(router: &Router) {
    assert_eq!(router.stats().subscriptions, 0);
    assert!(router.is_empty());
}

#[test]
fn what_is_published_after_a_subscription_reaches_it_whatever_the_publisher_remembers() {
    explore(|| {
        let (router, receiver, mut publisher) = scene();
        let (is_subscribed, subscriber) = apart({
            let (router, receiver) = (router.clone(), receiver.clone());
            move || subscribed(&router, &receiver, 0)
        });
        publish(&mut publisher); // remembers who is there, or that nobody is
        let (before, is_subscribed) = (got(&receiver), is_subscribed.load(Ordering::Acquire));
        publish(&mut publisher);
        assert!(!is_subscribed || got(&receiver) == before + 1, "it was subscribed and didn't get the message");
        let sub = subscriber.join().unwrap();
        let before = got(&receiver);
        publish(&mut publisher);
        assert_eq!(got(&receiver), before + 1);
        router.remove(&sub);
        nothing_is_left(&router);
    });
}

#[test]
fn what_is_published_after_an_unsubscription_doesnt_reach_it() {
    explore(|| {
        let (router, receiver, mut publisher) = scene();
        let sub = subscribed(&router, &receiver, 0);
        publish(&mut publisher);
        let (removed, remover) = apart({
            let router = router.clone();
            move || router.remove(&sub)
        });
        publish(&mut publisher);
        let (before, removed) = (got(&receiver), removed.load(Ordering::Acquire));
        publish(&mut publisher);
        assert!(!removed || got(&receiver) == before);
        remover.join().unwrap();
        nothing_is_left(&router);
    });
}

#[test]
fn a_subscription_that_ends_by_itself_and_by_others_ends_once() {
    explore(|| {
        let (router, receiver, mut publisher) = scene();
        let sub = subscribed(&router, &receiver, 1);
        receiver.held().subs.insert(b"1"[..].into(), sub.clone());
        let publishing = thread::spawn(move || {
            publish(&mut publisher);
            publish(&mut publisher);
        });
        let ending = thread::spawn({
            let (router, receiver) = (router.clone(), receiver.clone());
            move || router.end_subscriptions(&receiver)
        });
        router.remove(&sub);
        publishing.join().unwrap();
        ending.join().unwrap();
        assert!(got(&receiver) <= 1);
        assert!(receiver.held().subs.is_empty());
        nothing_is_left(&router);
    });
}

/// UNSUB with a number that has been reached, while a message is on its way: one of both sees that it is the end, or the next message does.
#[test]
fn a_bound_that_is_set_late_ends_the_subscription_at_the_next_message() {
    explore(|| {
        let router = router(10);
        let (mut subscriber, mut publisher) = (connected(&router), connected(&router));
        subscriber.operation(ClientOp::Subscribe { subject: b"a.*", queue: None, sid: b"1" }, None).unwrap();
        let session = subscriber.session.clone();
        let publishing = thread::spawn(move || {
            publish(&mut publisher);
            publisher
        });
        subscriber.operation(ClientOp::Unsubscribe { sid: b"1", max: Some(1) }, None).unwrap();
        let mut publisher = publishing.join().unwrap();
        assert_eq!(got(&session), 1);
        publish(&mut publisher);
        assert_eq!(got(&session), 1, "no more than it wanted");
        assert!(session.held().subs.is_empty());
        nothing_is_left(&router);
    });
}

#[test]
fn the_bound_of_all_subscriptions_is_exact() {
    explore(|| {
        let router = router(1);
        let receiver = receiver(&router);
        let other = thread::spawn({
            let (router, sub) = (router.clone(), sub(&receiver, b"1", 0));
            move || (router.insert(&sub), sub)
        });
        let mine = sub(&receiver, b"2", 0);
        let inserted = router.insert(&mine);
        let (other_inserted, other) = other.join().unwrap();
        assert!(inserted != other_inserted, "one of two");
        router.remove(&mine);
        router.remove(&other);
        nothing_is_left(&router);
    });
}

#[test]
fn no_subscription_outlives_its_grant() {
    explore(|| {
        let router = router(10);
        let mut connection = connected(&router);
        let session = connection.session.clone();
        let closing = thread::spawn({
            let router = router.clone();
            move || assert_eq!(router.close_grant("a"), 1)
        });
        connection.operation(ClientOp::Subscribe { subject: b"a.*", queue: None, sid: b"1" }, None).unwrap();
        closing.join().unwrap();
        assert!(session.held().subs.is_empty());
        nothing_is_left(&router);
        // and the connection serves on
        connection.operation(ClientOp::Subscribe { subject: b"b.*", queue: None, sid: b"2" }, None).unwrap();
        assert_eq!(router.stats().subscriptions, 1);
        router.detach(&session);
        nothing_is_left(&router);
    });
}

#[test]
fn nothing_is_published_in_the_name_of_a_grant_that_is_gone() {
    explore(|| {
        let (router, receiver, mut publisher) = scene();
        let sub = subscribed(&router, &receiver, 0);
        publish(&mut publisher);
        let (closed, closing) = apart({
            let router = router.clone();
            move || router.close_grant("a")
        });
        let (before, closed) = (got(&receiver), closed.load(Ordering::Acquire));
        publish(&mut publisher); // in the middle of a batch: nobody has looked at the rights since
        assert!(!closed || got(&receiver) == before);
        closing.join().unwrap();
        router.remove(&sub);
    });
}
