//! Uploads that broke off, so that the same command goes on with them. Losing this file costs only bytes that are sent again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::up::fingerprint;
use crate::config::xdg;

/// Older ones than this many are forgotten; the host expires them, too.
const MAX_ENTRIES: usize = 256;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    /// By destination and local path.
    uploads: BTreeMap<String, Entry>,
    counter: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// The upload's path at its host.
    upload: String,
    fingerprint: String,
    order: u64,
}

/// One file's page of the book.
#[derive(Debug)]
pub struct Resume {
    book: Option<PathBuf>,
    key: String,
    fingerprint: String,
}

impl Resume {
    pub fn load(destination: &str, local: &Path, about: &fs::Metadata) -> Self {
        let book = xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("atoll/uploads.json"));
        Self::of(book, destination, local, fingerprint(about))
    }

    fn of(book: Option<PathBuf>, destination: &str, local: &Path, fingerprint: String) -> Self {
        let local = local.canonicalize().unwrap_or_else(|_| local.to_owned());
        Self { book, key: format!("{destination} {}", local.display()), fingerprint }
    }

    /// The upload of this very file to this destination that broke off, if there is one.
    pub fn upload(&self) -> Option<String> {
        let entry = self.read().uploads.remove(&self.key)?;
        (entry.fingerprint == self.fingerprint).then_some(entry.upload)
    }

    pub fn remember(&mut self, upload: &str) {
        self.change(|book, key, fingerprint| {
            book.counter += 1;
            book.uploads.insert(key.into(), Entry { upload: upload.into(), fingerprint: fingerprint.into(), order: book.counter });
            while book.uploads.len() > MAX_ENTRIES {
                let oldest = book.uploads.iter().min_by_key(|(_, entry)| entry.order).map(|(key, _)| key.clone());
                oldest.map(|key| book.uploads.remove(&key));
            }
        });
    }

    pub fn forget(&mut self) {
        self.change(|book, key, _| {
            book.uploads.remove(key);
        });
    }

    fn read(&self) -> Book {
        let text = self.book.as_ref().and_then(|path| fs::read(path).ok());
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Two processes at once may lose one another's entry, which is harmless; what is read is always whole.
    fn change(&self, change: impl FnOnce(&mut Book, &str, &str)) {
        let Some(path) = &self.book else { return };
        let mut book = self.read();
        change(&mut book, &self.key, &self.fingerprint);
        let write = || -> std::io::Result<()> {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            let new = path.with_extension(format!("{}.new", std::process::id()));
            fs::write(&new, serde_json::to_vec(&book)?)?;
            fs::rename(&new, path)
        };
        if let Err(error) = write() {
            tracing::debug!("uploads that broke off can't be remembered: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_file_goes_on_and_a_changed_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let book = Some(dir.path().join("s/uploads.json"));
        let resume = |fingerprint: &str| Resume::of(book.clone(), "m p a", Path::new("/x"), fingerprint.into());
        assert_eq!(resume("1").upload(), None);
        resume("1").remember("/u/1");
        assert_eq!(resume("1").upload().as_deref(), Some("/u/1"));
        assert_eq!(resume("2").upload(), None);
        resume("1").forget();
        assert_eq!(resume("1").upload(), None);
    }

    #[test]
    fn the_book_is_bounded_and_forgets_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let book = Some(dir.path().join("uploads.json"));
        let resume = |index: usize| Resume::of(book.clone(), &format!("m p {index}"), Path::new("/x"), "1".into());
        for index in 0..MAX_ENTRIES + 3 {
            resume(index).remember("/u");
        }
        assert_eq!(resume(0).read().uploads.len(), MAX_ENTRIES);
        assert!(resume(2).upload().is_none() && resume(3).upload().is_some());
    }

    #[test]
    fn a_damaged_book_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let book = dir.path().join("uploads.json");
        fs::write(&book, "{").unwrap();
        let mut resume = Resume::of(Some(book), "m", Path::new("/x"), "1".into());
        assert_eq!(resume.upload(), None);
        resume.remember("/u");
        assert!(resume.upload().is_some());
    }
}
