//! The binary that containers get mounted as their agent: a copy of this very program, which an upgrade in place leaves alone.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use atoll_contract::host::{Finding, Severity};

use crate::errors::{self, Result};

/// Copies the running program into `data_dir/bin`, unless it is there already, and removes copies of other builds: a container that runs
/// with one keeps it, since a mount outlives its file's name.
///
/// The name has version, size and time of the program: containers of this start and of the next see the same file.
pub fn keep_copy(data_dir: &Path) -> Result<PathBuf> {
    let failed = |error: std::io::Error| errors::io("This program can't be copied for the containers", &error);
    // by the link and not by its target's name, which another build may have taken meanwhile
    let mut program = File::open("/proc/self/exe").map_err(failed)?;
    let about = program.metadata().map_err(failed)?;
    let name = format!("atoll-{}-{:x}-{:x}{:x}", env!("CARGO_PKG_VERSION"), about.size(), about.mtime(), about.mtime_nsec());
    let dir = data_dir.join("bin");
    let copy = dir.join(&name);
    let mut made = || -> std::io::Result<()> {
        fs::create_dir_all(&dir)?;
        if fs::metadata(&copy).is_ok_and(|there| there.size() == about.size()) {
            return Ok(());
        }
        let new = dir.join(format!("{name}.new"));
        let _ = fs::remove_file(&new);
        // a container's root is another user, and must be able to run it
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&new)?;
        std::io::copy(&mut program, &mut file)?;
        file.flush()?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&new, &copy)
    };
    made().map_err(failed)?;
    for other in fs::read_dir(&dir).map_err(failed)?.flatten().filter(|entry| entry.file_name() != name.as_str()) {
        let _ = fs::remove_file(other.path());
    }
    Ok(copy)
}

/// Whether this program runs in any image, or needs one with a matching libc.
pub fn finding() -> Finding {
    let mut head = vec![0; 64 << 10];
    let read = File::open("/proc/self/exe").and_then(|mut file| file.read(&mut head));
    head.truncate(read.unwrap_or(0));
    let (severity, message, mend) = match needs_loader(&head) {
        Some(false) => (Severity::Ok, "The program is linked statically, so that its agent runs in any image.", ""),
        Some(true) => (
            Severity::Warning,
            "The program is linked dynamically: its agent runs only in images that have the same libc.",
            "Build it in the repository, whose .cargo/config.toml links statically, or install a released binary.",
        ),
        None => (Severity::Warning, "It can't be found out whether the program is linked statically.", ""),
    };
    Finding { code: "binary.static".into(), severity, message: message.into(), mend: mend.into() }
}

/// Whether an ELF file (64 bits, little-endian) has a program header `PT_INTERP`, that is, needs a dynamic loader. None if it isn't one, or its
/// headers lie beyond what was read. Offsets are those of the ELF-64 object file format.
fn needs_loader(head: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)));
    let table = usize::try_from(u64::from_le_bytes(head.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (short(54)?, short(56)?);
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(head.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = kinds.len() as u8;
        for kind in kinds {
            let mut header = vec![0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn a_loader_is_seen() {
        assert_eq!(needs_loader(&elf(&[6, 1])), Some(false));
        assert_eq!(needs_loader(&elf(&[6, 3, 1])), Some(true));
        assert_eq!(needs_loader(b"#!/bin/sh"), None);
        assert_eq!(needs_loader(&elf(&[6, 1])[..100]), None);
        assert_eq!(needs_loader(b""), None);
    }

    #[test]
    fn this_build_is_static() {
        assert_eq!(finding().severity, Severity::Ok);
    }

    #[test]
    fn a_copy_is_made_once_and_replaces_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/atoll-0.0.1-old"), "x").unwrap();
        let copy = keep_copy(dir.path()).unwrap();
        let about = fs::metadata(&copy).unwrap();
        assert_eq!(about.mode() & 0o777, 0o755);
        assert_eq!(about.size(), fs::metadata("/proc/self/exe").unwrap().size());
        assert_eq!(keep_copy(dir.path()).unwrap(), copy);
        assert_eq!(fs::metadata(&copy).unwrap().ino(), about.ino(), "copied again");
        assert_eq!(fs::read_dir(dir.path().join("bin")).unwrap().count(), 1);
    }
}
