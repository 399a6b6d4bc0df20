//! Speaking to a master and to hosts: HTTP with the contract's types, and the bus of a project's host.

mod bus;
mod credentials;
mod files;
mod http;
mod master;

use std::path::Path;

use atoll_contract::Error;
use atoll_net::tls::{self, ClientConfig, Trust};

pub use self::{
    bus::{Bus, ask_agent, open as open_bus, open_master as open_master_bus, open_server},
    credentials::{Credentials, Session},
    files::{Body, Files, UPLOAD_CHUNK},
    http::Http,
    master::Master,
};
use crate::errors::Result;

/// What a command uses when nothing says which master: where `atoll up` listens by default.
pub const DEFAULT_MASTER: &str = "http://127.0.0.1:7420";

/// Whom this program's connections trust: what the system does, and the certificates in a file. Reads files.
///
/// # Errors
/// `invalid_config` with the file.
pub fn trusted(ca_file: Option<&Path>) -> Result<ClientConfig> {
    tls::client_config(Trust::System(ca_file)).map_err(|error| match ca_file {
        Some(_) => error.mend("Name another with --ca-file or ATOLL_CA_FILE."),
        None => error,
    })
}

/// A server's URL in the one spelling that is compared and stored: scheme, host, port; no path, no user, no slash at the end.
///
/// # Errors
/// `invalid_argument`.
pub fn base_url(text: &str) -> Result<String> {
    let bad = || Error::invalid(format!("{text:?} isn't a server's URL.")).mend("Write it as http://NAME:PORT or https://NAME.");
    let url = reqwest::Url::parse(text).map_err(|_| bad())?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some_and(|host| !host.is_empty())
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if plain { Ok(url.as_str().trim_end_matches('/').to_owned()) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_has_one_spelling() {
        for (text, want) in [
            ("http://a:7420", "http://a:7420"),
            ("http://a:7420/", "http://a:7420"),
            ("HTTPS://A.example/", "https://a.example"),
            ("http://[::1]:1", "http://[::1]:1"),
        ] {
            assert_eq!(base_url(text).unwrap(), want);
        }
        for text in ["", "a", "a:7420", "ftp://a", "http://", "http://a/path", "http://u@a", "http://u:p@a", "http://a?x", "http://a#x"] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }
}
