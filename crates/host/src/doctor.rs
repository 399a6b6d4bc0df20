//! Everything that `atoll doctor` looks at: the kernel, tools, the runtime and the storage, as findings with stable codes.
//!
//! All codes are listed in docs/reference/doctor.md; a test keeps the two equal.

use std::path::Path;

use atoll_contract::host::{Finding, Severity};
use atoll_net::clock::SharedClock;

use crate::{
    exec,
    runtime::{
        Runtime,
        podman::{PodmanConfig, PodmanRuntime},
    },
    storage::{self, StorageConfig},
};

/// A finding. The code is a literal wherever this is called, so that the test below finds all of them.
pub(crate) fn finding(code: &str, severity: Severity, message: String, mend: &str) -> Finding {
    Finding { code: code.into(), severity, message, mend: mend.into() }
}

/// Looks at the whole machine. Starts a container for a moment to see what works; changes nothing that stays.
pub async fn examine(podman: PodmanConfig, storage: StorageConfig, clock: SharedClock) -> Vec<Finding> {
    let mut findings = machine();
    findings.extend(PodmanRuntime::open(podman, clock).await.findings());
    let looked = tokio::task::spawn_blocking(move || storage::inspect(&storage)).await;
    findings.extend(looked.unwrap_or_default());
    findings
}

/// The kernel and the tools, without starting anything.
pub fn machine() -> Vec<Finding> {
    let mut findings = vec![kernel(&rustix::system::uname().release().to_string_lossy())];
    if exec::find(Path::new("mkfs.btrfs")).is_none() {
        findings.push(finding(
            "tools.btrfs_progs",
            Severity::Warning,
            "The btrfs tools are not installed, so no btrfs file system can be made here.".to_owned(),
            "sudo apt-get install -y btrfs-progs",
        ));
    }
    findings
}

/// openat2, by which files are served beneath a root, came with 5.6; simple quotas with 6.7.
fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (5, 6) {
        let message = format!("The kernel is {release}; files can't be served safely before 5.6 (openat2).");
        return finding("kernel.too_old", Severity::Error, message, "Install a newer kernel: Debian 12 and Ubuntu 22.04 have one.");
    }
    if version < (6, 7) {
        let message =
            format!("The kernel is {release}; btrfs has simple quotas from 6.7 on, and classic ones are slower and can be evaded.");
        return finding("kernel.no_simple_quotas", Severity::Warning, message, "Install a newer kernel, such as Debian's backports have.");
    }
    finding("kernel.ok", Severity::Ok, format!("The kernel is {release}."), "")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kernels() {
        for (release, code) in [
            ("5.4.0-42-generic", "kernel.too_old"),
            ("5.6.0", "kernel.no_simple_quotas"),
            ("6.1.0-38-amd64", "kernel.no_simple_quotas"),
            ("6.7", "kernel.ok"),
            ("6.18.44", "kernel.ok"),
            ("10.0", "kernel.ok"),
            ("odd", "kernel.too_old"),
        ] {
            assert_eq!(kernel(release).code, code, "{release}");
        }
    }

    /// String literals in the source of this crate that have the form of a finding's code.
    fn codes(text: &str) -> BTreeSet<String> {
        let part =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        text.split(['"', '`'])
            .filter(|word| {
                word.split_once('.').is_some_and(|(group, name)| ["kernel", "runtime", "storage", "tools"].contains(&group) && part(name))
            })
            .map(Into::into)
            .collect()
    }

    fn source(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                source(&entry.path(), text);
            } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
                let file = std::fs::read_to_string(entry.path()).unwrap();
                text.push_str(file.split("#[cfg(test)]").next().unwrap());
            }
        }
    }

    #[test]
    fn every_code_is_documented_and_every_documented_code_exists() {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut text = String::new();
        source(&crate_root.join("src"), &mut text);
        let documented = std::fs::read_to_string(crate_root.join("../../docs/reference/doctor.md")).unwrap();
        // the page names each code in the first cell of a table's row
        let rows: String =
            documented.lines().filter(|line| line.starts_with("| `")).map(|line| line.split('|').nth(1).unwrap_or("")).collect();
        assert_eq!(codes(&text), codes(&rows));
        assert!(codes(&text).len() > 10);
    }
}
