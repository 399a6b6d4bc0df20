//! Placement: what a project requires of a host, and why each host was chosen or refused. The decision itself is a pure
//! function in the master.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{HostId, project::Limits};

/// What a project requires of its host beyond room for its limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Requirements {
    /// Only this host (id or name).
    pub host: Option<String>,
    /// Only hosts of this region.
    pub region: Option<String>,
    /// Only hosts with all these labels.
    pub labels: BTreeMap<String, String>,
    /// Only hosts whose storage has snapshots.
    pub snapshots: bool,
    /// Only hosts whose storage enforces the disk limit.
    pub quotas: bool,
}

/// Why a host can't take a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Refusal {
    /// It doesn't report.
    Offline,
    /// It reports that it can't run projects.
    Unhealthy,
    Draining,
    /// Another host is required.
    NotThePinnedHost,
    OtherRegion {
        region: String,
    },
    MissingLabel {
        label: String,
    },
    NoSnapshots,
    NoQuotas,
    /// More memory than the machine has.
    TooLittleMemory {
        needed_bytes: u64,
        machine_bytes: u64,
    },
    /// More processors than the machine has.
    TooFewCpus {
        needed_millis: u32,
        machine_millis: u32,
    },
    TooLittleDisk {
        needed_bytes: u64,
        headroom_bytes: u64,
    },
    /// Its bound on running projects is reached.
    Full {
        max_running: u32,
    },
}

/// What was weighed on the chosen host, higher is better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Score {
    /// 0 to 1: the share of memory, of disk headroom and of run slots that would stay free; the least of them decides.
    pub free_after: f64,
}

/// One host as placement saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    #[schema(value_type = String)]
    pub host: HostId,
    pub name: String,
    /// Empty if the host could take the project.
    pub refusals: Vec<Refusal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
}

/// The outcome of placement, with its reasons. `POST /v1/placement` gives it without creating anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub chosen: Option<HostId>,
    /// All hosts, best first, the refused ones last.
    pub candidates: Vec<Candidate>,
}

/// `POST /v1/placement`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementRequest {
    pub limits: Limits,
    pub requirements: Requirements,
}
