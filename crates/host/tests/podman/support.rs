//! A host of its own for each test, on this machine's podman.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atoll_contract::{Error, Generation, HostId, ProjectId, host::Severity, project::Limits};
use atoll_host::{
    exec::{self, Call, ExecOutcome},
    runtime::{
        Container, ContainerSpec, Runtime,
        podman::{PodmanConfig, PodmanRuntime},
    },
    testing::skipped,
};
use atoll_net::clock::{SystemClock, random_text};
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
pub(crate) struct Host {
    pub(crate) runtime: Arc<PodmanRuntime>,
    pub(crate) config: PodmanConfig,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) image: String,
    pub(crate) oci: Vec<String>,
}

impl Host {
    /// None where podman can't run containers; then a line says so.
    pub(crate) async fn new(test: &str) -> Option<Self> {
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

    pub(crate) fn spec(&self, number: u32, generation: u64) -> ContainerSpec {
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

    pub(crate) async fn start(&self, spec: &ContainerSpec) -> Result<Container, Error> {
        self.runtime.ensure_running(spec, CancellationToken::new()).await
    }

    pub(crate) async fn inspect(&self, id: &str, format: &str) -> String {
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

pub(crate) async fn podman(global: &[String], args: &[&str]) -> ExecOutcome {
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

pub(crate) fn project(number: u32) -> ProjectId {
    format!("0198c0de-0000-7000-8000-{number:012x}").parse().unwrap()
}

/// Waits for a thing itself, with a bound.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
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
