//! Fixtures for tests, of other crates too: a certificate authority of their own.

use std::{
    io,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Signs certificates, and keeps them in a directory of the test's.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// Writes its own certificate to `ca.pem` in the directory, and a first server's certificate.
    ///
    /// # Errors
    /// Those of the files.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        let authority = Self { issuer: Issuer::new(params, key), dir: dir.into() };
        put(&authority.ca_file(), &certificate.pem())?;
        authority.renew()?;
        Ok(authority)
    }

    /// Another certificate for localhost and 127.0.0.1, with another key.
    ///
    /// # Errors
    /// Those of the files.
    pub fn renew(&self) -> io::Result<()> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        put(&self.certificate(), &certificate.pem())?;
        put(&self.key(), &key.serialize_pem())
    }

    /// A server's certificate that is an authority's and its own, as `openssl req -x509` makes it if it isn't told otherwise.
    ///
    /// # Errors
    /// Those of the files.
    pub fn self_signed(dir: &Path) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        let private = key.serialize_pem();
        let authority = Self { issuer: Issuer::new(params, key), dir: dir.into() };
        put(&authority.ca_file(), &certificate)?;
        put(&authority.certificate(), &certificate)?;
        put(&authority.key(), &private)?;
        Ok(authority)
    }

    /// Who trusts this file trusts the servers.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A server's.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    /// A server's.
    pub fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }
}

/// Another file at its place, as those who renew certificates do it.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}
