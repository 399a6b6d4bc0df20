//! The master's signing key: Ed25519, made at the first start, with which connect tokens are signed.
//!
//! It is kept in a file of its own rather than in the store, so that a copy of the database (a backup, a look at a problem) gives
//! nobody the right to mint tokens.

use std::{fs, io, path::Path};

use atoll_contract::{
    ConnectClaims, Error, ErrorCode,
    claims::{Jwk, Jwks},
};
use atoll_net::clock::Clock;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use sha2::{Digest, Sha256};

use crate::edge::{config_error, internal, write_secret};

const FILE: &str = "signing-key";

pub(crate) struct Signer {
    kid: String,
    key: EncodingKey,
    jwks: Jwks,
}

impl Signer {
    /// Reads the key, or makes it at the first start.
    ///
    /// # Errors
    /// `invalid_config` if the file can't be read or doesn't hold a key. It is then not made anew: that would end all tokens.
    pub(crate) fn load(data_dir: &Path, clock: &dyn Clock) -> Result<Self, Error> {
        let path = data_dir.join(FILE);
        let seed = match fs::read_to_string(&path) {
            Ok(text) => {
                let bytes = URL_SAFE_NO_PAD.decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
                bytes.ok_or_else(|| {
                    Error::new(ErrorCode::InvalidConfig, format!("{} doesn't hold a signing key.", path.display()))
                        .mend("Put the file back from a backup; or remove it, and the master makes a new key (all connect tokens end).")
                })?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut seed = [0u8; 32];
                clock.random(&mut seed);
                write_secret(&path, URL_SAFE_NO_PAD.encode(seed).as_bytes()).map_err(|error| config_error(&path, &error))?;
                seed
            }
            Err(error) => return Err(config_error(&path, &error)),
        };
        Self::from_seed(seed)
    }

    fn from_seed(seed: [u8; 32]) -> Result<Self, Error> {
        // the crate that makes nkeys also derives the public half; signing is the token library's
        let public = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, seed).map_err(internal)?.public_key();
        let (_, public) = nkeys::from_public_key(&public).map_err(internal)?;
        let kid = URL_SAFE_NO_PAD.encode(&Sha256::digest(public)[..12]);
        // PKCS#8 of an Ed25519 key (RFC 8410) is these bytes before the seed
        let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        der.extend(seed);
        let jwks = Jwks { keys: vec![Jwk::ed25519(kid.clone(), &public)] };
        Ok(Self { kid, key: EncodingKey::from_ed_der(&der), jwks })
    }

    pub(crate) fn sign(&self, claims: &ConnectClaims) -> Result<String, Error> {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &self.key).map_err(internal)
    }

    /// The public half, for hosts.
    pub(crate) fn jwks(&self) -> &Jwks {
        &self.jwks
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use atoll_contract::{Generation, KeySet, Role, Timestamp, claims};
    use atoll_net::clock::SystemClock;

    use super::*;

    #[test]
    fn the_key_stays_and_signs_what_hosts_accept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Signer::load(dir.path(), &SystemClock).unwrap();
        let again = Signer::load(dir.path(), &SystemClock).unwrap();
        assert_eq!(first.jwks(), again.jwks());
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        let claims = ConnectClaims {
            sub: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
            aud: "0198c0de-0000-7000-8000-000000000002".parse().unwrap(),
            project: "0198c0de-0000-7000-8000-000000000003".parse().unwrap(),
            role: Role::Owner,
            generation: Generation(1),
            iat: 100,
            exp: 400,
            jti: "abcdefghijklmnopqrstuvwxyz".into(),
        };
        let token = again.sign(&claims).unwrap();
        let verified = claims::verify(&token, &KeySet::new(first.jwks()), claims.aud, Timestamp::from_millis(200_000)).unwrap();
        assert_eq!(verified, claims);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_not_a_new_key() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "rubbish").unwrap();
        assert_eq!(Signer::load(dir.path(), &SystemClock).err().unwrap().code, ErrorCode::InvalidConfig);
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "rubbish");
    }
}
