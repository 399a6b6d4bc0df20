//! `atoll serve host`, and what `host join`, `doctor` and `up` need of a host.

use std::{path::PathBuf, sync::Arc};

use atoll_contract::{Error, HostId, host::Finding};
use atoll_host::{
    HostConfig, Identity, RunningHost,
    runtime::{
        Runtime,
        podman::{PodmanConfig, PodmanRuntime},
    },
    storage::{self, Storage, StorageConfig},
};
use atoll_net::clock::{SharedClock, SystemClock};

use super::{Stop, announce, binary, serve};
use crate::{
    args::ServeArgs,
    client::DEFAULT_MASTER,
    config::{self, Host, Machine, StorageChoice},
    errors::Result,
};

/// Load, build, run, drain.
pub fn run(args: ServeArgs) -> Result<u8> {
    let config = config::load(&args.config, &[], &Machine::examine())?;
    serve(&config.log, async |mut stop: Stop| {
        let identity = Identity::load(&config.host.data_dir)?;
        let (host, _) = stop.or(start(&config.host, identity, Arc::new(SystemClock))).await?;
        announce(&format!("The host {} serves at {}.", config.host.name, host.public_url()));
        let signal = stop.told().await;
        tracing::info!(signal, "draining; containers go on running");
        stop.drain(host.shutdown()).await;
        Ok(())
    })
}

/// Puts runtime and storage together and starts the host on them. Also gives what was found out about the machine.
pub async fn start(config: &Host, identity: Identity, clock: SharedClock) -> Result<(RunningHost, Vec<Finding>)> {
    // the master's address may be another one than at the join
    let identity = match &config.master_url {
        Some(url) => Identity { master_url: url.trim_end_matches('/').into(), ..identity },
        None => identity,
    };
    let binary = binary::keep_copy(&config.data_dir)?;
    let podman = podman(config, identity.host, binary.clone());
    podman.check()?;
    let runtime: Arc<dyn Runtime> = PodmanRuntime::open(podman, clock.clone()).await;
    let volumes = storage_config(config);
    let storage: Arc<dyn Storage> = tokio::task::spawn_blocking(move || storage::open(volumes))
        .await
        .map_err(|error| Error::internal(format!("The storage couldn't be opened: {error}.")))??;
    let findings = [vec![binary::finding()], runtime.findings(), storage.findings()].concat();
    for finding in &findings {
        tracing::info!(code = finding.code, severity = ?finding.severity, mend = finding.mend, "{}", finding.message);
    }
    let host = atoll_host::start(host_config(config, binary), identity, runtime, storage, clock).await?;
    Ok((host, findings))
}

/// Trades a join token for membership.
pub async fn join(config: &Host, token: &str, clock: &SharedClock) -> Result<Identity> {
    // nothing is mounted yet, so that any path does
    atoll_host::join(&host_config(config, PathBuf::new()), token, &**clock).await
}

/// What `atoll doctor` finds, as the host would at its start.
pub async fn examine(config: &Host) -> Vec<Finding> {
    let host = Identity::load(&config.data_dir).map(|identity| identity.host).or_else(|_| nobody());
    let podman = match (host, std::env::current_exe()) {
        (Ok(host), Ok(program)) => podman(config, host, program),
        _ => return Vec::new(),
    };
    atoll_host::doctor::examine(podman, storage_config(config), Arc::new(SystemClock)).await
}

/// Stands for a host that hasn't joined: an id that no host ever gets (RFC 9562, section 5.9).
fn nobody() -> Result<HostId> {
    "00000000-0000-0000-0000-000000000000".parse().map_err(|error| Error::internal(format!("The nil UUID isn't an id: {error}.")))
}

fn podman(config: &Host, host: HostId, binary: PathBuf) -> PodmanConfig {
    let given = &config.runtime;
    PodmanConfig {
        podman: given.podman.clone().into(),
        oci_runtime: given.oci_runtime.clone(),
        userns_base: given.userns_base,
        network: given.network.clone(),
        pull_timeout: given.pull_timeout,
        max_parallel_starts: given.max_parallel_starts as usize,
        ..PodmanConfig::new(host, binary)
    }
}

fn storage_config(config: &Host) -> StorageConfig {
    StorageConfig {
        kind: match config.storage.kind {
            StorageChoice::Auto => storage::StorageChoice::Auto,
            StorageChoice::Btrfs => storage::StorageChoice::Btrfs,
            StorageChoice::Dir => storage::StorageChoice::Dir,
        },
        path: config.storage.path.clone(),
        // rootless, files may belong to ids that only podman's user namespace has
        unshare: (!rustix::process::geteuid().is_root()).then(|| config.runtime.podman.clone().into()),
    }
}

fn host_config(config: &Host, binary: PathBuf) -> HostConfig {
    HostConfig {
        name: config.name.clone(),
        data_dir: config.data_dir.clone(),
        listen: config.listen,
        public_url: config.public_url.clone().unwrap_or_default(),
        master_url: config.master_url.clone().unwrap_or_else(|| DEFAULT_MASTER.into()),
        master_ca_file: config.master_ca_file.clone(),
        tls_certificate: config.tls.certificate.clone(),
        tls_key: config.tls.key.clone(),
        region: config.region.clone(),
        labels: config.labels.clone(),
        max_running: config.max_running,
        disk_reserve_bytes: config.disk_reserve,
        bus_listen: config.bus_listen,
        bus_tls_certificate: config.bus_tls.certificate.clone(),
        bus_tls_key: config.bus_tls.key.clone(),
        binary,
        ..HostConfig::default()
    }
}
