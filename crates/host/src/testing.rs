//! For tests of this and other crates: a btrfs of one's own.

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::exec::{self, Call};

/// A btrfs on a file that is mounted by a loop device. Dropped, also by a panic, it is unmounted, and the loop device and file go with it.
#[derive(Debug)]
pub struct LoopBtrfs {
    /// Mount point; the file lies beside it.
    dir: PathBuf,
}

impl LoopBtrfs {
    /// A file system of this many bytes; btrfs wants 128 MiB or more. Disk space is taken as it is written.
    ///
    /// # Errors
    /// Why there can be none here: not root, no tools, no loop devices. A test then says so with [`skipped`].
    pub async fn new(bytes: u64) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a loop mount needs root".into());
        }
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|error| error.to_string())?;
        let dir = std::env::temp_dir().join(format!("atoll-btrfs-{:016x}", u64::from_ne_bytes(random)));
        let this = Self { dir };
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        std::fs::create_dir_all(this.path()).map_err(|error| failed("making directories", &error))?;
        let image = std::fs::File::create(this.image()).map_err(|error| failed("making a file", &error))?;
        image.set_len(bytes).map_err(|error| failed("making a file", &error))?;
        // -o loop: the kernel gives the loop device back at the unmount
        let mount = [["-o", "loop"].map(Into::into).to_vec(), vec![this.image().into_os_string(), this.path().as_os_str().into()]].concat();
        for call in [Call::new("mkfs.btrfs").args(["--quiet"]).args([this.image()]), Call::new("mount").args(mount)] {
            let what = format!("{call:?}");
            match exec::run(call).await {
                Ok(outcome) if outcome.success() => {}
                Ok(outcome) => return Err(failed(&what, &outcome.stderr.text().trim())),
                Err(error) => return Err(failed(&what, &error)),
            }
        }
        Ok(this)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    fn image(&self) -> PathBuf {
        self.dir.with_extension("img")
    }
}

impl Drop for LoopBtrfs {
    fn drop(&mut self) {
        // a process may still have a file open there; the mount then goes when it is closed
        let _ = unmount(self.path(), UnmountFlags::DETACH);
        let _ = std::fs::remove_file(self.image());
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Says that a test can't run on this machine. `cargo xtask test` lists these lines at its end; so they go to the process's own stderr,
/// which the test harness doesn't swallow.
pub fn skipped(test: &str, reason: &str) {
    use std::io::Write;
    // in one piece, so that lines of tests that run at once don't mix
    let _ = std::io::stderr().write_all(format!("skipped: {test}: {reason}\n").as_bytes());
}
