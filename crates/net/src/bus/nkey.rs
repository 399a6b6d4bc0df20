//! Proof of possession of an nkey (Ed25519): the signature of the nonce that the server sent.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use nkeys::{KeyPair, KeyPairType};

use super::Credentials;

/// Whether the credentials carry a signature of their nonce by the user nkey that they name. Says nothing about who that key belongs to.
///
/// The signature is base64url without padding, or plain base64 as older clients send it; nats-server takes both.
pub fn nkey_proves(credentials: &Credentials) -> bool {
    let (Some(nkey), Some(signature)) = (&credentials.nkey, &credentials.signature) else { return false };
    if credentials.nonce.is_empty() {
        return false; // a signature of nothing could have been made for another server
    }
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature).or_else(|_| STANDARD.decode(signature)) else { return false };
    match KeyPair::from_public_key(nkey) {
        Ok(key) => key.key_pair_type() == KeyPairType::User && key.verify(credentials.nonce.as_bytes(), &signature).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &KeyPair, nonce: &str) -> Credentials {
        let signature = URL_SAFE_NO_PAD.encode(key.sign(nonce.as_bytes()).unwrap());
        Credentials { nkey: Some(key.public_key()), signature: Some(signature), nonce: nonce.into(), ..Credentials::default() }
    }

    #[test]
    fn only_the_owner_of_the_key_proves_it() {
        let (key, other) = (KeyPair::new_user(), KeyPair::new_user());
        let good = signed(&key, "a nonce");
        assert!(nkey_proves(&good));
        let standard = STANDARD.encode(key.sign(b"a nonce").unwrap());
        assert!(nkey_proves(&Credentials { signature: Some(standard), ..good.clone() }));

        for (name, bad) in [
            ("nothing", Credentials::default()),
            ("no signature", Credentials { signature: None, ..good.clone() }),
            ("rubbish", Credentials { signature: Some("!".into()), ..good.clone() }),
            ("too short", Credentials { signature: Some("AAAA".into()), ..good.clone() }),
            ("another nonce", Credentials { nonce: "another".into(), ..good.clone() }),
            ("no nonce", signed(&key, "")),
            ("another key", Credentials { nkey: Some(other.public_key()), ..good.clone() }),
            ("a seed for a key", Credentials { nkey: Some(key.seed().unwrap()), ..good.clone() }),
            ("not a user's key", signed(&KeyPair::new_account(), "a nonce")),
            ("no key at all", Credentials { nkey: Some("U".repeat(5000)), ..good.clone() }),
        ] {
            assert!(!nkey_proves(&bad), "{name}");
        }
    }
}
