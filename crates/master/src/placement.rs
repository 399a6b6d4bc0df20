//! Which host takes a project: a pure function over what the hosts have said and what they have been promised since.

use std::cmp::Ordering;

use atoll_contract::{
    HostId,
    host::{Capacity, HostFacts, HostState},
    placement::{Candidate, Placement, Refusal, Requirements, Score},
    project::Limits,
};

/// One host as placement sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostSnapshot {
    pub id: HostId,
    pub name: String,
    pub state: HostState,
    pub draining: bool,
    pub facts: Option<HostFacts>,
    pub capacity: Option<Capacity>,
    pub promised: Promised,
}

/// What has been assigned to a host and isn't in its last report yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Promised {
    pub projects: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl Promised {
    pub(crate) fn add(&mut self, limits: &Limits) {
        self.projects += 1;
        self.memory_bytes = self.memory_bytes.saturating_add(limits.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(limits.disk_bytes);
    }
}

/// Scores nearer than this are equal: free memory moves by so much from one report to the next, and must not decide.
const EQUAL: f64 = 0.05;

/// Chooses among the hosts that don't refuse: those whose score is nearly the best, of them the one with the fewest projects, then the
/// higher score, then the older host. The same hosts in any order give the same choice.
pub(crate) fn place(hosts: &[HostSnapshot], limits: &Limits, requirements: &Requirements) -> Placement {
    let mut fit: Vec<(&HostSnapshot, f64)> = Vec::new();
    let mut refused: Vec<Candidate> = Vec::new();
    for host in hosts {
        let refusals = refusals(host, limits, requirements);
        match host.capacity.as_ref().filter(|_| refusals.is_empty()) {
            Some(capacity) => fit.push((host, free_after(capacity, &host.promised, limits))),
            None => refused.push(Candidate { host: host.id, name: host.name.clone(), refusals, score: None }),
        }
    }
    let best = fit.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
    let nearly_best = |score: f64| score >= best - EQUAL;
    fit.sort_by(|(a, a_score), (b, b_score)| {
        let by_score = b_score.total_cmp(a_score).then(a.id.cmp(&b.id));
        match (nearly_best(*a_score), nearly_best(*b_score)) {
            (true, true) => projects(a).cmp(&projects(b)).then(by_score),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => by_score,
        }
    });
    refused.sort_by_key(|one| one.host);
    let chosen = fit.first().map(|(host, _)| host.id);
    let fit = fit.into_iter().map(|(host, free_after)| Candidate {
        host: host.id,
        name: host.name.clone(),
        refusals: Vec::new(),
        score: Some(Score { free_after }),
    });
    Placement { chosen, candidates: fit.chain(refused).collect() }
}

fn projects(host: &HostSnapshot) -> u32 {
    host.capacity.map_or(0, |capacity| capacity.projects).saturating_add(host.promised.projects)
}

/// All reasons at once, so that who asks needn't mend one to hear of the next. What a silent host last said of itself isn't held
/// against it: only that it is silent.
fn refusals(host: &HostSnapshot, limits: &Limits, requirements: &Requirements) -> Vec<Refusal> {
    let mut found = Vec::new();
    if let Some(wanted) = &requirements.host
        && *wanted != host.id.to_string()
        && !wanted.eq_ignore_ascii_case(&host.name)
    {
        found.push(Refusal::NotThePinnedHost);
    }
    if host.draining {
        found.push(Refusal::Draining);
    }
    let (Some(facts), Some(capacity), true) = (&host.facts, &host.capacity, host.state != HostState::Offline) else {
        found.push(Refusal::Offline);
        return found;
    };
    if host.state == HostState::Unhealthy {
        found.push(Refusal::Unhealthy);
    }
    if let Some(region) = &requirements.region
        && *region != facts.region
    {
        found.push(Refusal::OtherRegion { region: facts.region.clone() });
    }
    for (label, value) in &requirements.labels {
        if facts.labels.get(label) != Some(value) {
            found.push(Refusal::MissingLabel { label: format!("{label}={value}") });
        }
    }
    if requirements.snapshots && !facts.capabilities.snapshots {
        found.push(Refusal::NoSnapshots);
    }
    if requirements.quotas && !facts.capabilities.quotas {
        found.push(Refusal::NoQuotas);
    }
    found.extend(lack_of_room(capacity, &host.promised, limits));
    found
}

/// Memory and processors may be promised to many, since few use all of theirs at once: only a machine that is too small as a whole
/// refuses. Disk and run slots are not promised twice.
fn lack_of_room(capacity: &Capacity, promised: &Promised, limits: &Limits) -> Vec<Refusal> {
    let mut found = Vec::new();
    if limits.memory_bytes > capacity.memory_bytes {
        found.push(Refusal::TooLittleMemory { needed_bytes: limits.memory_bytes, machine_bytes: capacity.memory_bytes });
    }
    let machine_millis = capacity.cpus.saturating_mul(1000);
    if limits.cpu_millis > machine_millis {
        found.push(Refusal::TooFewCpus { needed_millis: limits.cpu_millis, machine_millis });
    }
    let headroom_bytes = capacity.disk_headroom_bytes.saturating_sub(promised.disk_bytes);
    if limits.disk_bytes > headroom_bytes {
        found.push(Refusal::TooLittleDisk { needed_bytes: limits.disk_bytes, headroom_bytes });
    }
    if capacity.projects_running.saturating_add(promised.projects) >= capacity.max_running {
        found.push(Refusal::Full { max_running: capacity.max_running });
    }
    found
}

/// The least of three shares that would stay free with the project at its limits: of the machine's memory, of its disk (as headroom)
/// and of its run slots. From 0 to 1.
fn free_after(capacity: &Capacity, promised: &Promised, limits: &Limits) -> f64 {
    let share = |free: u64, taken: u64, needed: u64, total: u64| {
        if total == 0 { 0.0 } else { (free.saturating_sub(taken).saturating_sub(needed) as f64 / total as f64).clamp(0.0, 1.0) }
    };
    let memory = share(capacity.memory_available_bytes, promised.memory_bytes, limits.memory_bytes, capacity.memory_bytes);
    let disk = share(capacity.disk_headroom_bytes, promised.disk_bytes, limits.disk_bytes, capacity.disk_bytes);
    let slots = u64::from(capacity.max_running);
    let slots = share(slots, u64::from(capacity.projects_running) + u64::from(promised.projects), 1, slots);
    memory.min(disk).min(slots)
}

#[cfg(test)]
mod tests;
