//! Starts container after container until one starts.

use std::{fs, os::unix::fs::PermissionsExt};

use atoll_contract::{
    agent::{AGENT_BINARY_PATH, HOME_PATH},
    host::{Finding, Severity},
    project::Limits,
};
use rustix::fs::{Gid, Uid};

use super::{
    super::{
        args::{self, LimitsKept, Ways},
        podman::PodmanConfig,
    },
    PROBE_TIMEOUT,
    info::Info,
    said_by,
};
use crate::{
    doctor::finding,
    exec::{self, Call},
};

/// Tries container after container, each asking less.
pub(super) struct Search<'a> {
    pub(super) config: &'a PodmanConfig,
    pub(super) root: &'a ProbeRoot,
    pub(super) name: String,
    pub(super) info: &'a Info,
    pub(super) findings: &'a mut Vec<Finding>,
}

impl Search<'_> {
    pub(super) async fn run(&mut self, wanted: Ways) -> Option<Ways> {
        let mut refusals: Vec<(String, String)> = Vec::new();
        let default = self.info.oci.as_str();
        let runtimes: Vec<Option<&str>> = match &self.config.oci_runtime {
            Some(own) => vec![Some(own)],
            None => [None].into_iter().chain(["runc", "crun"].into_iter().filter(|name| *name != default).map(Some)).collect(),
        };
        // all limits first, with every runtime; then without limits; what refuses even that can't be used
        for limits in [wanted.limits, LimitsKept::default()] {
            for oci in &runtimes {
                let ways = Ways { oci: oci.map(Into::into), limits, ..wanted.clone() };
                match self.with_network(ways).await {
                    Ok(ways) => {
                        self.say_refused(&refusals, &ways);
                        if limits != wanted.limits {
                            let reasons: Vec<_> = refusals.iter().map(|(name, said)| format!("{name}: {said}")).collect();
                            self.findings.push(finding(
                                "runtime.limits_refused",
                                Severity::Warning,
                                format!("Containers start only without limits of memory, cpu and pids ({}).", reasons.join("; ")),
                                "Use a machine with cgroups v2, or sudo apt-get install -y runc",
                            ));
                        }
                        return Some(ways);
                    }
                    Err(said) => refusals.push((oci.unwrap_or(default).to_owned(), said)),
                }
            }
        }
        self.say_none_works(wanted, &refusals).await;
        None
    }

    /// The first network that works, else none. An error is the OCI runtime's.
    async fn with_network(&mut self, ways: Ways) -> Result<Ways, String> {
        let choices: Vec<&str> = match self.config.network.as_deref() {
            Some(own) => vec![own],
            None if ways.rootless && ways.major >= 5 => vec!["pasta", "slirp4netns"],
            None if ways.rootless => vec!["slirp4netns", "pasta"],
            None => vec!["bridge"],
        };
        let mut why = Vec::new();
        for network in choices {
            let ways = Ways { network: network.into(), ..ways.clone() };
            match self.starts(&ways).await {
                Ok(()) => return Ok(ways),
                Err(said) => why.push(said),
            }
        }
        // is it the network, or all of it?
        let ways = Ways { network: "none".into(), ..ways };
        self.starts(&ways).await?;
        self.findings.push(finding(
            "runtime.network_none",
            Severity::Warning,
            format!("Projects have no network, since podman can't make one: {}", why.join("; ")),
            if ways.rootless {
                "sudo apt-get install -y slirp4netns, and let users open /dev/net/tun (sudo chmod 0666 /dev/net/tun)."
            } else {
                "sudo apt-get install -y netavark iptables"
            },
        ));
        Ok(ways)
    }

    async fn starts(&self, ways: &Ways) -> Result<(), String> {
        let mut arguments = args::global(ways.oci.as_deref());
        arguments.extend(["run", "--rm", "--log-driver=none", "--name", &self.name].map(Into::into));
        arguments.extend(args::walls(ways, &Limits::default()));
        for (from, to, mode) in [(self.config.binary.as_path(), AGENT_BINARY_PATH, "ro"), (&self.root.home(), HOME_PATH, "rw")] {
            arguments.push(format!("--volume={}:{to}:{mode}", from.display()));
        }
        arguments.push("--rootfs".into());
        arguments.push(self.root.rootfs().display().to_string());
        arguments.extend([AGENT_BINARY_PATH, "--version"].map(Into::into));
        let outcome =
            exec::run(Call::new(&self.config.podman).args(arguments).timeout(PROBE_TIMEOUT)).await.map_err(|error| error.to_string())?;
        if outcome.success() {
            return Ok(());
        }
        // a start that failed leaves its container at times
        let mut arguments = args::global(ways.oci.as_deref());
        arguments.extend(["rm", "--force", &self.name].map(Into::into));
        let _ = exec::run(Call::new(&self.config.podman).args(arguments).timeout(PROBE_TIMEOUT)).await;
        Err(said_by(&outcome))
    }

    fn say_refused(&mut self, refusals: &[(String, String)], ways: &Ways) {
        let works = ways.oci.as_deref().unwrap_or(&self.info.oci);
        for (name, said) in refusals.iter().filter(|(name, _)| name != works) {
            let (code, mend) = if said.contains("cgroup") {
                ("runtime.crun_refuses_cgroups", "Nothing needs doing; a machine with cgroups v2 only doesn't have this.")
            } else {
                ("runtime.oci_refused", "Nothing needs doing as long as the other works.")
            };
            let message = format!("The OCI runtime {name} refuses to start containers here, so {works} is used: {said}");
            if !self.findings.iter().any(|other| other.code == code) {
                self.findings.push(finding(code, Severity::Warning, message, mend));
            }
        }
    }

    async fn say_none_works(&mut self, wanted: Ways, refusals: &[(String, String)]) {
        let mapped = wanted.userns_base.is_some();
        let plain = Ways { userns_base: None, limits: LimitsKept::default(), network: "none".into(), ..wanted };
        for oci in [None, Some("runc".to_owned())] {
            if mapped && self.starts(&Ways { oci, ..plain.clone() }).await.is_ok() {
                let said = refusals.first().map_or("", |(_, said)| said.as_str());
                self.findings.push(finding(
                    "runtime.user_namespace",
                    Severity::Error,
                    format!("Containers don't start in a user namespace, and a project's root must not be the host's: {said}"),
                    "Allow user namespaces (sysctl user.max_user_namespaces=65536), and keep podman's storage on a local file system.",
                ));
                return;
            }
        }
        let reasons: Vec<_> = refusals.iter().map(|(name, said)| format!("{name}: {said}")).collect();
        self.findings.push(finding(
            "runtime.no_oci_runtime",
            Severity::Error,
            format!("No OCI runtime starts a container here ({}).", reasons.join("; ")),
            "sudo apt-get install -y runc",
        ));
    }
}

/// The probe's directories: a root with mount points, and a home below a directory that only its owner enters, as projects' are.
pub(super) struct ProbeRoot(std::path::PathBuf);

impl ProbeRoot {
    pub(super) fn new(random: &str, userns_base: Option<u32>) -> std::io::Result<Self> {
        let this = Self(std::env::temp_dir().join(format!("atoll-probe-{random}")));
        fs::create_dir(&this.0)?;
        fs::set_permissions(&this.0, fs::Permissions::from_mode(0o755))?;
        let rootfs = this.rootfs();
        let inside = ["proc", "sys", "dev", "etc", "run", "tmp", "home", "home/user", ".atoll"].map(|name| rootfs.join(name));
        for dir in [rootfs.clone()].iter().chain(&inside).chain([&this.0.join("private"), &this.home()]) {
            fs::create_dir(dir)?;
            if let Some(base) = userns_base {
                // the container's root makes the remaining mount points itself
                rustix::fs::chown(dir, Some(Uid::from_raw(base)), Some(Gid::from_raw(base)))?;
            }
        }
        let private = this.0.join("private");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
        rustix::fs::chown(&private, Some(rustix::process::geteuid()), Some(rustix::process::getegid()))?;
        Ok(this)
    }

    fn rootfs(&self) -> std::path::PathBuf {
        self.0.join("root")
    }

    fn home(&self) -> std::path::PathBuf {
        self.0.join("private/home")
    }
}

impl Drop for ProbeRoot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
