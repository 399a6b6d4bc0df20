//! Calls as they come over the bus, from the account's request to its answer.

use super::*;

/// Calls as they come over the bus.
struct Served {
    rig: Rig,
    user: Arc<dyn Conn>,
}

async fn served(bounds: Bounds) -> Served {
    let rig = rig_with(bounds, &[place(1, 1, Role::Owner)]);
    let conn = rig.bus.connect("master", None);
    let incoming = conn.subscribe(CALLS, Some(CALLS_QUEUE)).await.unwrap();
    tokio::spawn(serve(rig.calls.clone(), conn, incoming));
    let user = rig.bus.connect("user", None);
    Served { rig, user }
}

impl Served {
    async fn ask(&self, account: &str, rest: &str, headers: Headers, payload: impl Into<Bytes>) -> Result<Message, Error> {
        let message = Message { headers, ..Message::new(format!("call.{account}.project.{rest}"), payload.into()) };
        let answer = self.user.request(message, LONG * 3).await?;
        answered_error(&answer).map_or(Ok(answer), Err)
    }

    async fn info(&self, account: &str) -> Result<Message, Error> {
        self.ask(account, &format!("{PROJECT}.agent.info"), Headers::default(), "x").await
    }
}

#[tokio::test(start_paused = true)]
async fn over_the_bus_what_is_no_call_is_refused_and_errors_have_their_status() {
    let served = served(Bounds::default()).await;
    served.rig.host(1, good).await;
    assert_eq!(&served.info(EVE).await.unwrap().payload[..], b"x");
    let millis = |value: &str| Headers::default().with("atoll-timeout", value);
    for (rest, headers, code) in [
        ("thesis.agent.info", Headers::default(), ErrorCode::NotFound),
        (PROJECT, Headers::default(), ErrorCode::NotFound),
        (&format!("{PROJECT}.agent.info"), millis("soon"), ErrorCode::InvalidArgument),
        (&format!("{PROJECT}.agent.info"), millis("120001"), ErrorCode::InvalidArgument),
        (&format!("{PROJECT}.stream.a.b"), Headers::default(), ErrorCode::Unsupported),
        (&format!("{PROJECT}.agent.hello"), Headers::default(), ErrorCode::Forbidden),
    ] {
        assert_eq!(served.ask(EVE, rest, headers, "").await.unwrap_err().code, code, "{rest}");
    }
    // without a reply subject nothing happens, and the next one is served
    let looks = served.rig.told.looks.load(Ordering::SeqCst);
    served.user.publish(Message::new(format!("call.{EVE}.project.{PROJECT}.agent.info"), "")).await.unwrap();
    served.info(BOB).await.unwrap();
    assert_eq!(served.rig.told.looks.load(Ordering::SeqCst), looks + 1);
    assert!(served.rig.calls.0.admission.is_idle());
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_for_the_way_is_said_and_not_lost() {
    let served = served(Bounds::default()).await;
    let most = served.rig.bus.limits().max_payload;
    served.rig.host(1, move |_, _| Some(Message::new("", vec![0; most]))).await;
    assert_eq!(served.info(EVE).await.unwrap().payload.len(), most, "the greatest answer fits");
    let rest = format!("{PROJECT}.agent.info");
    let error = served.ask(EVE, &rest, Headers::default(), vec![0; most]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::TooLarge, "with what the master adds");
    served.ask(EVE, &rest, Headers::default(), vec![0; most - 1000]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_account_is_refused_and_others_are_served() {
    let bounds = Bounds { running: 6, running_per_account: 4, admitted_per_account: 10, bytes_per_account: 1000, ..Bounds::default() };
    let served = served(bounds).await;
    let held = Arc::new(tokio::sync::Semaphore::new(0));
    let (conn, gate) = (served.rig.bus.connect("host", None), held.clone());
    let heard = served
        .rig
        .host(1, move |call, message| {
            if call.account.unwrap().to_string() == BOB {
                return good(call, message);
            }
            let (conn, gate, reply) = (conn.clone(), gate.clone(), message.reply.unwrap());
            tokio::spawn(async move {
                drop(gate.acquire().await);
                let _ = conn.publish(Message::new(reply, "at last")).await;
            });
            None
        })
        .await;
    let flood = futures_util::future::join_all((0..50).map(|_| served.info(EVE)));
    let others = async {
        // when nothing else can happen, the flood has come in
        sleep(Duration::from_millis(10)).await;
        for _ in 0..20 {
            served.info(BOB).await.unwrap();
        }
        let asked = heard.load(Ordering::SeqCst);
        held.add_permits(1000);
        asked
    };
    let (answers, asked) = tokio::join!(flood, others);
    assert_eq!(asked, 20 + 4, "no more than its share was asked at once");
    let refused = answers.iter().filter(|answer| answer.as_ref().is_err_and(|error| error.code == ErrorCode::LimitExceeded)).count();
    let good = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!((good, refused), (10, 40));
    assert!(served.rig.calls.0.admission.is_idle());

    let large = served.ask(EVE, &format!("{PROJECT}.agent.info"), Headers::default(), vec![0; 1001]).await;
    assert_eq!(large.unwrap_err().code, ErrorCode::LimitExceeded, "bytes are bounded, too");
}

#[tokio::test(start_paused = true)]
async fn large_calls_pass_a_host_one_after_the_other_and_do_not_hold_up_others_while_their_projects_think() {
    let served = served(Bounds { lane_bytes: 1 << 20, ..Bounds::default() }).await;
    let mut incoming = served.rig.hear(1).await;
    let conn = served.rig.bus.connect("host", None);
    let host = async {
        let (mut waiting, mut order) = (Vec::new(), String::new());
        while waiting.len() < 8 {
            let message = incoming.next().await.unwrap();
            let question = message.headers.is_empty();
            order.push(if question { '?' } else { '!' });
            if question {
                conn.publish(Message::new(message.reply.unwrap(), "")).await.unwrap();
            } else {
                waiting.push(message.reply.unwrap());
            }
        }
        for reply in waiting {
            conn.publish(Message::new(reply, "done")).await.unwrap();
        }
        order
    };
    let rest = format!("{PROJECT}.agent.info");
    let begun = Instant::now();
    let calls = futures_util::future::join_all((0..8).map(|_| served.ask(EVE, &rest, Headers::default(), vec![0; 600_000])));
    let (answers, order) = tokio::join!(calls, host);
    assert!(answers.iter().all(Result::is_ok));
    assert!(order.starts_with("!?!?!?!?") && begun.elapsed() < Duration::from_millis(100), "{order} {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_turn_until_the_deadline_is_told() {
    let served = served(Bounds { running: 1, ..Bounds::default() }).await;
    let heard = served.rig.host(1, |_, _| None).await;
    let short = async {
        sleep(Duration::from_millis(10)).await;
        let headers = Headers::default().with(call::TIMEOUT, "500");
        served.ask(BOB, &format!("{PROJECT}.agent.info"), headers, "").await.unwrap_err().code
    };
    let (first, second) = tokio::join!(served.info(EVE), short);
    assert_eq!((first.unwrap_err().code, second), (ErrorCode::HostUnavailable, ErrorCode::TimedOut));
    assert_eq!(heard.load(Ordering::SeqCst), 1, "the second was never asked");
}

#[tokio::test(start_paused = true)]
async fn a_master_that_ends_answers_those_who_wait() {
    let served = served(Bounds::default()).await;
    served.rig.host(1, |_, _| None).await;
    let end = async {
        sleep(Duration::from_millis(500)).await;
        served.rig.calls.stop(LONG).await;
    };
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(served.info(EVE), end);
    assert_eq!((answer.unwrap_err().code, begun.elapsed().as_millis()), (ErrorCode::Unavailable, 500));
    assert_eq!(served.rig.code("agent.info", LONG).await, ErrorCode::Unavailable);
    assert!(!served.rig.stop.is_cancelled(), "nothing else has ended");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_refusals_holds_up_nobody() {
    let served = served(Bounds::default()).await;
    served.rig.host(1, |_, _| Some(Message::new("", "here"))).await;
    let eve = served.rig.bus.connect("eve", None);
    let _unread = eve.subscribe("unread", None).await.unwrap();
    // more than half of what may wait for her
    for _ in 0..5 {
        eve.publish(Message::new("unread", vec![0; 1 << 20])).await.unwrap();
    }
    let begun = Instant::now();
    let no_call = format!("call.{EVE}.project.thesis.agent.info");
    for _ in 0..1000 {
        eve.publish(Message { reply: Some("unread".into()), ..Message::new(&*no_call, "") }).await.unwrap();
    }
    served.info(BOB).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}
