//! The steps of every kind of operation, in one table. tests/golden/operations.snap shows it for people.

use std::time::Duration;

use atoll_contract::operation::{OperationKind, Step};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In order. `place` is done by the transaction that accepts the request, so an operation begins at the step after it.
    pub steps: &'static [Step],
    /// From this step on only forward: nothing is undone and cancel is refused.
    pub point_of_no_return: Step,
    /// In order, whichever step it was that failed: each is idempotent, and done at once where there is nothing to undo.
    pub undo: &'static [Step],
    /// For how long a forward step is tried again while the host can't be reached. Undo steps are tried without end.
    pub patience: Duration,
}

const SHORT: Duration = Duration::from_mins(2);
/// Nobody waits for a stop or a delete as for a start, and a host that restarts or is updated should be back by then.
const LONG: Duration = Duration::from_mins(10);

pub(crate) const fn of(kind: OperationKind, start: bool) -> Plan {
    use Step::{Finished, Forget, Halt, Image, Place, Remove, Run, UndoPlace, UndoRun, UndoVolumes, UndoWork, Volumes};
    const UNDO_CREATE: &[Step] = &[UndoWork, UndoVolumes, UndoPlace];
    match (kind, start) {
        (OperationKind::Create, false) => {
            Plan { steps: &[Place, Volumes, Image], point_of_no_return: Finished, undo: UNDO_CREATE, patience: SHORT }
        }
        // a project whose container doesn't start is kept: its owner can look at it, and its volumes are good
        (OperationKind::Create, true) => {
            Plan { steps: &[Place, Volumes, Image, Run], point_of_no_return: Run, undo: UNDO_CREATE, patience: SHORT }
        }
        (OperationKind::Start, _) => {
            Plan { steps: &[Image, Run], point_of_no_return: Finished, undo: &[UndoWork, UndoRun], patience: SHORT }
        }
        (OperationKind::Stop, _) => Plan { steps: &[Halt], point_of_no_return: Halt, undo: &[], patience: LONG },
        (OperationKind::Restart, _) => Plan { steps: &[Image, Run], point_of_no_return: Run, undo: &[UndoWork], patience: SHORT },
        (OperationKind::Delete, _) => Plan { steps: &[Halt, Remove, Forget], point_of_no_return: Remove, undo: &[], patience: LONG },
    }
}

impl Plan {
    /// The first step that an accepted operation does.
    pub(crate) fn first(&self) -> Step {
        self.steps.iter().copied().find(|step| *step != Step::Place).unwrap_or(Step::Finished)
    }

    pub(crate) fn after(&self, step: Step) -> Step {
        next(self.steps, step)
    }

    pub(crate) fn undo_after(&self, step: Step) -> Step {
        next(self.undo, step)
    }

    pub(crate) fn first_undo(&self) -> Step {
        self.undo.first().copied().unwrap_or(Step::Finished)
    }

    pub(crate) fn may_go_back(&self, step: Step) -> bool {
        let place = |step| self.steps.iter().position(|one| *one == step).unwrap_or(self.steps.len());
        place(step) < place(self.point_of_no_return)
    }
}

fn next(steps: &[Step], step: Step) -> Step {
    let at = steps.iter().position(|one| *one == step);
    at.and_then(|at| steps.get(at + 1)).copied().unwrap_or(Step::Finished)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn kinds_are_as_in_the_golden_table() {
        let mut text = String::new();
        for kind in OperationKind::ALL {
            let starts: &[bool] = if kind == OperationKind::Create { &[false, true] } else { &[false] };
            for start in starts {
                let plan = of(kind, *start);
                let name = if *start { format!("{} and start", kind.as_str()) } else { kind.as_str().into() };
                writeln!(text, "{name}").unwrap();
                writeln!(text, "  steps               {:?}", plan.steps).unwrap();
                writeln!(text, "  point of no return  {:?}", plan.point_of_no_return).unwrap();
                writeln!(text, "  undo                {:?}", plan.undo).unwrap();
                writeln!(text, "  patience            {} s", plan.patience.as_secs()).unwrap();
            }
        }
        insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("operations", text);
        });
    }
}
