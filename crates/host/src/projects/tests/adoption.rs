//! A restart of the host program: what runs is taken over as it is.

use atoll_contract::{Error, ErrorCode, command::CommandReply, project::ObservedState};

use crate::{
    gate::Places,
    projects::testing::{REMOVE, RESTART, RUN, Rig, STOP, command, id, volumes},
    storage::faulty::StorageVerb,
};

#[tokio::test]
async fn running_containers_are_adopted_and_stopped_ones_stay_stopped() {
    let rig = Rig::new().await;
    let (running, stopped) = (id(3), id(4));
    rig.run(running).await;
    rig.create(stopped).await;
    let before = rig.runtime.container(running).unwrap();
    let rig = rig.crash().await;
    rig.until(running, ObservedState::Running).await;
    rig.projects.reconcile(None).await;
    assert_eq!(rig.runtime.container(running).unwrap(), before);
    assert_eq!((rig.runtime.starts(), rig.runtime.removals()), (1, 0));
    assert_eq!(rig.state(stopped), ObservedState::Stopped);
    // and is as good as any other
    rig.tell(command(running, 1, 2, STOP)).await.unwrap();
    rig.tell(command(running, 1, 3, RUN)).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_leaves_containers_running() {
    let mut rig = Rig::new().await;
    rig.run(id(3)).await;
    rig.projects.shutdown(std::time::Duration::from_secs(1)).await;
    let CommandReply::Failed { error } = rig.projects.command(command(id(3), 1, 2, STOP)).await else { panic!("not refused") };
    assert_eq!(error.code, ErrorCode::Unavailable);
    rig = rig.crash().await;
    rig.until(id(3), ObservedState::Running).await;
    assert_eq!(rig.runtime.starts(), 1);
}

#[tokio::test]
async fn a_container_that_died_meanwhile_is_failed() {
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    rig.projects.halt();
    rig.runtime.set_log("out of luck\n");
    rig.runtime.exit(id(3), 5);
    let rig = rig.crash().await;
    let error = rig.until(id(3), ObservedState::Failed).await.error.unwrap();
    assert!(error.message.contains("exit code 5") && error.message.contains("out of luck"), "{error}");
}

#[tokio::test]
async fn a_container_that_went_away_meanwhile_is_failed() {
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    rig.projects.halt();
    rig.take_container(id(3)).await;
    let rig = rig.crash().await;
    let error = rig.until(id(3), ObservedState::Failed).await.error.unwrap();
    assert!(error.message.contains("gone"), "{error}");
}

#[tokio::test]
async fn a_runtime_that_is_dead_at_the_start_hides_nothing_that_runs() {
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    rig.runtime.faults(|faults| faults.list = Some(Error::new(ErrorCode::RuntimeFailed, "podman doesn't answer.")));
    let rig = rig.crash().await;
    // the agent comes back by itself, whatever podman does
    rig.until(id(3), ObservedState::Running).await;
    assert!(!rig.projects.answering());
}

#[tokio::test]
async fn a_start_that_a_crash_cut_off_is_done_again_and_once() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.runtime.faults(|faults| faults.hang = true);
    let cut = {
        let start = rig.projects.command(command(project, 1, 2, RUN));
        let crash = async {
            rig.until(project, ObservedState::Starting).await;
            rig.projects.halt();
        };
        tokio::join!(start, crash).0
    };
    assert!(matches!(cut, CommandReply::Failed { error } if error.code == ErrorCode::Unavailable));
    let rig = rig.crash().await;
    rig.runtime.faults(|faults| faults.hang = false);
    assert_eq!(rig.tell(command(project, 1, 2, RUN)).await.unwrap().state, ObservedState::Running);
    assert_eq!(rig.runtime.starts(), 1);
}

#[tokio::test]
async fn a_restart_that_a_crash_cut_off_does_not_restart_twice() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    rig.tell(command(project, 1, 2, RESTART)).await.unwrap();
    let rig = rig.crash().await;
    rig.until(project, ObservedState::Running).await;
    rig.tell(command(project, 1, 2, RESTART)).await.unwrap();
    assert_eq!(rig.runtime.starts(), 2);
}

#[tokio::test]
async fn a_deletion_that_a_crash_cut_off_is_not_started_on() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.create(project).await;
    rig.storage.fail(StorageVerb::Delete, Error::new(ErrorCode::StorageFailed, "An I/O error."), 1);
    assert_eq!(rig.code(command(project, 1, 2, REMOVE)).await, Some(ErrorCode::StorageFailed));
    let rig = rig.crash().await;
    assert_eq!(rig.state(project), ObservedState::Absent);
    rig.tell(command(project, 1, 2, REMOVE)).await.unwrap();
    assert_eq!(rig.code(command(project, 1, 1, volumes())).await, Some(ErrorCode::StaleAssignment));
}

#[tokio::test]
async fn files_can_be_served_soon_after_the_start() {
    let rig = Rig::new().await;
    rig.create(id(3)).await;
    let before = rig.projects.home(id(3)).unwrap().home;
    assert_eq!(rig.projects.home(id(4)).unwrap_err().code, ErrorCode::NotFound);
    let rig = rig.crash().await;
    rig.projects.open_all().await;
    tokio::time::timeout(crate::projects::testing::WAIT, async {
        while rig.projects.home(id(3)).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.projects.home(id(3)).unwrap().home, before);
}

#[tokio::test]
async fn a_container_left_over_from_a_stop_that_a_crash_cut_off_is_not_taken_for_the_new_one() {
    let rig = Rig::new().await;
    let project = id(3);
    rig.run(project).await;
    rig.runtime.faults(|faults| {
        faults.remove = Some(Error::new(ErrorCode::RuntimeFailed, "podman doesn't answer."));
        faults.list = faults.remove.clone();
    });
    assert_eq!(rig.code(command(project, 1, 2, STOP)).await, Some(ErrorCode::RuntimeFailed));
    let rig = rig.crash().await;
    rig.runtime.faults(|faults| faults.remove = None);
    // nobody has looked yet what runs
    let begun = tokio::time::Instant::now();
    rig.tell(command(project, 1, 3, RUN)).await.unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    assert_eq!((rig.runtime.starts(), rig.runtime.removals()), (2, 1));
}

#[test]
fn a_project_at_rest_is_small() {
    // the aim is 20 KB for all that a dormant project costs; this is what is kept of it
    assert!(size_of::<crate::projects::Entry>() <= 256, "{}", size_of::<crate::projects::Entry>());
}
