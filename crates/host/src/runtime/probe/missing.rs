//! What projects go without although containers start.

use std::fs;

use atoll_contract::host::{Finding, Severity};

use super::{
    super::{
        args::{MAPPED_IDS, Ways},
        podman::PodmanConfig,
    },
    info::Info,
};
use crate::doctor::finding;

pub(super) fn say_what_is_missing(ways: &Ways, info: &Info, config: &PodmanConfig, findings: &mut Vec<Finding>) {
    let missing: Vec<_> = [("memory", ways.limits.memory), ("cpu", ways.limits.cpu), ("pids", ways.limits.pids)]
        .iter()
        .filter(|(_, has)| !has)
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        findings.push(finding(
            "runtime.limits_missing",
            Severity::Warning,
            format!("These limits of projects are not enforced, for want of cgroup controllers: {}.", missing.join(", ")),
            if ways.rootless {
                "Run the host as root, or delegate the controllers to the user (systemd: Delegate=cpu memory pids in user@.service)."
            } else {
                "Boot with the kernel parameter cgroup_enable=memory, or with cgroups v2."
            },
        ));
    } else if !ways.limits.swap {
        findings.push(finding(
            "runtime.swap_unlimited",
            Severity::Warning,
            "The kernel doesn't account swap, so a project's memory limit doesn't count what is swapped out.".to_owned(),
            "Boot with the kernel parameter swapaccount=1, or without swap.",
        ));
    }
    if let Some((_, files)) = ways.ulimits.iter().find(|(name, files)| *name == "nofile" && *files < 65_536) {
        findings.push(finding(
            "runtime.few_files",
            Severity::Warning,
            format!("A process in a project may open {files} files at most, since the host program may not either."),
            "Raise the host program's hard limit (systemd: LimitNOFILE=1048576).",
        ));
    }
    if ways.rootless {
        if overlapping("/etc/subuid", 0, u64::from(u32::MAX)).is_none() {
            findings.push(finding(
                "runtime.subuid_missing",
                Severity::Warning,
                "No subordinate ids are given to users here, so a rootless container has one user only, and most packages don't install in it."
                    .to_owned(),
                "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
            ));
        }
        return;
    }
    if info.driver != "overlay" || !info.native_overlay {
        findings.push(finding(
            "runtime.slow_mapping",
            Severity::Warning,
            format!("podman's storage driver {} copies an image for the user namespace at its first start.", info.driver),
            "Use the overlay driver of the kernel for podman's storage.",
        ));
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        if let Some(owner) = overlapping(file, u64::from(config.userns_base), u64::from(MAPPED_IDS)) {
            findings.push(finding(
                "runtime.user_namespace_overlap",
                Severity::Warning,
                format!("The ids that projects are mapped to overlap with those of {owner} in {file}."),
                "Set another runtime.userns_base, the same on all hosts.",
            ));
        }
    }
}

/// Who has ids in this range, by a file of lines `name:first:count`.
fn overlapping(file: &str, first: u64, count: u64) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut parts = line.split(':');
        let (name, from, many) = (parts.next()?, parts.next()?.parse::<u64>().ok()?, parts.next()?.trim().parse::<u64>().ok()?);
        (from < first + count && first < from + many).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# comment\nann:100000:65536\nbob:200000:10\nbroken\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(overlapping(path, 165_535, 10).as_deref(), Some("ann"));
        assert_eq!(overlapping(path, 165_536, 10), None);
        assert_eq!(overlapping(path, 0, u64::from(u32::MAX)).as_deref(), Some("ann"));
        assert_eq!(overlapping("/nonexistent", 0, 10), None);
    }
}
