//! What the hosts observe, as last heard. Pure: time comes as an argument.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use atoll_contract::{
    Error, Generation, HostId, ProjectId, Timestamp,
    host::{Capacity, HostFacts, HostReport, HostState, HostView, OFFLINE_AFTER_SECONDS},
    project::{ObservedProject, ObservedState},
};

use super::UNKNOWN;
use crate::store::HostRow;

const OFFLINE_AFTER: Duration = Duration::from_secs(OFFLINE_AFTER_SECONDS);

/// Projects that one host may speak of, and bytes of what it says of one's failure. Both are far above what a sound host says: they bound what one
/// that isn't takes of the master's memory.
const MAX_PROJECTS: usize = 20_000;
const MAX_ERROR: usize = 16 << 10;

#[derive(Default)]
pub(super) struct Observations(HashMap<HostId, Heard>);

/// What one start of a host program has said, from its first report with facts on.
struct Heard {
    boot: String,
    sequence: u64,
    last_report: Timestamp,
    facts: HostFacts,
    capacity: Capacity,
    healthy: bool,
    projects: HashMap<ProjectId, ObservedProject>,
    /// Whether it has said all that it has. A host with more than fits one message says it in parts, and never does.
    complete: bool,
    /// Whether its silence has been seen by [`Observations::newly_silent`].
    silent: bool,
}

/// What is known of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    pub state: ObservedState,
    pub error: Option<Error>,
    pub used_bytes: Option<u64>,
}

/// Whether a host is there, as far as its reports say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    Reporting,
    /// It hasn't reported to this process, which began so short a time ago that it may still be connecting again.
    Expected,
    Silent,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// `changed` are the projects of which something else is known now; `back` says that the host was silent before.
    Taken { changed: Vec<ProjectId>, back: bool },
    /// Of a boot that isn't known, and without facts: nothing can be made of it.
    Resend,
    /// Older than what is known.
    Old,
}

impl Observations {
    pub(super) fn apply(&mut self, report: HostReport, now: Timestamp) -> Receipt {
        let known = self.0.get_mut(&report.host);
        let same_boot = known.as_ref().is_some_and(|heard| heard.boot == report.boot);
        match (known, report.facts) {
            (Some(heard), _) if same_boot && report.sequence <= heard.sequence => Receipt::Old,
            (Some(heard), facts) if same_boot => {
                let back = heard.silent || now.since(heard.last_report) >= OFFLINE_AFTER;
                heard.sequence = report.sequence;
                heard.last_report = now;
                heard.capacity = report.capacity;
                heard.healthy = report.healthy;
                heard.silent = false;
                heard.complete |= report.full;
                if let Some(facts) = facts {
                    heard.facts = facts;
                }
                let before: Vec<ProjectId> = if back { heard.projects.keys().copied().collect() } else { Vec::new() };
                let mut changed = heard.take(report.projects, report.full);
                // they were shown as unknown
                changed.extend(before);
                Receipt::Taken { changed, back }
            }
            (known, Some(facts)) => {
                let before = known.map(|heard| std::mem::take(&mut heard.projects)).unwrap_or_default();
                let mut changed: HashSet<ProjectId> = before.into_keys().collect();
                let mut heard = Heard {
                    boot: report.boot,
                    sequence: report.sequence,
                    last_report: now,
                    facts,
                    capacity: report.capacity,
                    healthy: report.healthy,
                    projects: HashMap::new(),
                    complete: report.full,
                    silent: false,
                };
                changed.extend(heard.take(report.projects, report.full));
                self.0.insert(report.host, heard);
                Receipt::Taken { changed: changed.into_iter().collect(), back: true }
            }
            _ => Receipt::Resend,
        }
    }

    /// Takes in what the answer to a command said of one project. Whether that changes what is known.
    pub(super) fn note(&mut self, host: HostId, observed: ObservedProject) -> bool {
        self.0.get_mut(&host).is_some_and(|heard| heard.put(observed))
    }

    pub(super) fn remove(&mut self, host: HostId) {
        self.0.remove(&host);
    }

    pub(super) fn observed(&self, host: HostId, project: ProjectId, generation: Generation, now: Timestamp) -> Observed {
        let Some(heard) = self.0.get(&host).filter(|heard| heard.reports_at(now)) else { return UNKNOWN };
        match heard.projects.get(&project) {
            // it has said all that it has, and this isn't among it
            None if heard.complete => Observed { state: ObservedState::Absent, ..UNKNOWN },
            None => UNKNOWN,
            // what is left there of an older assignment says nothing about the present one
            Some(one) if one.generation != generation => UNKNOWN,
            Some(one) => Observed { state: one.state, error: one.error.clone(), used_bytes: one.used_bytes },
        }
    }

    /// Whether a host has said anything of a project.
    pub(super) fn reports(&self, host: HostId, project: ProjectId) -> bool {
        self.0.get(&host).is_some_and(|heard| heard.projects.contains_key(&project))
    }

    pub(super) fn public_url(&self, host: HostId, now: Timestamp) -> Option<String> {
        self.0.get(&host).filter(|heard| heard.reports_at(now)).map(|heard| heard.facts.public_url.clone())
    }

    /// `since` is when it could first report.
    pub(super) fn presence(&self, host: HostId, since: Timestamp, now: Timestamp) -> Presence {
        match self.0.get(&host) {
            Some(heard) if heard.reports_at(now) => Presence::Reporting,
            None if now.since(since) < OFFLINE_AFTER => Presence::Expected,
            _ => Presence::Silent,
        }
    }

    pub(super) fn view(&self, row: &HostRow, assigned: u32, now: Timestamp) -> HostView {
        let heard = self.0.get(&row.id);
        let state = match heard {
            Some(heard) if heard.reports_at(now) && heard.healthy => HostState::Online,
            Some(heard) if heard.reports_at(now) => HostState::Unhealthy,
            _ => HostState::Offline,
        };
        HostView {
            id: row.id,
            name: row.name.clone(),
            state,
            draining: row.draining,
            facts: heard.map(|heard| heard.facts.clone()),
            capacity: heard.map(|heard| heard.capacity),
            last_report: heard.map(|heard| heard.last_report),
            joined_at: row.joined_at,
            assigned,
        }
    }

    /// Hosts that have become silent since this was last asked.
    pub(super) fn newly_silent(&mut self, now: Timestamp) -> Vec<HostId> {
        let silent = self.0.iter_mut().filter(|(_, heard)| !heard.silent && !heard.reports_at(now));
        silent
            .map(|(host, heard)| {
                heard.silent = true;
                *host
            })
            .collect()
    }
}

impl Heard {
    fn reports_at(&self, now: Timestamp) -> bool {
        now.since(self.last_report) < OFFLINE_AFTER
    }

    /// The projects of which something else is known now.
    fn take(&mut self, projects: Vec<ObservedProject>, full: bool) -> Vec<ProjectId> {
        let mut changed = Vec::new();
        if full {
            let said: HashSet<ProjectId> = projects.iter().map(|one| one.project).collect();
            self.projects.retain(|project, _| {
                let keep = said.contains(project);
                if !keep {
                    changed.push(*project);
                }
                keep
            });
        }
        for one in projects {
            let project = one.project;
            if self.put(one) {
                changed.push(project);
            }
        }
        changed
    }

    fn put(&mut self, mut observed: ObservedProject) -> bool {
        if self.projects.len() >= MAX_PROJECTS && !self.projects.contains_key(&observed.project) {
            return false;
        }
        bound(&mut observed);
        if observed.state == ObservedState::Absent {
            return self.projects.remove(&observed.project).is_some();
        }
        let project = observed.project;
        self.projects.get(&project) != Some(&observed) && {
            self.projects.insert(project, observed);
            true
        }
    }
}

/// Cuts a failure's words to [`MAX_ERROR`] altogether.
fn bound(observed: &mut ObservedProject) {
    let Some(error) = &mut observed.error else { return };
    let words = error.message.len() + error.mend.len();
    if words + error.details.as_ref().map_or(0, |details| details.to_string().len()) > MAX_ERROR {
        error.details = None;
        error.message.truncate(error.message.floor_char_boundary(MAX_ERROR / 2));
        error.mend.truncate(error.mend.floor_char_boundary(MAX_ERROR / 2));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use atoll_contract::host::{StorageCapabilities, StorageKind};

    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    pub(crate) fn facts() -> HostFacts {
        HostFacts {
            version: "0.1.0".into(),
            public_url: "http://127.0.0.1:7001".into(),
            region: String::new(),
            labels: BTreeMap::new(),
            storage: StorageKind::Dir,
            capabilities: StorageCapabilities::default(),
            arch: "x86_64".into(),
            findings: Vec::new(),
        }
    }

    fn host() -> HostId {
        "0198c0de-0000-7000-8000-0000000000a1".parse().unwrap()
    }

    fn project(n: u8) -> ProjectId {
        format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
    }

    fn seen(n: u8, state: ObservedState) -> ObservedProject {
        ObservedProject { project: project(n), generation: Generation(1), state, error: None, used_bytes: None }
    }

    fn report(boot: &str, sequence: u64, full: bool, projects: Vec<ObservedProject>) -> HostReport {
        let facts = full.then(facts);
        HostReport { host: host(), boot: boot.into(), sequence, facts, capacity: Capacity::default(), healthy: true, full, projects }
    }

    fn state(all: &Observations, n: u8, now: Timestamp) -> ObservedState {
        all.observed(host(), project(n), Generation(1), now).state
    }

    #[test]
    fn nothing_is_known_before_a_full_report() {
        let mut all = Observations::default();
        assert_eq!(all.apply(report("a", 3, false, vec![seen(1, ObservedState::Running)]), START), Receipt::Resend);
        assert_eq!(state(&all, 1, START), ObservedState::Unknown);
        all.apply(report("a", 4, true, vec![seen(1, ObservedState::Running)]), START);
        assert_eq!(state(&all, 1, START), ObservedState::Running);
        assert_eq!(state(&all, 2, START), ObservedState::Absent);
    }

    #[test]
    fn a_host_is_expected_for_a_while_after_a_start_and_silent_later() {
        let mut all = Observations::default();
        let at = |seconds| START.saturating_add(Duration::from_secs(seconds));
        let presence = |all: &Observations, seconds| all.presence(host(), START, at(seconds));
        assert_eq!([0, 19, 20].map(|n| presence(&all, n)), [Presence::Expected, Presence::Expected, Presence::Silent]);
        all.apply(report("a", 1, true, vec![]), at(30));
        assert_eq!([30, 49, 50].map(|n| presence(&all, n)), [Presence::Reporting, Presence::Reporting, Presence::Silent]);
    }

    #[test]
    fn a_host_that_says_it_in_parts_is_taken_but_what_it_leaves_out_is_unknown() {
        let mut all = Observations::default();
        let first = HostReport { facts: Some(facts()), ..report("a", 1, false, vec![seen(1, ObservedState::Running)]) };
        assert_eq!(all.apply(first, START), Receipt::Taken { changed: vec![project(1)], back: true });
        assert_eq!(
            all.apply(report("a", 2, false, vec![seen(2, ObservedState::Stopped)]), START),
            Receipt::Taken { changed: vec![project(2)], back: false }
        );
        let states = [1, 2, 3].map(|n| state(&all, n, START));
        assert_eq!(states, [ObservedState::Running, ObservedState::Stopped, ObservedState::Unknown]);
    }

    #[test]
    fn a_delta_changes_what_it_names_and_a_full_report_all() {
        let mut all = Observations::default();
        all.apply(report("a", 1, true, vec![seen(1, ObservedState::Running), seen(2, ObservedState::Stopped)]), START);
        let receipt = all.apply(report("a", 2, false, vec![seen(1, ObservedState::Failed), seen(2, ObservedState::Stopped)]), START);
        assert_eq!(receipt, Receipt::Taken { changed: vec![project(1)], back: false });
        assert_eq!((state(&all, 1, START), state(&all, 2, START)), (ObservedState::Failed, ObservedState::Stopped));
        all.apply(report("a", 3, true, vec![seen(2, ObservedState::Running)]), START);
        assert_eq!((state(&all, 1, START), state(&all, 2, START)), (ObservedState::Absent, ObservedState::Running));
    }

    #[test]
    fn late_reports_of_a_boot_are_dropped_and_a_new_boot_counts_anew() {
        let mut all = Observations::default();
        all.apply(report("a", 5, true, vec![seen(1, ObservedState::Running)]), START);
        assert_eq!(all.apply(report("a", 4, true, vec![]), START), Receipt::Old);
        assert_eq!(all.apply(report("a", 5, false, vec![seen(1, ObservedState::Failed)]), START), Receipt::Old);
        assert_eq!(all.apply(report("b", 1, false, vec![]), START), Receipt::Resend);
        assert_eq!(state(&all, 1, START), ObservedState::Running);
        all.apply(report("b", 1, true, vec![]), START);
        assert_eq!(state(&all, 1, START), ObservedState::Absent);
    }

    #[test]
    fn a_host_that_says_too_much_takes_bounded_memory() {
        let mut all = Observations::default();
        all.apply(report("a", 1, true, vec![]), START);
        let many = |from: usize| {
            (from..from + 5000).map(|n| {
                let project = format!("0198c0de-0000-7000-8000-{n:012x}").parse().unwrap();
                ObservedProject { project, ..seen(1, ObservedState::Failed) }
            })
        };
        for n in 0..8u32 {
            all.apply(report("a", 2 + u64::from(n), false, many(n as usize * 5000).collect()), START);
        }
        let mut long = seen(1, ObservedState::Failed);
        long.error = Some(Error::internal("ä".repeat(100_000)).mend("x".repeat(100_000)).details(serde_json::json!("y".repeat(100_000))));
        all.apply(report("a", 20, false, vec![long]), START);
        let heard = &all.0[&host()];
        assert_eq!(heard.projects.len(), MAX_PROJECTS);
        assert!(serde_json::to_string(&heard.projects[&project(1)]).unwrap().len() < 2 * MAX_ERROR);
        assert_eq!(state(&all, 1, START), ObservedState::Failed);
    }

    #[test]
    fn another_generation_is_not_the_projects_state() {
        let mut all = Observations::default();
        all.apply(report("a", 1, true, vec![seen(1, ObservedState::Running)]), START);
        assert_eq!(all.observed(host(), project(1), Generation(2), START).state, ObservedState::Unknown);
    }

    #[test]
    fn a_silent_host_is_offline_and_its_projects_unknown_never_stopped() {
        let mut all = Observations::default();
        all.apply(report("a", 1, true, vec![seen(1, ObservedState::Stopped)]), START);
        let almost = START.saturating_add(OFFLINE_AFTER.saturating_sub(Duration::from_millis(1)));
        let late = START.saturating_add(OFFLINE_AFTER);
        assert_eq!(state(&all, 1, almost), ObservedState::Stopped);
        assert!(all.newly_silent(almost).is_empty());
        assert_eq!(state(&all, 1, late), ObservedState::Unknown);
        assert_eq!((all.newly_silent(late), all.newly_silent(late)), (vec![host()], vec![]));
        let receipt = all.apply(report("a", 2, false, vec![]), late);
        assert_eq!(receipt, Receipt::Taken { changed: vec![project(1)], back: true });
        assert_eq!(state(&all, 1, late), ObservedState::Stopped);
    }
}
