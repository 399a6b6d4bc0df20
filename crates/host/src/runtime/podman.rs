//! The runtime `podman`, by its command line, as root or rootless.
//!
//! Each call of podman costs 30 to 100 ms, so none is made that the usual case doesn't need: a start is one `podman run`; that a container
//! is there already is learnt from its refusal.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, HostId, ProjectId,
    host::{Finding, Severity},
    operation::Progress,
};
use atoll_net::{
    bus::BoxFuture,
    clock::{SharedClock, random_text},
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Container, ContainerSpec, ContainerState, Owner, ProgressFn, Runtime,
    args::{self, Ways},
    output::{self, LABEL_HOST, Trouble},
    probe::{self, Probed},
};
use crate::exec::{self, Call, ExecOutcome};

/// The first host id of the projects' user namespace, 0x7000_0000: above what `useradd` gives out as subordinate ids (to 600,100,000),
/// above systemd-nspawn's (to 1,879,048,191) and below 2^31, which some programs can't count to; a multiple of 65,536, as nspawn's
/// and others' ranges are, so that it overlaps with at most one of them. Equal on all hosts, so that files can move between them as they are.
pub const USERNS_BASE: u32 = 0x7000_0000;
/// What works is looked for again so often while nothing does.
const PROBE_AGAIN: Duration = Duration::from_secs(30);
/// A thousand containers are about 1 MiB of JSON.
const MAX_LIST: usize = 64 << 20;
const MAX_LOG: usize = 8 << 10;
/// Attempts at a removal that finds something busy, and at a start that finds a container in its way.
const ATTEMPTS: u32 = 4;
const MAX_PULLS: usize = 2;
/// A removal mostly waits for the container to end.
const MAX_REMOVALS: usize = 8;

#[derive(Debug, Clone)]
pub struct PodmanConfig {
    /// Path of podman, or its name in `PATH`.
    pub podman: PathBuf,
    /// `runc`, `crun` or a path; none to take the first that works.
    pub oci_runtime: Option<String>,
    /// Whose containers they are; more than one host may share a podman.
    pub host: HostId,
    /// See [`USERNS_BASE`]. Not used when rootless.
    pub userns_base: u32,
    /// The static `atoll`, mounted into every container.
    pub binary: PathBuf,
    /// A network of podman's; none to take what works. Never `host` or another container's.
    pub network: Option<String>,
    pub pull_timeout: Duration,
    pub start_timeout: Duration,
    /// For every other call.
    pub call_timeout: Duration,
    /// Between SIGTERM and SIGKILL at a removal; 2 to 10 s.
    pub stop_grace: Duration,
    /// Containers that are being started at once; podman's locks make more of them slower.
    pub max_parallel_starts: usize,
}

impl PodmanConfig {
    /// The defaults, for this host and binary.
    pub fn new(host: HostId, binary: impl Into<PathBuf>) -> Self {
        Self {
            podman: "podman".into(),
            oci_runtime: None,
            host,
            userns_base: USERNS_BASE,
            binary: binary.into(),
            network: None,
            pull_timeout: Duration::from_mins(30),
            start_timeout: Duration::from_mins(1),
            call_timeout: Duration::from_secs(30),
            stop_grace: Duration::from_secs(5),
            max_parallel_starts: 4,
        }
    }

    /// Whether the settings make sense; to be called when the configuration is read.
    ///
    /// # Errors
    /// `invalid_config`, naming the key.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |message: String, mend: &str| Err(Error::new(ErrorCode::InvalidConfig, message).mend(mend));
        if let Some(network) = &self.network
            && (network == "host" || network.contains(':') || network.starts_with('-') || network.is_empty())
        {
            return bad(format!("runtime.network is {network:?}; a project never gets the host's network or another's."), "Leave it out.");
        }
        if self.userns_base < 65_536 || self.userns_base > u32::MAX - 2 * args::MAPPED_IDS {
            return bad(format!("runtime.userns_base is {}; the host's own ids are there.", self.userns_base), "Leave it out.");
        }
        Ok(())
    }
}

pub struct PodmanRuntime {
    config: PodmanConfig,
    clock: SharedClock,
    probed: RwLock<(Arc<Probed>, Instant)>,
    starts: Semaphore,
    pulls: Semaphore,
    removals: Semaphore,
    probing: tokio::sync::Mutex<()>,
}

impl PodmanRuntime {
    /// Finds out what works on this machine (0.3 s where all does). Doesn't fail: what is wrong is in the findings, every verb then
    /// fails with `runtime_failed`, and a later one looks again.
    pub async fn open(config: PodmanConfig, clock: SharedClock) -> Arc<Self> {
        let probed = probe::probe(&config, &random_text(&*clock)).await;
        let (starts, pulls) = (Semaphore::new(config.max_parallel_starts.max(1)), Semaphore::new(MAX_PULLS));
        let probed = RwLock::new((Arc::new(probed), Instant::now()));
        let removals = Semaphore::new(MAX_REMOVALS);
        Arc::new(Self { config, clock, probed, starts, pulls, removals, probing: tokio::sync::Mutex::new(()) })
    }

    fn probed(&self) -> (Arc<Probed>, Instant) {
        self.probed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What works; looked for again if nothing did and that is a while ago.
    async fn ways(&self) -> Result<Ways, Error> {
        let (mut probed, at) = self.probed();
        if probed.ways.is_none() && at.elapsed() >= PROBE_AGAIN {
            let _one = self.probing.lock().await;
            if self.probed().1 == at {
                let fresh = probe::probe(&self.config, &random_text(&*self.clock)).await;
                *self.probed.write().unwrap_or_else(PoisonError::into_inner) = (Arc::new(fresh), Instant::now());
            }
            probed = self.probed().0;
        }
        probed.ways.clone().ok_or_else(|| {
            let worst = probed.findings.iter().find(|finding| finding.severity == Severity::Error);
            let (message, mend) = worst.map_or(("podman doesn't work here.", ""), |finding| (&finding.message, &finding.mend));
            Error::new(ErrorCode::RuntimeFailed, message).mend(mend)
        })
    }

    fn call(&self, ways: &Ways, args: impl IntoIterator<Item = String>) -> Call {
        Call::new(&self.config.podman).args(args::global(ways.oci.as_deref())).args(args).timeout(self.config.call_timeout)
    }

    fn name(&self, project: ProjectId) -> String {
        args::container_name(self.config.host, project)
    }

    /// Containers of this host, all or those of one name.
    async fn containers(&self, ways: &Ways, name: Option<&str>) -> Result<Vec<Container>, Error> {
        let mut args = words(["ps", "--all", "--no-trunc", "--format=json", "--filter"]);
        args.push(format!("label={LABEL_HOST}={}", self.config.host));
        if let Some(name) = name {
            args.extend(["--filter".to_owned(), format!("name=^{name}$")]);
        }
        let outcome = output::ended("ps", exec::run(self.call(ways, args).max_output(MAX_LIST)).await)?;
        if !outcome.success() {
            return Err(output::failed("ps", None, &outcome));
        }
        output::containers(&String::from_utf8_lossy(&outcome.stdout.bytes), self.config.host)
            .map_err(|error| Error::new(ErrorCode::RuntimeFailed, format!("podman ps answered what can't be read: {error}.")))
    }

    async fn start(&self, spec: &ContainerSpec, cancel: CancellationToken) -> Result<Container, Error> {
        let ways = self.ways().await?;
        let args = args::run(&ways, self.config.host, &self.config.binary, spec)?;
        let _permit = permit(&self.starts, &cancel).await?;
        let name = self.name(spec.project);
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let call = self.call(&ways, args.iter().cloned()).timeout(self.config.start_timeout).cancel(cancel.clone());
            let outcome = match output::ended("run", exec::run(call).await) {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.clear_half_made(&ways, &name, spec).await;
                    return Err(error);
                }
            };
            if outcome.success() {
                let id = outcome.stdout.text().trim().to_owned();
                return Ok(Container { id, project: spec.project, generation: spec.generation, state: ContainerState::Running });
            }
            match output::trouble(&outcome.stderr.text()) {
                Trouble::NameTaken => {
                    let found = self.containers(&ways, Some(&name)).await?;
                    let good = |it: &Container| it.generation == spec.generation && it.state == ContainerState::Running;
                    if let Some(running) = found.into_iter().find(good) {
                        return Ok(running);
                    }
                    self.remove(&ways, &name).await?;
                }
                Trouble::Busy => tokio::time::sleep(Duration::from_millis(100 << attempt)).await,
                _ => return Err(self.start_failed(&ways, &name, &spec.image, &outcome).await),
            }
            last = Some(outcome);
        }
        Err(last.map_or_else(|| Error::internal("A start made no attempt."), |outcome| output::failed("run", None, &outcome)))
    }

    /// After a `podman run` that was cut off anywhere: one that runs as it should stays (it may have run before, and the next call adopts
    /// it); anything else goes.
    async fn clear_half_made(&self, ways: &Ways, name: &str, spec: &ContainerSpec) {
        let whole = |it: &Container| it.generation == spec.generation && it.state == ContainerState::Running;
        if self.containers(ways, Some(name)).await.is_ok_and(|found| found.iter().any(whole)) {
            return;
        }
        if let Err(error) = self.remove(ways, name).await {
            tracing::warn!(%error, name, "a half-made container is left");
        }
    }

    /// Why a container didn't start; it is removed. podman's exit codes: 125 is podman itself, 126 and 127 the container's program.
    async fn start_failed(&self, ways: &Ways, name: &str, image: &str, outcome: &ExecOutcome) -> Error {
        let error = output::failed("run", Some(image), outcome);
        if error.code != ErrorCode::RuntimeFailed {
            return error;
        }
        let log = self.log(ways, name).await;
        if let Err(error) = self.remove(ways, name).await {
            tracing::warn!(%error, name, "a container that did not start is left");
        }
        if outcome.end == exec::End::Exited(125) {
            return error;
        }
        let said = output::reason(&outcome.stderr.text());
        let log = if log.is_empty() { String::new() } else { format!(" Its log ends: {log}") };
        Error::new(ErrorCode::StartFailed, format!("The container of the image {image} did not start: {said}.{log}"))
            .mend("Run `atoll doctor` on this host, and try another image.")
    }

    async fn remove(&self, ways: &Ways, name: &str) -> Result<(), Error> {
        let grace = self.config.stop_grace.as_secs().clamp(2, 10);
        let timeout = self.config.call_timeout + Duration::from_secs(grace);
        let _permit = permit(&self.removals, &CancellationToken::new()).await?;
        for attempt in 0.. {
            if ways.major < 4 {
                // `rm --time` came with podman 4
                let args = words(["stop", "--ignore", "--time", &grace.to_string(), name]);
                output::ended("stop", exec::run(self.call(ways, args).timeout(timeout)).await)?;
            }
            let mut args = words(["rm", "--force", "--ignore", "--volumes"]);
            if ways.major >= 4 {
                args.push(format!("--time={grace}"));
            }
            args.push(name.to_owned());
            let outcome = output::ended("rm", exec::run(self.call(ways, args).timeout(timeout)).await)?;
            if outcome.success() {
                break;
            }
            // a mount inside may be busy for a moment, and another podman may have been quicker
            if attempt + 1 == ATTEMPTS {
                return Err(output::failed("rm", None, &outcome));
            }
            tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        }
        Ok(())
    }

    async fn log(&self, ways: &Ways, name: &str) -> String {
        let call = self.call(ways, words(["logs", "--tail", "50", name])).max_output(MAX_LOG * 8);
        let Ok(outcome) = exec::run(call).await else { return String::new() };
        if !outcome.success() {
            return String::new();
        }
        let both = [outcome.stdout.bytes, outcome.stderr.bytes].concat();
        let start = both.len().saturating_sub(MAX_LOG);
        String::from_utf8_lossy(&both[start..]).trim().to_owned()
    }

    async fn exists(&self, ways: &Ways, image: &str, cancel: &CancellationToken) -> Result<bool, Error> {
        let args = words(["image", "exists", image]);
        let outcome = output::ended("image exists", exec::run(self.call(ways, args).cancel(cancel.clone())).await)?;
        match outcome.end {
            exec::End::Exited(0) => Ok(true),
            exec::End::Exited(1) => Ok(false),
            _ => Err(output::failed("image exists", Some(image), &outcome)),
        }
    }

    async fn image(&self, image: &str, progress: ProgressFn, cancel: CancellationToken) -> Result<(), Error> {
        let ways = self.ways().await?;
        if self.exists(&ways, image, &cancel).await? {
            return Ok(());
        }
        if image.starts_with("localhost/") {
            return Err(Error::new(ErrorCode::ImageUnavailable, format!("The image {image} isn't on this host, and no registry has it."))
                .mend("Build it here, or load it with `podman load`."));
        }
        let _permit = permit(&self.pulls, &cancel).await?;
        progress(Progress { phase: format!("pulling {image}"), ..Progress::default() });
        let name = image.to_owned();
        let mut blobs = 0u32;
        // without a terminal podman says a line for each blob when it begins with it, and no bytes
        let call = self.call(&ways, words(["pull", image])).timeout(self.config.pull_timeout).cancel(cancel).on_line(move |line| {
            let phase = match line.split(' ').next() {
                Some("Copying") if line.starts_with("Copying blob") => {
                    blobs += 1;
                    format!("pulling {name}: layer {blobs}")
                }
                Some("Copying") => format!("pulling {name}: configuration"),
                Some("Writing" | "Storing") => format!("storing {name}"),
                _ => return,
            };
            progress(Progress { phase, ..Progress::default() });
        });
        let outcome = output::ended("pull", exec::run(call).await)?;
        if outcome.success() { Ok(()) } else { Err(pull_failed(image, &outcome)) }
    }
}

/// A pull fails for the image's or the registry's sake unless podman says otherwise.
fn pull_failed(image: &str, outcome: &ExecOutcome) -> Error {
    let error = output::failed("pull", Some(image), outcome);
    if error.code == ErrorCode::RuntimeFailed { output::image_unavailable(image, &output::reason(&outcome.stderr.text())) } else { error }
}

async fn permit<'a>(semaphore: &'a Semaphore, cancel: &CancellationToken) -> Result<tokio::sync::SemaphorePermit<'a>, Error> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::new(ErrorCode::Cancelled, "The wait for podman was cancelled.")),
        permit = semaphore.acquire() => permit.map_err(|_| Error::internal("The queue of podman's work was closed.")),
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(Into::into).into()
}

impl Runtime for PodmanRuntime {
    fn findings(&self) -> Vec<Finding> {
        self.probed().0.findings.clone()
    }

    fn owner(&self) -> Owner {
        let own = (rustix::process::geteuid(), rustix::process::getegid());
        // as long as nothing works this is by whether we are root, which is what podman goes by, too
        if own.0.is_root() {
            Owner { uid: self.config.userns_base, gid: self.config.userns_base }
        } else {
            Owner { uid: own.0.as_raw(), gid: own.1.as_raw() }
        }
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        Box::pin(async { self.containers(&self.ways().await?, None).await })
    }

    fn ensure_image<'a>(&'a self, image: &'a str, progress: ProgressFn, cancel: CancellationToken) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.image(image, progress, cancel))
    }

    fn ensure_running<'a>(&'a self, spec: &'a ContainerSpec, cancel: CancellationToken) -> BoxFuture<'a, Result<Container, Error>> {
        Box::pin(self.start(spec, cancel))
    }

    fn ensure_removed(&self, project: ProjectId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.remove(&self.ways().await?, &self.name(project)).await })
    }

    fn log_tail(&self, project: ProjectId) -> BoxFuture<'_, String> {
        Box::pin(async move {
            match self.ways().await {
                Ok(ways) => self.log(&ways, &self.name(project)).await,
                Err(_) => String::new(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PodmanConfig {
        PodmanConfig::new("0198c0de-0000-7000-8000-00000000abcd".parse().unwrap(), std::env::current_exe().unwrap())
    }

    #[test]
    fn networks_and_ranges_that_would_break_the_walls_are_refused() {
        config().check().unwrap();
        for network in ["host", "container:x", "ns:/proc/1/ns/net", "-x", "slirp4netns:allow_host_loopback=true", ""] {
            assert!(PodmanConfig { network: Some(network.into()), ..config() }.check().is_err(), "{network:?}");
        }
        assert!(PodmanConfig { userns_base: 0, ..config() }.check().is_err());
        assert!(PodmanConfig { userns_base: u32::MAX, ..config() }.check().is_err());
        assert_eq!(USERNS_BASE % args::MAPPED_IDS, 0);
    }

    #[tokio::test]
    async fn without_podman_every_verb_says_so() {
        let config = PodmanConfig { podman: "/nonexistent/podman".into(), ..config() };
        let runtime = PodmanRuntime::open(config, Arc::new(atoll_net::clock::SystemClock)).await;
        assert_eq!(runtime.findings()[0].code, "runtime.podman_missing");
        assert_eq!(runtime.list().await.unwrap_err().code, ErrorCode::RuntimeFailed);
        let progress: ProgressFn = Arc::new(|_| ());
        assert_eq!(runtime.ensure_image("x", progress, CancellationToken::new()).await.unwrap_err().code, ErrorCode::RuntimeFailed);
    }
}
