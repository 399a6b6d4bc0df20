//! The master and hosts together, on fakes: what has to hold whatever runs the containers.

use std::time::Duration;

use atoll_cluster::{Cluster, api};
use atoll_contract::{
    Error, ErrorCode, OperationId,
    api::{CreateProject, ProjectAccepted},
    operation::{OperationStatus, OperationView},
    placement::Requirements,
    project::ObservedState,
};
use reqwest::Method;
use serde_json::{Value, json};

fn on(host: &str) -> Requirements {
    Requirements { host: Some(host.into()), ..Requirements::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_lives_from_create_to_delete() -> Result<(), Error> {
    let (cluster, fakes) = Cluster::with_fakes(1).await?;
    let api = &cluster.api;
    let made = api.create("thesis", Requirements::default(), true).await?;
    api.done(made.operation).await?;
    api.observed(made.project, ObservedState::Running).await?;

    let remote = api.connect(made.project).await?;
    assert_eq!(remote.exec(&["sh", "-c", "echo $OF_THE_SPEC"]).await?.stdout, b"yes\n");
    let said = remote.exec(&["sh", "-c", "echo $((6 * 7)); echo wrong >&2; exit 7"]).await?;
    assert_eq!((said.stdout.as_slice(), said.stderr.as_slice(), said.exit.code), (&b"42\n"[..], &b"wrong\n"[..], 7));

    let put = remote.files(Method::PUT, "notes/a.txt").body("kept").send().await.unwrap();
    assert_eq!(put.status().as_u16(), 404, "a folder isn't made silently");
    let made_folder = remote.files(Method::POST, "notes?op=mkdir").send().await.unwrap();
    assert!(made_folder.status().is_success(), "{made_folder:?}");
    let put = remote.files(Method::PUT, "notes/a.txt").body("kept").send().await.unwrap();
    assert!(put.status().is_success(), "{put:?}");
    assert_eq!(remote.exec(&["cat", "notes/a.txt"]).await?.stdout, b"kept");

    api.act(made.project, "stop").await?;
    api.observed(made.project, ObservedState::Stopped).await?;
    assert!(fakes[0].runtime.container(made.project).is_none() && fakes[0].agents().is_empty());
    let got = remote.files(Method::GET, "notes/a.txt").send().await.unwrap();
    assert_eq!(got.text().await.unwrap(), "kept", "files are served while the project is stopped");
    let refused = remote.exec(&["true"]).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoResponders);

    api.delete(made.project).await?;
    assert_eq!(api.project(made.project).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(fakes[0].storage.list().await?, []);
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_spreads_and_says_why() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(2).await?;
    let api = &cluster.api;
    let first = api.create("one", Requirements::default(), false).await?;
    let chosen = first.placement.as_ref().and_then(|placement| placement.chosen);
    assert_eq!(api.project(first.project).await?.host, chosen);

    let none = api.create("two", on("nowhere"), false).await.unwrap_err();
    assert_eq!(none.code, ErrorCode::NoRoom);
    assert!(serde_json::to_string(&none.details).unwrap().contains("not_the_pinned_host"), "{none:?}");

    for node in &cluster.hosts {
        let _: Value = api.call(Method::PATCH, &format!("/v1/hosts/{}", node.id), json!({ "draining": true })).await?;
    }
    let draining = api.create("three", Requirements::default(), false).await.unwrap_err();
    assert_eq!(draining.code, ErrorCode::NoRoom);
    assert!(serde_json::to_string(&draining.details).unwrap().contains("draining"), "{draining:?}");
    assert_eq!(api.projects().await?.projects.len(), 1, "what was refused left nothing");
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_twice_is_one_project() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(1).await?;
    let request =
        CreateProject { spec: api::spec("once"), requirements: Requirements::default(), start: false, idempotency_key: Some("k-1".into()) };
    let (first, second) = tokio::join!(cluster.api.create_with(&request), cluster.api.create_with(&request));
    let (first, second) = (first?, second?);
    assert_eq!((first.project, first.operation), (second.project, second.operation));
    cluster.api.done(first.operation).await?;
    assert_eq!(cluster.api.projects().await?.projects.len(), 1);
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_holds_its_project_until_it_ends() -> Result<(), Error> {
    let (cluster, fakes) = Cluster::with_fakes(1).await?;
    let api = &cluster.api;
    let made = api.create("held", Requirements::default(), false).await?;
    api.done(made.operation).await?;
    fakes[0].runtime.faults(|faults| faults.hang = true);
    let start: ProjectAccepted = api.call(Method::POST, &format!("/v1/projects/{}/start", made.project), Value::Null).await?;
    let refused = api.act(made.project, "stop").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::OperationInProgress);
    assert!(serde_json::to_string(&refused.details).unwrap().contains(&start.operation.to_string()), "the holder is named: {refused:?}");

    let _: Value = api.call(Method::POST, &format!("/v1/operations/{}/cancel", start.operation), Value::Null).await?;
    let view = api.ended(start.operation).await?;
    assert_eq!(view.status, OperationStatus::Cancelled);
    fakes[0].runtime.faults(|faults| faults.hang = false);
    api.act(made.project, "start").await?;
    api.observed(made.project, ObservedState::Running).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_restarts_in_the_middle_finishes_what_it_began() -> Result<(), Error> {
    let (mut cluster, fakes) = Cluster::with_fakes(1).await?;
    fakes[0].runtime.faults(|faults| faults.hang = true);
    let made = cluster.api.create("cut", Requirements::default(), true).await?;
    at_work(&cluster, made.operation).await?;
    cluster.stop_master().await;
    fakes[0].runtime.faults(|faults| faults.hang = false);
    cluster.start_master().await?;
    cluster.api.done(made.operation).await?;
    cluster.api.observed(made.project, ObservedState::Running).await?;
    assert_eq!(fakes[0].runtime.starts(), 1, "nothing ran twice");
    assert_eq!(cluster.api.projects().await?.projects.len(), 1);
    cluster.end().await;
    Ok(())
}

/// Waits until the host has begun with an operation.
async fn at_work(cluster: &Cluster, id: OperationId) -> Result<(), Error> {
    let begun = async |api: &api::Api| {
        let view: OperationView = api.get(&format!("/v1/operations/{id}")).await?;
        Ok((!view.progress.phase.is_empty()).then_some(()))
    };
    cluster.api.wait("the host to begin", begun).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_program_that_restarts_finds_its_containers_again() -> Result<(), Error> {
    let (mut cluster, fakes) = Cluster::with_fakes(1).await?;
    let made = cluster.api.create("kept", Requirements::default(), true).await?;
    cluster.api.done(made.operation).await?;
    let before = fakes[0].runtime.container(made.project);
    cluster.stop_host(0).await;
    cluster.start_host(0).await?;
    cluster.online(cluster.hosts[0].id).await?;
    cluster.api.observed(made.project, ObservedState::Running).await?;
    assert_eq!(fakes[0].runtime.container(made.project), before);
    let back = async |api: &api::Api| api.connect(made.project).await?.exec(&["echo", "back"]).await.map(Some);
    assert_eq!(cluster.api.wait("the agent to be back", back).await?.stdout, b"back\n");
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_dies_is_failed_and_starts_again_on_request() -> Result<(), Error> {
    let (cluster, fakes) = Cluster::with_fakes(1).await?;
    let api = &cluster.api;
    let made = api.create("mortal", Requirements::default(), true).await?;
    api.done(made.operation).await?;
    fakes[0].runtime.set_log("out of memory");
    fakes[0].runtime.exit(made.project, 137);
    let failed = api.observed(made.project, ObservedState::Failed).await?;
    assert!(failed.error.is_some_and(|error| serde_json::to_string(&error).unwrap().contains("out of memory")));
    api.act(made.project, "start").await?;
    api.observed(made.project, ObservedState::Running).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_fails_leaves_nothing() -> Result<(), Error> {
    let (cluster, fakes) = Cluster::with_fakes(1).await?;
    let api = &cluster.api;
    fakes[0].runtime.faults(|faults| faults.image = Some(Error::new(ErrorCode::ImageUnavailable, "There is no such image.")));
    let made = api.create("gone", Requirements::default(), true).await?;
    assert_eq!(api.done(made.operation).await.unwrap_err().code, ErrorCode::ImageUnavailable);
    assert_eq!(api.project(made.project).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(fakes[0].storage.list().await?, []);
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_host_makes_its_projects_unknown_and_work_goes_on_there() -> Result<(), Error> {
    let (mut cluster, _fakes) = Cluster::with_fakes(1).await?;
    let made = cluster.api.create("island", Requirements::default(), true).await?;
    cluster.api.done(made.operation).await?;
    let remote = cluster.api.connect(made.project).await?;
    cluster.stop_master().await;
    assert_eq!(remote.exec(&["echo", "on"]).await?.stdout, b"on\n", "a host serves while the master is away");
    cluster.stop_host(0).await;
    cluster.start_master().await?;
    let seen = cluster.api.project(made.project).await?;
    assert_eq!(seen.observed, ObservedState::Unknown, "silence isn't a state");
    cluster.start_host(0).await?;
    cluster.api.observed(made.project, ObservedState::Running).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_see_their_own_projects_only() -> Result<(), Error> {
    let (cluster, _fakes) = Cluster::with_fakes(1).await?;
    let made = cluster.api.create("mine", Requirements::default(), true).await?;
    cluster.api.done(made.operation).await?;
    let account = json!({ "name": "eve", "password": api::PASSWORD });
    let _: Value = cluster.api.call(Method::POST, "/v1/accounts", account).await?;
    let eve = cluster.api.login("eve", api::PASSWORD).await?;
    assert_eq!(eve.projects().await?.projects.len(), 0);
    for error in [
        eve.project(made.project).await.err(),
        eve.connect(made.project).await.err(),
        eve.act(made.project, "stop").await.err(),
        eve.delete(made.project).await.err(),
    ] {
        assert_eq!(error.map(|error| error.code), Some(ErrorCode::NotFound));
    }
    // a token of eve's own project opens nothing of another
    let own = eve.create("hers", Requirements::default(), true).await?;
    eve.done(own.operation).await?;
    let mut remote = eve.connect(own.project).await?;
    remote.project = made.project;
    assert_eq!(remote.files(Method::GET, "").send().await.unwrap().status().as_u16(), 403);
    assert_eq!(remote.exec(&["true"]).await.unwrap_err().code, ErrorCode::Forbidden);
    let token = eve.call::<Value>(Method::POST, "/v1/join-tokens", json!({})).await;
    assert_eq!(token.unwrap_err().code, ErrorCode::Forbidden);
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_all_come_up() -> Result<(), Error> {
    let (cluster, fakes) = Cluster::with_fakes(3).await?;
    let api = &cluster.api;
    let names: Vec<String> = (0..24).map(|number| format!("p{number}")).collect();
    let one = async |name: &str| {
        let made = api.create(name, Requirements::default(), true).await?;
        api.done(made.operation).await?;
        Ok::<_, Error>(made.project)
    };
    let all = futures_util::future::try_join_all(names.iter().map(|name| one(name)));
    let projects = tokio::time::timeout(Duration::from_mins(2), all).await.expect("within two minutes")?;
    for project in projects {
        api.observed(project, ObservedState::Running).await?;
    }
    let starts: u64 = fakes.iter().map(|fake| fake.runtime.starts()).sum();
    assert_eq!(starts, 24);
    assert!(fakes.iter().all(|fake| fake.runtime.starts() > 0), "they are spread");
    cluster.end().await;
    Ok(())
}
