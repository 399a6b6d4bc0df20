//! Hosts: how one joins, what it reports, what it can do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{HostId, Timestamp, claims::Jwks, project::ObservedProject};

/// Where a master serves HTTP unless it is told another port.
pub const MASTER_PORT: u16 = 7420;
/// Where a host serves HTTP unless it is told another port.
pub const HOST_PORT: u16 = 7430;
/// How often a host reports, in seconds.
pub const REPORT_INTERVAL_SECONDS: u64 = 5;
/// A host that hasn't reported for so many seconds is `offline`, its projects `unknown`.
pub const OFFLINE_AFTER_SECONDS: u64 = 20;

/// What a storage can do. Data, so that placement can require it and two hosts can negotiate a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct StorageCapabilities {
    pub snapshots: bool,
    /// Whether `disk_bytes` is enforced.
    pub quotas: bool,
    /// Whether a volume's use is known without walking it.
    pub cheap_usage: bool,
    /// btrfs send and receive.
    pub send_receive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StorageKind {
    Btrfs,
    Dir,
}

/// What a host has, in bytes and counts, and what is left for placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub memory_available_bytes: u64,
    pub disk_bytes: u64,
    pub disk_used_bytes: u64,
    /// What new projects may still be promised: free space less the reserve that the host keeps for itself.
    pub disk_headroom_bytes: u64,
    /// Projects with volumes here, and of those the running ones.
    pub projects: u32,
    pub projects_running: u32,
    /// The host's own bound on running projects.
    pub max_running: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be; said so that a reader sees that it was looked at.
    Ok,
    /// Works, with less than could be.
    Warning,
    /// Projects can't run, or not safely.
    Error,
}

/// One thing that `atoll doctor` or a host at its start found out about its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// Stable, such as `runtime.crun_refuses_cgroups`; listed in docs/reference/doctor.md.
    pub code: String,
    pub severity: Severity,
    pub message: String,
    /// What to do; empty where nothing needs doing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

/// What doesn't change while a host program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostFacts {
    /// Version of the host program.
    pub version: String,
    /// Where users reach the host: `http(s)://name:port`, no path.
    pub public_url: String,
    /// A place's name for placement, such as `eu-west`; empty if none is configured.
    #[serde(default)]
    pub region: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub storage: StorageKind,
    pub capabilities: StorageCapabilities,
    /// Machine architecture as in `uname -m`.
    pub arch: String,
    pub findings: Vec<Finding>,
}

/// What a host tells the master every [`REPORT_INTERVAL_SECONDS`], and at once when a project's state changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    pub host: HostId,
    /// New at every start of the host program, so that the master sees a restart.
    pub boot: String,
    /// Counts up within a boot; an older report that arrives late is dropped.
    pub sequence: u64,
    /// Sent with the first report of a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<HostFacts>,
    pub capacity: Capacity,
    pub healthy: bool,
    /// Whether `projects` is all that the host has; otherwise it is what has changed since the last acknowledged report.
    pub full: bool,
    pub projects: Vec<ObservedProject>,
}

/// The master's answer to a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    pub sequence: u64,
    pub now: Timestamp,
    /// The keys that tokens are signed with.
    pub jwks: Jwks,
    /// The master wants a full report with facts next: it doesn't know this boot.
    pub resend: bool,
}

/// Trades a one-time join token for membership. `POST /v1/hosts/join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub token: String,
    pub name: String,
    /// The host's public key as a NATS user nkey (`U…`): Ed25519, made on the host, whose seed never leaves it.
    pub public_key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinReply {
    #[schema(value_type = String)]
    pub host: HostId,
    pub name: String,
    pub jwks: Jwks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Reports, and says that it is healthy.
    Online,
    /// Reports that it can't run projects; see its findings.
    Unhealthy,
    /// Hasn't reported for [`OFFLINE_AFTER_SECONDS`], or never.
    Offline,
}

/// A host as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    #[schema(value_type = String)]
    pub id: HostId,
    pub name: String,
    pub state: HostState,
    /// Gets no new projects.
    pub draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<HostFacts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_report: Option<Timestamp>,
    #[schema(value_type = String)]
    pub joined_at: Timestamp,
    /// Projects assigned to it.
    pub assigned: u32,
}
