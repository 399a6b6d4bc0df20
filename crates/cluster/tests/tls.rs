//! A cluster in which everything is encrypted, with an authority of its own: joins, the uplink, the API, files, and both buses.
#![allow(clippy::unwrap_used, reason = "a test; the lint's own exception stops at helper functions")]

use std::time::Duration;

use atoll_cluster::{Cluster, FakeHost, PATIENCE};
use atoll_contract::{
    Error, ErrorCode,
    agent::{AgentInfo, Reply},
    api::AccountView,
    placement::Requirements,
    project::ObservedState,
};
use atoll_host::HostConfig;
use atoll_net::{
    bus::{Conn, Message, stock},
    clock::SystemClock,
    remote::agent_info,
};
use reqwest::Method;

#[tokio::test(flavor = "multi_thread")]
async fn a_project_lives_where_all_is_encrypted() -> Result<(), Error> {
    let mut cluster = Cluster::encrypted().await?;
    let fake = FakeHost::new(cluster.path("volumes"))?;
    let id = cluster.add_host("h0", fake.runtime.clone(), fake.storage.clone()).await?;
    let host = cluster.hosts[0].host().unwrap();
    assert!(cluster.master_url().starts_with("https://") && host.public_url().starts_with("https://"));
    // the uplink is at the same port, which speaks nothing else
    let address = cluster.master_url().replace("https://", "");
    let plain = reqwest::get(format!("http://{address}/v1/health")).await.unwrap();
    assert_eq!(plain.json::<Error>().await.unwrap().message, "Plain HTTP was spoken to a port of HTTPS.");
    assert!(async_nats::connect(format!("ws://{address}/bus")).await.is_err());

    let api = &cluster.api;
    let made = api.create("thesis", Requirements::default(), true).await?;
    api.done(made.operation).await?;
    api.observed(made.project, ObservedState::Running).await?;

    // straight to the host: its bus and its files
    let remote = api.connect(made.project).await?;
    assert!(remote.place.host_url.starts_with("https://"));
    assert_eq!(remote.exec(&["echo", "over wss"]).await?.stdout, b"over wss\n");
    let put = remote.files(Method::PUT, "a.txt").body("kept").send().await.unwrap();
    assert!(put.status().is_success(), "{put:?}");
    let got = remote.files(Method::GET, "a.txt").send().await.unwrap();
    assert_eq!(got.text().await.unwrap(), "kept");
    let boot = agent_info(&remote.bus, made.project).await?.boot;

    // by way of the master: over its bus and the host's uplink
    let me: AccountView = api.get("/v1/me").await?;
    let options = api.bus_options().token(api.token.clone()).custom_inbox_prefix(format!("_INBOX.{}", me.id));
    let master = stock::connect(&format!("wss://{address}/bus"), options).await?;
    let question = Message::new(format!("project.{}.agent.info", made.project), "{}");
    let answer = master.request(question, PATIENCE).await?;
    let Reply::Ok(info) = serde_json::from_slice::<Reply<AgentInfo>>(&answer.payload).unwrap() else { panic!("{answer:?}") };
    assert_eq!(info.boot, boot);

    // the host program comes back, and the master's certificate is another one by then
    cluster.stop_host(0).await;
    cluster.stop_master().await;
    cluster.authority.as_ref().unwrap().renew().unwrap();
    cluster.start_master().await?;
    cluster.start_host(0).await?;
    cluster.online(id).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_not_trusted_is_not_joined() -> Result<(), Error> {
    let cluster = Cluster::encrypted().await?;
    let good = cluster.host_config("h0");
    let other = tempfile::tempdir().unwrap();
    let stranger = atoll_net::testing::Authority::new(other.path()).unwrap();
    let token = "not even sent";
    let without = HostConfig { master_ca_file: Some(stranger.ca_file()), ..good.clone() };
    let error = tokio::time::timeout(Duration::from_secs(30), atoll_host::join(&without, token, &SystemClock)).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::Untrusted);
    assert!(error.message.contains(&cluster.master_url()) && error.mend.contains("host.master_ca_file"), "{error:?}");
    let missing = HostConfig { master_ca_file: Some(other.path().join("none.pem")), ..good.clone() };
    let error = atoll_host::join(&missing, token, &SystemClock).await.unwrap_err();
    assert!(error.code == ErrorCode::InvalidConfig && error.message.contains("none.pem"), "{error:?}");
    let plain = HostConfig { master_url: good.master_url.replace("https", "http"), ..good.clone() };
    let error = atoll_host::join(&plain, token, &SystemClock).await.unwrap_err();
    assert!(error.message.contains("port of HTTPS"), "{error:?}");
    // and with trust the token is what is wrong
    assert_eq!(atoll_host::join(&good, token, &SystemClock).await.unwrap_err().code, ErrorCode::Unauthenticated);
    cluster.end().await;
    Ok(())
}
