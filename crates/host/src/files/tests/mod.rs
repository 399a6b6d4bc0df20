//! Files on a real file system, beside a canary outside of home that nothing may read or change.

mod archives;
mod escape;
mod plain;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use atoll_contract::{Access, Generation, Read, Role, Timestamp, Write, claims::ConnectClaims};
use atoll_net::clock::{SharedClock, TestClock};
use tokio_util::sync::CancellationToken;

use super::{Condition, Fault, Found, Home, RelPath, Root};
use crate::runtime::Owner;

pub(super) const SECRET: &str = "the canary's secret";

/// A home and a state volume in a directory of their own, with a canary beside them; deep enough inside a temporary one that no `..` of a test
/// leads out of that.
pub(super) struct World {
    _temporary: tempfile::TempDir,
    dir: PathBuf,
    pub(super) home: Home,
    pub(super) root: Root,
    pub(super) commits: Mutex<()>,
    pub(super) never: CancellationToken,
}

pub(super) fn clock() -> SharedClock {
    TestClock::at(Timestamp::from_millis(1_800_000_000_000))
}

pub(super) fn claims() -> ConnectClaims {
    ConnectClaims {
        sub: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
        aud: "0198c0de-0000-7000-8000-000000000002".parse().unwrap(),
        project: "0198c0de-0000-7000-8000-000000000003".parse().unwrap(),
        role: Role::Collaborator,
        generation: Generation(1),
        iat: 0,
        exp: 0,
        jti: String::new(),
    }
}

pub(super) fn reader() -> Access<Read> {
    Access::read(claims(), claims().project, Generation(1)).unwrap()
}

pub(super) fn writer() -> Access<Write> {
    Access::write(claims(), claims().project, Generation(1)).unwrap()
}

pub(super) fn path(text: &str) -> RelPath {
    RelPath::from_bytes(text.as_bytes()).unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().canonicalize().unwrap().join("1/2/3/4/5/6/7/8");
        fs::create_dir_all(&dir).unwrap();
        for name in ["home", "state", "canary", "canary/inner"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::write(dir.join("canary/secret"), SECRET).unwrap();
        fs::write(dir.join("canary/inner/secret"), SECRET).unwrap();
        let meta = fs::metadata(&dir).unwrap();
        let owner = Owner { uid: meta.uid(), gid: meta.gid() };
        let home = Home { home: dir.join("home"), state: dir.join("state"), owner };
        let root = Root::open(&home, clock()).unwrap();
        Self { _temporary: temporary, dir, home, root, commits: Mutex::default(), never: CancellationToken::new() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in home for the test's own hands.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.home.home.join(path)
    }

    pub(super) fn canary(&self) -> PathBuf {
        self.dir.join("canary")
    }

    /// All that could have been changed about the canary, and what lies beside home.
    pub(super) fn outside(&self) -> Vec<String> {
        let mut seen: Vec<String> = names(&self.dir);
        // also what a way up would meet, and what /proc/self/cwd leads to
        for above in self.dir.ancestors().skip(1).take(8).chain([Path::new("."), Path::new("..")]) {
            seen.extend(names(above));
        }
        for path in ["canary", "canary/secret", "canary/inner", "canary/inner/secret"] {
            let meta = fs::symlink_metadata(self.dir.join(path)).unwrap();
            let what = (meta.mode(), meta.uid(), meta.gid(), meta.ino(), meta.nlink(), meta.size(), meta.mtime_nsec(), meta.ctime_nsec());
            seen.push(format!("{path} {what:?}"));
        }
        seen.push(fs::read_to_string(self.canary().join("secret")).unwrap());
        seen
    }

    pub(super) fn write(&self, at: &str, content: &[u8]) -> Result<bool, Fault> {
        self.write_if(at, content, Condition::default())
    }

    pub(super) fn write_if(&self, at: &str, content: &[u8], condition: Condition) -> Result<bool, Fault> {
        let mut draft = self.root.draft(&writer(), &path(at), condition, None, false)?;
        draft.write(content)?;
        draft.commit(&self.root, &self.commits).map(|(_, created)| created)
    }

    pub(super) fn read(&self, at: &str) -> Result<Vec<u8>, Fault> {
        match self.root.find(&reader(), &path(at))? {
            Found::File(file) => file.read(0, 1 << 20),
            Found::Directory(_) => Err(Fault::IsDirectory),
        }
    }
}

/// Names in a directory, sorted.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
