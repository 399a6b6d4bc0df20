//! How a router joins a cluster.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use atoll_contract::{Error, ErrorCode};

use super::credentials::Credentials;
use crate::tls::{self, Trust};

/// What a bridge is told.
#[derive(Debug, Clone)]
pub struct BridgeOptions {
    /// Listeners for leaf nodes, tried in turn.
    pub urls: Vec<HubUrl>,
    /// Patterns of what crosses, in both directions.
    pub subjects: Vec<String>,
    /// `user:password`, a token or an nkey seed in one line, or a `.creds` file. Read at every connect.
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) that the hub's must lead to; absent: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// What the router is called in the cluster's own lists; an id is put behind it.
    pub name: String,
    /// Bytes that wait for the hub before it is too slow.
    pub pending_bytes: usize,
    /// Messages likewise.
    pub pending_messages: usize,
    /// Subscriptions of the cluster that are kept. One that has more of them below `subjects` can't be joined.
    pub interests: usize,
    /// From the beginning to the hub's consent.
    pub connect_timeout: Duration,
    /// How often a silent hub is asked for a PONG; the second unanswered one ends the connection.
    pub ping_interval: Duration,
    /// A hub whose socket takes nothing for so long while bytes wait is too slow.
    pub write_timeout: Duration,
    /// The pause after all URLs have failed; it doubles up to `longest_pause`, which is also that after a refusal which won't mend soon.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            subjects: Vec::new(),
            credentials_file: None,
            ca_file: None,
            name: "atoll".into(),
            pending_bytes: 32 << 20,
            pending_messages: 256 << 10,
            interests: 100_000,
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(15),
            write_timeout: Duration::from_secs(10),
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(30),
        }
    }
}

impl BridgeOptions {
    /// Looks at the files, which are looked at again at every connect: mistakes are better seen at the start.
    ///
    /// # Errors
    /// `invalid_config` with the file.
    pub async fn check(&self) -> Result<(), Error> {
        Credentials::load(self.credentials_file.as_deref()).await?;
        if let Some(path) = self.ca_file.clone() {
            let read = tokio::task::spawn_blocking(move || tls::client_config(Trust::Only(&path)).map(drop)).await;
            read.map_err(|error| Error::internal(error.to_string()))??;
        }
        Ok(())
    }
}

/// Where a hub listens: `nats://name[:port]`, or `tls://…` if it must be TLS. The port is 7422 if none is given, as for nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubUrl {
    pub host: String,
    pub port: u16,
    /// Nothing is said to a hub that doesn't do TLS.
    pub tls: bool,
}

const LEAF_PORT: u16 = 7422;

impl FromStr for HubUrl {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::new(ErrorCode::InvalidConfig, format!("{url:?} isn't the URL of a cluster: {why}."))
                .mend("Write nats://NAME:PORT, or tls://NAME:PORT, of a nats-server's leafnodes listener.")
        };
        let (tls, rest) = match url.split_once("://") {
            Some(("nats" | "nats-leaf", rest)) => (false, rest),
            Some(("tls", rest)) => (true, rest),
            Some(_) => return Err(bad("the scheme is nats or tls")),
            None => (false, url),
        };
        if rest.contains('@') {
            // not quoted: it holds a password
            return Err(Error::new(ErrorCode::InvalidConfig, "A cluster's URL holds credentials, which are read from a file only."));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")))
            }
            Some(_) => return Err(bad("that isn't an IPv6 address")),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, Some("")),
            },
        };
        let port = match port {
            Some("") if !rest.ends_with(':') => LEAF_PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad("the port isn't one"))?,
            None => return Err(bad("the port isn't one")),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(good) {
            return Err(bad("that isn't a name or address"));
        }
        Ok(Self { host: host.into(), port, tls })
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "nats" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, shown) in [
            ("nats://a.example.org:7422", Some("nats://a.example.org:7422")),
            ("nats-leaf://a", Some("nats://a:7422")),
            ("tls://a:1/", Some("tls://a:1")),
            ("127.0.0.1:5", Some("nats://127.0.0.1:5")),
            ("tls://[::1]:5", Some("tls://[::1]:5")),
            ("[::1]", Some("nats://[::1]:7422")),
            ("http://a", None),
            ("nats://", None),
            ("nats://a:", None),
            ("nats://a:0", None),
            ("nats://a:70000", None),
            ("nats://a/b", None),
            ("nats://[a]:1", None),
            ("nats://[::1]x", None),
            ("a b", None),
        ] {
            assert_eq!(url.parse::<HubUrl>().ok().map(|url| url.to_string()).as_deref(), shown, "{url}");
        }
        let secret = "nats://u:secret@a".parse::<HubUrl>().unwrap_err();
        assert!(secret.code == ErrorCode::InvalidConfig && !secret.message.contains("secret"), "{secret}");
    }
}
