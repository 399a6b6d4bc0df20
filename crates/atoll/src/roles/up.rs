//! `atoll up`: a master and one host in one process, for one person.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use atoll_contract::host::{Finding, Severity};
use atoll_host::{Identity, RunningHost};
use atoll_master::RunningMaster;
use atoll_net::clock::{SharedClock, SystemClock};

use super::{Stop, announce, host, master, serve};
use crate::{
    args::UpArgs,
    config::{self, Config, Machine},
    errors::{self, Result},
};

/// Load, build, run, drain.
pub fn run(args: UpArgs) -> Result<u8> {
    let mut machine = Machine::examine();
    if let Some(dir) = &args.data_dir {
        machine.data_root = absolute(dir)?;
    }
    let mut config = config::load(&args.config, &flags(&args, &machine), &machine)?;
    if let Some(listen) = args.listen {
        config.host.listen.set_ip(listen.ip());
        config = reachable(config, listen)?;
    }
    serve(&config.log.clone(), async |stop| both(config, stop).await)
}

async fn both(mut config: Config, mut stop: Stop) -> Result<()> {
    let clock: SharedClock = Arc::new(SystemClock);
    announce("Starting…");
    let master = stop.or(master::start(&config.master, clock.clone())).await?;
    // never by a name that might not be known here, unless it has to be the one in the certificate
    config.host.master_url = Some(match config.master.tls.certificate {
        Some(_) => master.url().to_owned(),
        None => local_url(master.addr()),
    });
    let (host, findings) = match stop.or(start_host(&config, &master, clock)).await {
        Ok(started) => started,
        Err(error) => {
            stop.drain(master.shutdown()).await;
            return Err(error);
        }
    };
    welcome(&config, &master, &host, findings);
    let signal = stop.told().await;
    tracing::info!(signal, "draining; projects go on running");
    announce("Stopping; projects go on running. Ctrl-C again leaves at once.");
    stop.drain(async {
        host.shutdown().await;
        master.shutdown().await;
    })
    .await;
    Ok(())
}

/// The host joins by itself at the first start.
async fn start_host(config: &Config, master: &RunningMaster, clock: SharedClock) -> Result<(RunningHost, Vec<Finding>)> {
    let identity = if Identity::exists(&config.host.data_dir) {
        Identity::load(&config.host.data_dir)?
    } else {
        let token = master.join_token(&config.host.name).await?;
        host::join(&config.host, &token, &clock).await?
    };
    host::start(&config.host, identity, clock).await
}

fn welcome(config: &Config, master: &RunningMaster, host: &RunningHost, findings: Vec<Finding>) {
    announce(&format!(
        "Atoll {} is up.\n  master  {}\n  host    {} at {}\n  data    {} and {}",
        env!("CARGO_PKG_VERSION"),
        master.url(),
        config.host.name,
        host.public_url(),
        config.master.data_dir.display(),
        config.host.data_dir.display(),
    ));
    let broken: Vec<_> = findings.into_iter().filter(|finding| finding.severity == Severity::Error).collect();
    if !broken.is_empty() {
        announce(&format!("Projects can't run here yet (see atoll doctor):\n{}", crate::output::tables::findings(&broken)));
    }
    master::announce_setup(&config.master, master);
    announce("Ctrl-C stops it; projects go on running, and data is kept.");
}

/// Flags as keys of the config.
fn flags(args: &UpArgs, machine: &Machine) -> Vec<(&'static str, String)> {
    let mut flags = Vec::new();
    if args.data_dir.is_some() {
        flags.push(("master.data_dir", machine.data_root.join("master").display().to_string()));
        flags.push(("host.data_dir", machine.data_root.join("host").display().to_string()));
    }
    flags.extend(args.listen.map(|address| ("master.listen", address.to_string())));
    flags.extend(args.storage.map(|kind| ("host.storage.kind", kind.as_str().to_owned())));
    flags
}

/// A host on all addresses needs a name that users can go to, which only its owner knows.
fn reachable(config: Config, listen: SocketAddr) -> Result<Config> {
    if listen.ip().is_unspecified() && config.host.public_url.is_none() {
        return Err(atoll_contract::Error::new(
            atoll_contract::ErrorCode::InvalidConfig,
            format!("host.public_url must be set, since {} is an address that users can't go to.", listen.ip()),
        )
        .mend(format!(
            "Add --set host.public_url={}://NAME:{} with this machine's name or address.",
            config.host.tls.http_scheme(),
            config.host.listen.port()
        )));
    }
    Ok(config)
}

/// How this process's own host reaches a master that isn't encrypted.
fn local_url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    format!("http://{address}")
}

fn absolute(dir: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(|error| errors::io(dir.display(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_is_reached_locally() {
        for (address, url) in [
            ("127.0.0.1:7420", "http://127.0.0.1:7420"),
            ("0.0.0.0:1", "http://127.0.0.1:1"),
            ("[::]:1", "http://[::1]:1"),
            ("192.0.2.7:1", "http://192.0.2.7:1"),
        ] {
            assert_eq!(local_url(address.parse().unwrap()), url);
        }
    }
}
