//! What should run against what the runtime shows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, Generation, ProjectId,
    command::CommandReply,
    project::{Limits, ObservedState},
};

use crate::{
    projects::testing::{Manners, Measured, RUN, Rig, STOP, command, id},
    runtime::{ContainerSpec, ContainerState},
};

fn container(project: ProjectId, generation: u64) -> ContainerSpec {
    ContainerSpec {
        project,
        generation: Generation(generation),
        image: "base".into(),
        hostname: "x".into(),
        limits: Limits::default(),
        env: vec![],
        home: "/nowhere".into(),
        agent_dir: "/nowhere".into(),
    }
}

#[tokio::test]
async fn a_container_that_dies_is_noticed_at_once_and_its_log_kept() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    rig.runtime.set_log("killed by a user\n");
    rig.runtime.exit(project, 137);
    let observed = rig.until(project, ObservedState::Failed).await;
    let error = observed.error.unwrap();
    assert!(error.message.contains("137") && error.message.contains("killed by a user"), "{error}");
    assert!(rig.runtime.container(project).is_none() && !rig.dir.join("run").join(project.to_string()).exists());
    // it isn't started again by itself
    rig.projects.reconcile(None).await;
    assert_eq!((rig.state(project), rig.runtime.starts()), (ObservedState::Failed, 1));
    rig.tell(command(project, 1, 2, RUN)).await.unwrap();
}

#[tokio::test]
async fn a_container_that_is_gone_fails_and_is_adopted_should_it_show_up() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    let spec = rig.runtime.spec(project).unwrap();
    rig.take_container(project).await;
    rig.projects.reconcile(None).await;
    assert_eq!(rig.state(project), ObservedState::Failed);
    rig.runtime.insert(spec, ContainerState::Running);
    rig.projects.reconcile(None).await;
    // its agent's directory went with the failure, so it can't be reached any more
    assert_eq!(rig.state(project), ObservedState::Failed);
    assert!(rig.runtime.container(project).is_none());
}

#[tokio::test]
async fn containers_that_nobody_knows_are_removed() {
    let rig = Rig::new().await;
    rig.runtime.insert(container(id(9), 1), ContainerState::Running);
    rig.runtime.insert(container(id(8), 1), ContainerState::Exited(Some(0)));
    rig.projects.reconcile(None).await;
    assert!(rig.runtime.container(id(9)).is_none() && rig.runtime.container(id(8)).is_none());
    assert!(rig.projects.all().projects.is_empty());
}

#[tokio::test]
async fn a_container_of_another_generation_is_removed() {
    let rig = Rig::new().await;
    let (running, stopped) = (id(3), id(4));
    rig.run(running).await;
    rig.create(stopped).await;
    rig.runtime.insert(container(running, 7), ContainerState::Running);
    rig.runtime.insert(container(stopped, 1), ContainerState::Running);
    rig.projects.reconcile(None).await;
    assert_eq!((rig.state(running), rig.state(stopped)), (ObservedState::Failed, ObservedState::Stopped));
    assert!(rig.runtime.container(running).is_none() && rig.runtime.container(stopped).is_none());
}

#[tokio::test]
async fn a_runtime_that_does_not_answer_changes_no_state() {
    let rig = Rig::new().await;
    let (running, stopped) = (id(3), id(4));
    rig.run(running).await;
    rig.create(stopped).await;
    let version = rig.projects.all().version;
    rig.runtime.faults(|faults| faults.list = Some(Error::new(ErrorCode::RuntimeFailed, "podman doesn't answer.")));
    rig.projects.reconcile(None).await;
    assert!(!rig.projects.answering());
    assert!(rig.projects.changes(version, 10).projects.is_empty());
    assert_eq!((rig.state(running), rig.state(stopped)), (ObservedState::Running, ObservedState::Stopped));
    rig.runtime.faults(|faults| faults.list = None);
    rig.projects.reconcile(None).await;
    assert!(rig.projects.answering());
}

#[tokio::test]
async fn a_reconciliation_leaves_alone_what_is_being_worked_on() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.faults(|faults| faults.hang = true);
    let start = rig.tell(command(project, 1, 2, RUN));
    let look = async {
        rig.until(project, ObservedState::Starting).await;
        rig.projects.reconcile(None).await; // there is no container, and none is missed
        assert_eq!(rig.state(project), ObservedState::Starting);
        rig.runtime.faults(|faults| faults.hang = false);
    };
    let (started, ()) = tokio::join!(start, look);
    assert_eq!(started.unwrap().state, ObservedState::Running);
}

#[tokio::test]
async fn many_dead_containers_are_put_right_together() {
    let rig = Rig::new().await;
    let Rig { ref runtime, ref storage, ref agents, .. } = rig;
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::with(dir.path().join("host"), runtime.clone(), storage.clone(), agents.clone(), 100).await;
    for n in 20..60 {
        rig.run(id(n)).await;
    }
    for n in 20..60 {
        rig.runtime.exit(id(n), 1);
    }
    for n in 20..60 {
        rig.until(id(n), ObservedState::Failed).await;
    }
}

#[tokio::test]
async fn an_agent_that_comes_back_is_running_again() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    // its connection breaks, the container runs on
    let link = rig.projects.0.link_of(project).unwrap();
    let mut hello = link.hello.subscribe();
    rig.router.close_grant(&format!("agent.{project}"));
    tokio::time::timeout(Duration::from_secs(20), hello.wait_for(|said| !*said)).await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(20), hello.wait_for(|said| *said)).await.unwrap().unwrap();
    rig.until(project, ObservedState::Running).await;
    assert_eq!(rig.runtime.starts(), 1);
    rig.tell(command(project, 1, 2, STOP)).await.unwrap();
}

#[tokio::test]
async fn volumes_that_nobody_knows_are_left_as_they_are() {
    let rig = Rig::new().await;
    rig.create(id(3)).await;
    let Rig { ref runtime, ref storage, ref agents, .. } = rig;
    let other = tempfile::tempdir().unwrap();
    let rig = Rig::with(other.path().join("host"), runtime.clone(), storage.clone(), agents.clone(), 3).await;
    rig.projects.log_orphans().await;
    rig.projects.reconcile(None).await;
    assert!(rig.has_volumes(id(3)).await);
}

#[tokio::test]
async fn an_agent_whose_hello_was_missed_is_asked() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    *rig.agents.manners.lock().unwrap() = Manners::Modest;
    // the start is cut off while it waits for the hello, and the container is adopted
    assert!(matches!(rig.projects.command(command(project, 1, 2, RUN)).await, CommandReply::Working { .. }));
    let rig = rig.crash().await;
    let back = async {
        while rig.state(project) != ObservedState::Running {
            rig.projects.reconcile(None).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
    assert_eq!(rig.runtime.starts(), 1);
}

#[tokio::test]
async fn what_projects_use_is_read_in_turns() {
    let first = Rig::new().await;
    let Rig { ref runtime, ref storage, ref agents, .. } = first;
    let measured = Arc::new(Measured(storage.clone(), AtomicU64::new(7)));
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::on(dir.path().join("host"), runtime.clone(), storage.clone(), measured.clone(), agents.clone(), 3).await;
    for n in 10..15 {
        rig.create(id(n)).await;
        assert_eq!(rig.projects.observed(id(n)).unwrap().used_bytes, Some(7));
    }
    let version = rig.projects.all().version;
    measured.1.store(8, Ordering::SeqCst);
    let mut after = None;
    for expected in [2, 4, 5] {
        after = rig.projects.measure_some(after, 2).await;
        let changed = rig.projects.changes(version, 10).projects;
        assert!(changed.len() == expected && changed.iter().all(|observed| observed.used_bytes == Some(8)));
    }
    assert_eq!(after, None, "from the beginning again");
    // what didn't change isn't reported
    let version = rig.projects.all().version;
    rig.projects.measure_some(None, 10).await;
    assert!(rig.projects.changes(version, 10).projects.is_empty());
}
