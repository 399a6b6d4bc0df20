//! What podman says of itself and of the machine.

use std::{fs, path::Path};

use atoll_contract::host::{Finding, Severity};
use serde_json::Value;

use super::{
    super::{
        args::{self, LimitsKept},
        podman::PodmanConfig,
    },
    PROBE_TIMEOUT, said_by,
};
use crate::{
    doctor::finding,
    exec::{self, Call, End},
};

/// What `podman info` says, as far as it matters.
#[derive(Debug, Clone, Default)]
pub(super) struct Info {
    pub(super) version: String,
    pub(super) rootless: bool,
    pub(super) oci: String,
    pub(super) cgroup_v2: bool,
    pub(super) controllers: Vec<String>,
    pub(super) driver: String,
    pub(super) native_overlay: bool,
}

pub(super) async fn info(config: &PodmanConfig, findings: &mut Vec<Finding>) -> Option<Info> {
    // podman doesn't start at all if its default OCI runtime is missing, so others are named when that happens
    let mut said = String::new();
    for oci in [config.oci_runtime.as_deref(), Some("runc"), Some("crun")] {
        let mut arguments = args::global(oci);
        arguments.extend(["info", "--format", "json"].map(Into::into));
        let outcome = match exec::run(Call::new(&config.podman).args(arguments).timeout(PROBE_TIMEOUT)).await {
            Ok(outcome) => outcome,
            Err(error) => {
                findings.push(finding(
                    "runtime.podman_missing",
                    Severity::Error,
                    format!("podman can't be run: {error}."),
                    "sudo apt-get install -y podman",
                ));
                return None;
            }
        };
        if outcome.success()
            && let Ok(json) = serde_json::from_slice::<Value>(&outcome.stdout.bytes)
        {
            return Some(read_info(&json));
        }
        if outcome.end == End::TimedOut {
            findings.push(finding(
                "runtime.podman_hangs",
                Severity::Error,
                format!("podman info did not answer within {} s.", PROBE_TIMEOUT.as_secs()),
                "See what `podman --log-level=debug info` waits for; another podman may hold its locks.",
            ));
            return None;
        }
        said = said_by(&outcome);
    }
    findings.push(finding(
        "runtime.podman_failed",
        Severity::Error,
        format!("podman info fails: {said}"),
        "Mend what it says; `sudo apt-get install -y podman runc netavark` has what it needs.",
    ));
    None
}

fn read_info(json: &Value) -> Info {
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Info {
        version: text("/version/Version"),
        rootless: json.pointer("/host/security/rootless").and_then(Value::as_bool).unwrap_or(!rustix::process::geteuid().is_root()),
        oci: text("/host/ociRuntime/name"),
        cgroup_v2: text("/host/cgroupVersion") == "v2",
        controllers: json
            .pointer("/host/cgroupControllers")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).map(Into::into).collect())
            .unwrap_or_default(),
        driver: text("/store/graphDriverName"),
        native_overlay: text("/store/graphStatus/Native Overlay Diff") == "true",
    }
}

/// Which limits the machine has cgroups for. Rootless podman has none on cgroups v1.
pub(super) fn limits(info: &Info) -> LimitsKept {
    if info.rootless && !info.cgroup_v2 {
        return LimitsKept::default();
    }
    let has = |name: &str| info.controllers.iter().any(|controller| controller == name);
    let swap = if info.cgroup_v2 {
        // the root group has no such file; any child has it if the kernel accounts swap
        fs::read_dir("/sys/fs/cgroup").is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists()))
    } else {
        Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
    };
    LimitsKept { memory: has("memory"), swap: has("memory") && swap, cpu: has("cpu"), pids: has("pids") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_as_podman_4_gives_it() {
        let json = serde_json::json!({
            "host": { "cgroupVersion": "v1", "cgroupControllers": ["cpu", "memory", "pids"], "ociRuntime": { "name": "crun" },
                "security": { "rootless": false } },
            "store": { "graphDriverName": "overlay", "graphStatus": { "Native Overlay Diff": "true" } },
            "version": { "Version": "4.3.1" },
        });
        let info = read_info(&json);
        assert_eq!((info.version.as_str(), info.oci.as_str(), info.driver.as_str()), ("4.3.1", "crun", "overlay"));
        assert!(!info.rootless && !info.cgroup_v2 && info.native_overlay && info.controllers.len() == 3);
        assert!(limits(&info).memory && limits(&info).cpu && limits(&info).pids);
        assert_eq!(limits(&Info { rootless: true, ..info }), LimitsKept::default());
    }
}
