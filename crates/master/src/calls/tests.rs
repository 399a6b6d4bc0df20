//! Calls on a real bus, with places and hosts that do what a test says. Time is paused: a wait ends when nothing else can happen.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use atoll_contract::{Generation, HostId, Role, Timestamp, claims::stale_assignment, subject::CALLS, subject::CALLS_QUEUE};
use atoll_net::{
    bus::{BoxFuture, BusLimits, Router, Subscription, answered_error},
    clock::TestClock,
};

use super::*;

mod served;

const PROJECT: &str = "0198c0de-0000-7000-8000-0000000000c1";
const EVE: &str = "0198c0de-0000-7000-8000-0000000000e1";
const BOB: &str = "0198c0de-0000-7000-8000-0000000000e2";

fn host(n: u8) -> HostId {
    format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

fn account(text: &str) -> Caller {
    Caller::Account(text.parse().unwrap())
}

fn place(n: u8, generation: u64, role: Role) -> Place {
    Place { host: host(n), host_name: format!("h{n}"), generation: Generation(generation), role }
}

/// Gives its places one after the other, the last again and again.
struct Told {
    places: Mutex<VecDeque<Result<Place, Error>>>,
    looks: AtomicUsize,
    presence: Mutex<Presence>,
    /// A look waits until there is a permit.
    gate: tokio::sync::Semaphore,
}

impl Places for Told {
    fn find(&self, _: Caller, _: ProjectId) -> BoxFuture<'_, Result<Place, Error>> {
        Box::pin(async {
            drop(self.gate.acquire().await);
            self.looks.fetch_add(1, Ordering::SeqCst);
            let mut places = self.places.lock().unwrap();
            if places.len() > 1 { places.pop_front().unwrap() } else { places[0].clone() }
        })
    }

    fn presence(&self, _: HostId) -> Presence {
        *self.presence.lock().unwrap()
    }
}

struct Rig {
    calls: Calls,
    told: Arc<Told>,
    bus: Arc<Router>,
    stop: CancellationToken,
}

fn rig_with(bounds: Bounds, places: &[Place]) -> Rig {
    let bus = Router::new(BusLimits::default(), TestClock::at(Timestamp::from_millis(0)));
    let (places, gate) = (places.iter().cloned().map(Ok).collect(), tokio::sync::Semaphore::new(1));
    let told = Arc::new(Told { places: Mutex::new(places), looks: AtomicUsize::new(0), presence: Mutex::new(Presence::Reporting), gate });
    let stop = CancellationToken::new();
    let calls = Calls::new(told.clone(), bus.connect("master", None), bounds, &stop);
    Rig { calls, told, bus, stop }
}

fn rig(places: &[Place]) -> Rig {
    rig_with(Bounds::default(), places)
}

fn request(rest: &str, timeout: Duration) -> Request {
    Request {
        project: PROJECT.parse().unwrap(),
        rest: rest.into(),
        headers: Headers::default(),
        payload: Bytes::from_static(b"?"),
        timeout,
    }
}

const LONG: Duration = Duration::from_mins(1);

impl Rig {
    async fn call(&self, rest: &str, timeout: Duration) -> Result<Message, Error> {
        self.calls.call(account(EVE), request(rest, timeout)).await
    }

    async fn code(&self, rest: &str, timeout: Duration) -> ErrorCode {
        self.call(rest, timeout).await.unwrap_err().code
    }

    async fn hear(&self, n: u8) -> Subscription {
        self.bus.connect("host", None).subscribe(&subject::host_call(host(n)), None).await.unwrap()
    }

    /// A host that answers what `answer` says, probes always, and counts the calls.
    async fn host(&self, n: u8, answer: impl Fn(&HostCall, Message) -> Option<Message> + Send + 'static) -> Arc<AtomicUsize> {
        let (mut incoming, conn, heard) = (self.hear(n).await, self.bus.connect("host", None), Arc::new(AtomicUsize::new(0)));
        let count = heard.clone();
        tokio::spawn(async move {
            while let Some(message) = incoming.next().await {
                let reply = message.reply.clone().unwrap();
                let answer = if message.headers.is_empty() {
                    Some(Message::new("", ""))
                } else {
                    count.fetch_add(1, Ordering::SeqCst);
                    let call = HostCall::read(|name| message.headers.get(name)).unwrap();
                    answer(&call, message)
                };
                if let Some(answer) = answer {
                    conn.publish(Message { subject: reply, ..answer }).await.unwrap();
                }
            }
        });
        heard
    }
}

fn refused(error: &Error) -> Message {
    let headers = Headers::default().with(call::ERROR, error.code.as_str());
    Message { headers, ..Message::new("", serde_json::to_vec(error).unwrap()) }
}

#[allow(clippy::unnecessary_wraps, reason = "one of several such functions")]
fn stale(_: &HostCall, _: Message) -> Option<Message> {
    Some(refused(&stale_assignment(Generation(1), Generation(2))))
}

#[allow(clippy::unnecessary_wraps, reason = "one of several such functions")]
fn good(_: &HostCall, message: Message) -> Option<Message> {
    Some(Message::new("", message.payload))
}

#[tokio::test(start_paused = true)]
async fn the_host_is_told_all_and_the_answer_comes_back_as_it_is() {
    let rig = rig(&[place(1, 7, Role::Collaborator)]);
    let (told, heard) = tokio::sync::oneshot::channel();
    let told = Mutex::new(Some(told));
    rig.host(1, move |call, message| {
        let fields = message.headers.fields.iter().filter(|(name, _)| !call::is_own_header(name)).cloned().collect::<Vec<_>>();
        told.lock().unwrap().take().unwrap().send((call.clone(), fields)).unwrap();
        let headers = Headers::default().with("Own", "1").with(call::STATUS, "404 No Messages").with(call::PROJECT, "x");
        Some(Message { headers, reply: Some("elsewhere".into()), ..Message::new("", message.payload) })
    })
    .await;
    // what a caller says in the master's place counts for nothing
    let forged = Headers::default().with("Nats-Msg-Id", "m1").with("atoll-role", "owner").with(call::ACCOUNT, BOB).with(call::ERROR, "x");
    let answer = rig.calls.call(account(EVE), Request { headers: forged, ..request("exec.start", LONG) }).await.unwrap();
    let (call, fields) = heard.await.unwrap();
    assert_eq!((call.project.to_string(), call.generation, call.role), (PROJECT.into(), Generation(7), Role::Collaborator));
    assert_eq!((call.account.unwrap().to_string(), call.rest.as_str()), (EVE.into(), "exec.start"));
    assert_eq!((call.timeout, fields), (Duration::from_millis(59_500), vec![("Nats-Msg-Id".into(), "m1".into())]));
    assert_eq!((answer.headers.status, answer.headers.description.as_str()), (Some(404), "No Messages"));
    assert_eq!(answer.headers.fields, [("Own".to_owned(), "1".to_owned())]);
    assert_eq!((&answer.payload[..], answer.reply), (&b"?"[..], None));
    assert!(rig.calls.0.admission.is_idle());
}

#[tokio::test(start_paused = true)]
async fn the_master_itself_asks_without_an_account() {
    let rig = rig(&[place(1, 1, Role::Owner)]);
    rig.host(1, |call, _| Some(Message::new("", format!("{:?}", call.account)))).await;
    let answer = rig.calls.call(Caller::System, request("agent.info", LONG)).await.unwrap();
    assert_eq!(&answer.payload[..], b"None");
}

#[tokio::test(start_paused = true)]
async fn a_role_may_ask_what_the_table_says() {
    for (role, rest, code) in [
        (Role::Viewer, "agent.info", None),
        (Role::Viewer, "exec.start", Some(ErrorCode::Forbidden)),
        (Role::Viewer, "stream.x.out", Some(ErrorCode::Unsupported)),
        (Role::Collaborator, "exec.start", None),
        (Role::Owner, "terminal.list", None),
        (Role::Owner, "stream.x.out", Some(ErrorCode::Unsupported)),
        (Role::Owner, "agent.hello", Some(ErrorCode::Forbidden)),
        (Role::Owner, "state", Some(ErrorCode::Forbidden)),
        (Role::Owner, "exec", Some(ErrorCode::Forbidden)),
    ] {
        let rig = rig(&[place(1, 1, role)]);
        let heard = rig.host(1, good).await;
        assert_eq!(rig.call(rest, LONG).await.err().map(|error| error.code), code, "{role:?} {rest}");
        assert_eq!(heard.load(Ordering::SeqCst), usize::from(code.is_none()), "{role:?} {rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_is_followed_once() {
    let moved = rig(&[place(1, 1, Role::Owner), place(2, 2, Role::Owner)]);
    let (old, new) = (moved.host(1, stale).await, moved.host(2, good).await);
    assert_eq!(&moved.call("agent.info", LONG).await.unwrap().payload[..], b"?");
    assert_eq!((old.load(Ordering::SeqCst), new.load(Ordering::SeqCst), moved.told.looks.load(Ordering::SeqCst)), (1, 1, 2));

    // a new generation on the same host is a new place, too
    let again = rig(&[place(1, 1, Role::Owner), place(1, 2, Role::Owner)]);
    let heard =
        again.host(1, |call, message| if call.generation == Generation(2) { good(call, message) } else { stale(call, message) }).await;
    again.call("agent.info", LONG).await.unwrap();
    assert_eq!(heard.load(Ordering::SeqCst), 2);

    let twice = rig(&[place(1, 1, Role::Owner), place(2, 2, Role::Owner), place(3, 3, Role::Owner)]);
    let counts = [twice.host(1, stale).await, twice.host(2, stale).await, twice.host(3, good).await];
    assert_eq!(twice.code("agent.info", LONG).await, ErrorCode::StaleAssignment);
    assert_eq!(counts.map(|count| count.load(Ordering::SeqCst)), [1, 1, 0]);

    let unmoved = rig(&[place(1, 1, Role::Owner)]);
    let heard = unmoved.host(1, stale).await;
    assert_eq!(unmoved.code("agent.info", LONG).await, ErrorCode::StaleAssignment);
    assert_eq!(heard.load(Ordering::SeqCst), 1, "there is nowhere else to ask");
}

#[tokio::test(start_paused = true)]
async fn a_project_s_own_421_is_no_reason_to_ask_another() {
    let rig = rig(&[place(1, 1, Role::Owner), place(2, 2, Role::Owner)]);
    let other = rig.host(2, good).await;
    rig.host(1, |_, _| Some(Message { headers: Headers::default().with(call::STATUS, "421 stale_assignment"), ..Message::new("", "") }))
        .await;
    assert_eq!(rig.call("agent.info", LONG).await.unwrap().headers.status, Some(421));
    assert_eq!(other.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_the_way_says_is_told_apart() {
    for code in [ErrorCode::NoResponders, ErrorCode::TimedOut, ErrorCode::LimitExceeded, ErrorCode::TooLarge, ErrorCode::Forbidden] {
        let rig = rig(&[place(1, 1, Role::Owner)]);
        let heard = rig.host(1, move |_, _| Some(refused(&Error::new(code, "so")))).await;
        assert_eq!(rig.code("agent.info", LONG).await, code);
        assert_eq!(heard.load(Ordering::SeqCst), 1, "{code:?} isn't asked again");
    }
    let rig = rig(&[place(1, 1, Role::Owner)]);
    rig.host(1, |_, _| Some(Message { headers: Headers::default().with(call::ERROR, "x"), ..Message::new("", "no JSON") })).await;
    assert_eq!(rig.code("agent.info", LONG).await, ErrorCode::Internal);
    *rig.told.places.lock().unwrap() = VecDeque::from([Err(Error::not_found("project"))]);
    assert_eq!(rig.code("agent.info", LONG).await, ErrorCode::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_takes_long_is_waited_for() {
    let rig = rig(&[place(1, 1, Role::Owner)]);
    rig.host(1, good).await;
    let held = rig.told.gate.acquire().await.unwrap();
    let call = rig.call("agent.info", LONG);
    tokio::pin!(call);
    assert!(tokio::time::timeout(LONG / 2, &mut call).await.is_err());
    drop(held);
    call.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_just_coming_back_is_waited_for_and_one_that_does_not_come_is_not() {
    let rig = rig(&[place(1, 1, Role::Owner)]);
    let begun = Instant::now();
    let call = rig.call("agent.info", LONG);
    tokio::pin!(call);
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut call).await.is_err());
    let heard = rig.host(1, good).await;
    call.await.unwrap();
    assert!(heard.load(Ordering::SeqCst) == 1 && begun.elapsed() < Duration::from_millis(2500));

    let empty = rig_with(Bounds::default(), &[place(2, 1, Role::Owner)]);
    let begun = Instant::now();
    assert_eq!(empty.code("agent.info", LONG).await, ErrorCode::HostUnavailable);
    assert_eq!(begun.elapsed().as_millis(), Bounds::default().host_wait.as_millis());
    // a short time-out is kept
    let begun = Instant::now();
    assert!(matches!(empty.code("agent.info", Duration::from_millis(300)).await, ErrorCode::HostUnavailable | ErrorCode::TimedOut));
    assert_eq!(begun.elapsed().as_millis(), 300);
    // nobody waits for a host that has been silent for long
    *empty.told.presence.lock().unwrap() = Presence::Silent;
    let begun = Instant::now();
    assert_eq!(empty.code("agent.info", LONG).await, ErrorCode::HostUnavailable);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // one that this master hasn't heard of yet has all the time that the call has
    *empty.told.presence.lock().unwrap() = Presence::Expected;
    let come = async {
        sleep(Duration::from_secs(15)).await;
        empty.host(2, good).await
    };
    let (answer, heard) = tokio::join!(empty.call("agent.info", LONG), come);
    assert_eq!((&answer.unwrap().payload[..], heard.load(Ordering::SeqCst)), (&b"?"[..], 1));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_falls_silent_is_known_long_before_the_time_out() {
    let rig = rig(&[place(1, 1, Role::Owner)]);
    let silent = rig.hear(1).await;
    let begun = Instant::now();
    assert_eq!(rig.code("agent.info", LONG).await, ErrorCode::HostUnavailable);
    assert_eq!(begun.elapsed().as_secs(), 4, "probe_after and probe_wait");
    // its connection ends while the call waits: the answer can't come any more
    let call = rig.call("agent.info", LONG);
    let gone = async {
        sleep(Duration::from_millis(100)).await;
        drop(silent);
    };
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(call, gone);
    assert_eq!((answer.unwrap_err().code, begun.elapsed().as_secs()), (ErrorCode::HostUnavailable, 1));
    assert!(rig.calls.0.admission.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_slow_project_is_not_a_silent_host_and_an_answer_after_the_deadline_is_nobodys() {
    let rig = rig(&[place(1, 1, Role::Owner)]);
    let (late, mut replies) = tokio::sync::mpsc::unbounded_channel();
    let conn = rig.bus.connect("host", None);
    let answering = conn.clone();
    // as a host does: it says itself that the project is late
    rig.host(1, move |call, message| {
        let (conn, reply, wait) = (answering.clone(), message.reply.clone().unwrap(), call.timeout);
        late.send(reply.clone()).unwrap();
        tokio::spawn(async move {
            sleep(wait).await;
            let _ = conn.publish(Message { subject: reply, ..refused(&Error::new(ErrorCode::TimedOut, "late")) }).await;
        });
        None
    })
    .await;
    let begun = Instant::now();
    assert_eq!(rig.code("agent.info", Duration::from_secs(30)).await, ErrorCode::TimedOut);
    assert!(begun.elapsed() > Duration::from_secs(29) && begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    conn.publish(Message::new(replies.recv().await.unwrap(), "too late")).await.unwrap();
    assert_eq!(rig.code("agent.info", Duration::from_secs(5)).await, ErrorCode::TimedOut, "the next call gets its own answer");
}
