//! Every kind × every step × everything that can go wrong there: afterwards a project is there exactly once or not at all, as the
//! table of plans says.

use atoll_contract::{
    Error, ErrorCode,
    command::Verb,
    operation::{OperationKind, OperationStatus, OperationView, Step},
    project::Intent,
};

use super::super::plan;
use crate::testing::{Fault, World};

/// The verb that a step asks the host for; none for those that are the store's.
fn verb(step: Step) -> Option<&'static str> {
    Some(match step {
        Step::Volumes => "ensure_volumes",
        Step::Image => "ensure_image",
        Step::Run => "ensure_running",
        Step::Halt | Step::UndoRun => "ensure_stopped",
        Step::Remove | Step::UndoVolumes => "ensure_absent",
        Step::UndoWork => "cancel",
        Step::Place | Step::Forget | Step::UndoPlace | Step::Finished => return None,
    })
}

/// One kind of operation with what was there before it.
#[derive(Debug, Clone, Copy)]
struct Case {
    kind: OperationKind,
    start: bool,
    /// Whether the project runs before.
    runs: bool,
}

const CASES: [Case; 8] = [
    Case { kind: OperationKind::Create, start: false, runs: false },
    Case { kind: OperationKind::Create, start: true, runs: false },
    Case { kind: OperationKind::Start, start: false, runs: false },
    Case { kind: OperationKind::Start, start: false, runs: true },
    Case { kind: OperationKind::Stop, start: false, runs: true },
    Case { kind: OperationKind::Restart, start: false, runs: true },
    Case { kind: OperationKind::Delete, start: false, runs: true },
    Case { kind: OperationKind::Delete, start: false, runs: false },
];

impl Case {
    async fn world(self) -> World {
        let world = World::new().await;
        if self.kind != OperationKind::Create {
            let made = world.begin(OperationKind::Create, self.runs).await;
            assert_eq!(world.end(made.id).await.status, OperationStatus::Done);
        }
        world
    }

    /// Begins the operation, and waits until the host hangs in this verb.
    async fn hang(self, world: &World, verb: &'static str, fault: Fault) -> OperationView {
        world.host.fault(verb, fault);
        let begun = world.begin(self.kind, self.start).await;
        world.host.until_hanging().await;
        begun
    }

    fn steps(self) -> Vec<Step> {
        plan::of(self.kind, self.start).steps.iter().copied().filter(|step| verb(*step).is_some()).collect()
    }

    fn may_go_back(self, step: Step) -> bool {
        plan::of(self.kind, self.start).may_go_back(step)
    }
}

/// What must be so after an operation, by how and where it ended.
async fn check(world: &World, case: Case, end: &OperationView, what: &str) {
    let what = format!("{case:?}, {what}: {end:?}");
    let row = world.projects().store.project(end.project).await.unwrap();
    let host = world.host.get(end.project);
    let done = end.status == OperationStatus::Done;
    let undone = !done && end.step == Step::Finished;
    assert_eq!(end.error.is_some(), end.status == OperationStatus::Failed, "{what}");
    let all = world.host.projects.lock().unwrap().len();
    assert!(all <= 1, "{what}: the host has {all} projects");
    if let Some(row) = &row {
        assert_eq!(row.operation, None, "{what}: the project is held by nobody");
    }
    let (intent, runs) = (row.as_ref().map(|row| row.intent), host.as_ref().map(|host| host.running.is_some()));
    let was = if case.runs { Intent::Running } else { Intent::Stopped };
    let expected = match case.kind {
        OperationKind::Create if undone => (None, None),
        OperationKind::Create if done && !case.start => (Some(Intent::Stopped), Some(false)),
        OperationKind::Delete if done => (None, None),
        OperationKind::Stop if done => (Some(Intent::Stopped), Some(false)),
        _ if done => (Some(Intent::Running), Some(true)),
        OperationKind::Start | OperationKind::Restart if undone => (Some(was), Some(case.runs)),
        // gone back from halt: the intent is as before; whether it was halted depends on when it turned, and reconciliation shows it
        OperationKind::Delete if undone => (Some(was), runs),
        // failed past the point of no return: it is left as it is, and the intent says what was asked for
        OperationKind::Create | OperationKind::Start | OperationKind::Restart => (Some(Intent::Running), runs),
        OperationKind::Stop => (Some(Intent::Stopped), runs),
        OperationKind::Delete => (Some(Intent::Deleted), runs),
    };
    assert_eq!((intent, runs), expected, "{what}");
    assert!(host.is_none_or(|host| host.starts <= 2), "{what}: a container was started too often");
}

fn refusal() -> Error {
    Error::new(ErrorCode::StorageFailed, "as told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_wrong() {
    for case in CASES {
        let world = case.world().await;
        let end = world.end(world.begin(case.kind, case.start).await.id).await;
        assert_eq!(end.status, OperationStatus::Done);
        check(&world, case, &end, "nothing goes wrong").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_fails() {
    for case in CASES {
        for step in case.steps() {
            for fault in [Fault::Refuse(refusal()), Fault::DoAndRefuse(refusal())] {
                let world = case.world().await;
                world.host.fault(verb(step).unwrap(), fault.clone());
                let end = world.end(world.begin(case.kind, case.start).await.id).await;
                let what = format!("{step:?} fails with {fault:?}");
                assert_eq!(end.status, OperationStatus::Failed, "{case:?}, {what}");
                assert_eq!(end.error.as_ref().unwrap().code, ErrorCode::StorageFailed, "{case:?}, {what}");
                assert_eq!(end.step == Step::Finished, case.may_go_back(step), "{case:?}, {what}");
                check(&world, case, &end, &what).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_is_done_twice_or_reached_late() {
    for case in CASES {
        for step in case.steps() {
            let world = case.world().await;
            for fault in [Fault::Away, Fault::DoAndLose, Fault::Work] {
                world.host.fault(verb(step).unwrap(), fault);
            }
            let starts_before = world.host.projects.lock().unwrap().values().next().map_or(0, |one| one.starts);
            let end = world.end(world.begin(case.kind, case.start).await.id).await;
            assert_eq!(end.status, OperationStatus::Done, "{case:?}, {step:?}: {end:?}");
            check(&world, case, &end, &format!("{step:?} twice")).await;
            if let Some(one) = world.host.get(end.project) {
                assert!(one.starts <= starts_before + 1, "{case:?}, {step:?}: two containers were started");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_undo_step_fails_and_is_done_twice() {
    for case in CASES {
        for failing in case.steps().into_iter().filter(|step| case.may_go_back(*step)) {
            let world = case.world().await;
            world.host.fault(verb(failing).unwrap(), Fault::DoAndRefuse(refusal()));
            for undo in plan::of(case.kind, case.start).undo.iter().filter_map(|step| verb(*step)) {
                // the last of these would end a forward step
                for fault in [Fault::DoAndLose, Fault::Away, Fault::Refuse(refusal())] {
                    world.host.fault(undo, fault);
                }
            }
            let end = world.end(world.begin(case.kind, case.start).await.id).await;
            assert_eq!(end.status, OperationStatus::Failed);
            check(&world, case, &end, &format!("{failing:?} fails, and so does its undo")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_dies_at_each_step() {
    for case in CASES {
        for step in case.steps() {
            for fault in [Fault::Hang, Fault::DoAndHang] {
                let mut world = case.world().await;
                let begun = case.hang(&world, verb(step).unwrap(), fault.clone()).await;
                let version = world.operation(begun.id).await.version;
                world.crash_and_boot().await;
                let end = world.end(begun.id).await;
                let what = format!("the master dies at {step:?} ({fault:?})");
                assert_eq!(end.status, OperationStatus::Done, "{case:?}, {what}: {end:?}");
                assert!(end.version > version, "{case:?}, {what}: versions go on");
                check(&world, case, &end, &what).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_dies_at_each_undo_step() {
    for case in CASES {
        let Some(failing) = case.steps().into_iter().rfind(|step| case.may_go_back(*step)) else { continue };
        for undo in plan::of(case.kind, case.start).undo.iter().filter_map(|step| verb(*step)) {
            if undo == "ensure_stopped" && case.runs {
                continue; // what ran before isn't stopped
            }
            let mut world = case.world().await;
            world.host.fault(verb(failing).unwrap(), Fault::DoAndRefuse(refusal()));
            let begun = case.hang(&world, undo, Fault::DoAndHang).await;
            world.crash_and_boot().await;
            let end = world.end(begun.id).await;
            assert_eq!(end.status, OperationStatus::Failed);
            check(&world, case, &end, &format!("{failing:?} fails and the master dies at {undo}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_is_cancelled() {
    for case in CASES {
        for step in case.steps() {
            for fault in [Fault::Hang, Fault::DoAndHang] {
                let mut world = case.world().await;
                let begun = case.hang(&world, verb(step).unwrap(), fault.clone()).await;
                let answer = world.projects().executor.cancel(begun.id).await.expect("it runs");
                let what = format!("cancelled at {step:?} ({fault:?})");
                if case.may_go_back(step) {
                    assert_ne!(answer.unwrap().status, OperationStatus::Running, "{what}");
                } else {
                    assert_eq!(answer.unwrap_err().code, ErrorCode::Conflict, "{what}");
                    // the refusal changes nothing, and the command still hangs: a restart asks again
                    world.crash_and_boot().await;
                }
                let end = world.end(begun.id).await;
                let expected = if case.may_go_back(step) { OperationStatus::Cancelled } else { OperationStatus::Done };
                assert_eq!(end.status, expected, "{case:?}, {what}");
                check(&world, case, &end, &what).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operation_holds_a_project_and_news_of_it_go_to_its_owner() {
    let world = Case { kind: OperationKind::Start, start: false, runs: false }.world().await;
    world.host.fault("ensure_image", Fault::Hang);
    let begun = world.begin(OperationKind::Start, false).await;
    world.host.until_hanging().await;
    let row = world.projects().find(&world.admin, "thesis").await.unwrap();
    assert_eq!(row.operation, Some(begun.id));
    let error = world.projects().change(&world.admin, &row, OperationKind::Stop).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::OperationInProgress);
    assert_eq!(error.details.unwrap()["operation"], begun.id.to_string());
    world.projects().executor.cancel(begun.id).await.unwrap().unwrap();
    world.end(begun.id).await;
    let subject = atoll_contract::subject::operation(world.admin.account, begun.id);
    let deadline = tokio::time::Instant::now() + crate::testing::BOUND;
    loop {
        let news: Vec<OperationView> = {
            let published = world.host.published.lock().unwrap();
            published
                .iter()
                .filter(|message| *message.subject == *subject)
                .map(|one| serde_json::from_slice(&one.payload).unwrap())
                .collect()
        };
        assert!(news.is_sorted_by(|a, b| a.version < b.version));
        if news.last().is_some_and(|view| view.status == OperationStatus::Cancelled) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_carry_project_generation_and_operation() {
    let world = Case { kind: OperationKind::Restart, start: false, runs: true }.world().await;
    let begun = world.begin(OperationKind::Restart, false).await;
    world.end(begun.id).await;
    let log = world.host.log.lock().unwrap();
    let ours: Vec<_> = log.iter().filter(|command| command.operation == begun.id).collect();
    assert!(ours.iter().all(|command| command.project == begun.project && command.generation.0 == 1));
    assert_eq!(ours.last().unwrap().verb, Verb::EnsureRunning { restart: true });
}
