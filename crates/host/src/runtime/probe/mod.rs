//! Finds out, once, what podman can do on this machine: a container is really started, with less and less asked of it until one starts.
//!
//! The container has no image: its root is a directory with mount points and the host's own static binary, which is asked for its version.
//! So nothing is left in podman's storage, and the answer is about the OCI runtime, cgroups, user namespace and network, as projects need
//! them.

mod info;
mod missing;
mod search;

use std::{fs, path::Path, time::Duration};

use atoll_contract::host::{Finding, Severity};
use rustix::process::{Resource, getrlimit};

use self::{
    info::{info, limits},
    missing::say_what_is_missing,
    search::{ProbeRoot, Search},
};
use super::{args::Ways, output::reason, podman::PodmanConfig};
use crate::{
    doctor::finding,
    exec::{self, End, ExecOutcome},
};

/// A container takes 0.1 to 0.3 s; a machine that needs longer than this can't run projects.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Where hosts read how many processes there may be. podman lowers its own limit to this, so that no container may have more.
const PID_MAX: &str = "/proc/sys/kernel/pid_max";

/// What was found out.
#[derive(Debug, Clone)]
pub(super) struct Probed {
    /// None if no container can run; the findings say why.
    pub(super) ways: Option<Ways>,
    pub(super) findings: Vec<Finding>,
}

pub(super) async fn probe(config: &PodmanConfig, random: &str) -> Probed {
    let mut findings = Vec::new();
    let ways = find_ways(config, random, &mut findings).await;
    Probed { ways, findings }
}

async fn find_ways(config: &PodmanConfig, random: &str, findings: &mut Vec<Finding>) -> Option<Ways> {
    let info = info(config, findings).await?;
    let major = info.version.split('.').next().and_then(|part| part.parse().ok()).unwrap_or(0);
    if major < 3 {
        findings.push(finding(
            "runtime.podman_old",
            Severity::Error,
            format!("podman is version {}; Atoll needs 3.4 or newer.", info.version),
            "Install a newer podman: Debian 12 and Ubuntu 22.04 and later have one.",
        ));
        return None;
    }
    if !exec::find(&config.binary).is_some_and(|path| is_static(&path)) {
        findings.push(finding(
            "runtime.agent_binary",
            Severity::Error,
            format!(
                "{} isn't a statically linked program, so containers without a libc can't run it as their agent.",
                config.binary.display()
            ),
            "Use a release build of atoll, or build with the repository's own .cargo/config.toml.",
        ));
        return None;
    }
    let wanted = Ways {
        oci: None,
        major,
        rootless: info.rootless,
        limits: limits(&info),
        ulimits: ulimits(),
        network: String::new(),
        userns_base: (!info.rootless).then_some(config.userns_base),
    };
    let root = ProbeRoot::new(random, wanted.userns_base)
        .map_err(|error| {
            findings.push(finding(
                "runtime.probe_directory",
                Severity::Error,
                format!("No directory for the probe's container can be made in {}: {error}.", std::env::temp_dir().display()),
                "Free space there, or set TMPDIR to a directory that can be written.",
            ));
        })
        .ok()?;
    let ways = Search { config, root: &root, name: format!("atoll-probe-{random}"), info: &info, findings }.run(wanted).await?;
    say_what_is_missing(&ways, &info, config, findings);
    findings.push(finding(
        "runtime.ok",
        Severity::Ok,
        format!(
            "podman {} runs containers: {}, {}, network {}, cgroups v{}.",
            info.version,
            if ways.rootless { "rootless" } else { "as root" },
            ways.oci.as_deref().unwrap_or(&info.oci),
            ways.network,
            if info.cgroup_v2 { 2 } else { 1 },
        ),
        "",
    ));
    Some(ways)
}

/// What a container may have at most of files and processes: our own hard limits, which are the most that a process without
/// `CAP_SYS_RESOURCE` may give.
fn ulimits() -> Vec<(&'static str, u64)> {
    let pid_max = fs::read_to_string(PID_MAX).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(32_768u64);
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).min(1 << 20);
    let processes = getrlimit(Resource::Nproc).maximum.unwrap_or(u64::MAX).min(pid_max);
    vec![("nofile", files), ("nproc", processes)]
}

/// Whether a file is an ELF program that needs no interpreter (ELF-64: program headers of type `PT_INTERP`, 3).
fn is_static(path: &Path) -> bool {
    use std::io::Read;
    let mut head = Vec::new();
    if fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut head)).is_err() || head.get(..5) != Some(b"\x7fELF\x02") {
        return false;
    }
    let short = |at: usize| head.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let table = head.get(32..40).and_then(|bytes| bytes.try_into().ok()).map_or(usize::MAX, |bytes| u64::from_le_bytes(bytes) as usize);
    let (size, count) = (short(54), short(56));
    !(0..count).any(|index| head.get(table.saturating_add(index * size)..).and_then(|entry| entry.get(..4)) == Some(&[3, 0, 0, 0]))
}

fn said_by(outcome: &ExecOutcome) -> String {
    match outcome.end {
        End::TimedOut => "it did not answer in time".into(),
        _ => match reason(&outcome.stderr.text()) {
            said if said.is_empty() => format!("it ended with {:?} and no message", outcome.end),
            said => said,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_programs_are_told_from_others() {
        assert!(is_static(&std::env::current_exe().unwrap()), "tests are linked statically, see .cargo/config.toml");
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/etc/passwd")));
    }
}
