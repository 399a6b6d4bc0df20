//! `advance` alone: what holds for every operation whatever happens to it.

use std::time::Duration;

use atoll_contract::{
    Error, ErrorCode, Generation, Timestamp,
    operation::{OperationKind, OperationStatus, Step},
    project::Intent,
};
use proptest::prelude::*;

use super::super::{
    advance::{Action, Event, advance, may_cancel},
    model::{Operation, State},
    plan,
};
use crate::testing::{START, spec};

fn op(kind: OperationKind, start: bool, before: Intent) -> Operation {
    let id = "0198c0de-0000-7000-8000-000000000001";
    Operation {
        id: id.parse().unwrap(),
        kind,
        project: id.parse().unwrap(),
        project_name: "thesis".into(),
        owner: id.parse().unwrap(),
        account: id.parse().unwrap(),
        host: id.parse().unwrap(),
        generation: Generation(1),
        status: OperationStatus::Running,
        step: plan::of(kind, start).first(),
        state: State { start, spec: Some(spec("thesis")), ..State::new(before, START) },
        version: 1,
        created_at: START,
        updated_at: START,
    }
}

fn error(code: ErrorCode) -> Error {
    Error::new(code, "as told")
}

/// Runs to the end with all going well, and gives the steps on the way.
fn walk(mut op: Operation) -> (Operation, Vec<Step>) {
    let (mut steps, mut action) = (vec![op.step], Some(Action::Wait));
    while action.is_some() {
        (op, action) = advance(op, Event::Done, START);
        steps.push(op.step);
    }
    (op, steps)
}

#[test]
fn all_going_well_every_kind_does_its_steps_and_is_done() {
    for kind in OperationKind::ALL {
        for start in [false, true] {
            let (end, steps) = walk(op(kind, start, Intent::Stopped));
            let plan = plan::of(kind, start);
            let mut expected: Vec<Step> = plan.steps.iter().copied().filter(|step| *step != Step::Place).collect();
            expected.push(Step::Finished);
            assert_eq!((end.status, steps), (OperationStatus::Done, expected), "{kind:?}");
            assert_eq!(end.intent_to_restore(), None);
        }
    }
}

#[test]
fn a_start_of_what_ran_already_does_not_stop_it_on_its_way_back() {
    for (before, expected) in
        [(Intent::Running, vec![Step::UndoWork, Step::Finished]), (Intent::Stopped, vec![Step::UndoWork, Step::UndoRun, Step::Finished])]
    {
        let (turned, _) = advance(op(OperationKind::Start, false, before), Event::Failed(error(ErrorCode::ImageUnavailable)), START);
        let (end, steps) = walk(turned);
        assert_eq!((end.status, steps), (OperationStatus::Failed, expected));
        assert_eq!(end.intent_to_restore(), Some(before));
    }
}

#[test]
fn forward_steps_lose_patience_and_undo_steps_never() {
    for kind in OperationKind::ALL {
        let patience = plan::of(kind, false).patience;
        let trouble = || Event::Trouble(error(ErrorCode::HostUnavailable));
        let (tried, action) = advance(op(kind, false, Intent::Stopped), trouble(), START);
        assert_eq!((action, tried.state.attempts), (Some(Action::Wait), 1));
        let almost = START.saturating_add(patience.saturating_sub(Duration::from_millis(1)));
        let (tried, action) = advance(tried, trouble(), almost);
        assert_eq!((action, tried.state.attempts), (Some(Action::Wait), 2));
        let (given_up, _) = advance(tried, trouble(), START.saturating_add(patience));
        assert_eq!(given_up.state.failure.as_ref().unwrap().code, ErrorCode::HostUnavailable);
        assert_ne!(given_up.status, OperationStatus::Running);
        if given_up.status == OperationStatus::Undoing {
            let (tried, _) = advance(given_up, trouble(), START.saturating_add(patience));
            let years = START.saturating_add(Duration::from_secs(100_000_000));
            assert_eq!(advance(tried, trouble(), years).1, Some(Action::Wait));
        }
    }
}

#[test]
fn work_ends_the_trouble_and_has_a_limit_of_its_own() {
    let start = op(OperationKind::Start, false, Intent::Stopped);
    let (op, _) = advance(start, Event::Trouble(error(ErrorCode::TimedOut)), START);
    let later = START.saturating_add(Duration::from_secs(100));
    let (op, action) = advance(op, Event::Working, later);
    assert!(matches!(action, Some(Action::Ask(_))) && op.state.trying_since.is_none() && op.state.attempts == 0);
    let (op, _) = advance(op, Event::Working, START.saturating_add(Duration::from_secs(3601)));
    assert_eq!((op.status, op.state.failure.unwrap().code), (OperationStatus::Undoing, ErrorCode::TimedOut));
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::Resume),
        4 => Just(Event::Done),
        1 => Just(Event::Working),
        1 => Just(Event::Failed(error(ErrorCode::StartFailed))),
        1 => Just(Event::Trouble(error(ErrorCode::HostUnavailable))),
        1 => Just(Event::Cancel),
    ]
}

proptest! {
    #[test]
    fn past_the_point_of_no_return_nothing_goes_back(
        kind in prop::sample::select(OperationKind::ALL.to_vec()),
        start in any::<bool>(),
        before in prop::sample::select(vec![Intent::Running, Intent::Stopped]),
        events in prop::collection::vec((any_event(), 0u64..200), 0..40),
    ) {
        let plan = plan::of(kind, start);
        let (mut op, mut now) = (op(kind, start, before), START);
        for (event, seconds) in events {
            now = now.saturating_add(Duration::from_secs(seconds));
            let last = op.clone();
            let cancelled = event == Event::Cancel;
            let (next, action) = advance(op, event, now);
            if last.ended() || (cancelled && !may_cancel(&last)) {
                prop_assert_eq!(&next, &last);
                prop_assert_eq!(action, None);
            } else {
                prop_assert!(next.version > last.version);
                prop_assert_eq!(action.is_none(), next.ended());
            }
            if last.status == OperationStatus::Running && !plan.may_go_back(last.step) {
                prop_assert!(next.status != OperationStatus::Undoing && next.status != OperationStatus::Cancelled);
            }
            if last.status == OperationStatus::Undoing {
                prop_assert!(next.status != OperationStatus::Running && next.status != OperationStatus::Done);
            }
            op = next;
        }
        let saved: State = serde_json::from_str(&serde_json::to_string(&op.state).unwrap()).unwrap();
        prop_assert_eq!(saved, op.state);
        prop_assert!(now >= Timestamp::from_millis(0));
    }
}
