//! Reports to the master: all at the beginning of a connection, then what has changed, at once and every few seconds.

use std::time::Duration;

use atoll_contract::{
    KeySet, ProjectId,
    claims::CLOCK_SKEW_SECONDS,
    host::{HostReport, REPORT_INTERVAL_SECONDS, ReportAck, Severity},
    project::ObservedProject,
    subject,
};
use atoll_net::clock::random_text;
use tokio::{sync::watch, time::Instant};

use super::{Uplink, capacity::capacity};
use crate::projects::{Changes, Projects};

/// Changes that come within so long after the first go in one report.
const DEBOUNCE: Duration = Duration::from_millis(10);
const ACK_WAIT: Duration = Duration::from_secs(3);
/// Projects in one report of changes.
const MAX_CHANGES: usize = 200;
/// A host with more projects sends all of them as changes, in several reports.
const MAX_FULL: usize = 2000;
/// Bytes of a report's projects: below the bus's 1 MiB with room for the rest. A report that the bus doesn't take would be made again for ever,
/// and the host would look as if it were silent.
const MAX_BYTES: usize = 768 << 10;
/// Bytes of an error's facts, and of its texts, that a report carries; who gave the command has got them whole.
const MAX_DETAILS: usize = 2 << 10;
const MAX_TEXT: usize = 2 << 10;
/// Projects whose use is read before a report.
const MEASURED: usize = 64;

pub(super) struct Reporter {
    uplink: Uplink,
    client: async_nats::Client,
    boot: String,
    sequence: u64,
    /// The projects' version that the master has acknowledged.
    acked: u64,
    /// The connection on which a report with facts was acknowledged.
    introduced: Option<u64>,
    measured: Option<ProjectId>,
    /// Whether the clocks' difference was told.
    skew_told: bool,
}

/// Why a report is made.
#[derive(Debug, PartialEq, Eq)]
enum Cause {
    Tick,
    Change,
    Connection,
}

impl Reporter {
    pub(super) fn new(uplink: Uplink, client: async_nats::Client) -> Self {
        let boot = random_text(&*uplink.clock);
        Self { uplink, client, boot, sequence: 0, acked: 0, introduced: None, measured: None, skew_told: false }
    }

    pub(super) async fn run(mut self, mut connection: watch::Receiver<u64>) {
        let interval = Duration::from_secs(REPORT_INTERVAL_SECONDS);
        let mut changed = self.uplink.projects.version();
        // nothing is sent before there is a connection: the client would keep it and send old reports later
        if connection.wait_for(|connection| *connection > 0).await.is_err() {
            return;
        }
        let (mut next, mut more) = (Instant::now(), false);
        loop {
            let cause = if more {
                Cause::Change
            } else {
                tokio::select! {
                    biased;
                    new = connection.changed() => match new {
                        Ok(()) => Cause::Connection,
                        Err(_) => return,
                    },
                    () = tokio::time::sleep_until(next) => Cause::Tick,
                    Ok(()) = changed.changed() => {
                        tokio::time::sleep(DEBOUNCE).await;
                        Cause::Change
                    }
                }
            };
            let number = *connection.borrow_and_update();
            changed.borrow_and_update();
            if self.client.connection_state() != async_nats::connection::State::Connected {
                more = false;
                next = Instant::now() + interval;
                continue; // the next connection's first report has it
            }
            if cause == Cause::Tick {
                self.measured = self.uplink.projects.measure_some(self.measured, MEASURED).await;
            }
            more = tokio::select! {
                biased;
                more = self.report(number) => more,
                // the answer would have come over the connection that is gone
                _ = connection.changed() => {
                    connection.mark_changed();
                    false
                }
            };
            next = Instant::now() + interval;
        }
    }

    /// Sends one report and takes its acknowledgement. Returns whether there is more to be said at once.
    async fn report(&mut self, connection: u64) -> bool {
        let projects = &self.uplink.projects;
        let first = self.introduced != Some(connection);
        let all = if first { Some(slimmed(projects.all())).filter(|all| fits(all, MAX_FULL)) } else { None };
        if first && all.is_none() {
            self.acked = 0;
        }
        let full = all.is_some();
        let changes = all.unwrap_or_else(|| some_changes(projects, self.acked));
        self.sequence += 1;
        let (capacity, storage_answers) = capacity(&*self.uplink.storage, projects, self.uplink.bounds).await;
        let sound = !self.uplink.facts.findings.iter().any(|finding| finding.severity == Severity::Error);
        let report = HostReport {
            host: self.uplink.identity.host,
            boot: self.boot.clone(),
            sequence: self.sequence,
            facts: first.then(|| self.uplink.facts.clone()),
            capacity,
            healthy: sound && storage_answers && projects.answering(),
            full,
            projects: changes.projects,
        };
        let Some(ack) = self.send(&report).await else { return false };
        self.acked = changes.version;
        projects.acknowledge(changes.version);
        self.introduced = (!ack.resend).then_some(connection);
        self.take(&ack).await;
        // a master that isn't content with all and the facts is asked again at the next tick, not at once
        (ack.resend && !first) || changes.more
    }

    async fn send(&self, report: &HostReport) -> Option<ReportAck> {
        let text = serde_json::to_vec(report).inspect_err(|error| tracing::error!(%error, "a report can't be written")).ok()?;
        let request = self.client.request(subject::host_report(report.host), text.into());
        let answer = match tokio::time::timeout(ACK_WAIT, request).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the master takes no report");
                return None;
            }
            Err(_) => {
                tracing::warn!("the master didn't acknowledge a report in time");
                return None;
            }
        };
        let ack = serde_json::from_slice::<ReportAck>(&answer.payload);
        let ack = ack.inspect_err(|error| tracing::warn!(%error, "the master's acknowledgement can't be read")).ok()?;
        (ack.sequence == report.sequence).then_some(ack)
    }

    /// Takes over the keys, and looks whether the clocks agree.
    async fn take(&mut self, ack: &ReportAck) {
        let now = self.uplink.clock.now();
        let apart = now.since(ack.now).max(ack.now.since(now));
        let skewed = apart > Duration::from_secs(CLOCK_SKEW_SECONDS.unsigned_abs());
        if skewed && !self.skew_told {
            tracing::warn!(seconds = apart.as_secs(), "this machine's clock and the master's differ, so tokens may be refused");
        }
        self.skew_told = skewed;
        if ack.jwks == self.uplink.identity.jwks {
            return;
        }
        self.uplink.keys.set(KeySet::new(&ack.jwks));
        self.uplink.identity.jwks = ack.jwks.clone();
        let (identity, data_dir) = (self.uplink.identity.clone(), self.uplink.data_dir.clone());
        let saved = tokio::task::spawn_blocking(move || identity.save(&data_dir)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(%error, "the master's new keys can't be saved; they hold until the host program ends");
        }
    }
}

/// As many changes as one report holds; a single one always does (see [`slim`]).
fn some_changes(projects: &Projects, since: u64) -> Changes {
    let mut most = MAX_CHANGES;
    loop {
        let changes = slimmed(projects.changes(since, most));
        if most == 1 || fits(&changes, most) {
            return changes;
        }
        most /= 2;
    }
}

fn fits(changes: &Changes, most: usize) -> bool {
    changes.projects.len() <= most && serde_json::to_vec(&changes.projects).is_ok_and(|text| text.len() <= MAX_BYTES)
}

fn slimmed(mut changes: Changes) -> Changes {
    changes.projects.iter_mut().for_each(slim);
    changes
}

/// Leaves out an error's facts where they are long, and the ends of long texts.
fn slim(observed: &mut ObservedProject) {
    let Some(error) = &mut observed.error else { return };
    if error.details.as_ref().is_some_and(|details| details.to_string().len() > MAX_DETAILS) {
        error.details = None;
    }
    error.message.truncate(error.message.floor_char_boundary(MAX_TEXT));
    error.mend.truncate(error.mend.floor_char_boundary(MAX_TEXT));
}

#[cfg(test)]
mod tests {
    use atoll_contract::{Error, ErrorCode, project::ObservedState};

    use super::*;
    use crate::projects::testing::{RUN, Rig, command, id};

    #[test]
    fn one_project_always_fits() {
        let error = Error::new(ErrorCode::StartFailed, "\u{1}".repeat(1 << 20)).mend("ä".repeat(1 << 20));
        let details = serde_json::json!({ "log": "\u{1}".repeat(1 << 20) });
        let mut observed = ObservedProject {
            project: id(3),
            generation: atoll_contract::Generation(1),
            state: ObservedState::Failed,
            error: Some(error.details(details)),
            used_bytes: None,
        };
        slim(&mut observed);
        assert!(fits(&Changes { projects: vec![observed; 8], version: 1, more: false }, 8));
    }

    #[tokio::test]
    async fn changes_come_in_as_many_reports_as_it_takes() {
        let rig = Rig::new().await;
        // one with a long error for each; 150 of them are more than one report holds
        let text = "\u{1}".repeat(MAX_TEXT);
        rig.runtime.faults(|faults| faults.start = Some(Error::new(ErrorCode::StartFailed, text)));
        for n in 1..=150u8 {
            rig.create(id(n)).await;
            rig.tell(command(id(n), 1, 1, RUN)).await.unwrap_err();
        }
        assert!(!fits(&slimmed(rig.projects.all()), MAX_FULL));
        let (mut since, mut told) = (0, 0);
        loop {
            let changes = some_changes(&rig.projects, since);
            assert!(fits(&changes, MAX_CHANGES) && !changes.projects.is_empty());
            (since, told) = (changes.version, told + changes.projects.len());
            if !changes.more {
                break;
            }
        }
        assert_eq!(told, 150);
    }
}
