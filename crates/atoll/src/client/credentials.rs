//! The credentials file: one session for each master, readable by its owner only.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use atoll_contract::{Error, ErrorCode, Timestamp, api::LoginReply};
use serde::{Deserialize, Serialize};

use crate::{
    config::xdg,
    errors::{self, Result},
};

/// A session at one master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub name: String,
    pub token: String,
    pub expires_at: Timestamp,
    /// The CA file that was named at the login, an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Session {
    pub fn new(reply: &LoginReply, ca_file: Option<PathBuf>) -> Self {
        Self { name: reply.name.clone(), token: reply.token.clone(), expires_at: reply.expires_at, ca_file }
    }
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The master that commands speak to when nothing names one: the one logged in to last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By the master's URL, as [`super::base_url`] spells it.
    #[serde(default)]
    pub masters: BTreeMap<String, Session>,
}

const MAX_FILE: u64 = 1 << 20;

impl Credentials {
    /// `ATOLL_CREDENTIALS`, else `$XDG_CONFIG_HOME/atoll/credentials.json`.
    ///
    /// # Errors
    /// `invalid_config` if neither that variable nor HOME is set.
    pub fn path() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("ATOLL_CREDENTIALS").filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("atoll/credentials.json")).ok_or_else(|| {
            Error::new(ErrorCode::InvalidConfig, "There is no place for credentials, since HOME isn't set.")
                .mend("Set ATOLL_CREDENTIALS to a path, or ATOLL_TOKEN to a key.")
        })
    }

    /// What is in the file; nothing if there is none.
    ///
    /// # Errors
    /// `invalid_config` if others may read it, or it isn't what [`Credentials::save`] writes.
    pub fn load(path: &Path) -> Result<Self> {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(errors::io(path.display(), &error)),
        };
        let mode = file.metadata().map_err(|error| errors::io(path.display(), &error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Error::new(ErrorCode::InvalidConfig, format!("{} holds credentials and others can read it.", path.display()))
                .mend(format!("Run chmod 600 {}, and log in anew if others may have read it.", path.display())));
        }
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| errors::io(path.display(), &error))?;
        serde_json::from_str(&text).map_err(|error| {
            Error::new(ErrorCode::InvalidConfig, format!("{} isn't a credentials file: {error}.", path.display()))
                .mend("Remove it and log in again.")
        })
    }

    /// Replaces the file as a whole, so that a reader sees the old one or the new one.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = |error: std::io::Error| errors::io(path.display(), &error);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let temporary = dir.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            failed(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Credentials {
        let session =
            Session { name: "ada".into(), token: "secret".into(), expires_at: Timestamp::from_millis(5), ca_file: Some("/ca.pem".into()) };
        Credentials { current: Some("http://a:1".into()), masters: BTreeMap::from([("http://a:1".into(), session)]) }
    }

    #[test]
    fn what_is_saved_is_loaded_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("atoll/credentials.json");
        assert_eq!(Credentials::load(&path).unwrap(), Credentials::default());
        some().save(&path).unwrap();
        assert_eq!(Credentials::load(&path).unwrap(), some());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        Credentials::default().save(&path).unwrap();
        assert_eq!(Credentials::load(&path).unwrap(), Credentials::default());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        some().save(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Credentials::load(&path).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidConfig);
        assert!(error.mend.contains("chmod 600"));
    }

    #[test]
    fn rubbish_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        fs::write(&path, "{").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Credentials::load(&path).unwrap_err().message.contains("isn't a credentials file"));
    }
}
