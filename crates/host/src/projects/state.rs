//! The decisions about a project as pure functions: which commands are in force, and what to do about what the runtime shows.

use atoll_contract::{Error, ErrorCode, Generation, claims::stale_assignment, command::Verb};

use crate::runtime::ContainerState;

/// What the host was last told about a project's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Running,
    Stopped,
}

impl Wanted {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// What a command meets on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// The project is known, and the command's generation is its own, or (`ensure_volumes` only) a newer one.
    Known,
    /// No record of it, and the command may act.
    New,
    /// This very generation was deleted here, and the command wants no more than that.
    Buried,
}

/// Whether a command is in force. `known` is the generation of the record, `buried` that of the tombstone.
///
/// # Errors
/// `stale_assignment`, and `wrong_volume` for a verb that needs volumes on a host that never had the project.
pub(super) fn fence(known: Option<Generation>, buried: Option<Generation>, generation: Generation, verb: &Verb) -> Result<Ground, Error> {
    let makes = matches!(verb, Verb::EnsureVolumes { .. });
    match (known, buried) {
        (Some(known), _) if generation == known || (generation > known && makes) => Ok(Ground::Known),
        (Some(known), _) => Err(stale_assignment(generation, known)),
        (None, Some(buried)) if generation < buried => Err(stale_assignment(generation, buried)),
        (None, Some(buried)) if generation == buried => match verb {
            Verb::EnsureAbsent {} | Verb::EnsureStopped {} | Verb::Cancel {} => Ok(Ground::Buried),
            _ => Err(Error::new(ErrorCode::StaleAssignment, format!("Generation {generation} of this project was deleted here."))
                .mend("Ask the master where the project is now.")),
        },
        _ => match verb {
            Verb::EnsureImage {} | Verb::EnsureRunning { .. } => {
                Err(Error::new(ErrorCode::WrongVolume, "This host has no volumes of the project.")
                    .mend("Ask the master where the project is; if it names this host, the host has lost its data directory."))
            }
            _ => Ok(Ground::New),
        },
    }
}

/// A project's container as the runtime shows it, against the generation in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    Running,
    /// Runs, and belongs to another generation.
    RunningOther,
    Exited(Option<i32>),
}

impl Seen {
    pub(super) fn of(state: ContainerState, right_generation: bool) -> Self {
        match state {
            ContainerState::Running if right_generation => Self::Running,
            ContainerState::Running => Self::RunningOther,
            ContainerState::Exited(code) => Self::Exited(code),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// As it should be.
    Keep,
    /// Make sure that its agent can connect; it is running when the agent says hello.
    Adopt,
    /// Remove the container; nothing is failed by it.
    Remove,
    /// It has ended: keep its log's end as the reason, remove it, failed.
    Died(Option<i32>),
    /// Remove it, failed: it isn't the one that should run.
    WrongGeneration,
    /// Failed: it should run and there is none.
    Gone,
}

/// The design page's table. `wanted` is none if there is no record.
pub(super) fn decide(seen: Seen, wanted: Option<Wanted>) -> Decision {
    match (wanted, seen) {
        (None | Some(Wanted::Stopped), Seen::Nothing) => Decision::Keep,
        (None | Some(Wanted::Stopped), _) => Decision::Remove,
        (Some(Wanted::Running), Seen::Running) => Decision::Adopt,
        (Some(Wanted::Running), Seen::RunningOther) => Decision::WrongGeneration,
        (Some(Wanted::Running), Seen::Exited(code)) => Decision::Died(code),
        (Some(Wanted::Running), Seen::Nothing) => Decision::Gone,
    }
}

#[cfg(test)]
mod tests {
    use atoll_contract::project::{Limits, ProjectSpec};

    use super::*;

    fn volumes() -> Verb {
        let spec = ProjectSpec { name: "p".into(), image: "i".into(), limits: Limits::default(), env: [].into() };
        Verb::EnsureVolumes { spec, fresh: true }
    }

    fn verbs() -> [Verb; 6] {
        [
            volumes(),
            Verb::EnsureImage {},
            Verb::EnsureRunning { restart: false },
            Verb::EnsureStopped {},
            Verb::EnsureAbsent {},
            Verb::Cancel {},
        ]
    }

    fn outcome(known: Option<u64>, buried: Option<u64>, generation: u64, verb: &Verb) -> String {
        match fence(known.map(Generation), buried.map(Generation), Generation(generation), verb) {
            Ok(ground) => format!("{ground:?}"),
            Err(error) => error.code.as_str().into(),
        }
    }

    #[test]
    fn the_fence() {
        let row = |known, buried, generation| verbs().map(|verb| outcome(known, buried, generation, &verb)).join(" ");
        let stale = "stale_assignment";
        // volumes, image, running, stopped, absent, cancel
        assert_eq!(row(Some(5), None, 5), "Known Known Known Known Known Known");
        assert_eq!(row(Some(5), None, 4), [stale; 6].join(" "));
        assert_eq!(row(Some(5), None, 6), format!("Known {}", [stale; 5].join(" ")));
        assert_eq!(row(None, Some(5), 4), [stale; 6].join(" "));
        assert_eq!(row(None, Some(5), 5), format!("{stale} {stale} {stale} Buried Buried Buried"));
        assert_eq!(row(None, Some(5), 6), "New wrong_volume wrong_volume New New New");
        assert_eq!(row(None, None, 1), "New wrong_volume wrong_volume New New New");
    }

    #[test]
    fn the_table_of_the_design_page() {
        let wanted = [Some(Wanted::Running), Some(Wanted::Stopped), None];
        let row = |seen| wanted.map(|wanted| decide(seen, wanted));
        assert_eq!(row(Seen::Running), [Decision::Adopt, Decision::Remove, Decision::Remove]);
        assert_eq!(row(Seen::RunningOther), [Decision::WrongGeneration, Decision::Remove, Decision::Remove]);
        assert_eq!(row(Seen::Exited(Some(1))), [Decision::Died(Some(1)), Decision::Remove, Decision::Remove]);
        assert_eq!(row(Seen::Nothing), [Decision::Gone, Decision::Keep, Decision::Keep]);
    }
}
