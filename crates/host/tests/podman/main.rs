//! The real podman: what a container gets, and what is said when something is wrong.
//!
//! Everything carries the label of a host id made for one test, and is removed at its end, also by a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, Generation, HostId, ProjectId, host::Severity, project::Limits};
use atoll_host::{
    doctor,
    exec::{self, Call, ExecOutcome},
    runtime::{
        ContainerSpec, ContainerState, ProgressFn, Runtime,
        podman::{PodmanConfig, PodmanRuntime},
    },
    storage::StorageConfig,
    testing::skipped,
};
use atoll_net::clock::{SystemClock, random_text};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A static program in the agent's place: as `agent` it says what it sees and waits for SIGTERM.
const AGENT: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
static void stop(int s) { (void)s; _exit(0); }
int main(int argc, char **argv) {
    char name[256] = "", line[256];
    struct rlimit files;
    if (argc < 2 || strcmp(argv[1], "agent")) return 0;
    signal(SIGTERM, stop);
    if (getenv("EXIT")) { printf("last words\n"); return atoi(getenv("EXIT")); }
    gethostname(name, sizeof name);
    getrlimit(RLIMIT_NOFILE, &files);
    FILE *out = fopen("/home/user/seen.new", "w");
    fprintf(out, "hostname=%s\nuid=%d\npid=%d\nHOME=%s\nA=%s\nnofile=%lu\n", name, getuid(), getpid(), getenv("HOME"), getenv("A"), (unsigned long)files.rlim_max);
    fprintf(out, "cwd=%s\nsocket_dir=%d\nbinary_writable=%d\nsocket_dir_writable=%d\n", getcwd(line, sizeof line), access("/run/atoll/marker", R_OK) == 0,
        access("/.atoll/atoll", W_OK) == 0, access("/run/atoll/marker", W_OK) == 0);
    FILE *map = fopen("/proc/self/uid_map", "r");
    if (map && fgets(line, sizeof line, map)) fprintf(out, "uid_map=%s", line);
    fclose(out);
    rename("/home/user/seen.new", "/home/user/seen");
    for (;;) pause();
}
"#;

/// A host of its own on this machine's podman.
struct Host {
    runtime: Arc<PodmanRuntime>,
    config: PodmanConfig,
    dir: tempfile::TempDir,
    image: String,
    oci: Vec<String>,
}

impl Host {
    /// None where podman can't run containers; then a line says so.
    async fn new(test: &str) -> Option<Self> {
        match Self::make().await {
            Ok(host) => Some(host),
            Err(reason) => {
                skipped(test, &reason);
                None
            }
        }
    }

    async fn make() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let binary = agent(dir.path()).await?;
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).unwrap();
        let host = HostId::from_uuid(uuid::Builder::from_random_bytes(bytes).into_uuid());
        let mut config = PodmanConfig::new(host, binary);
        config.stop_grace = Duration::from_secs(2);
        let runtime = PodmanRuntime::open(config.clone(), Arc::new(SystemClock)).await;
        if let Some(error) = runtime.findings().into_iter().find(|finding| finding.severity == Severity::Error) {
            return Err(format!("{}: {}", error.code, error.message));
        }
        // what works is found out by asking podman as the runtime does
        let oci = match podman(&[], &["run", "--rm", "--pull=never", "localhost/atoll-none"]).await {
            outcome if outcome.stderr.text().contains("OCI runtime \"crun\" not found") => vec!["--runtime=runc".to_owned()],
            _ => vec![],
        };
        let image = format!("localhost/atoll-test-{}:latest", random_text(&SystemClock));
        // an image with no shell and no libc: nothing but an empty directory
        fs::create_dir_all(dir.path().join("empty/etc")).unwrap();
        let tar = dir.path().join("image.tar");
        let made = exec::run(Call::new("tar").args([
            "--owner=0",
            "--group=0",
            "-cf",
            tar.to_str().unwrap(),
            "-C",
            dir.path().join("empty").to_str().unwrap(),
            ".",
        ]))
        .await;
        assert!(made.unwrap().success());
        let imported = podman(&oci, &["import", tar.to_str().unwrap(), &image]).await;
        if !imported.success() {
            return Err(format!("podman import: {}", imported.stderr.text()));
        }
        Ok(Self { runtime, config, dir, image, oci })
    }

    fn spec(&self, number: u32, generation: u64) -> ContainerSpec {
        let base = self.dir.path().join(number.to_string());
        let (home, agent_dir) = (base.join("private/home"), base.join("agent"));
        fs::create_dir_all(&home).unwrap();
        fs::create_dir_all(&agent_dir).unwrap();
        fs::write(agent_dir.join("marker"), "x").unwrap();
        fs::set_permissions(base.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
        let owner = self.runtime.owner();
        std::os::unix::fs::chown(&home, Some(owner.uid), Some(owner.gid)).unwrap();
        // as agent.json does, it belongs to the container's root
        std::os::unix::fs::chown(agent_dir.join("marker"), Some(owner.uid), Some(owner.gid)).unwrap();
        ContainerSpec {
            project: project(number),
            generation: Generation(generation),
            image: self.image.clone(),
            hostname: format!("thesis-{number}"),
            limits: Limits { memory_bytes: 96 << 20, cpu_millis: 500, pids: 77, disk_bytes: 1 << 30 },
            env: vec![("A".into(), "b c=d".into())],
            home,
            agent_dir,
        }
    }

    async fn start(&self, spec: &ContainerSpec) -> Result<atoll_host::runtime::Container, Error> {
        self.runtime.ensure_running(spec, CancellationToken::new()).await
    }

    async fn inspect(&self, id: &str, format: &str) -> String {
        podman(&self.oci, &["inspect", "--format", format, id]).await.stdout.text().trim().to_owned()
    }
}

impl Drop for Host {
    /// Blocks: a test that panics has nobody to wait for it.
    fn drop(&mut self) {
        let (host, image, oci) = (self.config.host, self.image.clone(), self.oci.clone());
        let clean = async move {
            let label = format!("label=atoll.host={host}");
            let left = podman(&oci, &["ps", "--all", "--quiet", "--filter", &label]).await.stdout.text();
            for id in left.lines() {
                podman(&oci, &["rm", "--force", "--time=0", id]).await;
            }
            podman(&oci, &["rmi", "--force", &image]).await;
        };
        let thread = std::thread::spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(clean));
        thread.join().unwrap();
    }
}

async fn podman(global: &[String], args: &[&str]) -> ExecOutcome {
    exec::run(Call::new("podman").args(["--log-level=error"]).args(global.iter().cloned()).args(args.iter().copied())).await.unwrap()
}

async fn agent(dir: &Path) -> Result<PathBuf, String> {
    let (source, binary) = (dir.join("agent.c"), dir.join("agent"));
    fs::write(&source, AGENT).unwrap();
    let call = Call::new("gcc").args(["-O1", "-static", "-o", binary.to_str().unwrap(), source.to_str().unwrap()]);
    match exec::run(call).await {
        Ok(outcome) if outcome.success() => Ok(binary),
        Ok(outcome) => Err(format!("gcc: {}", outcome.stderr.text())),
        Err(error) => Err(error.to_string()),
    }
}

fn project(number: u32) -> ProjectId {
    format!("0198c0de-0000-7000-8000-{number:012x}").parse().unwrap()
}

/// Waits for a thing itself, with a bound.
async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what} in time"))
}

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

#[tokio::test]
async fn images_that_are_not_there() {
    let Some(host) = Host::new("images_that_are_not_there").await else { return };
    let phases: Arc<Mutex<Vec<String>>> = Arc::default();
    let said = phases.clone();
    let progress: ProgressFn = Arc::new(move |progress| said.lock().unwrap().push(progress.phase));
    let ensure = |image: &'static str| host.runtime.ensure_image(image, progress.clone(), CancellationToken::new());
    host.runtime.ensure_image(&host.image, progress.clone(), CancellationToken::new()).await.unwrap();
    assert!(phases.lock().unwrap().is_empty(), "nothing is pulled that is there");
    for image in ["localhost/atoll-none:1", "atoll-no-such-short-name", "127.0.0.1:9/none:1", "UPPER/case", "a:b:c"] {
        let error = ensure(image).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ImageUnavailable, "{image}: {error:?}");
        assert!(!error.mend.is_empty() && error.message.contains(image), "{error:?}");
    }
    assert!(phases.lock().unwrap().iter().any(|phase| phase == "pulling 127.0.0.1:9/none:1"));
    let spec = ContainerSpec { image: "localhost/atoll-none:1".into(), ..host.spec(1, 1) };
    assert_eq!(host.start(&spec).await.unwrap_err().code, ErrorCode::ImageUnavailable, "a start never pulls");
    assert!(host.runtime.list().await.unwrap().is_empty());
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert_eq!(host.runtime.ensure_image("127.0.0.1:9/none:2", progress, cancel.clone()).await.unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(host.runtime.ensure_running(&host.spec(1, 1), cancel).await.unwrap_err().code, ErrorCode::Cancelled);
    assert!(host.runtime.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pull_ends_when_it_is_cancelled() {
    let Some(host) = Host::new("a_pull_ends_when_it_is_cancelled").await else { return };
    // a registry that takes connections and never says a word
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/none:1", registry.local_addr().unwrap());
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let runtime = host.runtime.clone();
    let pull = tokio::spawn(async move { runtime.ensure_image(&image, Arc::new(|_| ()), token).await });
    let _connection = tokio::time::timeout(Duration::from_secs(20), registry.accept()).await.unwrap().unwrap();
    cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), pull).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().code, ErrorCode::Cancelled);
}

#[tokio::test]
async fn a_podman_that_is_dead_or_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let host = "0198c0de-0000-7000-8000-0000000000fe".parse().unwrap();
    let open = async |podman: PathBuf| {
        let mut config = PodmanConfig::new(host, std::env::current_exe().unwrap());
        config.podman = podman;
        config.call_timeout = Duration::from_millis(300);
        PodmanRuntime::open(config, Arc::new(SystemClock)).await
    };
    let broken = open(script("broken", "echo 'Error: everything is broken' >&2; exit 125")).await;
    assert_eq!(broken.findings()[0].code, "runtime.podman_failed");
    let error = broken.list().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::RuntimeFailed);
    assert!(error.message.contains("everything is broken"), "{error:?}");
    // works at the start, hangs afterwards
    let info = r#"echo '{"host":{"ociRuntime":{"name":"runc"}},"version":{"Version":"4.3.1"}}'"#;
    let text = format!("case \"$*\" in *info*) {info};; *--rootfs*) ;; *) sleep 1000;; esac");
    let hanging = open(script("hanging", &text)).await;
    assert!(hanging.findings().iter().any(|finding| finding.code == "runtime.ok"), "{:?}", hanging.findings());
    let error = tokio::time::timeout(Duration::from_secs(10), hanging.list()).await.unwrap().unwrap_err();
    assert_eq!((error.code, error.message.contains("in time")), (ErrorCode::RuntimeFailed, true), "{error:?}");
    let error = tokio::time::timeout(Duration::from_secs(10), hanging.ensure_removed(project(1))).await;
    assert_eq!(error.unwrap().unwrap_err().code, ErrorCode::RuntimeFailed);
}

/// The search for what works, with a podman whose OCI runtimes and networks refuse.
#[tokio::test]
async fn the_probe_takes_what_works_and_says_what_does_not() {
    if !rustix::process::geteuid().is_root() {
        skipped("the_probe_takes_what_works_and_says_what_does_not", "user namespaces are mapped by root only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let info = r#"echo '{"host":{"security":{"rootless":false},"ociRuntime":{"name":"crun"},"cgroupControllers":["memory","cpu","pids"]},"version":{"Version":"4.3.1"},"store":{"graphDriverName":"vfs"}}'"#;
    let open = async |name: &str, cases: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\ncase \"$*\" in *\" info \"*) {info};;\n*\" rm \"*) ;;\n{cases}\nesac\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let host = "0198c0de-0000-7000-8000-0000000000fd".parse().unwrap();
        let config = PodmanConfig { podman: path, ..PodmanConfig::new(host, std::env::current_exe().unwrap()) };
        PodmanRuntime::open(config, Arc::new(SystemClock)).await.findings().into_iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    let crun =
        "echo 'Error: OCI runtime error: crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2' >&2; exit 126";
    let codes = open("crun", &format!("*\"--runtime runc\"*) ;;\n*) {crun};;")).await;
    assert!(codes.contains(&"runtime.crun_refuses_cgroups".into()) && codes.contains(&"runtime.ok".into()), "{codes:?}");
    assert!(codes.contains(&"runtime.slow_mapping".into()), "{codes:?}");
    let codes = open("network", "*--network=none*) ;;\n*) echo 'Error: netavark: iptables: not found' >&2; exit 126;;").await;
    assert!(codes.contains(&"runtime.network_none".into()) && codes.contains(&"runtime.ok".into()), "{codes:?}");
    let codes = open("limits", "*--memory=*) echo 'Error: no cgroup' >&2; exit 126;;").await;
    assert!(codes.contains(&"runtime.limits_refused".into()) && codes.contains(&"runtime.ok".into()), "{codes:?}");
    let codes = open("userns", "*--uidmap=*) echo 'Error: clone: no space left on device' >&2; exit 126;;").await;
    assert_eq!(codes, ["runtime.user_namespace"]);
    let codes = open("nothing", "*) echo 'Error: no' >&2; exit 126;;").await;
    assert_eq!(codes, ["runtime.no_oci_runtime"]);
}

/// The first test once more, as a user without any rights, where this one is root.
#[tokio::test]
async fn rootless_too() {
    const TEST: &str = "a_container_has_its_limits_its_walls_and_its_mounts";
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
    assert!(outcome.success(), "{}{}", outcome.stdout.text(), outcome.stderr.text());
}

#[tokio::test]
async fn the_doctor_looks_at_everything_and_leaves_nothing() {
    let Some(host) = Host::new("the_doctor_looks_at_everything_and_leaves_nothing").await else { return };
    let path = host.dir.path().join("not-there-yet");
    let storage = StorageConfig { path: path.clone(), ..StorageConfig::default() };
    let findings = doctor::examine(host.config.clone(), storage, Arc::new(SystemClock)).await;
    let has = |group: &str| findings.iter().any(|finding| finding.code.starts_with(group));
    assert!(has("kernel.") && has("runtime.ok") && has("storage."), "{findings:#?}");
    assert!(!path.exists());
    for finding in &findings {
        assert!(finding.severity == Severity::Ok || !finding.mend.is_empty(), "{finding:?}");
        println!("{finding:?}");
    }
    assert!(!fs::read_dir(std::env::temp_dir()).unwrap().flatten().any(|entry| {
        // those of tests that run at the same time don't count
        entry.file_name().to_string_lossy().starts_with("atoll-probe-")
            && entry.metadata().is_ok_and(|meta| meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_mins(2))))
    }));
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
