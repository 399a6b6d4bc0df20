//! What a router shows to the hub, from a file.

use std::{io::Read, path::Path};

use atoll_contract::{Error, ErrorCode};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;

use super::wire::LeafConnect;

/// Contents of a credentials file. Has no `Debug`: it is a secret.
#[derive(Clone)]
pub(super) enum Credentials {
    Nothing,
    /// `user:password`
    User(String, String),
    Token(String),
    /// The seed (`SU…`) of a user nkey.
    Nkey(String),
    /// A NATS `.creds` file: a user JWT and the seed of its key.
    Jwt(String, String),
}

/// A larger file isn't one of credentials.
const MAX_FILE: u64 = 64 << 10;

impl Credentials {
    /// Reads a file. It is read at every connect, so that new credentials need no restart.
    ///
    /// # Errors
    /// `invalid_config` with the file; never with what is in it.
    pub(super) async fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::Nothing) };
        let bad = |why: String| Error::new(ErrorCode::InvalidConfig, format!("The cluster's credentials in {} {why}.", path.display()));
        let file = path.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::open(file)?.take(MAX_FILE).read_to_string(&mut text).map(|_| text)
        });
        let text = read.await.map_err(|error| bad(format!("can't be read: {error}")))?;
        let text = text.map_err(|error| bad(format!("can't be read: {error}")))?;
        Self::parse(&text).ok_or_else(|| {
            bad("aren't of a known form".into())
                .mend("Write user:password, a token or an nkey seed in one line, or use a .creds file of nsc.")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let seed = |text: &str| KeyPair::from_seed(text).is_ok();
        if text.contains("-----BEGIN NATS USER JWT-----") {
            let mut blocks = text.lines().scan(false, |inside, line| {
                let mark = line.trim_start().starts_with("---");
                let value = (*inside && !mark && !line.trim().is_empty()).then(|| line.trim().to_owned());
                *inside = if mark { line.contains("BEGIN") } else { *inside && value.is_none() };
                Some(value)
            });
            let jwt = blocks.by_ref().flatten().next()?;
            let key = blocks.flatten().next().filter(|key| seed(key))?;
            return Some(Self::Jwt(jwt, key));
        }
        let line = text.trim();
        if line.is_empty() || line.contains(|c: char| c.is_control()) {
            return None;
        }
        Some(match line.split_once(':') {
            Some((user, password)) if !user.is_empty() => Self::User(user.into(), password.into()),
            Some(_) => return None,
            None if seed(line) => Self::Nkey(line.into()),
            None => Self::Token(line.into()),
        })
    }

    /// Puts them into a CONNECT; keys sign the hub's nonce.
    pub(super) fn sign(&self, nonce: &str, connect: &mut LeafConnect) -> Result<(), Error> {
        // the library's error might quote the seed
        let signed = |seed: &str| {
            let key = KeyPair::from_seed(seed).map_err(|_| Error::invalid("The cluster's nkey seed isn't one."))?;
            let signature = key.sign(nonce.as_bytes()).map_err(|_| Error::internal("The hub's nonce could not be signed."))?;
            Ok((key.public_key(), URL_SAFE_NO_PAD.encode(signature)))
        };
        match self {
            Self::Nothing => {}
            Self::User(user, password) => (connect.user, connect.pass) = (Some(user.clone()), Some(password.clone())),
            Self::Token(token) => connect.proof.auth_token = Some(token.clone()),
            Self::Nkey(seed) => {
                let (key, signature) = signed(seed)?;
                (connect.proof.nkey, connect.proof.sig) = (Some(key), Some(signature));
            }
            Self::Jwt(jwt, seed) => (connect.proof.jwt, connect.proof.sig) = (Some(jwt.clone()), Some(signed(seed)?.1)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(text: &str) -> Option<LeafConnect> {
        let mut connect = LeafConnect::default();
        Credentials::parse(text)?.sign("nonce", &mut connect).unwrap();
        Some(connect)
    }

    #[test]
    fn forms() {
        let user = connect("atoll:a:b c\n").unwrap();
        assert_eq!((user.user.as_deref(), user.pass.as_deref()), (Some("atoll"), Some("a:b c")));
        assert_eq!(connect("  token \n").unwrap().proof.auth_token.as_deref(), Some("token"));

        let key = KeyPair::new_user();
        let seed = key.seed().unwrap();
        let nkey = connect(&format!("{seed}\n")).unwrap();
        assert_eq!(nkey.proof.nkey, Some(key.public_key()));
        let signature = URL_SAFE_NO_PAD.decode(nkey.proof.sig.unwrap()).unwrap();
        key.verify(b"nonce", &signature).unwrap();

        let creds = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.x.y\n------END NATS USER JWT------\n\n*** IMPORTANT ***\nNKEY Seed is secret.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let jwt = connect(&creds).unwrap();
        assert_eq!(jwt.proof.jwt.as_deref(), Some("eyJ0.x.y"));
        assert!(jwt.proof.sig.is_some() && jwt.proof.nkey.is_none());

        for bad in ["", "\n", ":x", "a\nb", "-----BEGIN NATS USER JWT-----\nx\n", &creds.replace(&seed, "SUAB")] {
            assert!(Credentials::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named_and_one_that_is_wrong_not_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("creds");
        let load = async || Credentials::load(Some(&path)).await.err().unwrap();
        let missing = load().await;
        assert!(missing.code == ErrorCode::InvalidConfig && missing.message.contains("creds"), "{missing}");
        std::fs::write(&path, "two\nlines").unwrap();
        let wrong = load().await;
        assert!(wrong.message.contains("known form") && !wrong.message.contains("two"), "{wrong}");
    }
}
