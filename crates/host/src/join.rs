//! How a host becomes a member: a one-time token is traded for an identity, which is then all that the host needs.

use std::{
    fmt, fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode, HostId,
    claims::Jwks,
    host::{JoinReply, JoinRequest},
};
use atoll_net::{
    clock::Clock,
    tls::{self, ClientConfig, Trust},
};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

use crate::config::HostConfig;

/// Who a host is: kept in `<data_dir>/identity.json`, readable by its owner alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub host: HostId,
    pub name: String,
    /// The seed of the host's nkey (`SU…`); it signs the nonce of the master's bus.
    pub seed: String,
    /// The keys that connect tokens are verified with, as the master last told them: a host verifies also while the master is away.
    pub jwks: Jwks,
    /// The master that was joined.
    pub master_url: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, name, master_url, .. } = self;
        write!(f, "Identity {{ host: {host}, name: {name:?}, master_url: {master_url:?}, .. }}")
    }
}

impl Identity {
    /// Reads the identity of a joined directory.
    ///
    /// # Errors
    /// `invalid_config` if the directory hasn't joined or the file is damaged.
    pub fn load(data_dir: &Path) -> Result<Self, Error> {
        let path = identity_path(data_dir);
        let text = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(ErrorCode::InvalidConfig, format!("The host in {} hasn't joined a cluster.", data_dir.display()))
                    .mend("Make a join token with `atoll host join-token` and run `atoll host join`.")
            }
            _ => Error::new(ErrorCode::InvalidConfig, format!("{} can't be read: {error}.", path.display())),
        })?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::new(ErrorCode::InvalidConfig, format!("{} is damaged: {error}.", path.display())))
    }

    /// Whether a directory has joined.
    pub fn exists(data_dir: &Path) -> bool {
        identity_path(data_dir).exists()
    }

    /// Writes the identity so that a crash leaves the old or the new one.
    ///
    /// # Errors
    /// `storage_failed` or `disk_full`.
    pub fn save(&self, data_dir: &Path) -> Result<(), Error> {
        write_private(&identity_path(data_dir), &to_json(self)?)
    }
}

/// What is saved before the token is spent, so that an answer that got lost doesn't lose the key that the master may have written down.
#[derive(Serialize, Deserialize)]
struct Pending {
    seed: String,
    master_url: String,
}

/// Trades a join token for membership and saves the identity in the configuration's `data_dir`.
///
/// The key pair is saved before the master is asked. If the answer is lost, the next call uses the same key: with the same token the
/// master may recognise it; otherwise a new token is needed.
///
/// # Errors
/// `already_exists` if the directory has joined; what the master answers (`unauthenticated`, `already_exists`); `host_unavailable` if
/// the master doesn't answer; `storage_failed`.
pub async fn join(config: &HostConfig, token: &str, clock: &dyn Clock) -> Result<Identity, Error> {
    config.check()?;
    if let Ok(old) = Identity::load(&config.data_dir) {
        return Err(Error::new(
            ErrorCode::AlreadyExists,
            format!("{} is already host {} ({}) of {}.", config.data_dir.display(), old.name, old.host, old.master_url),
        )
        .mend("Start it, or join with another data directory."));
    }
    if Identity::exists(&config.data_dir) {
        Identity::load(&config.data_dir)?; // there and unreadable: say why instead of overwriting a key
    }
    make_private_dir(&config.data_dir)?;
    let master_url = config.master_url.trim_end_matches('/').to_owned();
    let (key, asked_before) = pending_key(&config.data_dir, &master_url, clock)?;
    let request = JoinRequest { token: token.trim().into(), name: config.name.clone(), public_key: key.public_key() };
    let trust = master_trust(config, &master_url)?;
    let reply = post(&master_url, &request, trust).await.map_err(|error| {
        if asked_before && matches!(error.code, ErrorCode::Unauthenticated | ErrorCode::AlreadyExists) {
            error.mend("An earlier join got no answer and may have spent its token. Make a new token (and, if the name is taken, join under another name).")
        } else {
            error
        }
    })?;
    let identity = Identity { host: reply.host, name: reply.name, seed: seed_of(&key)?, jwks: reply.jwks, master_url };
    identity.save(&config.data_dir)?;
    // what is left over is harmless: the identity counts
    let _ = fs::remove_file(pending_path(&config.data_dir));
    Ok(identity)
}

/// The key of an earlier attempt at the same master, or a new one, saved. And whether there was an earlier attempt.
fn pending_key(data_dir: &Path, master_url: &str, clock: &dyn Clock) -> Result<(KeyPair, bool), Error> {
    let path = pending_path(data_dir);
    let old = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Pending>(&text).ok());
    if let Some(old) = old.filter(|old| old.master_url == master_url)
        && let Ok(key) = KeyPair::from_seed(&old.seed)
    {
        return Ok((key, true));
    }
    let mut random = [0u8; 32];
    clock.random(&mut random);
    let key = KeyPair::new_from_raw(KeyPairType::User, random).map_err(|error| Error::internal(format!("No key pair: {error}.")))?;
    write_private(&path, &to_json(&Pending { seed: seed_of(&key)?, master_url: master_url.into() })?)?;
    Ok((key, false))
}

/// Whom the host believes to be its master: for an encrypted URL, who has a certificate of an authority that is trusted. None for another: an image
/// without the system's certificates must not be a reason to fail there.
///
/// # Errors
/// `invalid_config` with the CA file.
pub(crate) fn master_trust(config: &HostConfig, url: &str) -> Result<Option<ClientConfig>, Error> {
    let ca_file = config.master_ca_file.as_deref();
    // TCP becomes encrypted if the server wants it, and the published client then takes the system's certificates by itself
    if url.starts_with("http://") || url.starts_with("ws://") || url.starts_with("nats://") && ca_file.is_none() {
        return Ok(None);
    }
    tls::client_config(Trust::System(ca_file)).map(Some).map_err(|error| match ca_file {
        Some(_) => error.mend("Check host.master_ca_file."),
        None => error,
    })
}

async fn post(master_url: &str, request: &JoinRequest, trust: Option<ClientConfig>) -> Result<JoinReply, Error> {
    const MAX_REPLY: usize = 256 << 10;
    let url = &format!("{master_url}/v1/hosts/join");
    let unreachable = |error: reqwest::Error| {
        if let Some(error) = tls::handshake_error(&format!("The master at {master_url}"), &error) {
            return error;
        }
        let mut why: &dyn std::error::Error = &error;
        while let Some(source) = why.source() {
            why = source;
        }
        Error::new(ErrorCode::Unavailable, format!("The master at {url} can't be asked: {why}."))
            .mend("Check master_url and that the master runs; then run the same command again.")
    };
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).redirect(reqwest::redirect::Policy::none());
    let client = match trust {
        Some(trust) => client.tls_backend_preconfigured(trust),
        None => client.tls_certs_only([]),
    };
    let client = client.build().map_err(unreachable)?;
    let mut response = client.post(url).json(request).send().await.map_err(unreachable)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > MAX_REPLY {
            return Err(Error::new(ErrorCode::TooLarge, format!("The answer of {url} is longer than a join's.")));
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        return Err(serde_json::from_slice::<Error>(&body).unwrap_or_else(|_| {
            Error::new(ErrorCode::Unavailable, format!("{url} answered {status}, which isn't an answer of a master."))
                .mend("Check master_url.")
        }));
    }
    serde_json::from_slice(&body).map_err(|error| {
        Error::new(ErrorCode::Unavailable, format!("{url} answered what isn't a join's answer: {error}.")).mend("Check master_url.")
    })
}

fn identity_path(data_dir: &Path) -> PathBuf {
    data_dir.join("identity.json")
}

fn pending_path(data_dir: &Path) -> PathBuf {
    data_dir.join("join.json")
}

fn seed_of(key: &KeyPair) -> Result<String, Error> {
    key.seed().map_err(|error| Error::internal(format!("The key pair has no seed: {error}.")))
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(value).map_err(|error| Error::internal(format!("Not JSON: {error}.")))
}

/// The data directory: others may pass through it (a container's root is another user, and the agents' sockets are below) and not look.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(|error| file_error(path, &error))
}

/// Writes a file that only its owner reads; after a crash it has the old content or the new.
fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        let temporary = path.with_extension("new");
        // a leftover may be of any mode, so it goes first
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    };
    write().map_err(|error| file_error(path, &error))
}

pub(crate) fn file_error(path: &Path, error: &std::io::Error) -> Error {
    let code = if error.kind() == std::io::ErrorKind::StorageFull { ErrorCode::DiskFull } else { ErrorCode::StorageFailed };
    Error::new(code, format!("{} can't be written: {error}.", path.display())).mend("Check the host's data directory and its disk.")
}
