//! Finds out, once, what podman can do on this machine: a container is really started, with less and less asked of it until one starts.
//!
//! The container has no image: its root is a directory with mount points and the host's own static binary, which is asked for its version.
//! So nothing is left in podman's storage, and the answer is about the OCI runtime, cgroups, user namespace and network, as projects need
//! them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use atoll_contract::{
    agent::{AGENT_BINARY_PATH, HOME_PATH},
    host::{Finding, Severity},
    project::Limits,
};
use rustix::{
    fs::{Gid, Uid},
    process::{Resource, getrlimit},
};
use serde_json::Value;

use super::{
    args::{self, LimitsKept, MAPPED_IDS, Ways},
    output::reason,
    podman::PodmanConfig,
};
use crate::{
    doctor::finding,
    exec::{self, Call, End, ExecOutcome},
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

/// What `podman info` says, as far as it matters.
#[derive(Debug, Clone, Default)]
struct Info {
    version: String,
    rootless: bool,
    oci: String,
    cgroup_v2: bool,
    controllers: Vec<String>,
    driver: String,
    native_overlay: bool,
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

async fn info(config: &PodmanConfig, findings: &mut Vec<Finding>) -> Option<Info> {
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
fn limits(info: &Info) -> LimitsKept {
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

/// What a container may have at most of files and processes: our own hard limits, which are the most that a process without
/// `CAP_SYS_RESOURCE` may give.
fn ulimits() -> Vec<(&'static str, u64)> {
    let pid_max = fs::read_to_string(PID_MAX).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(32_768u64);
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).min(1 << 20);
    let processes = getrlimit(Resource::Nproc).maximum.unwrap_or(u64::MAX).min(pid_max);
    vec![("nofile", files), ("nproc", processes)]
}

/// Tries container after container, each asking less.
struct Search<'a> {
    config: &'a PodmanConfig,
    root: &'a ProbeRoot,
    name: String,
    info: &'a Info,
    findings: &'a mut Vec<Finding>,
}

impl Search<'_> {
    async fn run(&mut self, wanted: Ways) -> Option<Ways> {
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

fn say_what_is_missing(ways: &Ways, info: &Info, config: &PodmanConfig, findings: &mut Vec<Finding>) {
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

/// The probe's directories: a root with mount points, and a home below a directory that only its owner enters, as projects' are.
struct ProbeRoot(std::path::PathBuf);

impl ProbeRoot {
    fn new(random: &str, userns_base: Option<u32>) -> std::io::Result<Self> {
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

    #[test]
    fn static_programs_are_told_from_others() {
        assert!(is_static(&std::env::current_exe().unwrap()), "tests are linked statically, see .cargo/config.toml");
        assert!(!is_static(Path::new("/bin/sh")));
        assert!(!is_static(Path::new("/etc/passwd")));
    }

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
