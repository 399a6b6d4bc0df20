//! What a host is told at its start. Plain data: the binary reads it from its TOML file, environment and flags.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    host::{HOST_PORT, MASTER_PORT},
    project::check_name,
};

/// A host's configuration. [`HostConfig::check`] is called before any port is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// The host's name in the cluster, 1 to 63 characters as in [`check_name`]. Used at the join; afterwards the identity's counts.
    pub name: String,
    /// Directory for what the host must remember: its identity, its records, its agents' sockets. One host program at a time uses it.
    pub data_dir: PathBuf,
    /// Where users' HTTP and WebSocket connections are accepted. Port 0 lets the system choose. Not encrypted without the two that follow the next.
    pub listen: SocketAddr,
    /// `http(s)://name:port` under which users reach `listen`, without a path; `https` if `listen` is encrypted, and also without that where a proxy
    /// does TLS. Empty: `http://` or `https://` and the address that was bound.
    pub public_url: String,
    /// PEM file with the certificate for `listen`, and those between it and its authority.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub tls_key: Option<PathBuf>,
    /// `http(s)://name:port` of the master, without a path.
    pub master_url: String,
    /// The master's bus, if it isn't at `/bus` of `master_url`: `ws://`, `wss://`, or `nats://` for plain TCP. Empty: derived.
    pub master_bus: String,
    /// PEM file with certificates that the master's may lead to, besides those that the system trusts. Read at the start.
    pub master_ca_file: Option<PathBuf>,
    /// A place's name for placement, such as `eu-west`.
    pub region: String,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Containers that run at once, at most.
    pub max_running: u32,
    /// Bytes of free disk that are never promised to projects.
    pub disk_reserve_bytes: u64,
    /// Where NATS clients are accepted over TCP, if anywhere. Not encrypted without the next two: for loopback and private networks.
    pub bus_listen: Option<SocketAddr>,
    /// PEM file with the certificate for `bus_listen`, and those between it and its authority.
    pub bus_tls_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub bus_tls_key: Option<PathBuf>,
    /// The static `atoll` binary that is mounted into containers as their agent.
    pub binary: PathBuf,
    /// How long a started container's agent may take to say hello.
    pub agent_wait: Duration,
    /// How often what should run is compared with what the runtime says, besides the moments when something happens.
    pub reconcile_every: Duration,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            data_dir: PathBuf::from("/var/lib/atoll/host"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, HOST_PORT)),
            public_url: String::new(),
            tls_certificate: None,
            tls_key: None,
            master_url: format!("http://127.0.0.1:{MASTER_PORT}"),
            master_bus: String::new(),
            master_ca_file: None,
            region: String::new(),
            labels: BTreeMap::new(),
            max_running: 200,
            disk_reserve_bytes: 2 << 30,
            bus_listen: None,
            bus_tls_certificate: None,
            bus_tls_key: None,
            binary: PathBuf::from("/usr/bin/atoll"),
            agent_wait: Duration::from_secs(30),
            reconcile_every: Duration::from_secs(10),
        }
    }
}

impl HostConfig {
    /// # Errors
    /// `invalid_config`, naming the key.
    pub fn check(&self) -> Result<(), Error> {
        check_name(&self.name).map_err(|error| invalid("name", &error.message))?;
        if !self.data_dir.is_absolute() {
            return Err(invalid("data_dir", "It must be an absolute path."));
        }
        check_url("master_url", &self.master_url, &["http", "https"])?;
        if !self.master_bus.is_empty() {
            check_url("master_bus", &self.master_bus, &["ws", "wss", "nats", "tls"])?;
        }
        if !self.public_url.is_empty() {
            check_url("public_url", &self.public_url, &["http", "https"])?;
            if self.tls_certificate.is_some() && self.public_url.starts_with("http://") {
                return Err(invalid(
                    "public_url",
                    "It begins with http://, and listen is encrypted (tls_certificate). Write https:// in it.",
                ));
            }
        } else if self.listen.ip().is_unspecified() {
            return Err(invalid("public_url", "It must be given when listen is all addresses, since users need one to connect to."));
        }
        if self.max_running == 0 {
            return Err(invalid("max_running", "It must be at least 1."));
        }
        if self.agent_wait.is_zero() || self.reconcile_every.is_zero() {
            return Err(invalid("agent_wait, reconcile_every", "They must be longer than nothing."));
        }
        Ok(())
    }

    /// The URL of the master's bus.
    pub fn bus_url(&self, master_url: &str) -> String {
        if !self.master_bus.is_empty() {
            return self.master_bus.clone();
        }
        let base = master_url.trim_end_matches('/');
        // http becomes ws and https becomes wss
        let rest = base.strip_prefix("http").unwrap_or(base);
        format!("ws{rest}/bus")
    }
}

fn invalid(key: &str, why: &str) -> Error {
    Error::new(ErrorCode::InvalidConfig, format!("The host's configuration key {key} is wrong: {why}"))
}

fn check_url(key: &str, url: &str, schemes: &[&str]) -> Result<(), Error> {
    let form = || invalid(key, &format!("{url:?} isn't {}://name:port.", schemes.join(":// or ")));
    let (scheme, rest) = url.split_once("://").ok_or_else(form)?;
    let rest = rest.trim_end_matches('/');
    // a bus may have a path; an HTTP base may not, since paths are put behind it
    let path_allowed = scheme.starts_with("ws");
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#') && (path_allowed || c != '/');
    if !schemes.contains(&scheme) || rest.is_empty() || !rest.chars().all(plain) { Err(form()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> HostConfig {
        HostConfig { name: "h1".into(), ..HostConfig::default() }
    }

    #[test]
    fn the_defaults_need_only_a_name() {
        good().check().unwrap();
        assert_eq!(HostConfig::default().check().unwrap_err().code, ErrorCode::InvalidConfig);
    }

    #[test]
    fn a_wrong_key_is_named() {
        let wrong: [(&str, HostConfig); 8] = [
            ("name", HostConfig { name: "-x".into(), ..good() }),
            ("data_dir", HostConfig { data_dir: "relative".into(), ..good() }),
            ("master_url", HostConfig { master_url: "master:7420".into(), ..good() }),
            ("master_url", HostConfig { master_url: "http://user@master".into(), ..good() }),
            ("master_bus", HostConfig { master_bus: "http://master".into(), ..good() }),
            ("public_url", HostConfig { listen: "0.0.0.0:1".parse().unwrap(), ..good() }),
            ("public_url", HostConfig { public_url: "http://a".into(), tls_certificate: Some("c".into()), ..good() }),
            ("max_running", HostConfig { max_running: 0, ..good() }),
        ];
        for (key, config) in wrong {
            let error = config.check().unwrap_err();
            assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(key), "{key}: {error}");
        }
    }

    #[test]
    fn the_bus_is_beside_the_api() {
        for (url, bus) in [("http://m:1", "ws://m:1/bus"), ("https://m/", "wss://m/bus")] {
            assert_eq!(good().bus_url(url), bus);
        }
        assert_eq!(HostConfig { master_bus: "nats://m:4222".into(), ..good() }.bus_url("http://m"), "nats://m:4222");
    }
}
