//! TLS with one provider of cryptography, aws-lc: certificates from PEM files, taken anew when the files change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, Timestamp};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::clock::SharedClock;

/// A server's certificate and key, as files. A change of them is noticed at the next connection, some seconds later at most, so that renewing
/// needs no restart and no signal; files that don't go together (a change half done) leave the old ones in force.
pub struct ServerTls {
    certificate: PathBuf,
    key: PathBuf,
    clock: SharedClock,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    /// Of the files when they were last read, good or not.
    stamps: Stamps,
    looked: Timestamp,
}

type Stamps = [Option<(std::time::SystemTime, u64, u64)>; 2];

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("certificate", &self.certificate).field("key", &self.key).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads a certificate (with those between it and its authority, in this order) and its key, both PEM.
    ///
    /// # Errors
    /// `invalid_config` with the file and what is wrong with it; never with what is in the key.
    pub fn load(certificate: &Path, key: &Path, clock: SharedClock) -> Result<Self, Error> {
        let stamps = stamps(certificate, key);
        let state = State { config: server_config(certificate, key)?, stamps, looked: clock.now() };
        Ok(Self { certificate: certificate.into(), key: key.into(), clock, state: Mutex::new(state) })
    }

    /// What a configuration's section says of its bus: nothing if it names no files.
    ///
    /// # Errors
    /// `invalid_config` with the key if only one is named; as [`load`](Self::load), with the keys.
    pub fn configured(
        section: &str,
        certificate: Option<&Path>,
        key: Option<&Path>,
        clock: SharedClock,
    ) -> Result<Option<Arc<Self>>, Error> {
        let names = [format!("{section}.bus_tls_certificate"), format!("{section}.bus_tls_key")];
        let alone = |missing: &str, named: &str| {
            Err(Error::new(ErrorCode::InvalidConfig, format!("{missing} must be set, since {named} is.")).mend("Set both, or neither."))
        };
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(_), None) => alone(&names[1], &names[0]),
            (None, Some(_)) => alone(&names[0], &names[1]),
            (Some(certificate), Some(key)) => {
                let loaded = Self::load(certificate, key, clock);
                loaded.map(|tls| Some(Arc::new(tls))).map_err(|error| error.mend(format!("Check {} and {}.", names[0], names[1])))
            }
        }
    }

    /// What a connection that begins now is served with.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if now.since(state.looked) < LOOK_EVERY && now >= state.looked {
            return state.config.clone();
        }
        state.looked = now;
        let stamps = stamps(&self.certificate, &self.key);
        if stamps != state.stamps {
            state.stamps = stamps;
            match server_config(&self.certificate, &self.key) {
                Ok(config) => {
                    tracing::info!(certificate = %self.certificate.display(), "a new certificate is in force");
                    state.config = config;
                }
                Err(error) => tracing::error!(%error, "the certificate's files have changed and can't be used; the old one stays in force"),
            }
        }
        state.config.clone()
    }
}

fn stamps(certificate: &Path, key: &Path) -> Stamps {
    use std::os::unix::fs::MetadataExt;
    [certificate, key].map(|path| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.modified().ok()?, data.len(), data.ino()))
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::InvalidConfig, format!("{} can't be used for TLS: {why}.", path.display()))
}

/// A file of certificates or a key larger than this isn't one.
const MAX_FILE: u64 = 1 << 20;

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    use io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)).map_err(|error| bad(path, error))?;
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    match all.map_err(|error| bad(path, format!("it isn't PEM ({error})")))? {
        none if none.is_empty() => Err(bad(path, "there is no certificate in it")),
        some => Ok(some),
    }
}

fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| bad(key, "there is no private key in PEM in it"))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = builder.map_err(|error| Error::internal(error.to_string()))?.with_no_client_auth().with_single_cert(chain, private);
    match config {
        Ok(config) => Ok(Arc::new(config)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(bad(key, format!("it isn't the key of the certificate in {}", certificate.display())))
        }
        Err(rustls::Error::InvalidCertificate(error)) => Err(bad(certificate, error)),
        Err(error) => Err(bad(key, error)),
    }
}

/// For connections to servers whose certificates lead to those in `ca_file`, or else to one that the system trusts. Reads files.
///
/// # Errors
/// `invalid_config` with the file.
pub(crate) fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => certificates(path)?.into_iter().try_for_each(|one| roots.add(one).map_err(|error| bad(path, error)))?,
        None => {
            // some of a system's certificates may be unreadable; the others do
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(Error::new(ErrorCode::InvalidConfig, "The system has no certificates that it trusts."));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(builder.map_err(|error| Error::internal(error.to_string()))?.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TestClock;

    struct Files(tempfile::TempDir);

    impl Files {
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            // another file at its place, as those who renew certificates do it
            std::fs::write(self.path("new"), text).unwrap();
            std::fs::rename(self.path("new"), self.path(name)).unwrap();
            self.path(name)
        }
    }

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        let files = Files(tempfile::tempdir().unwrap());
        let clock = TestClock::at(Timestamp::from_millis(0));
        let ((certificate, key), (_, other)) = (made(), made());
        let (good, good_key) = (files.write("cert.pem", &certificate), files.write("key.pem", &key));
        ServerTls::load(&good, &good_key, clock.clone()).unwrap();
        let (empty, other) = (files.write("empty.pem", "nothing"), files.write("other.pem", &other));
        for (certificate, key, file, why) in [
            (files.path("none.pem"), good_key.clone(), "none.pem", "No such file"),
            (empty.clone(), good_key.clone(), "empty.pem", "no certificate"),
            (good.clone(), empty, "empty.pem", "no private key"),
            (good.clone(), good.clone(), "cert.pem", "no private key"),
            (good.clone(), other.clone(), "other.pem", "isn't the key"),
        ] {
            let error = ServerTls::load(&certificate, &key, clock.clone()).unwrap_err();
            assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(file) && error.message.contains(why), "{error}");
        }
    }

    #[test]
    fn both_keys_or_none() {
        let files = Files(tempfile::tempdir().unwrap());
        let clock = TestClock::at(Timestamp::from_millis(0));
        let configured = |certificate, key| ServerTls::configured("host", certificate, key, clock.clone());
        assert!(configured(None, None).unwrap().is_none());
        let path = files.path("x.pem");
        assert!(configured(Some(&path), None).unwrap_err().message.starts_with("host.bus_tls_key must be set"));
        assert!(configured(None, Some(&path)).unwrap_err().message.starts_with("host.bus_tls_certificate must be set"));
        let missing = configured(Some(&path), Some(&path)).unwrap_err();
        assert!(missing.message.contains("x.pem") && missing.mend.contains("host.bus_tls_certificate"), "{missing:?}");
    }

    #[test]
    fn changed_files_are_taken_when_they_go_together() {
        let files = Files(tempfile::tempdir().unwrap());
        let clock = TestClock::at(Timestamp::from_millis(0));
        let (certificate, key) = made();
        let tls = ServerTls::load(&files.write("cert.pem", &certificate), &files.write("key.pem", &key), clock.clone()).unwrap();
        let first = tls.config();
        let (certificate, key) = made();
        files.write("cert.pem", &certificate);
        assert!(Arc::ptr_eq(&first, &tls.config()), "not looked at again so soon");
        clock.advance(LOOK_EVERY);
        assert!(Arc::ptr_eq(&first, &tls.config()), "the key is still that of the old one");
        files.write("key.pem", &key);
        clock.advance(LOOK_EVERY);
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second));
        clock.advance(LOOK_EVERY);
        assert!(Arc::ptr_eq(&second, &tls.config()), "nothing has changed");
    }
}
