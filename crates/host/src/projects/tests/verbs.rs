//! The verbs: idempotent, one at a time, fenced.

use atoll_contract::{
    ErrorCode, Generation,
    command::{CommandReply, Verb},
    project::{Limits, ObservedState, ProjectSpec},
};

use crate::{
    projects::testing::{CANCEL, IMAGE, REMOVE, RESTART, RUN, Rig, STOP, command, id, spec, volumes},
    runtime::Runtime,
    storage::Storage,
};

#[tokio::test]
async fn a_life_with_every_verb_done_twice() {
    let rig = Rig::new().await;
    let project = id(3);
    // (operation, verb, state afterwards, containers started so far)
    let life = [
        (1, volumes(), ObservedState::Stopped, 0),
        (1, IMAGE, ObservedState::Stopped, 0),
        (1, RUN, ObservedState::Running, 1),
        (2, RESTART, ObservedState::Running, 2),
        (3, STOP, ObservedState::Stopped, 2),
        (4, RUN, ObservedState::Running, 3),
        (5, STOP, ObservedState::Stopped, 3),
        (5, REMOVE, ObservedState::Absent, 3),
    ];
    for (operation, verb, state, starts) in life {
        for _ in 0..2 {
            let observed = rig.tell(command(project, 1, operation, verb.clone())).await.unwrap();
            assert_eq!((observed.state, observed.generation, rig.runtime.starts()), (state, Generation(1), starts), "{}", verb.name());
        }
    }
    assert!(rig.runtime.container(project).is_none() && !rig.dir.join("run").join(project.to_string()).exists());
    assert!(!rig.has_volumes(project).await);
}

#[tokio::test]
async fn every_verb_is_idempotent_without_the_memory_of_its_outcome() {
    let mut rig = Rig::new().await;
    let project = id(3);
    for (operation, verb, state) in [
        (1, volumes(), ObservedState::Stopped),
        (1, IMAGE, ObservedState::Stopped),
        (1, RUN, ObservedState::Running),
        (2, RESTART, ObservedState::Running),
        (3, STOP, ObservedState::Stopped),
        (4, REMOVE, ObservedState::Absent),
    ] {
        assert_eq!(rig.tell(command(project, 1, operation, verb.clone())).await.unwrap().state, state);
        rig = rig.crash().await;
        let starts = rig.runtime.starts();
        assert_eq!(rig.tell(command(project, 1, operation, verb.clone())).await.unwrap().state, state, "{}", verb.name());
        assert_eq!(rig.runtime.starts(), starts, "{} starts nothing again", verb.name());
    }
}

#[tokio::test]
async fn the_same_command_many_times_at_once_is_one_start() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    let same = futures_util::future::join_all((0..50).map(|_| rig.tell(command(project, 1, 2, RUN)))).await;
    assert!(same.iter().all(|reply| reply.as_ref().unwrap().state == ObservedState::Running));
    assert_eq!(rig.runtime.starts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_verb_says_working_and_another_operation_is_refused() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.faults(|faults| faults.hang = true);
    let CommandReply::Working { progress } = rig.projects.command(command(project, 1, 2, IMAGE)).await else { panic!("not working") };
    assert_eq!(progress.phase, "pulling base");
    let CommandReply::Failed { error } = rig.projects.command(command(project, 1, 9, STOP)).await else { panic!("not refused") };
    assert_eq!(error.code, ErrorCode::OperationInProgress);
    assert_eq!(error.details.unwrap()["operation"], serde_json::json!(id::<atoll_contract::id::Operation>(2)));
    // the next verb of the same operation waits
    assert!(matches!(rig.projects.command(command(project, 1, 2, RUN)).await, CommandReply::Working { .. }));
    rig.runtime.faults(|faults| faults.hang = false);
    rig.tell(command(project, 1, 2, IMAGE)).await.unwrap();
    rig.tell(command(project, 1, 9, STOP)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_nobody_was_told_is_told_once_and_then_tried_again() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.faults(|faults| faults.hang = true);
    assert!(matches!(rig.projects.command(command(project, 1, 2, IMAGE)).await, CommandReply::Working { .. }));
    rig.runtime.faults(|faults| {
        faults.hang = false;
        faults.image = Some(atoll_contract::Error::new(ErrorCode::ImageUnavailable, "No such image."));
    });
    // ends while nobody waits
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    rig.runtime.faults(|faults| faults.image = None);
    assert_eq!(rig.code(command(project, 1, 2, IMAGE)).await, Some(ErrorCode::ImageUnavailable));
    assert_eq!(rig.code(command(project, 1, 2, IMAGE)).await, None);
}

#[tokio::test]
async fn older_and_newer_generations_are_fenced() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.tell(command(project, 5, 1, volumes())).await.unwrap();
    for verb in [volumes(), IMAGE, RUN, STOP, REMOVE] {
        assert_eq!(rig.code(command(project, 4, 2, verb)).await, Some(ErrorCode::StaleAssignment));
    }
    for verb in [IMAGE, RUN, STOP, REMOVE] {
        assert_eq!(rig.code(command(project, 6, 2, verb)).await, Some(ErrorCode::StaleAssignment));
    }
    assert_eq!(rig.runtime.starts(), 0);
}

#[tokio::test]
async fn only_ensure_volumes_raises_the_generation_and_stops_what_ran_in_the_old_one() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    let version = rig.projects.all().version;
    let kept = Verb::EnsureVolumes { spec: spec(), fresh: false };
    let observed = rig.tell(command(project, 2, 2, kept)).await.unwrap();
    assert_eq!((observed.state, observed.generation), (ObservedState::Stopped, Generation(2)));
    assert!(rig.runtime.container(project).is_none());
    assert!(rig.projects.changes(version, 10).projects.contains(&observed));
    rig.tell(command(project, 2, 2, RUN)).await.unwrap();
    assert_eq!(rig.runtime.container(project).unwrap().generation, Generation(2));
}

#[tokio::test]
async fn a_new_generation_of_a_stopped_project_is_reported() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    let version = rig.projects.all().version;
    let observed = rig.tell(command(project, 2, 2, Verb::EnsureVolumes { spec: spec(), fresh: false })).await.unwrap();
    assert_eq!(rig.projects.changes(version, 10).projects, [observed]);
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back() {
    let mut rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    rig.tell(command(project, 1, 2, REMOVE)).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            rig = rig.crash().await;
        }
        for verb in [volumes(), IMAGE, RUN] {
            assert_eq!(rig.code(command(project, 1, 1, verb)).await, Some(ErrorCode::StaleAssignment), "restarted: {restarted}");
        }
        assert_eq!(rig.tell(command(project, 1, 9, REMOVE)).await.unwrap().state, ObservedState::Absent);
        assert!(!rig.has_volumes(project).await);
    }
    // another assignment is another matter
    rig.tell(command(project, 2, 3, volumes())).await.unwrap();
}

#[tokio::test]
async fn a_host_that_never_had_a_project() {
    let rig = Rig::new().await;
    let project = id(3);
    assert_eq!(rig.code(command(project, 1, 1, RUN)).await, Some(ErrorCode::WrongVolume));
    assert_eq!(rig.code(command(project, 1, 1, IMAGE)).await, Some(ErrorCode::WrongVolume));
    assert_eq!(rig.code(command(project, 1, 1, Verb::EnsureVolumes { spec: spec(), fresh: false })).await, Some(ErrorCode::WrongVolume));
    for verb in [STOP, CANCEL, REMOVE] {
        assert_eq!(rig.tell(command(project, 1, 1, verb)).await.unwrap().state, ObservedState::Absent);
    }
    assert!(rig.projects.all().projects.is_empty());
    assert_eq!(rig.code(command(project, 1, 1, volumes())).await, Some(ErrorCode::StaleAssignment), "removed means removed");
}

#[tokio::test]
async fn volumes_whose_record_was_lost_are_found_again() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    let Rig { ref storage, ref runtime, ref agents, .. } = rig;
    let other = tempfile::tempdir().unwrap();
    let rig = Rig::with(other.path().join("host"), runtime.clone(), storage.clone(), agents.clone(), 3).await;
    rig.tell(command(project, 1, 2, Verb::EnsureVolumes { spec: spec(), fresh: false })).await.unwrap();
    rig.tell(command(project, 1, 2, RUN)).await.unwrap();
}

#[tokio::test]
async fn exchanged_volumes_are_not_started_on() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.storage.delete(project).await.unwrap();
    rig.storage.create(project, Generation(1), id(99), 1 << 30, rig.runtime.owner()).await.unwrap();
    let error = rig.tell(command(project, 1, 2, RUN)).await.unwrap_err();
    assert_eq!((error.code, rig.runtime.starts()), (ErrorCode::WrongVolume, 0));
    assert_eq!(rig.projects.observed(project).unwrap().error.unwrap().code, ErrorCode::WrongVolume);
}

#[tokio::test]
async fn a_bad_spec_is_refused_before_anything_is_written() {
    let rig = Rig::new().await;
    let spec = ProjectSpec { image: "-v/:/host".into(), ..spec() };
    assert_eq!(rig.code(command(id(3), 1, 1, Verb::EnsureVolumes { spec, fresh: true })).await, Some(ErrorCode::InvalidArgument));
    assert!(rig.records.all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_changed_spec_holds_from_the_next_start() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    let limits = Limits { pids: 77, ..Limits::default() };
    let changed = Verb::EnsureVolumes { spec: ProjectSpec { limits, ..spec() }, fresh: false };
    assert_eq!(rig.tell(command(project, 1, 2, changed)).await.unwrap().state, ObservedState::Running);
    rig.tell(command(project, 1, 2, RESTART)).await.unwrap();
    assert_eq!(rig.runtime.spec(project).unwrap().limits.pids, 77);
}

#[tokio::test]
async fn a_full_disk_leaves_what_was() {
    let rig = Rig::new().await;
    let (project, other) = (id(3), id(4));
    rig.run(project).await;
    rig.records.fill(true);
    // a spec that needs more pages than there are
    let spec = ProjectSpec { env: [("A".to_owned(), "x".repeat(16_000))].into(), ..spec() };
    let code = rig.code(command(other, 1, 2, Verb::EnsureVolumes { spec: spec.clone(), fresh: true })).await;
    assert_eq!(code, Some(ErrorCode::DiskFull));
    assert!(!rig.has_volumes(other).await && rig.projects.all().projects.len() == 1);
    assert_eq!(rig.code(command(project, 1, 3, Verb::EnsureVolumes { spec: spec.clone(), fresh: false })).await, Some(ErrorCode::DiskFull));
    assert_eq!(rig.state(project), ObservedState::Running);
    rig.records.fill(false);
    rig.tell(command(other, 1, 2, Verb::EnsureVolumes { spec, fresh: true })).await.unwrap();
}

#[tokio::test]
async fn deletions_are_told_until_they_are_acknowledged() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    let known = rig.projects.all().version;
    rig.tell(command(project, 1, 2, REMOVE)).await.unwrap();
    let changes = rig.projects.changes(known, 10);
    assert_eq!(changes.projects.iter().map(|observed| observed.state).collect::<Vec<_>>(), [ObservedState::Absent]);
    rig.projects.acknowledge(changes.version);
    assert!(rig.projects.observed(project).is_none() && rig.projects.changes(known, 10).projects.is_empty());
}

#[tokio::test]
async fn changes_come_in_parts() {
    let rig = Rig::new().await;
    for n in 10..15 {
        rig.create(id(n)).await;
    }
    let (mut known, mut seen, mut parts) = (0, vec![], 0);
    loop {
        let changes = rig.projects.changes(known, 2);
        (known, parts) = (changes.version, parts + 1);
        seen.extend(changes.projects.iter().map(|observed| observed.project));
        if !changes.more {
            break;
        }
    }
    seen.sort();
    assert_eq!((parts, seen), (3, (10..15).map(id).collect::<Vec<_>>()));
    assert!(rig.projects.changes(known, 2).projects.is_empty());
}

/// What a user's connection may do on the bus, by the generation in force when it connected.
struct Users(crate::projects::Projects);

impl atoll_net::bus::Authenticator for Users {
    fn connect(&self, _: &atoll_net::bus::Credentials) -> Result<Vec<atoll_net::bus::Grant>, atoll_contract::Error> {
        self.0.generation_in_force(id(3)).ok_or_else(|| atoll_contract::Error::not_found("project"))?;
        let permissions = atoll_contract::subject::project_permissions(id(3), atoll_contract::Role::Owner, "jti");
        Ok(vec![atoll_net::bus::Grant {
            key: id::<atoll_contract::id::Project>(3).to_string(),
            permissions,
            account: None,
            expires_at: None,
        }])
    }
}

#[tokio::test]
async fn who_connects_while_a_project_is_deleted_or_raised_is_put_out_at_its_end() {
    use atoll_net::bus::client;
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    let connect = async || {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let cancel = tokio_util::sync::CancellationToken::new();
        tokio::spawn(rig.router.serve(theirs, "user".into(), std::sync::Arc::new(Users(rig.projects.clone())), cancel));
        client::connect(ours, client::Options { token: Some("t".into()), ..client::Options::default() }).await
    };
    let ended = async |user: &client::WireClient| tokio::time::timeout(crate::projects::testing::WAIT, user.closed()).await.is_ok();

    // a raise that can't be saved is none, and puts nobody out
    let user = connect().await.unwrap();
    rig.records.fill(true);
    let long = ProjectSpec { env: [("A".to_owned(), "x".repeat(16_000))].into(), ..spec() };
    let raise = |spec| Verb::EnsureVolumes { spec, fresh: true };
    assert_eq!(rig.code(command(id(3), 2, 2, raise(long))).await, Some(ErrorCode::DiskFull));
    rig.records.fill(false);
    assert_eq!(rig.router.connections().iter().filter(|one| one.peer == "user").count(), 1);
    rig.tell(command(id(3), 2, 3, raise(spec()))).await.unwrap();
    assert!(ended(&user).await);

    // users who come while it is being deleted: refused, or put out
    let (deleted, user) = tokio::join!(rig.tell(command(id(3), 2, 5, REMOVE)), async {
        rig.until(id(3), ObservedState::Absent).await;
        connect().await
    });
    deleted.unwrap();
    if let Ok(user) = user {
        assert!(ended(&user).await);
    }
    assert!(connect().await.is_err());
}
