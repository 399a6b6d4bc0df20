//! TLS with one provider of cryptography, aws-lc: certificates from PEM files, taken anew when the files change.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, Timestamp};
pub use rustls::ClientConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::clock::SharedClock;

/// A server's certificate and key, as files. A change of them is noticed at the next connection, some seconds later at most, so that renewing
/// needs no restart and no signal; files that don't go together (a change half done) leave the old ones in force.
pub struct ServerTls {
    certificate: PathBuf,
    key: PathBuf,
    protocol: Protocol,
    clock: SharedClock,
    state: Mutex<State>,
}

/// What is spoken inside the encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Whose clients name no protocol in the handshake.
    Nats,
    /// HTTP/1.1, and says so to clients that ask (ALPN, RFC 7301); those that speak HTTP/2 alone are refused in the handshake.
    Http,
}

impl Protocol {
    /// The identifiers that are registered for ALPN.
    fn alpn(self) -> Vec<Vec<u8>> {
        match self {
            Self::Nats => Vec::new(),
            Self::Http => vec![b"http/1.1".to_vec()],
        }
    }
}

struct State {
    config: Arc<ServerConfig>,
    /// Of the files when they were last read, good or not.
    stamps: Stamps,
    looked: Timestamp,
}

type Stamps = [Option<(std::time::SystemTime, u64, u64)>; 2];

/// The first byte of a TLS handshake record (RFC 8446, section 5.1).
pub(crate) const HANDSHAKE: u8 = 22;

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
    pub fn load(certificate: &Path, key: &Path, protocol: Protocol, clock: SharedClock) -> Result<Self, Error> {
        let stamps = stamps(certificate, key);
        let state = State { config: server_config(certificate, key, protocol)?, stamps, looked: clock.now() };
        Ok(Self { certificate: certificate.into(), key: key.into(), protocol, clock, state: Mutex::new(state) })
    }

    /// What a configuration says of a listener: the two keys by name, such as `host.tls_certificate`, each with its file. None if neither names one.
    ///
    /// # Errors
    /// `invalid_config` with the key if only one is named; as [`load`](Self::load), with the keys.
    pub fn configured(
        (certificate_key, certificate): (&str, Option<&Path>),
        (key_key, key): (&str, Option<&Path>),
        protocol: Protocol,
        clock: SharedClock,
    ) -> Result<Option<Arc<Self>>, Error> {
        let alone = |missing: &str, named: &str| {
            Err(Error::new(ErrorCode::InvalidConfig, format!("{missing} must be set, since {named} is.")).mend("Set both, or neither."))
        };
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(_), None) => alone(key_key, certificate_key),
            (None, Some(_)) => alone(certificate_key, key_key),
            (Some(certificate), Some(key)) => {
                let loaded = Self::load(certificate, key, protocol, clock);
                loaded.map(|tls| Some(Arc::new(tls))).map_err(|error| error.mend(format!("Check {certificate_key} and {key_key}.")))
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
            match server_config(&self.certificate, &self.key, self.protocol) {
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

fn server_config(certificate: &Path, key: &Path, protocol: Protocol) -> Result<Arc<ServerConfig>, Error> {
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| bad(key, "there is no private key in PEM in it"))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = builder.map_err(|error| Error::internal(error.to_string()))?.with_no_client_auth().with_single_cert(chain, private);
    match config {
        Ok(mut config) => {
            config.alpn_protocols = protocol.alpn();
            Ok(Arc::new(config))
        }
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(bad(key, format!("it isn't the key of the certificate in {}", certificate.display())))
        }
        Err(rustls::Error::InvalidCertificate(error)) => Err(bad(certificate, error)),
        Err(error) => Err(bad(key, error)),
    }
}

/// Which authorities a client believes.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// Those that the system trusts, and those in this file (PEM), if there is one.
    System(Option<&'a Path>),
    /// Those in this file alone.
    Only(&'a Path),
}

/// For connections to servers whose certificates lead to an authority that is trusted. Reads files.
///
/// # Errors
/// `invalid_config` with the file; also if there is no authority at all.
pub fn client_config(trust: Trust<'_>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    if let Trust::System(_) = trust {
        // some of a system's certificates may be unreadable; the others do
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Trust::System(Some(path)) | Trust::Only(path) = trust {
        certificates(path)?.into_iter().try_for_each(|one| roots.add(one).map_err(|error| bad(path, error)))?;
    }
    if roots.is_empty() {
        return Err(Error::new(ErrorCode::InvalidConfig, "The system has no certificates that it trusts.")
            .mend("Install its package of certificates (ca-certificates), or name a CA file."));
    }
    let broken = |error: String| Error::internal(format!("TLS can't be set up: {error}."));
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let telling = Telling(usual.map_err(|error| broken(error.to_string()))?);
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| broken(error.to_string()))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(telling)).with_no_client_auth())
}

/// The usual verifier, which decides everything; what it refuses is logged. The published NATS client, which connects again and again by itself, says
/// of such a failure nothing but "IO error".
#[derive(Debug)]
struct Telling(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Telling {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let Err(rustls::Error::InvalidCertificate(why)) = &verified {
            let (why, mend) = distrust(why);
            tracing::warn!(server = %server_name.to_str(), mend, "a server isn't trusted: {why}");
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What failed in a handshake, if it was that which made a connection fail. `server` is how people know the other end: "The master at https://…".
///
/// `untrusted` if the server's certificate isn't accepted, `unavailable` if the server doesn't speak TLS or refuses the handshake.
pub fn handshake_error(server: &str, error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let failed = rustls_error(error)?;
    Some(match failed {
        rustls::Error::InvalidCertificate(why) => {
            let (why, mend) = distrust(why);
            Error::new(ErrorCode::Untrusted, format!("{server} isn't trusted: {why}.")).mend(mend)
        }
        rustls::Error::InvalidMessage(_) => Error::new(ErrorCode::Unavailable, format!("{server} doesn't speak TLS."))
            .mend("Is it the right port? Without TLS the address begins with http://, ws:// or nats://."),
        other => Error::new(ErrorCode::Unavailable, format!("{server} can't be spoken to with TLS: {other}.")),
    })
}

/// Why a certificate isn't accepted, and what to do.
fn distrust(why: &CertificateError) -> (String, &'static str) {
    match why {
        // the second: there is one of the same name, which is often the old one of somebody who has made a new one
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate is from an authority that isn't trusted here".into(),
            "If it is an authority of your own, name its certificate: --ca-file or ATOLL_CA_FILE, for a host host.master_ca_file.",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("its certificate has expired".into(), "Renew it; a server takes new files within seconds. Is this machine's clock right?")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate isn't valid yet".into(), "Is this machine's clock right?")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ("its certificate is for another name".into(), "Use a name or address that is in the certificate.")
        }
        // rustls has no name for it and passes on webpki's
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => (
            "its certificate is an authority's, and a server's must not be".into(),
            "Make one with basicConstraints CA:FALSE, which `openssl req -x509` doesn't by itself; docs/runbooks/tls.md has the commands.",
        ),
        other => (other.to_string().trim_end_matches('.').to_owned(), ""),
    }
}

/// What rustls said, below what others have put around it.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // an I/O error gives the source of what is in it as its own
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = within.and_then(|within| rustls_error(within)) {
            return Some(found);
        }
        next = error.source();
    }
    None
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
        ServerTls::load(&good, &good_key, Protocol::Nats, clock.clone()).unwrap();
        let (empty, other) = (files.write("empty.pem", "nothing"), files.write("other.pem", &other));
        for (certificate, key, file, why) in [
            (files.path("none.pem"), good_key.clone(), "none.pem", "No such file"),
            (empty.clone(), good_key.clone(), "empty.pem", "no certificate"),
            (good.clone(), empty, "empty.pem", "no private key"),
            (good.clone(), good.clone(), "cert.pem", "no private key"),
            (good.clone(), other.clone(), "other.pem", "isn't the key"),
        ] {
            let error = ServerTls::load(&certificate, &key, Protocol::Http, clock.clone()).unwrap_err();
            assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(file) && error.message.contains(why), "{error}");
        }
    }

    #[test]
    fn both_keys_or_none() {
        let files = Files(tempfile::tempdir().unwrap());
        let clock = TestClock::at(Timestamp::from_millis(0));
        let configured = |certificate, key| {
            ServerTls::configured(("host.tls_certificate", certificate), ("host.tls_key", key), Protocol::Http, clock.clone())
        };
        assert!(configured(None, None).unwrap().is_none());
        let path = files.path("x.pem");
        assert!(configured(Some(&path), None).unwrap_err().message.starts_with("host.tls_key must be set"));
        assert!(configured(None, Some(&path)).unwrap_err().message.starts_with("host.tls_certificate must be set"));
        let missing = configured(Some(&path), Some(&path)).unwrap_err();
        assert!(missing.message.contains("x.pem") && missing.mend.contains("host.tls_certificate"), "{missing:?}");
    }

    #[test]
    fn changed_files_are_taken_when_they_go_together() {
        let files = Files(tempfile::tempdir().unwrap());
        let clock = TestClock::at(Timestamp::from_millis(0));
        let (certificate, key) = made();
        let (at, key_at) = (files.write("cert.pem", &certificate), files.write("key.pem", &key));
        let tls = ServerTls::load(&at, &key_at, Protocol::Http, clock.clone()).unwrap();
        let first = tls.config();
        assert_eq!(first.alpn_protocols, [b"http/1.1"]);
        let (certificate, key) = made();
        files.write("cert.pem", &certificate);
        assert!(Arc::ptr_eq(&first, &tls.config()), "not looked at again so soon");
        clock.advance(LOOK_EVERY);
        assert!(Arc::ptr_eq(&first, &tls.config()), "the key is still that of the old one");
        files.write("key.pem", &key);
        clock.advance(LOOK_EVERY);
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second) && second.alpn_protocols == first.alpn_protocols);
        clock.advance(LOOK_EVERY);
        assert!(Arc::ptr_eq(&second, &tls.config()), "nothing has changed");
    }

    #[test]
    fn what_is_trusted() {
        let files = Files(tempfile::tempdir().unwrap());
        let (good, empty) = (files.write("cert.pem", &made().0), files.write("empty.pem", "nothing"));
        client_config(Trust::Only(&good)).unwrap();
        client_config(Trust::System(Some(&good))).unwrap();
        for (trust, file) in [(Trust::Only(&empty), "empty.pem"), (Trust::System(Some(&files.path("none.pem"))), "none.pem")] {
            let error = client_config(trust).unwrap_err();
            assert!(error.code == ErrorCode::InvalidConfig && error.message.contains(file), "{error}");
        }
    }

    #[test]
    fn a_handshakes_error_is_found_below_others() {
        let wrap = |error: rustls::Error| io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
        let told = |error: rustls::Error| handshake_error("The master at https://m", &wrap(error)).unwrap();
        let stranger = told(CertificateError::UnknownIssuer.into());
        assert_eq!((stranger.code, stranger.retry), (ErrorCode::Untrusted, false));
        assert!(
            stranger.message.starts_with("The master at https://m isn't trusted") && stranger.mend.contains("--ca-file"),
            "{stranger:?}"
        );
        assert!(told(CertificateError::NotValidForName.into()).message.contains("another name"));
        let plain = told(rustls::InvalidMessage::InvalidContentType.into());
        assert_eq!((plain.code, plain.message.as_str()), (ErrorCode::Unavailable, "The master at https://m doesn't speak TLS."));
        assert!(handshake_error("it", &io::Error::from(io::ErrorKind::ConnectionRefused)).is_none());
    }
}
