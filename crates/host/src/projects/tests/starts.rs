//! Starts that don't go well, and cancels.

use std::time::Duration;

use atoll_contract::{Error, ErrorCode, command::CommandReply, project::ObservedState};

use crate::projects::testing::{CANCEL, IMAGE, Manners, RUN, Rig, STOP, WAIT, command, id};

#[tokio::test]
async fn a_container_that_dies_at_once_fails_with_its_log() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.set_log("first line\nexec format error\n");
    *rig.agents.manners.lock().unwrap() = Manners::Mute;
    rig.runtime.faults(|faults| faults.dies = Some(127));
    let error = rig.tell(command(project, 1, 2, RUN)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::StartFailed);
    assert!(error.message.contains("127") && error.message.ends_with("exec format error"), "{error}");
    assert_eq!(error.details.as_ref().unwrap()["log"], "first line\nexec format error\n");
    let observed = rig.projects.observed(project).unwrap();
    assert_eq!((observed.state, observed.error), (ObservedState::Failed, Some(error)));
    assert!(rig.runtime.container(project).is_none(), "nothing is left of it");
    // a stop ends the failure
    assert_eq!(rig.tell(command(project, 1, 3, STOP)).await.unwrap().error, None);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_comes_ends_the_start() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    *rig.agents.manners.lock().unwrap() = Manners::Mute;
    let begun = tokio::time::Instant::now();
    let error = rig.tell(command(project, 1, 2, RUN)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::StartFailed);
    assert!(error.message.contains("30 s"), "{error}");
    assert!((Duration::from_secs(30)..Duration::from_secs(40)).contains(&begun.elapsed()));
    assert_eq!(rig.state(project), ObservedState::Failed);
    assert!(rig.runtime.container(project).is_none());
}

#[tokio::test]
async fn who_does_not_know_the_secret_is_no_agent() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    *rig.agents.manners.lock().unwrap() = Manners::Impostor;
    let waiting = rig.projects.command(command(project, 1, 2, RUN)).await;
    assert!(matches!(waiting, CommandReply::Working { .. }));
    assert_eq!(rig.state(project), ObservedState::Starting);
    assert!(rig.agents.refusals.lock().unwrap().iter().any(|error| error.code == ErrorCode::Unauthenticated));
    assert!(matches!(rig.projects.command(command(project, 1, 2, CANCEL)).await, CommandReply::Done { .. }));
}

#[tokio::test]
async fn a_start_that_the_runtime_refuses_is_failed_until_the_next_command() {
    let mut rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.faults(|faults| faults.start = Some(Error::new(ErrorCode::ImageUnavailable, "No such image.")));
    assert_eq!(rig.code(command(project, 1, 2, RUN)).await, Some(ErrorCode::ImageUnavailable));
    // also after a restart of the host program, with its reason
    rig = rig.crash().await;
    let observed = rig.until(project, ObservedState::Failed).await;
    assert_eq!(observed.error.unwrap().code, ErrorCode::ImageUnavailable);
    rig.runtime.faults(|faults| faults.start = None);
    assert_eq!(rig.tell(command(project, 1, 3, RUN)).await.unwrap().state, ObservedState::Running);
}

#[tokio::test]
async fn a_cancel_ends_a_pull() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.faults(|faults| faults.hang = true);
    let (pull, cancel) = (command(project, 1, 2, IMAGE), command(project, 1, 2, CANCEL));
    let (pulled, cancelled) = tokio::join!(rig.projects.command(pull), async {
        tokio::task::yield_now().await; // the pull is asked for first
        rig.projects.command(cancel).await
    });
    assert!(matches!(cancelled, CommandReply::Done { .. }), "{cancelled:?}");
    let CommandReply::Failed { error } = pulled else { panic!("{pulled:?}") };
    assert_eq!(error.code, ErrorCode::Cancelled);
    assert_eq!(rig.state(project), ObservedState::Stopped);
}

#[tokio::test]
async fn a_cancel_of_a_start_leaves_no_container() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    for (operation, mute) in [(2, false), (3, true)] {
        // either the runtime hangs, or the agent doesn't come
        *rig.agents.manners.lock().unwrap() = if mute { Manners::Mute } else { Manners::Good };
        rig.runtime.faults(|faults| faults.hang = !mute);
        let start = rig.projects.command(command(project, 1, operation, RUN));
        let cancel = async {
            rig.until(project, ObservedState::Starting).await;
            rig.projects.command(command(project, 1, operation, CANCEL)).await
        };
        let (started, cancelled) = tokio::time::timeout(WAIT, async { tokio::join!(start, cancel) }).await.unwrap();
        assert!(matches!(cancelled, CommandReply::Done { .. }), "{cancelled:?}");
        assert!(matches!(started, CommandReply::Failed { error } if error.code == ErrorCode::Cancelled));
        assert_eq!(rig.state(project), ObservedState::Stopped);
        assert!(rig.runtime.container(project).is_none());
    }
    // another operation's cancel ends nothing
    *rig.agents.manners.lock().unwrap() = Manners::Good;
    rig.tell(command(project, 1, 4, RUN)).await.unwrap();
    rig.tell(command(project, 1, 5, CANCEL)).await.unwrap();
    assert_eq!(rig.state(project), ObservedState::Running);
}

#[tokio::test]
async fn the_bound_on_running_projects_holds_when_many_start_at_once() {
    let rig = Rig::new().await;
    for n in 10..16 {
        rig.create(id(n)).await;
    }
    let starts = futures_util::future::join_all((10..16).map(|n| rig.tell(command(id(n), 1, 2, RUN)))).await;
    let refused = starts.iter().filter_map(|start| start.as_ref().err()).collect::<Vec<_>>();
    assert_eq!((refused.len(), rig.runtime.starts()), (3, 3));
    assert!(refused.iter().all(|error| error.code == ErrorCode::LimitExceeded && error.retry));
    assert_eq!(rig.projects.counts(), (6, 3));
    // a refusal isn't a failure of the project
    assert_eq!((10..16).filter(|n| rig.state(id(*n)) == ObservedState::Stopped).count(), 3);
    let running = (10..16).find(|n| rig.state(id(*n)) == ObservedState::Running).unwrap();
    let stopped = (10..16).find(|n| rig.state(id(*n)) == ObservedState::Stopped).unwrap();
    rig.tell(command(id(running), 1, 3, STOP)).await.unwrap();
    rig.tell(command(id(stopped), 1, 2, RUN)).await.unwrap();
}

#[tokio::test]
async fn a_stop_that_podman_refuses_is_made_up_for() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    rig.runtime.faults(|faults| faults.remove = Some(Error::new(ErrorCode::RuntimeFailed, "podman doesn't answer.")));
    assert_eq!(rig.code(command(project, 1, 2, STOP)).await, Some(ErrorCode::RuntimeFailed));
    assert_eq!(rig.state(project), ObservedState::Running, "it still runs, and that is what is said");
    rig.runtime.faults(|faults| faults.remove = None);
    rig.projects.reconcile_one(project).await;
    assert_eq!(rig.state(project), ObservedState::Stopped);
    assert!(rig.runtime.container(project).is_none());
}
