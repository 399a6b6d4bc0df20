//! Calls by way of the master, with the published client: to a project wherever it is, and what is told when it isn't reached.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test; the lint's own exception stops at helper functions")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_cluster::{Api, Cluster, PATIENCE};
use atoll_contract::{
    AccountId, Error, ErrorCode, Generation, ProjectId,
    agent::{AgentInfo, Reply, TerminalView},
    api::AccountView,
    call,
    command::{Command, CommandReply, Verb},
    placement::Requirements,
    project::ObservedState,
};
use atoll_net::{
    bus::{Conn, Headers, Message, Subscription, answered_error, stock},
    remote::agent_info,
};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

/// An account on the master's bus. The published client itself takes every 503 for "no responders", so answers are read from an inbox here.
#[derive(Clone)]
struct User {
    client: async_nats::Client,
    account: AccountId,
    next: Arc<AtomicU64>,
}

impl User {
    async fn connect(api: &Api) -> Self {
        let me: AccountView = api.get("/v1/me").await.unwrap();
        let options = api.bus_options().token(api.token.clone()).custom_inbox_prefix(format!("_INBOX.{}", me.id));
        let connecting = options.connect(api.url.replacen("http", "ws", 1) + "/bus");
        let client = tokio::time::timeout(PATIENCE, connecting).await.unwrap().unwrap();
        Self { client, account: me.id, next: Arc::default() }
    }

    async fn send(&self, project: ProjectId, rest: &str, timeout: Duration, payload: Bytes) -> async_nats::Subscriber {
        let inbox = format!("_INBOX.{}.{}", self.account, self.next.fetch_add(1, Ordering::Relaxed));
        let answers = self.client.subscribe(inbox.clone()).await.unwrap();
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(call::TIMEOUT, timeout.as_millis().to_string());
        let subject = format!("project.{project}.{rest}");
        self.client.publish_with_reply_and_headers(subject, inbox, headers, payload).await.unwrap();
        answers
    }

    async fn call(&self, project: ProjectId, rest: &str, timeout: Duration) -> Result<Message, Error> {
        answer(self.send(project, rest, timeout, Bytes::new()).await).await
    }

    async fn info(&self, project: ProjectId) -> Result<AgentInfo, Error> {
        let answer = self.call(project, "agent.info", LONG).await?;
        serde_json::from_slice::<Reply<AgentInfo>>(&answer.payload).unwrap().into()
    }

    async fn code(&self, project: ProjectId, rest: &str, timeout: Duration) -> ErrorCode {
        self.call(project, rest, timeout).await.unwrap_err().code
    }
}

async fn answer(mut answers: async_nats::Subscriber) -> Result<Message, Error> {
    let message = tokio::time::timeout(PATIENCE, answers.next()).await.expect("every call is answered").unwrap();
    let message = stock::from_stock(message);
    answered_error(&message).map_or(Ok(message), Err)
}

const LONG: Duration = Duration::from_mins(1);
/// What only a test serves, and an owner may ask: no agent hears it.
const TESTS: &str = "exec.of.tests";

async fn running(api: &Api, name: &str, on: &str) -> ProjectId {
    let requirements = Requirements { host: Some(on.into()), ..Requirements::default() };
    let made = api.create(name, requirements, true).await.unwrap();
    api.done(made.operation).await.unwrap();
    api.observed(made.project, ObservedState::Running).await.unwrap();
    made.project
}

/// Serves [`TESTS`] in a project's name, on its host's bus.
async fn serve(cluster: &Cluster, number: usize, project: ProjectId) -> (Arc<dyn Conn>, Subscription) {
    let conn = cluster.hosts[number].host().unwrap().router().connect("tests", None);
    let asked = conn.subscribe(&format!("project.{project}.{TESTS}"), None).await.unwrap();
    (conn, asked)
}

async fn next(asked: &mut Subscription) -> Message {
    tokio::time::timeout(PATIENCE, asked.next()).await.expect("the call arrives").unwrap()
}

async fn other_account(api: &Api) -> Api {
    let account = json!({ "name": "eve", "password": atoll_cluster::api::PASSWORD });
    let _: Value = api.call(Method::POST, "/v1/accounts", account).await.unwrap();
    api.login("eve", atoll_cluster::api::PASSWORD).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_master_asks_projects_wherever_they_are() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(2).await?;
    let (near, far) = (running(&cluster.api, "near", "h0").await, running(&cluster.api, "far", "h1").await);
    let user = User::connect(&cluster.api).await;
    // as the reference says: any client, an ordinary request
    for project in [near, far] {
        let answer = user.client.request(format!("project.{project}.agent.info"), "{}".into()).await.unwrap();
        let info: Result<AgentInfo, Error> = serde_json::from_slice::<Reply<AgentInfo>>(&answer.payload).unwrap().into();
        let there = cluster.api.connect(project).await?;
        assert_eq!(info?.boot, agent_info(&there.bus, project).await?.boot, "it is this project's own agent");
    }
    let conn: Arc<dyn Conn> = Arc::new(stock::StockConn::new(user.client.clone()));
    assert_eq!(agent_info(&conn, far).await?, user.info(far).await?);
    let terminals = user.call(far, "terminal.list", LONG).await?;
    assert!(matches!(serde_json::from_slice(&terminals.payload).unwrap(), Reply::<Vec<TerminalView>>::Ok(list) if list.is_empty()));
    let refused = user.call(far, "exec.start", LONG).await?;
    assert!(
        matches!(serde_json::from_slice(&refused.payload).unwrap(), Reply::<Value>::Error(error) if error.code == ErrorCode::InvalidArgument)
    );

    for (rest, code) in [
        ("stream.abc.out", ErrorCode::Unsupported),
        ("agent.hello", ErrorCode::Forbidden),
        ("state", ErrorCode::Forbidden),
        (TESTS, ErrorCode::NoResponders),
    ] {
        assert_eq!(user.code(far, rest, LONG).await, code, "{rest}");
    }
    let eve_api = other_account(&cluster.api).await;
    let eve = User::connect(&eve_api).await;
    assert_eq!(eve.code(near, "agent.info", LONG).await, ErrorCode::NotFound);
    let hers = running(&eve_api, "hers", "h1").await;
    eve.info(hers).await?;
    user.info(hers).await.expect("an admin may");

    cluster.api.act(far, "stop").await?;
    let stopped = user.call(far, "agent.info", LONG).await.unwrap_err();
    assert_eq!(stopped.code, ErrorCode::NoResponders);
    assert_eq!(stopped.code.nats_status(), 503);
    let plain = user.client.request(format!("project.{far}.agent.info"), "{}".into()).await.unwrap_err();
    assert_eq!(plain.kind(), async_nats::client::RequestErrorKind::NoResponders);
    cluster.api.delete(far).await?;
    assert_eq!(user.code(far, "agent.info", LONG).await, ErrorCode::NotFound);
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_after_a_master_s_start_waits_for_the_host() -> Result<(), Error> {
    let (mut cluster, _fakes) = Cluster::with_fakes(1).await?;
    let project = running(&cluster.api, "early", "h0").await;
    let boot = User::connect(&cluster.api).await.info(project).await?.boot;
    cluster.stop_master().await;
    cluster.start_master().await?;
    let user = User::connect(&cluster.api).await;
    assert_eq!(user.info(project).await?.boot, boot);
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_project_times_out_and_its_late_answer_is_nobody_s() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(1).await?;
    let project = running(&cluster.api, "slow", "h0").await;
    let user = User::connect(&cluster.api).await;
    let (conn, mut asked) = serve(&cluster, 0, project).await;
    let begun = Instant::now();
    let mut answers = user.send(project, TESTS, Duration::from_millis(500), "1".into()).await;
    let late = next(&mut asked).await.reply.unwrap();
    let first = stock::from_stock(tokio::time::timeout(PATIENCE, answers.next()).await.unwrap().unwrap());
    assert_eq!((first.headers.status, first.headers.description.as_str()), (Some(408), "timed_out"));
    assert!(begun.elapsed() >= Duration::from_millis(450));
    conn.publish(Message::new(late, "late")).await?;

    // what waits longer than a host may be silent isn't taken for its silence
    let call = tokio::spawn({
        let user = user.clone();
        async move { user.call(project, TESTS, LONG).await }
    });
    let second = next(&mut asked).await.reply.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    conn.publish(Message::new(second, "in time")).await?;
    assert_eq!(&call.await.unwrap()?.payload[..], b"in time");
    // everything that was sent to the first inbox has come by now
    user.client.publish(format!("project.{project}.agent.info"), "{}".into()).await.unwrap();
    user.info(project).await?;
    assert!(futures_util::FutureExt::now_or_never(answers.next()).is_none(), "one answer, and no other");
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_stops_is_told_and_one_that_comes_back_is_asked_again() -> Result<(), Error> {
    let (mut cluster, _fakes) = Cluster::with_fakes(1).await?;
    let project = running(&cluster.api, "island", "h0").await;
    let user = User::connect(&cluster.api).await;
    let (_conn, mut asked) = serve(&cluster, 0, project).await;
    let waiting = user.send(project, TESTS, LONG, Bytes::new()).await;
    next(&mut asked).await;
    let begun = Instant::now();
    cluster.stop_host(0).await;
    assert_eq!(answer(waiting).await.unwrap_err().code, ErrorCode::HostUnavailable, "the answer can't come any more");
    let error = user.call(project, "agent.info", LONG).await.unwrap_err();
    assert!(error.code == ErrorCode::HostUnavailable && error.retry && error.message.contains("h0"), "{error:?}");
    assert!(begun.elapsed() < LONG / 2, "long before the time-out: {:?}", begun.elapsed());

    cluster.start_host(0).await?;
    // what the master last heard of the project is from before: its agent comes back in its own time, until when nobody serves it
    cluster.api.wait("the project to answer", async |_| user.info(project).await.map(Some)).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_stops_answers_who_waits() -> Result<(), Error> {
    let (mut cluster, _fakes) = Cluster::with_fakes(1).await?;
    let project = running(&cluster.api, "waiting", "h0").await;
    let user = User::connect(&cluster.api).await;
    let (_conn, mut asked) = serve(&cluster, 0, project).await;
    let waiting = user.send(project, TESTS, LONG, Bytes::new()).await;
    next(&mut asked).await;
    let (answer, ()) = tokio::join!(answer(waiting), cluster.stop_master());
    assert_eq!(answer.unwrap_err().code, ErrorCode::Unavailable);
    cluster.start_master().await?;
    // the published client comes back by itself, and so does the host
    cluster.api.observed(project, ObservedState::Running).await?;
    let user = User::connect(&cluster.api).await;
    user.info(project).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_another_generation_refuses() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(1).await?;
    let project = running(&cluster.api, "moved", "h0").await;
    let user = User::connect(&cluster.api).await;
    let accepted = cluster.api.act(project, "stop").await?;
    let view = cluster.api.project(project).await?;
    // a later assignment than the master's map has
    let generation = Generation(view.generation.unwrap().0 + 1);
    let verb = Verb::EnsureVolumes { spec: view.spec, fresh: false };
    let told = cluster.hosts[0].host().unwrap().projects().command(Command { project, generation, operation: accepted.id, verb }).await;
    assert!(matches!(told, CommandReply::Done { .. }), "{told:?}");
    let error = user.call(project, "agent.info", LONG).await.unwrap_err();
    assert_eq!((error.code, error.code.nats_status()), (ErrorCode::StaleAssignment, 421));
    assert!(error.message.contains(&generation.to_string()), "{error:?}");
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_refused_and_others_are_served() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(1).await?;
    let eve_api = other_account(&cluster.api).await;
    let (flooded, hers) = (running(&cluster.api, "flooded", "h0").await, running(&eve_api, "hers", "h0").await);
    let (user, eve) = (User::connect(&cluster.api).await, User::connect(&eve_api).await);
    let (conn, mut asked) = serve(&cluster, 0, flooded).await;
    let flood = join_all((0..1000).map(|_| user.send(flooded, TESTS, LONG, Bytes::new()))).await;
    let first = next(&mut asked).await;
    for _ in 0..10 {
        eve.info(hers).await?;
    }
    // then all that were admitted are answered
    let answering = tokio::spawn(async move {
        let mut question = Some(first);
        while let Some(message) = question {
            conn.publish(Message::new(message.reply.unwrap(), "yes")).await.unwrap();
            question = asked.next().await;
        }
    });
    let answers = join_all(flood.into_iter().map(answer)).await;
    answering.abort();
    let refused = answers.iter().filter(|answer| answer.as_ref().is_err_and(|error| error.code == ErrorCode::LimitExceeded)).count();
    let good = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(good + refused, 1000);
    assert!(good >= 512 && refused > 0, "{good} of 1000 were answered");
    user.info(flooded).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_answer_is_told_and_harms_nobody() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(1).await?;
    let project = running(&cluster.api, "large", "h0").await;
    let user = User::connect(&cluster.api).await;
    let (conn, mut asked) = serve(&cluster, 0, project).await;
    let most = cluster.hosts[0].host().unwrap().router().limits().max_payload;
    let status = Headers { status: Some(200), description: "Fine".into(), ..Headers::default() };
    for (headers, size, code) in [
        (Headers::default(), most, None),
        (status.clone(), most - 100, None),
        // in the host's own form it is larger than the bus takes
        (status, most - "NATS/1.0 200 Fine\r\n\r\n".len(), Some(ErrorCode::TooLarge)),
    ] {
        let waiting = user.send(project, TESTS, LONG, Bytes::new()).await;
        let reply = next(&mut asked).await.reply.unwrap();
        conn.publish(Message { headers: headers.clone(), ..Message::new(reply, vec![7; size]) }).await?;
        match (answer(waiting).await, code) {
            (Ok(message), None) => assert_eq!((message.payload.len(), message.headers.status), (size, headers.status)),
            (Err(error), Some(code)) => assert_eq!(error.code, code),
            other => panic!("{other:?}"),
        }
    }
    let most = most - "NATS/1.0\r\nAtoll-Timeout: 60000\r\n\r\n".len();
    let large = user.send(project, TESTS, LONG, vec![0; most].into()).await;
    assert_eq!(answer(large).await.unwrap_err().code, ErrorCode::TooLarge, "a question is larger on its way to the host");
    user.info(project).await?;
    cluster.end().await;
    Ok(())
}
