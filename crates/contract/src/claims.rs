//! Connect tokens: what the master signs, and how a host or proxy verifies it offline.
//!
//! A token is a JWT (RFC 7519) signed with Ed25519 (`alg: EdDSA`, RFC 8037) whose header names the key (`kid`); the keys
//! are published as a JWKS (RFC 7517). The algorithm is pinned here and never read from the header.

use std::{collections::BTreeMap, marker::PhantomData};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AccountId, Error, ErrorCode, Generation, HostId, ProjectId, Timestamp, error::Result};

/// What an account may do in a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads files and watches; changes nothing.
    Viewer,
    /// Also writes files, opens terminals and runs commands.
    Collaborator,
    /// Also changes the project itself and who has access.
    Owner,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Collaborator, Self::Owner];

    pub const fn may_write(self) -> bool {
        matches!(self, Self::Collaborator | Self::Owner)
    }

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Collaborator => "collaborator",
            Self::Owner => "owner",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// The claims of a connect token: one account's right to one project on one host, at one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectClaims {
    /// Account.
    pub sub: AccountId,
    /// Host: the token is good on this one alone.
    pub aud: HostId,
    pub project: ProjectId,
    pub role: Role,
    pub generation: Generation,
    /// Seconds since the epoch.
    pub iat: i64,
    /// Seconds since the epoch.
    pub exp: i64,
    /// This token's own id: 26 characters of `a-z2-7`, 130 random bits. Revocation names it, and the holder's reply inbox is
    /// [`crate::subject::inbox_prefix`] of it, so that nobody else can read its replies.
    pub jti: String,
}

/// A token of any lifetime beyond this is refused, whoever signed it.
pub const MAX_TOKEN_LIFETIME_SECONDS: i64 = 3600;
/// How far the clocks of master and host may differ.
pub const CLOCK_SKEW_SECONDS: i64 = 30;
/// A longer text isn't looked at.
const MAX_TOKEN_LEN: usize = 4096;

/// One public key as a JWK (RFC 8037: `OKP`, `Ed25519`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Jwk {
    pub kty: String,
    pub crv: String,
    pub kid: String,
    /// The 32 bytes of the public key, base64url without padding.
    pub x: String,
    #[serde(rename = "use")]
    pub usage: String,
    pub alg: String,
}

impl Jwk {
    pub fn ed25519(kid: impl Into<String>, public: &[u8; 32]) -> Self {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        Self {
            kty: "OKP".into(),
            crv: "Ed25519".into(),
            kid: kid.into(),
            x: URL_SAFE_NO_PAD.encode(public),
            usage: "sig".into(),
            alg: "EdDSA".into(),
        }
    }
}

/// The published form of a key set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Jwks {
    pub keys: Vec<Jwk>,
}

/// The keys that tokens are verified with, by key id.
#[derive(Clone, Default)]
pub struct KeySet(BTreeMap<String, DecodingKey>);

impl KeySet {
    /// Keys of another type or curve are left out: a set may hold what a later version understands.
    pub fn new(jwks: &Jwks) -> Self {
        let ours = jwks.keys.iter().filter(|key| key.kty == "OKP" && key.crv == "Ed25519");
        Self(ours.filter_map(|key| Some((key.kid.clone(), DecodingKey::from_ed_components(&key.x).ok()?))).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Verifies a connect token for `host` at the time `now`. Pure; this is the only place where a token becomes claims.
///
/// What is checked: length, form, key id, algorithm, signature, audience, `iat` and `exp` with [`CLOCK_SKEW_SECONDS`], and the
/// lifetime. Not checked here, because it needs the host's state: that the generation is the one in force, and revocation.
///
/// # Errors
/// [`ErrorCode::Unauthenticated`], never with a hint about which check failed beyond "expired", which a client acts on.
pub fn verify(token: &str, keys: &KeySet, host: HostId, now: Timestamp) -> Result<ConnectClaims> {
    let refuse = || Error::new(ErrorCode::Unauthenticated, "The connect token isn't valid here.").mend("Ask the master for a new one.");
    if token.len() > MAX_TOKEN_LEN {
        return Err(refuse());
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| refuse())?;
    let key = header.kid.as_ref().and_then(|kid| keys.0.get(kid)).ok_or_else(refuse)?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    // times and audience are checked below against arguments: the library would read the system's clock
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let claims = jsonwebtoken::decode::<ConnectClaims>(token, key, &validation).map_err(|_| refuse())?.claims;
    let now = now.seconds();
    if claims.aud != host || claims.iat > now + CLOCK_SKEW_SECONDS || claims.exp.saturating_sub(claims.iat) > MAX_TOKEN_LIFETIME_SECONDS {
        return Err(refuse());
    }
    if claims.exp.saturating_add(CLOCK_SKEW_SECONDS) <= now {
        return Err(Error::new(ErrorCode::Unauthenticated, "The connect token has expired.").mend("Ask the master for a new one."));
    }
    Ok(claims)
}

/// May read a project's files and watch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {}
/// May change a project's files and run things in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {}

/// Proof that verified claims allow something in one project. Functions that act on a project take it as an argument;
/// only [`Access::read`] and [`Access::write`] make one, and they take claims that [`verify`] made.
#[derive(Debug, Clone)]
pub struct Access<A> {
    claims: ConnectClaims,
    right: PhantomData<A>,
}

impl<A> Access<A> {
    pub fn project(&self) -> ProjectId {
        self.claims.project
    }

    pub fn account(&self) -> AccountId {
        self.claims.sub
    }

    pub fn claims(&self) -> &ConnectClaims {
        &self.claims
    }
}

impl Access<Read> {
    /// Every role reads.
    ///
    /// # Errors
    /// [`ErrorCode::Forbidden`] if the token is for another project; [`ErrorCode::StaleAssignment`] if `in_force` isn't its generation.
    pub fn read(claims: ConnectClaims, project: ProjectId, in_force: Generation) -> Result<Self> {
        check_place(&claims, project, in_force)?;
        Ok(Self { claims, right: PhantomData })
    }
}

impl Access<Write> {
    /// # Errors
    /// As [`Access::read`], and [`ErrorCode::Forbidden`] for a viewer.
    pub fn write(claims: ConnectClaims, project: ProjectId, in_force: Generation) -> Result<Self> {
        check_place(&claims, project, in_force)?;
        if !claims.role.may_write() {
            return Err(
                Error::new(ErrorCode::Forbidden, "A viewer can't change this project.").mend("Ask its owner to make you a collaborator.")
            );
        }
        Ok(Self { claims, right: PhantomData })
    }
}

impl From<Access<Write>> for Access<Read> {
    fn from(access: Access<Write>) -> Self {
        Self { claims: access.claims, right: PhantomData }
    }
}

fn check_place(claims: &ConnectClaims, project: ProjectId, in_force: Generation) -> Result<()> {
    if claims.project != project {
        return Err(
            Error::new(ErrorCode::Forbidden, "The connect token is for another project.").mend("Ask the master for a token for this one.")
        );
    }
    if claims.generation != in_force {
        return Err(stale_assignment(claims.generation, in_force));
    }
    Ok(())
}

/// The error for a generation that isn't in force.
pub fn stale_assignment(given: Generation, in_force: Generation) -> Error {
    Error::new(ErrorCode::StaleAssignment, format!("Generation {given} of this project isn't in force here; {in_force} is."))
        .mend("Ask the master where the project is now.")
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};

    use super::*;

    // A key pair for these tests alone: RFC 8037, appendix A.1.
    const SEED: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32,
        0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const NOW: i64 = 1_800_000_000;

    fn signer() -> EncodingKey {
        // PKCS#8 (RFC 8410) is a fixed prefix before the seed
        let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        der.extend(SEED);
        EncodingKey::from_ed_der(&der)
    }

    fn keys() -> KeySet {
        let jwk = Jwk { x: PUBLIC.into(), ..Jwk::ed25519("k1", &[0; 32]) };
        KeySet::new(&Jwks { keys: vec![jwk] })
    }

    fn claims() -> ConnectClaims {
        ConnectClaims {
            sub: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
            aud: "0198c0de-0000-7000-8000-000000000002".parse().unwrap(),
            project: "0198c0de-0000-7000-8000-000000000003".parse().unwrap(),
            role: Role::Collaborator,
            generation: Generation(4),
            iat: NOW,
            exp: NOW + 300,
            jti: "abcdefghijklmnopqrstuvwxyz".into(),
        }
    }

    fn sign(claims: &ConnectClaims, kid: Option<&str>) -> String {
        let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &signer()).unwrap()
    }

    fn check(token: &str, at: i64) -> Result<ConnectClaims> {
        verify(token, &keys(), claims().aud, Timestamp::from_millis(at * 1000))
    }

    #[test]
    fn a_good_token_gives_its_claims() {
        assert_eq!(check(&sign(&claims(), Some("k1")), NOW + 10).unwrap(), claims());
    }

    #[test]
    fn what_is_not_exactly_right_is_refused() {
        let good = sign(&claims(), Some("k1"));
        let other_host = ConnectClaims { aud: "0198c0de-0000-7000-8000-00000000000f".parse().unwrap(), ..claims() };
        let future = ConnectClaims { iat: NOW + 1000, exp: NOW + 1300, ..claims() };
        let long = ConnectClaims { exp: NOW + MAX_TOKEN_LIFETIME_SECONDS + 1, ..claims() };
        let (head, rest) = good.split_once('.').unwrap();
        let (body, signature) = rest.split_once('.').unwrap();
        let forged = sign(&ConnectClaims { role: Role::Owner, ..claims() }, Some("k1"));
        let swapped = format!("{head}.{}.{signature}", forged.split('.').nth(1).unwrap());
        // {"alg":"none","kid":"k1"} and {"alg":"HS256","kid":"k1"}
        let none = format!("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{body}.");
        let hmac = format!("eyJhbGciOiJIUzI1NiIsImtpZCI6ImsxIn0.{body}.{signature}");
        for (name, token) in [
            ("no kid", sign(&claims(), None)),
            ("unknown kid", sign(&claims(), Some("k2"))),
            ("other host", sign(&other_host, Some("k1"))),
            ("issued in the future", sign(&future, Some("k1"))),
            ("too long a life", sign(&long, Some("k1"))),
            ("claims swapped", swapped),
            ("alg none", none),
            ("alg hmac", hmac),
            ("empty", String::new()),
            ("rubbish", "a.b.c".into()),
            ("huge", "a".repeat(100_000)),
        ] {
            assert_eq!(check(&token, NOW).unwrap_err().code, ErrorCode::Unauthenticated, "{name}");
        }
    }

    #[test]
    fn expiry_allows_for_the_skew_and_no_more() {
        let token = sign(&claims(), Some("k1"));
        check(&token, NOW + 300 + CLOCK_SKEW_SECONDS - 1).unwrap();
        let error = check(&token, NOW + 300 + CLOCK_SKEW_SECONDS).unwrap_err();
        assert!(error.message.contains("expired"));
    }

    #[test]
    fn access_needs_project_generation_and_role() {
        let (project, other) = (claims().project, "0198c0de-0000-7000-8000-000000000009".parse().unwrap());
        Access::write(claims(), project, Generation(4)).unwrap();
        assert_eq!(Access::read(claims(), other, Generation(4)).unwrap_err().code, ErrorCode::Forbidden);
        assert_eq!(Access::read(claims(), project, Generation(5)).unwrap_err().code, ErrorCode::StaleAssignment);
        let viewer = ConnectClaims { role: Role::Viewer, ..claims() };
        Access::read(viewer.clone(), project, Generation(4)).unwrap();
        assert_eq!(Access::write(viewer, project, Generation(4)).unwrap_err().code, ErrorCode::Forbidden);
    }
}
