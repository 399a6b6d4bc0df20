//! The receipt on disk: `receipt.json` beside the two volumes, written whole or not at all.

use std::{io::Read, io::Write, os::fd::BorrowedFd};

use rustix::{
    fs::{Mode, OFlags, fsync, openat, renameat},
    io::Errno,
};

use super::{
    ContentReceipt,
    tree::{Interrupt, Trouble},
};

const NAME: &str = "receipt.json";
const NEW_NAME: &str = "receipt.json.new";
/// A receipt has about 200 bytes; what is larger isn't one.
const MAX_BYTES: u64 = 64 << 10;

/// Reads the receipt in a project's directory. What can't be read as one is [`Trouble::Wrong`]: without proof there is no volume.
pub(super) fn load(project: BorrowedFd<'_>) -> Result<ContentReceipt, Trouble> {
    let file = match openat(project, NAME, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Err(Trouble::Wrong("its receipt is missing".into())),
        Err(error) => return Err(Trouble::io("opening the receipt", error)),
    };
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| Trouble::io("reading the receipt", error))?;
    serde_json::from_slice(&text).map_err(|error| Trouble::Wrong(format!("its receipt can't be read ({error})")))
}

/// Writes the receipt so that after a crash anywhere either the old or the new one is there.
pub(super) fn save(project: BorrowedFd<'_>, receipt: &ContentReceipt, interrupt: &Interrupt) -> Result<(), Trouble> {
    let text = serde_json::to_vec_pretty(receipt).map_err(|error| Trouble::io("writing the receipt", std::io::Error::other(error)))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(project, NEW_NAME, flags, Mode::from_raw_mode(0o600)).map_err(|error| Trouble::io("making the receipt", error))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&text).map_err(|error| Trouble::io("writing the receipt", error))?;
    interrupt.at("receipt.written")?;
    file.sync_all().map_err(|error| Trouble::io("writing the receipt", error))?;
    renameat(project, NEW_NAME, project, NAME).map_err(|error| Trouble::io("renaming the receipt", error))?;
    interrupt.at("receipt.renamed")?;
    fsync(project).map_err(|error| Trouble::io("writing the project's directory", error))
}
