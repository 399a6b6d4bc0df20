//! The bus's side of the hosts: reports come in, changes of projects go out.

use std::{sync::Arc, time::Duration};

use atoll_contract::{HostId, ProjectId, host::HostReport, subject};
use atoll_net::bus::{Conn, Message, Subscription};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Hosts;
use crate::{projects, store::Store};

/// Where all hosts report. Which of them may publish where is the bus's to enforce, by its permissions.
pub(crate) const REPORTS: &str = "host.*.report";
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Before a lost subscription is made again.
const AGAIN: Duration = Duration::from_millis(500);
/// Projects published in one go, so that many changes of one project at once become one message.
const BATCH: usize = 256;

/// Takes reports in until `cancel`. A subscription that the bus ends, because reports came faster than they were read, is made again.
pub(crate) async fn serve_reports(hosts: Arc<Hosts>, conn: Arc<dyn Conn>, mut reports: Subscription, cancel: CancellationToken) {
    loop {
        let message = tokio::select! {
            () = cancel.cancelled() => return,
            message = reports.next() => message,
        };
        let Some(message) = message else {
            tracing::warn!("the bus has ended the subscription to reports; subscribing again");
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
            if let Ok(again) = conn.subscribe(REPORTS, None).await {
                reports = again;
            }
            continue;
        };
        let Some(report) = read(&message) else { continue };
        let Some(ack) = hosts.report(report) else { continue };
        if let (Some(reply), Ok(payload)) = (message.reply, serde_json::to_vec(&ack)) {
            let sent = conn.publish(Message::new(reply, payload)).await;
            if let Err(error) = sent {
                tracing::debug!(%error, "a report wasn't acknowledged; the host sends it again");
            }
        }
    }
}

/// A report that parses and is from the host in whose name its subject is.
fn read(message: &Message) -> Option<HostReport> {
    let sender = message.subject.strip_prefix("host.")?.strip_suffix(".report")?.parse::<HostId>().ok()?;
    match serde_json::from_slice::<HostReport>(&message.payload) {
        Ok(report) if report.host == sender => Some(report),
        Ok(report) => {
            tracing::warn!(host = %sender, claims = %report.host, "a host reports in another's name; dropped");
            None
        }
        Err(error) => {
            tracing::warn!(host = %sender, %error, "a report can't be understood; is the host of another version?");
            None
        }
    }
}

/// Looks for hosts that have fallen silent, until `cancel`.
pub(crate) async fn watch_for_silence(hosts: Arc<Hosts>, cancel: CancellationToken) {
    let mut beat = tokio::time::interval(SWEEP_EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = beat.tick() => hosts.sweep().await,
        }
    }
}

/// Publishes the projects that change, each to its owner, until `cancel`.
pub(crate) async fn announce_changes(
    hosts: Arc<Hosts>,
    store: Store,
    conn: Arc<dyn Conn>,
    mut changes: mpsc::Receiver<ProjectId>,
    cancel: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        let count = tokio::select! {
            () = cancel.cancelled() => return,
            count = changes.recv_many(&mut batch, BATCH) => count,
        };
        if count == 0 {
            return;
        }
        batch.sort_unstable();
        batch.dedup();
        for project in &batch {
            let row = match store.project(*project).await {
                Ok(Some(row)) => row,
                Ok(None) => continue, // not the master's, or forgotten by now
                Err(error) => {
                    tracing::warn!(%error, "a project's change wasn't published");
                    continue;
                }
            };
            let subject = subject::account_project(row.owner, row.id);
            if let Ok(payload) = serde_json::to_vec(&projects::view(row, &hosts))
                && let Err(error) = conn.publish(Message::new(subject, payload)).await
            {
                tracing::debug!(%error, "a project's change wasn't published");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use atoll_contract::host::Capacity;

    use super::*;

    #[test]
    fn a_report_counts_only_on_its_own_hosts_subject() {
        let host: HostId = "0198c0de-0000-7000-8000-0000000000a1".parse().unwrap();
        let other: HostId = "0198c0de-0000-7000-8000-0000000000a2".parse().unwrap();
        let (boot, capacity) = ("boot".to_owned(), Capacity::default());
        let report = HostReport { host, boot, sequence: 1, facts: None, capacity, healthy: true, full: true, projects: Vec::new() };
        let payload = serde_json::to_vec(&report).unwrap();
        assert_eq!(read(&Message::new(subject::host_report(host), payload.clone())), Some(report));
        assert_eq!(read(&Message::new(subject::host_report(other), payload.clone())), None);
        assert_eq!(read(&Message::new("host.x.report", payload)), None);
        assert_eq!(read(&Message::new(subject::host_report(host), "{")), None);
    }
}
