//! The contract's views as tables and lists for people. Pure: the time is an argument.

use std::fmt::Write;

use atoll_contract::{
    Timestamp,
    agent::TerminalView,
    api::{AccountView, ApiKeyView},
    files::{FileEntry, FileKind},
    host::{Finding, HostState, HostView, Severity, StorageKind},
    operation::{OperationStatus, OperationView, Step},
    placement::{Placement, Refusal},
    project::{Intent, ObservedState, ProjectView},
};
use comfy_table::{Table, presets::NOTHING};

use crate::{
    errors::plain,
    values::{Cpus, Size, human_age, human_size},
};

/// Columns without lines around them, so that words can be cut out by other programs, too.
pub(super) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell).replace(['\n', '\t'], " ")));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `name  value` lines.
fn list(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().filter(|(_, value)| !value.is_empty()).fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:width$}  {}", plain(value).replace('\n', &format!("\n{:width$}  ", "")));
        text
    })
}

fn age(then: Timestamp, now: Timestamp) -> String {
    human_age(now.since(then))
}

fn in_or_ago(time: Option<Timestamp>, now: Timestamp) -> String {
    match time {
        None => "never".into(),
        Some(time) if time > now => format!("in {}", human_age(time.since(now))),
        Some(time) => format!("{} ago", human_age(now.since(time))),
    }
}

pub fn observed(state: ObservedState) -> &'static str {
    match state {
        ObservedState::Unknown => "unknown",
        ObservedState::Absent => "absent",
        ObservedState::Stopped => "stopped",
        ObservedState::Starting => "starting",
        ObservedState::Running => "running",
        ObservedState::Stopping => "stopping",
        ObservedState::Failed => "failed",
    }
}

fn intent(intent: Intent) -> &'static str {
    match intent {
        Intent::Running => "running",
        Intent::Stopped => "stopped",
        Intent::Deleted => "deleted",
    }
}

pub fn projects(projects: &[ProjectView], now: Timestamp) -> String {
    if projects.is_empty() {
        return "There are no projects yet; atoll project create makes one.".into();
    }
    table(
        &["NAME", "STATE", "HOST", "MEMORY", "CPU", "DISK", "IMAGE", "AGE", "ID"],
        projects.iter().map(|project| {
            let limits = &project.spec.limits;
            let used = project.used_bytes.map_or_else(|| "?".into(), human_size);
            vec![
                project.spec.name.clone(),
                observed(project.observed).into(),
                project.host_name.clone().unwrap_or_else(|| "-".into()),
                Size(limits.memory_bytes).to_string(),
                Cpus(limits.cpu_millis).to_string(),
                format!("{used}/{}", Size(limits.disk_bytes)),
                project.spec.image.clone(),
                age(project.created_at, now),
                project.id.to_string(),
            ]
        }),
    )
}

pub fn project(project: &ProjectView) -> String {
    let limits = &project.spec.limits;
    let env: Vec<String> = project.spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let error = project.error.as_ref().map(|error| crate::errors::render(error, false)).unwrap_or_default();
    list(&[
        ("name", project.spec.name.clone()),
        ("id", project.id.to_string()),
        ("state", observed(project.observed).into()),
        ("should be", intent(project.intent).into()),
        ("host", project.host_name.clone().unwrap_or_default()),
        ("generation", project.generation.map(|generation| generation.to_string()).unwrap_or_default()),
        ("image", project.spec.image.clone()),
        ("memory", Size(limits.memory_bytes).to_string()),
        ("cpu", Cpus(limits.cpu_millis).to_string()),
        ("pids", limits.pids.to_string()),
        ("disk", format!("{} of {}", project.used_bytes.map_or_else(|| "?".into(), human_size), Size(limits.disk_bytes))),
        ("env", env.join("\n")),
        ("operation", project.operation.map(|id| id.to_string()).unwrap_or_default()),
        ("created", project.created_at.to_string()),
        ("error", error),
    ])
}

fn host_state(host: &HostView) -> String {
    let state = match host.state {
        HostState::Online => "online",
        HostState::Unhealthy => "unhealthy",
        HostState::Offline => "offline",
    };
    if host.draining { format!("{state}, draining") } else { state.into() }
}

fn storage(kind: StorageKind) -> &'static str {
    match kind {
        StorageKind::Btrfs => "btrfs",
        StorageKind::Dir => "dir",
    }
}

pub fn hosts(hosts: &[HostView], now: Timestamp) -> String {
    if hosts.is_empty() {
        return "There are no hosts yet; atoll host join-token is the first step.".into();
    }
    table(
        &["NAME", "STATE", "RUNNING", "ASSIGNED", "MEMORY FREE", "DISK FREE", "STORAGE", "REGION", "SEEN", "ID"],
        hosts.iter().map(|host| {
            let capacity = host.capacity.as_ref();
            let facts = host.facts.as_ref();
            vec![
                host.name.clone(),
                host_state(host),
                capacity.map_or_else(|| "?".into(), |c| format!("{}/{}", c.projects_running, c.max_running)),
                host.assigned.to_string(),
                capacity.map_or_else(|| "?".into(), |c| human_size(c.memory_available_bytes)),
                capacity.map_or_else(|| "?".into(), |c| human_size(c.disk_headroom_bytes)),
                facts.map_or("?", |f| storage(f.storage)).into(),
                facts.map(|f| f.region.clone()).filter(|region| !region.is_empty()).unwrap_or_else(|| "-".into()),
                in_or_ago(host.last_report, now),
                host.id.to_string(),
            ]
        }),
    )
}

pub fn host(host: &HostView, now: Timestamp) -> String {
    let mut rows = vec![
        ("name", host.name.clone()),
        ("id", host.id.to_string()),
        ("state", host_state(host)),
        ("seen", in_or_ago(host.last_report, now)),
        ("joined", host.joined_at.to_string()),
        ("assigned", host.assigned.to_string()),
    ];
    if let Some(c) = &host.capacity {
        rows.extend([
            ("running", format!("{} of {}", c.projects_running, c.max_running)),
            ("cpus", c.cpus.to_string()),
            ("memory", format!("{} free of {}", human_size(c.memory_available_bytes), human_size(c.memory_bytes))),
            (
                "disk",
                format!(
                    "{} used of {}; {} for new projects",
                    human_size(c.disk_used_bytes),
                    human_size(c.disk_bytes),
                    human_size(c.disk_headroom_bytes)
                ),
            ),
        ]);
    }
    if let Some(f) = &host.facts {
        let can = [
            (f.capabilities.snapshots, "snapshots"),
            (f.capabilities.quotas, "quotas"),
            (f.capabilities.cheap_usage, "cheap usage"),
            (f.capabilities.send_receive, "send and receive"),
        ];
        let can: Vec<&str> = can.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        rows.extend([
            ("version", f.version.clone()),
            ("url", f.public_url.clone()),
            ("region", f.region.clone()),
            ("labels", f.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")),
            ("arch", f.arch.clone()),
            ("storage", format!("{} ({})", storage(f.storage), if can.is_empty() { "no extras".into() } else { can.join(", ") })),
        ]);
    }
    let mut text = list(&rows);
    if let Some(f) = host.facts.as_ref().filter(|f| !f.findings.is_empty()) {
        text.push('\n');
        text.push_str(&findings(&f.findings));
    }
    text
}

/// One finding a paragraph: severity, code, message, and what to do.
pub fn findings(findings: &[Finding]) -> String {
    findings.iter().fold(String::new(), |mut text, finding| {
        let severity = match finding.severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let _ = writeln!(text, "{severity:7}  {}: {}", finding.code, plain(&finding.message));
        if !finding.mend.is_empty() {
            let _ = writeln!(text, "         mend: {}", plain(&finding.mend).replace('\n', "\n         "));
        }
        text
    })
}

pub fn status(status: OperationStatus) -> &'static str {
    status.as_str()
}

pub fn step(step: Step) -> String {
    let name = serde_json::to_value(step).ok();
    name.as_ref().and_then(|name| name.as_str()).unwrap_or("?").replace('_', " ")
}

pub fn operations(operations: &[OperationView], now: Timestamp) -> String {
    if operations.is_empty() {
        return "There are no operations.".into();
    }
    table(
        &["KIND", "PROJECT", "STATUS", "STEP", "AGE", "ID", "ERROR"],
        operations.iter().map(|operation| {
            vec![
                operation.kind.as_str().into(),
                operation.project_name.clone(),
                status(operation.status).into(),
                step(operation.step),
                age(operation.created_at, now),
                operation.id.to_string(),
                operation.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
            ]
        }),
    )
}

pub fn operation(operation: &OperationView) -> String {
    let steps: Vec<String> = operation
        .steps
        .iter()
        .map(|one| {
            let mark = if *one == operation.step { "> " } else { "  " };
            let note = if *one == operation.point_of_no_return { "  (from here only forward)" } else { "" };
            format!("{mark}{}{note}", step(*one))
        })
        .collect();
    let attempts = if operation.attempts > 0 { operation.attempts.to_string() } else { String::new() };
    list(&[
        ("id", operation.id.to_string()),
        ("kind", operation.kind.as_str().into()),
        ("project", format!("{} ({})", operation.project_name, operation.project)),
        ("status", status(operation.status).into()),
        ("step", step(operation.step)),
        ("phase", operation.progress.phase.clone()),
        ("failed attempts", attempts),
        ("steps", steps.join("\n")),
        ("created", operation.created_at.to_string()),
        ("updated", operation.updated_at.to_string()),
        ("error", operation.error.as_ref().map(|error| crate::errors::render(error, false)).unwrap_or_default()),
    ])
}

/// Why a host can't take a project, in words.
pub fn refusals(refusals: &[Refusal]) -> String {
    let words: Vec<String> = refusals
        .iter()
        .map(|refusal| match refusal {
            Refusal::Offline => "offline".into(),
            Refusal::Unhealthy => "can't run projects (see host info)".into(),
            Refusal::Draining => "draining".into(),
            Refusal::NotThePinnedHost => "another host is required".into(),
            Refusal::OtherRegion { region } => format!("its region is {region:?}"),
            Refusal::MissingLabel { label } => format!("lacks the label {label}"),
            Refusal::NoSnapshots => "its storage has no snapshots".into(),
            Refusal::NoQuotas => "its storage doesn't enforce the disk limit".into(),
            Refusal::TooLittleMemory { needed_bytes, machine_bytes } => {
                format!("needs {} of memory, the machine has {}", human_size(*needed_bytes), human_size(*machine_bytes))
            }
            Refusal::TooFewCpus { needed_millis, machine_millis } => {
                format!("needs {} processors, the machine has {}", Cpus(*needed_millis), Cpus(*machine_millis))
            }
            Refusal::TooLittleDisk { needed_bytes, headroom_bytes } => {
                format!("needs {} of disk, {} are left for projects", human_size(*needed_bytes), human_size(*headroom_bytes))
            }
            Refusal::Full { max_running } => format!("runs {max_running} projects, its most"),
        })
        .collect();
    plain(&words.join("; "))
}

pub fn placement(placement: &Placement) -> String {
    if placement.candidates.is_empty() {
        return "There are no hosts.".into();
    }
    table(
        &["HOST", "", "FREE AFTER", "WHY NOT"],
        placement.candidates.iter().map(|candidate| {
            vec![
                candidate.name.clone(),
                if placement.chosen == Some(candidate.host) { "chosen".into() } else { String::new() },
                candidate.score.as_ref().map_or_else(|| "-".into(), |score| format!("{:.0} %", score.free_after * 100.0)),
                refusals(&candidate.refusals),
            ]
        }),
    )
}

pub fn accounts(accounts: &[AccountView], now: Timestamp) -> String {
    table(
        &["NAME", "ADMIN", "AGE", "ID"],
        accounts.iter().map(|account| {
            let admin = if account.admin { "yes" } else { "no" };
            vec![account.name.clone(), admin.into(), age(account.created_at, now), account.id.to_string()]
        }),
    )
}

pub fn keys(keys: &[ApiKeyView], now: Timestamp) -> String {
    if keys.is_empty() {
        return "There are no keys.".into();
    }
    table(
        &["NAME", "AGE", "EXPIRES", "USED", "ID"],
        keys.iter().map(|key| {
            vec![
                key.name.clone(),
                age(key.created_at, now),
                in_or_ago(key.expires_at, now),
                in_or_ago(key.used_at, now),
                key.id.to_string(),
            ]
        }),
    )
}

pub fn files(entries: &[FileEntry], now: Timestamp) -> String {
    table(
        &["MODE", "SIZE", "AGE", "NAME"],
        entries.iter().map(|entry| {
            let (kind, size, mark) = match entry.kind {
                FileKind::File => ('-', human_size(entry.size), String::new()),
                FileKind::Directory => ('d', "-".into(), "/".into()),
                FileKind::Symlink => ('l', "-".into(), format!(" -> {}", entry.target.as_deref().unwrap_or("?"))),
                FileKind::Other => ('?', "-".into(), String::new()),
            };
            vec![format!("{kind}{}", mode(entry.mode)), size, age(entry.modified_at, now), format!("{}{mark}", entry.name)]
        }),
    )
}

pub fn terminals(terminals: &[TerminalView], now: Timestamp) -> String {
    if terminals.is_empty() {
        return "There are no terminals; atoll shell opens one.".into();
    }
    table(
        &["NAME", "STATE", "VIEWERS", "SIZE", "AGE", "PROGRAM", "ID"],
        terminals.iter().map(|terminal| {
            let state = terminal.exit.as_ref().map_or_else(|| "running".into(), |exit| format!("ended ({})", exit.code));
            vec![
                terminal.name.clone(),
                state,
                terminal.viewers.to_string(),
                format!("{}x{}", terminal.size.cols, terminal.size.rows),
                age(terminal.opened_at, now),
                terminal.argv.join(" "),
                terminal.id.to_string(),
            ]
        }),
    )
}

/// Permission bits as `ls` writes them.
fn mode(bits: u32) -> String {
    (0..9).rev().map(|bit| if bits & (1 << bit) == 0 { '-' } else { ['x', 'w', 'r'][bit % 3] }).collect()
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
