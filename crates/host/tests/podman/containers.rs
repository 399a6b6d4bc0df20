//! What a container gets, and what its verbs do.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::Arc,
    time::Duration,
};

use atoll_contract::ErrorCode;
use atoll_host::{
    exec::{self, Call},
    runtime::{
        ContainerSpec, ContainerState, Runtime,
        podman::{PodmanConfig, PodmanRuntime},
    },
    testing::skipped,
};
use atoll_net::clock::{SystemClock, random_text};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::{Host, podman, project, until};

async fn seen(spec: &ContainerSpec) -> String {
    until("the agent's report", || fs::read_to_string(spec.home.join("seen")).ok()).await
}

/// A file of a process's cgroup: `(controller, file)` on cgroups v1, `(_, file)` on v2.
fn cgroup(pid: &str, controller: &str, v1: &str, v2: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |wanted: &str| {
        all.lines()
            .find_map(|line| line.split_once(':')?.1.split_once(':').filter(|(name, _)| *name == wanted).map(|(_, path)| path.to_owned()))
    };
    let file = match path(controller) {
        Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{v1}"),
        None => format!("/sys/fs/cgroup{}/{v2}", path("").unwrap()),
    };
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

#[tokio::test]
async fn a_container_has_its_limits_its_walls_and_its_mounts() {
    let Some(host) = Host::new("a_container_has_its_limits_its_walls_and_its_mounts").await else { return };
    let spec = host.spec(1, 3);
    let container = host.start(&spec).await.unwrap();
    let seen = seen(&spec).await;
    let says = |line: &str| assert!(seen.lines().any(|it| it == line), "{line} in:\n{seen}");
    for line in ["hostname=thesis-1", "uid=0", "pid=1", "HOME=/home/user", "A=b c=d", "cwd=/home/user", "socket_dir=1"] {
        says(line);
    }
    says("binary_writable=0");
    says("socket_dir_writable=0");
    let owner = host.runtime.owner();
    let file = fs::metadata(spec.home.join("seen")).unwrap();
    assert_eq!((file.uid(), file.gid()), (owner.uid, owner.gid), "the container's root is not the host's");
    if rustix::process::geteuid().is_root() {
        let map = seen.lines().find_map(|line| line.strip_prefix("uid_map=")).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &owner.uid.to_string(), "65536"]);
    }
    let codes: Vec<_> = host.runtime.findings().into_iter().map(|finding| finding.code).collect();
    if !codes.iter().any(|code| code.starts_with("runtime.limits_")) {
        let pid = host.inspect(&container.id, "{{.State.Pid}}").await;
        assert_eq!(cgroup(&pid, "memory", "memory.limit_in_bytes", "memory.max"), (96u64 << 20).to_string());
        assert_eq!(cgroup(&pid, "pids", "pids.max", "pids.max"), "77");
        let cpu = cgroup(&pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
        assert!(cpu == "50000" || cpu.starts_with("50000 100000"), "{cpu}");
        if !codes.contains(&"runtime.swap_unlimited".to_owned()) {
            let swap = cgroup(&pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
            assert!(swap == (96u64 << 20).to_string() || swap == "0", "{swap}");
        }
    }
    assert_ne!(host.inspect(&container.id, "{{.HostConfig.NetworkMode}}").await, "host");
    assert!(["map[]", "{}", ""].contains(&host.inspect(&container.id, "{{.HostConfig.PortBindings}}").await.as_str()));
    assert_eq!(host.runtime.list().await.unwrap(), [container]);
    host.runtime.ensure_removed(spec.project).await.unwrap();
    assert!(host.runtime.list().await.unwrap().is_empty());
}

/// The first test once more, as a user without any rights, where this one is root.
#[tokio::test]
async fn rootless_too() {
    const TEST: &str = "containers::a_container_has_its_limits_its_walls_and_its_mounts";
    const USER: u32 = 2_000_000_001; // nobody's, so that no session of a user is touched
    if !rustix::process::geteuid().is_root() {
        skipped("rootless_too", "the other tests are rootless already");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (binary, home) = (dir.path().join("tests"), dir.path().join("home"));
    fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).unwrap();
    let as_user = |args: &[&str]| {
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()];
        let call = Call::new("setpriv").args(ids).args(["env".into(), format!("--chdir={}", home.display())]).args(args.iter().copied());
        call.env("HOME", &home).env("XDG_RUNTIME_DIR", &home).env("TMPDIR", &home).env("USER", "atoll-test").timeout(Duration::from_mins(3))
    };
    let outcome = exec::run(as_user(&[binary.to_str().unwrap(), "--exact", TEST, "--nocapture"])).await.unwrap();
    // rootless podman keeps a process that holds its namespace
    exec::run(as_user(&["podman", "system", "migrate"])).await.unwrap();
    if let Some(line) = outcome.stderr.text().lines().find_map(|line| line.split_once("skipped: ").map(|(_, reason)| reason.to_owned())) {
        skipped("rootless_too", &line);
        return;
    }
    let said = outcome.stdout.text() + &outcome.stderr.text();
    assert!(outcome.success() && said.contains("1 passed"), "{said}"); // a name that no test has passes, too
}

#[tokio::test]
async fn verbs_are_idempotent_and_generations_replace_each_other() {
    let Some(host) = Host::new("verbs_are_idempotent_and_generations_replace_each_other").await else { return };
    let first = host.start(&host.spec(1, 1)).await.unwrap();
    assert_eq!(host.start(&host.spec(1, 1)).await.unwrap(), first, "the same one");
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(host.runtime.ensure_running(&host.spec(1, 1), cancel).await.unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(host.runtime.list().await.unwrap(), std::slice::from_ref(&first), "cancelling ends no container that runs");
    let second = host.start(&host.spec(1, 2)).await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(host.runtime.list().await.unwrap(), std::slice::from_ref(&second));
    // one that has ended is replaced, too
    podman(&host.oci, &["kill", &second.id]).await;
    let ended = async {
        while host.runtime.list().await.unwrap()[0].state == ContainerState::Running {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        host.runtime.list().await.unwrap()[0].state
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap(), ContainerState::Exited(Some(137)));
    let third = host.start(&host.spec(1, 2)).await.unwrap();
    assert_ne!(third.id, second.id);
    // another host program on the same podman sees its own only
    let other = "0198c0de-0000-7000-8000-0000000000ff".parse().unwrap();
    let stranger = PodmanRuntime::open(PodmanConfig { host: other, ..host.config.clone() }, Arc::new(SystemClock)).await;
    assert!(stranger.list().await.unwrap().is_empty());
    stranger.ensure_removed(project(1)).await.unwrap();
    assert_eq!(host.runtime.list().await.unwrap(), [third]);
    // and one that starts again adopts
    let again = PodmanRuntime::open(host.config.clone(), Arc::new(SystemClock)).await;
    assert_eq!(again.list().await.unwrap().len(), 1);
    again.ensure_removed(project(1)).await.unwrap();
    again.ensure_removed(project(1)).await.unwrap();
    assert!(again.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn starts_at_once_and_last_words() {
    let Some(host) = Host::new("starts_at_once_and_last_words").await else { return };
    let specs: Vec<_> = (1..=6).map(|number| host.spec(number, 1)).collect();
    for started in futures_util::future::join_all(specs.iter().map(|spec| host.start(spec))).await {
        started.unwrap();
    }
    assert_eq!(host.runtime.list().await.unwrap().len(), 6);
    let removed = futures_util::future::join_all(specs.iter().map(|spec| host.runtime.ensure_removed(spec.project))).await;
    for result in removed {
        result.unwrap();
    }
    let mut spec = host.spec(7, 1);
    spec.env.push(("EXIT".into(), "3".into()));
    host.start(&spec).await.unwrap();
    let ended = async {
        while host.runtime.list().await.unwrap()[0].state != ContainerState::Exited(Some(3)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    assert_eq!(host.runtime.log_tail(spec.project).await, "last words");
    assert_eq!(host.runtime.log_tail(project(99)).await, "");
}

/// A start by the runtime may cost 10 % more than `podman run` alone. Printed, and asserted with room for a busy machine.
#[tokio::test]
async fn a_start_costs_what_podman_run_costs() {
    let Some(host) = Host::new("a_start_costs_what_podman_run_costs").await else { return };
    let spec = host.spec(1, 1);
    let name = format!("atoll-plain-{}", random_text(&SystemClock));
    let label = format!("--label=atoll.host={}", host.config.host);
    let binary = format!("{}:/.atoll/atoll:ro", host.config.binary.display());
    let home = format!("{}:/home/user", spec.home.display());
    let agent_dir = format!("{}:/run/atoll", spec.agent_dir.display());
    let base = host.config.userns_base;
    let maps = [format!("--uidmap=0:{base}:65536"), format!("--gidmap=0:{base}:65536")];
    let mut plain =
        vec!["run", "--detach", "--name", &name, &label, "--pull=never", "--volume", &binary, "--volume", &home, "--volume", &agent_dir];
    plain.extend([
        "--memory=96m",
        "--memory-swap=96m",
        "--cpus=0.5",
        "--pids-limit=77",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
    ]);
    if rustix::process::geteuid().is_root() {
        plain.extend(maps.iter().map(String::as_str));
    }
    plain.extend(["--entrypoint=/.atoll/atoll", &host.image, "agent"]);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let begin = Instant::now();
        host.start(&spec).await.unwrap();
        ours.push(begin.elapsed());
        host.runtime.ensure_removed(spec.project).await.unwrap();
        let begin = Instant::now();
        let outcome = podman(&host.oci, &plain).await;
        theirs.push(begin.elapsed());
        if !outcome.success() {
            skipped("a_start_costs_what_podman_run_costs", &format!("plain podman run: {}", outcome.stderr.text()));
            return;
        }
        podman(&host.oci, &["rm", "--force", "--time=2", &name]).await;
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    let (ours, theirs) = (ours[ours.len() / 2], theirs[theirs.len() / 2]);
    println!("ensure_running {ours:?}, podman run {theirs:?}, ratio {:.2}", ours.as_secs_f64() / theirs.as_secs_f64());
    assert!(ours < theirs.mul_f64(1.5), "{ours:?} against {theirs:?}");
}
