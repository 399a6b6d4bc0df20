//! A host as a whole, with the fake runtime: joining, starting, ending.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    claims::Jwks,
    host::{JoinReply, JoinRequest},
};
use atoll_host::{
    HostConfig, Identity, RunningHost, join,
    runtime::fake::FakeRuntime,
    start,
    storage::{self, StorageChoice, StorageConfig},
};
use atoll_net::{
    clock::SystemClock,
    testing::Authority,
    tls::{Trust, client_config},
};
use axum::{Json, http::StatusCode, response::IntoResponse, routing::post};
use tokio::net::TcpListener;

const HOST: &str = "0198c0de-0000-7000-8000-000000000002";

/// A master that knows joins only; each token is good once. Returns its URL and what it was sent.
async fn master(lose_first_answer: bool) -> (String, Arc<Mutex<Vec<JoinRequest>>>) {
    let asked = Arc::new(Mutex::new(Vec::<JoinRequest>::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = asked.clone();
    let join = post(move |Json(request): Json<JoinRequest>| async move {
        let mut asked = asked.lock().unwrap();
        let spent = asked.iter().any(|earlier| earlier.token == request.token);
        asked.push(request.clone());
        if lose_first_answer && asked.len() == 1 {
            return (StatusCode::BAD_GATEWAY, "<html>a proxy's words</html>").into_response();
        }
        if spent || !request.token.starts_with("good") {
            let error = Error::new(ErrorCode::Unauthenticated, "The join token isn't valid.");
            return (StatusCode::UNAUTHORIZED, Json(error)).into_response();
        }
        Json(JoinReply { host: HOST.parse().unwrap(), name: request.name, jwks: Jwks::default() }).into_response()
    });
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/v1/hosts/join", join)).await });
    (url, seen)
}

fn config(dir: &Path, master_url: &str) -> HostConfig {
    HostConfig {
        name: "h1".into(),
        data_dir: dir.join("host"),
        listen: "127.0.0.1:0".parse().unwrap(),
        master_url: master_url.into(),
        ..HostConfig::default()
    }
}

fn identity() -> Identity {
    Identity {
        host: HOST.parse().unwrap(),
        name: "h1".into(),
        seed: nkeys::KeyPair::new_user().seed().unwrap(),
        jwks: Jwks::default(),
        master_url: "http://127.0.0.1:9".into(), // nobody is there
    }
}

async fn run(config: HostConfig, volumes: &Path) -> Result<RunningHost, Error> {
    let storage = storage::open(StorageConfig { kind: StorageChoice::Dir, path: volumes.to_owned(), unshare: None })?;
    start(config, identity(), FakeRuntime::new(), storage, Arc::new(SystemClock)).await
}

#[tokio::test]
async fn a_join_gives_an_identity_that_only_its_owner_reads() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = master(false).await;
    let config = config(dir.path(), &url);
    let identity = join(&config, "good\n", &SystemClock).await.unwrap();
    assert_eq!((identity.host.to_string().as_str(), identity.name.as_str(), identity.master_url.as_str()), (HOST, "h1", url.as_str()));
    assert_eq!(Identity::load(&config.data_dir).unwrap(), identity);
    let mode = std::fs::metadata(config.data_dir.join("identity.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = nkeys::KeyPair::from_seed(&identity.seed).unwrap().public_key();
    assert_eq!(asked.lock().unwrap()[0], JoinRequest { token: "good".into(), name: "h1".into(), public_key: key });
    assert!(!format!("{identity:?}").contains(&identity.seed));
    // a joined directory stays what it is
    let error = join(&config, "good2", &SystemClock).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert!(error.message.contains("h1") && Identity::load(&config.data_dir).unwrap() == identity);
}

#[tokio::test]
async fn an_answer_that_got_lost_does_not_lose_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = master(true).await;
    let config = config(dir.path(), &url);
    assert_eq!(join(&config, "good", &SystemClock).await.unwrap_err().code, ErrorCode::Unavailable);
    assert!(!Identity::exists(&config.data_dir));
    let error = join(&config, "good", &SystemClock).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert!(error.mend.contains("new token"), "{}", error.mend);
    join(&config, "good again", &SystemClock).await.unwrap();
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|request| request.public_key == asked[0].public_key) && asked.len() == 3);
}

#[tokio::test]
async fn joins_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let (url, _) = master(false).await;
    let good = config(dir.path(), &url);
    assert_eq!(join(&good, "bad", &SystemClock).await.unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(join(&config(dir.path(), "http://127.0.0.1:9"), "good", &SystemClock).await.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(join(&config(dir.path(), "nonsense"), "good", &SystemClock).await.unwrap_err().code, ErrorCode::InvalidConfig);
    assert_eq!(Identity::load(&good.data_dir).unwrap_err().code, ErrorCode::InvalidConfig);
    // a damaged identity isn't overwritten: its key may be the one that the master knows
    std::fs::write(good.data_dir.join("identity.json"), "{").unwrap();
    assert_eq!(join(&good, "good", &SystemClock).await.unwrap_err().code, ErrorCode::InvalidConfig);
    assert_eq!(std::fs::read_to_string(good.data_dir.join("identity.json")).unwrap(), "{");
}

#[tokio::test]
async fn a_host_serves_without_its_master_and_ends_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let config = HostConfig { bus_listen: Some("127.0.0.1:0".parse().unwrap()), ..config(dir.path(), "http://127.0.0.1:9") };
    let host = run(config.clone(), &dir.path().join("volumes")).await.unwrap();
    let health = reqwest::get(format!("http://{}/v1/health", host.addr())).await.unwrap();
    assert_eq!(health.json::<serde_json::Value>().await.unwrap()["role"], "host");
    // nothing is anonymous on the bus
    let anonymous = async_nats::connect(format!("nats://{}", host.bus_addr().unwrap())).await;
    assert!(anonymous.is_err());
    let addr = host.addr();
    tokio::time::timeout(Duration::from_secs(10), host.shutdown()).await.unwrap();
    assert!(reqwest::get(format!("http://{addr}/v1/health")).await.is_err());
    // all is given back: the directory, the ports
    let host = run(HostConfig { listen: addr, ..config }, &dir.path().join("volumes")).await.unwrap();
    host.shutdown().await;
}

#[tokio::test]
async fn a_host_speaks_tls_where_it_has_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path()).unwrap();
    let plain = config(dir.path(), "https://127.0.0.1:9");
    let config = HostConfig {
        tls_certificate: Some(authority.certificate()),
        tls_key: Some(authority.key()),
        master_ca_file: Some(authority.ca_file()),
        ..plain
    };
    for (key, wrong) in [
        ("host.tls_key", HostConfig { tls_key: None, ..config.clone() }),
        ("ca.pem", HostConfig { tls_key: Some(authority.ca_file()), ..config.clone() }),
        ("public_url", HostConfig { public_url: "http://h".into(), ..config.clone() }),
    ] {
        let error = run(wrong, &dir.path().join("volumes")).await.err().unwrap();
        assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(key), "{error}");
    }
    let host = run(config, &dir.path().join("volumes")).await.unwrap();
    assert_eq!(host.public_url(), format!("https://{}", host.addr()));
    let trust = client_config(Trust::Only(&authority.ca_file())).unwrap();
    let client = reqwest::Client::builder().tls_backend_preconfigured(trust.clone()).build().unwrap();
    let health = client.get(format!("{}/v1/health", host.public_url())).send().await.unwrap();
    assert_eq!(health.json::<serde_json::Value>().await.unwrap()["role"], "host");
    // the bus is beside it, and nothing is anonymous there either
    let anonymous = async_nats::ConnectOptions::new().tls_client_config(trust);
    let refused = anonymous.connect(format!("wss://{}/bus", host.addr())).await.unwrap_err();
    assert_eq!(refused.kind(), async_nats::ConnectErrorKind::AuthorizationViolation);
    tokio::time::timeout(Duration::from_secs(10), host.shutdown()).await.unwrap();
}

#[tokio::test]
async fn what_is_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(dir.path(), "http://127.0.0.1:9");
    let port = HostConfig { listen: taken.local_addr().unwrap(), ..config.clone() };
    let error = run(port, &dir.path().join("v1")).await.err().unwrap();
    assert!(error.code == ErrorCode::InvalidConfig && error.message.contains("in use") && error.message.contains("listen"), "{error}");
    let host = run(config.clone(), &dir.path().join("v2")).await.unwrap();
    let error = run(config.clone(), &dir.path().join("v3")).await.err().unwrap();
    assert!(error.code == ErrorCode::InvalidConfig && error.message.contains("Another host program"), "{error}");
    drop(host);
    run(config, &dir.path().join("v4")).await.unwrap().shutdown().await;
}
