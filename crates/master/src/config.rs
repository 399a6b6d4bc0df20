//! The master's configuration, checked before anything is opened.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use atoll_contract::{Error, ErrorCode, host::MASTER_PORT};
use serde::Deserialize;

/// The table `[master]` of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MasterConfig {
    /// Where the store, the signing key and the setup token are kept. Made, with mode 0700, if it isn't there. One master at a time uses
    /// it.
    pub data_dir: PathBuf,
    /// Address and port for HTTP: the API below `/v1`, and the bus over WebSocket at `/bus`. Port 0 takes a free one. Not encrypted without
    /// the two that follow the next.
    pub listen: SocketAddr,
    /// How users and hosts reach the master, `http(s)://name[:port]` without a path, where that isn't `listen`: behind a proxy, for
    /// instance, or by the name that is in the certificate. `https` if `listen` is encrypted; without that it may be, too, where a proxy
    /// does TLS.
    pub public_url: Option<String>,
    /// PEM file with the certificate for `listen`, and those between it and its authority.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub tls_key: Option<PathBuf>,
    /// Address and port for the bus over TCP, for NATS clients that don't speak WebSocket. Absent: not served.
    pub bus_listen: Option<SocketAddr>,
    /// PEM file with the certificate for `bus_listen`, and those between it and its authority. Absent: not encrypted.
    pub bus_tls_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub bus_tls_key: Option<PathBuf>,
    /// Leaf node listeners of the NATS cluster that the bus joins; see [`HubUrl`](atoll_net::bus::HubUrl).
    pub cluster_urls: Vec<String>,
    /// What the cluster is shown; see [`BridgeOptions`](atoll_net::bus::BridgeOptions).
    pub cluster_credentials_file: Option<PathBuf>,
    /// PEM file with the certificates that the cluster's must lead to. Absent: those that the system trusts.
    pub cluster_ca_file: Option<PathBuf>,
    /// HTTP connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// For how many days ended operations can be listed.
    pub history_days: u32,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/atoll/master"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, MASTER_PORT)),
            public_url: None,
            tls_certificate: None,
            tls_key: None,
            bus_listen: None,
            bus_tls_certificate: None,
            bus_tls_key: None,
            cluster_urls: Vec::new(),
            cluster_credentials_file: None,
            cluster_ca_file: None,
            max_connections: 4096,
            history_days: 30,
        }
    }
}

impl MasterConfig {
    /// # Errors
    /// `invalid_config`, naming the key.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |text: String, mend: &str| Err(Error::new(ErrorCode::InvalidConfig, text).mend(mend));
        if self.data_dir.as_os_str().is_empty() {
            return bad("master.data_dir is empty.".into(), "Name a directory that the master may write to.");
        }
        if let Some(url) = &self.public_url {
            let name = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            if name.is_none_or(|name| name.is_empty() || name.contains(['/', '?', '#', '@', ' '])) {
                return bad(
                    format!("master.public_url is {url:?}, which isn't http(s)://name[:port]."),
                    "Give scheme, name and port, and no path.",
                );
            }
        }
        if self.tls_certificate.is_some() && self.public_url.as_ref().is_some_and(|url| url.starts_with("http://")) {
            return bad(
                "master.public_url begins with http://, and master.listen is encrypted (master.tls_certificate).".into(),
                "Write https:// in it.",
            );
        }
        if self.bus_listen.is_some_and(|bus| bus == self.listen && bus.port() != 0) {
            return bad(format!("master.bus_listen and master.listen are both {}.", self.listen), "Give the bus a port of its own.");
        }
        if !(16..=1_000_000).contains(&self.max_connections) {
            return bad(format!("master.max_connections is {}.", self.max_connections), "Use 16 to 1000000.");
        }
        if !(1..=3650).contains(&self.history_days) {
            return bad(format!("master.history_days is {}.", self.history_days), "Use 1 to 3650.");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        MasterConfig::default().check().unwrap();
        MasterConfig { public_url: Some("https://atoll.example:8443".into()), ..MasterConfig::default() }.check().unwrap();
        let listen = MasterConfig::default().listen;
        for (key, config) in [
            ("data_dir", MasterConfig { data_dir: PathBuf::new(), ..MasterConfig::default() }),
            ("public_url", MasterConfig { public_url: Some("atoll.example".into()), ..MasterConfig::default() }),
            ("public_url", MasterConfig { public_url: Some("https://atoll.example/x".into()), ..MasterConfig::default() }),
            (
                "public_url",
                MasterConfig { public_url: Some("http://m".into()), tls_certificate: Some("c".into()), ..MasterConfig::default() },
            ),
            ("bus_listen", MasterConfig { bus_listen: Some(listen), ..MasterConfig::default() }),
            ("max_connections", MasterConfig { max_connections: 0, ..MasterConfig::default() }),
            ("history_days", MasterConfig { history_days: 0, ..MasterConfig::default() }),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(&format!("master.{key}")), "{error:?}");
        }
    }
}
