//! The argument vectors of podman: one place that says what a container may do.

use std::path::Path;

use atoll_contract::{
    Error, ErrorCode, HostId, ProjectId,
    agent::{AGENT_BINARY_PATH, AGENT_DIR, HOME_PATH},
    project::Limits,
};

use super::{
    ContainerSpec,
    output::{LABEL_GENERATION, LABEL_HOST, LABEL_PROJECT},
};

/// What works on this machine, as the probe found it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Ways {
    /// For `--runtime`; none for podman's own default.
    pub(super) oci: Option<String>,
    /// Major version of podman.
    pub(super) major: u32,
    pub(super) rootless: bool,
    pub(super) limits: LimitsKept,
    /// Hard limits for `--ulimit`: (name, value). podman's own defaults are above what a process without `CAP_SYS_RESOURCE` may set.
    pub(super) ulimits: Vec<(&'static str, u64)>,
    pub(super) network: String,
    /// First host id of the 65,536 that the container's ids are mapped to; none for the runtime's own mapping (rootless).
    pub(super) userns_base: Option<u32>,
}

/// Which limits the machine's cgroups keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LimitsKept {
    pub(super) memory: bool,
    pub(super) swap: bool,
    pub(super) cpu: bool,
    pub(super) pids: bool,
}

/// Capabilities within the container's user namespace: podman 4's default set, named so that older versions (which add `NET_RAW`,
/// `MKNOD` and `AUDIT_WRITE`) give no more. Setuid programs work (there is no `no-new-privileges`): images expect `sudo` and `su`, the
/// project is root in its container anyway, and the border is the user namespace.
const CAPABILITIES: &str = "CHOWN,DAC_OVERRIDE,FOWNER,FSETID,KILL,NET_BIND_SERVICE,SETFCAP,SETGID,SETPCAP,SETUID,SYS_CHROOT";
/// Ids that a container has: 0 to 65535, which includes `nobody` (65534).
pub(super) const MAPPED_IDS: u32 = 65_536;
/// A container's log is for its last words; the agent logs little.
const LOG_MAX: &str = "max-size=1mb";

/// Options that stand before podman's verb. `--runtime` is given with every verb, since podman refuses to start at all if its default
/// one is missing.
pub(super) fn global(oci: Option<&str>) -> Vec<String> {
    let mut args = vec!["--log-level=error".to_owned()];
    if let Some(oci) = oci {
        args.extend(["--runtime".to_owned(), oci.to_owned()]);
    }
    args
}

/// A container's name: says whose it is, and can't be taken twice on one podman. The last 8 digits of the host's id are its random ones.
pub(super) fn container_name(host: HostId, project: ProjectId) -> String {
    let host = host.to_string();
    format!("atoll-{}-{project}", &host[host.len() - 8..])
}

/// `run` with all that makes a project's container.
pub(super) fn run(ways: &Ways, host: HostId, binary: &Path, spec: &ContainerSpec) -> Result<Vec<String>, Error> {
    let mut args: Vec<String> = ["run", "--detach", "--pull=never", "--no-healthcheck"].map(Into::into).into();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("--name", container_name(host, spec.project));
    option("--label", format!("{LABEL_HOST}={host}"));
    option("--label", format!("{LABEL_PROJECT}={}", spec.project));
    option("--label", format!("{LABEL_GENERATION}={}", spec.generation));
    option("--hostname", spec.hostname.clone());
    option("--volume", volume(&spec.home, HOME_PATH, "rw")?);
    // a socket can be connected to all the same; what could be written here would be on the host's own disk, outside every quota
    option("--volume", volume(&spec.agent_dir, AGENT_DIR, "ro")?);
    option("--volume", volume(binary, AGENT_BINARY_PATH, "ro")?);
    option("--workdir", HOME_PATH.to_owned());
    for (name, value) in &spec.env {
        option("--env", format!("{name}={value}"));
    }
    option("--env", format!("HOME={HOME_PATH}"));
    option("--log-driver", "k8s-file".to_owned());
    option("--log-opt", LOG_MAX.to_owned());
    option("--entrypoint", AGENT_BINARY_PATH.to_owned());
    args.extend(walls(ways, &spec.limits));
    args.extend([spec.image.clone(), "agent".to_owned()]);
    Ok(args)
}

/// What separates a container from the host, the same for the probe's and the projects'.
pub(super) fn walls(ways: &Ways, limits: &Limits) -> Vec<String> {
    let mut args: Vec<String> = [
        // the agent is init; whatever containers.conf says
        "--init=false",
        "--systemd=false",
        // the host's proxy settings may hold its credentials
        "--http-proxy=false",
        "--user=0:0",
        "--stop-signal=SIGTERM",
        "--cap-drop=ALL",
        // on SELinux machines the sockets and volumes of the host carry other labels; the user namespace separates
        "--security-opt=label=disable",
    ]
    .map(Into::into)
    .into();
    args.push(format!("--cap-add={CAPABILITIES}"));
    args.push(format!("--network={}", ways.network));
    args.extend(ways.ulimits.iter().map(|(name, value)| format!("--ulimit={name}={value}:{value}")));
    if let Some(base) = ways.userns_base {
        args.push(format!("--uidmap=0:{base}:{MAPPED_IDS}"));
        args.push(format!("--gidmap=0:{base}:{MAPPED_IDS}"));
    }
    if ways.limits.memory {
        args.push(format!("--memory={}b", limits.memory_bytes));
        if ways.limits.swap {
            args.push(format!("--memory-swap={}b", limits.memory_bytes)); // memory and swap together
        }
    }
    if ways.limits.cpu {
        args.push(format!("--cpus={}.{:03}", limits.cpu_millis / 1000, limits.cpu_millis % 1000));
    }
    // without the cgroup, podman's own default (2048) would be refused, too
    args.push(format!("--pids-limit={}", if ways.limits.pids { i64::from(limits.pids) } else { 0 }));
    args
}

/// `--volume`'s value. podman splits it at colons.
fn volume(source: &Path, target: &str, mode: &str) -> Result<String, Error> {
    match source.to_str() {
        Some(text) if text.starts_with('/') && !text.contains([':', '\n', '\0']) => Ok(format!("{text}:{target}:{mode}")),
        _ => Err(Error::new(ErrorCode::InvalidConfig, format!("The path {} can't be mounted into a container.", source.display()))
            .mend("Use an absolute path without colons for the host's directories.")),
    }
}

#[cfg(test)]
mod tests {
    use atoll_contract::Generation;

    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec {
            project: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
            generation: Generation(3),
            image: "localhost/base:1".into(),
            hostname: "thesis".into(),
            limits: Limits { memory_bytes: 64 << 20, cpu_millis: 1050, pids: 100, disk_bytes: 1 << 30 },
            env: vec![("A".into(), "b=c d".into()), ("HOME".into(), "/elsewhere".into())],
            home: "/v/home".into(),
            agent_dir: "/run/a".into(),
        }
    }

    fn host() -> HostId {
        "0198c0de-0000-7000-8000-00000000abcd".parse().unwrap()
    }

    fn ways() -> Ways {
        Ways {
            oci: Some("runc".into()),
            major: 4,
            rootless: false,
            limits: LimitsKept { memory: true, swap: true, cpu: true, pids: true },
            ulimits: vec![("nofile", 20_000)],
            network: "bridge".into(),
            userns_base: Some(1_879_048_192),
        }
    }

    #[test]
    fn a_container_as_it_is_run() {
        let args = run(&ways(), host(), Path::new("/usr/bin/atoll"), &spec()).unwrap();
        insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("podman_run", args.join("\n"));
        });
    }

    #[test]
    fn without_cgroups_no_limit_is_asked_for() {
        let ways = Ways { limits: LimitsKept::default(), userns_base: None, ..ways() };
        let args = walls(&ways, &Limits::default()).join(" ");
        assert!(!args.contains("--memory") && !args.contains("--cpus") && !args.contains("uidmap"));
        assert!(args.contains("--pids-limit=0"));
    }

    #[test]
    fn paths_that_podman_would_misread_are_refused() {
        for path in ["relative", "/a:b", "/a\nb"] {
            assert!(volume(Path::new(path), "/x", "rw").is_err(), "{path:?}");
        }
    }
}
