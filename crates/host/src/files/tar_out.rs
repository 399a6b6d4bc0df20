//! A folder as a tar stream.

use std::{
    collections::HashMap,
    io::{Read as _, Write},
};

use atoll_contract::{Access, Read};
use rustix::fs::{FileType, OFlags, ResolveFlags, Stat, fstat, readlinkat};
use tokio_tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;

use super::{
    Fault, RelPath, Root,
    root::{lookup, open_regular, stat_at},
    walk::{Item, walk},
};

const BLOCK: usize = 512;
/// Bytes of a name that fit into the header itself; longer ones go before it as an entry of their own (GNU tar's `././@LongLink`).
const SHORT_NAME: usize = 100;
/// Bytes of paths of files with several names that are remembered, to write the further names as links; beyond it they are written in full.
const MAX_LINK_BYTES: usize = 8 << 20;

impl Root {
    /// Writes what is at a path as a tar (GNU format): for a directory all that is in it, with names relative to it; for a file or symlink
    /// that alone. Modes, times, symlinks and hard links are kept; owners aren't, since they mean nothing elsewhere; sockets, pipes and devices
    /// are left out.
    ///
    /// A file that shrinks while it is read is filled up with zeros and one that grows is cut off, both at the size that was announced.
    ///
    /// # Errors
    /// Those of a lookup, [`Fault::Stream`] if `out` fails, [`Fault::Cancelled`].
    pub fn write_tar(&self, _access: &Access<Read>, path: &RelPath, out: &mut dyn Write, cancel: &CancellationToken) -> Result<(), Fault> {
        let mut tar = TarWriter { out, links: HashMap::new(), link_bytes: 0 };
        self.pack(path, cancel, &mut |item| tar.item(item))?;
        // two empty blocks are the end
        tar.write(&[0; 2 * BLOCK])
    }

    /// Visits what is to go into an archive of a path.
    pub(super) fn pack(&self, path: &RelPath, cancel: &CancellationToken, visit: &mut super::walk::Visit) -> Result<(), Fault> {
        let pinned = lookup(self.dir(), &path.bytes(), OFlags::PATH, ResolveFlags::empty())?;
        if FileType::from_raw_mode(fstat(&pinned)?.st_mode) == FileType::Directory {
            return walk(self.directory(path)?, cancel, visit);
        }
        let (dir, name) = self.parent(path)?;
        let stat = stat_at(&dir, name)?.ok_or(Fault::NotFound)?;
        visit(&Item { dir: &dir, name, path: name, stat: &stat })
    }
}

struct TarWriter<'a> {
    out: &'a mut dyn Write,
    /// First path of each file that has several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    link_bytes: usize,
}

impl TarWriter<'_> {
    fn item(&mut self, item: &Item) -> Result<(), Fault> {
        match item.file_type() {
            FileType::Directory => {
                let path = [item.path, b"/"].concat();
                self.header(&path, EntryType::Directory, item.stat, 0, b"")
            }
            FileType::Symlink => match readlinkat(item.dir, item.name, Vec::new()) {
                Ok(target) => self.header(item.path, EntryType::Symlink, item.stat, 0, target.as_bytes()),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(()),
                Err(other) => Err(other.into()),
            },
            FileType::RegularFile => self.file(item),
            _ => Ok(()),
        }
    }

    fn file(&mut self, item: &Item) -> Result<(), Fault> {
        let (fd, stat) = match open_regular(item.dir, item.name, ResolveFlags::NO_SYMLINKS) {
            Ok(opened) => opened,
            // gone, or made something else, since it was looked at
            Err(Fault::NotFound | Fault::Special | Fault::IsDirectory | Fault::Loop | Fault::Escapes) => return Ok(()),
            Err(other) => return Err(other),
        };
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.header(item.path, EntryType::Link, &stat, 0, &first);
            }
            if self.link_bytes < MAX_LINK_BYTES {
                self.link_bytes += item.path.len();
                self.links.insert((stat.st_dev, stat.st_ino), item.path.to_vec());
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(item.path, EntryType::Regular, &stat, size, b"")?;
        let mut reader = std::fs::File::from(fd).take(size);
        let mut buffer = vec![0; 64 << 10];
        let mut left = size;
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            self.write(&buffer[..count])?;
            left -= count as u64;
        }
        self.zeros(left + padding(size))
    }

    fn header(&mut self, path: &[u8], kind: EntryType, stat: &Stat, size: u64, target: &[u8]) -> Result<(), Fault> {
        for (long, kind) in [(target, EntryType::GNULongLink), (path, EntryType::GNULongName)] {
            if long.len() > SHORT_NAME {
                let mut header = Header::new_gnu();
                set_names(&mut header, b"././@LongLink", b"");
                header.set_entry_type(kind);
                header.set_size(long.len() as u64 + 1);
                self.block(&mut header)?;
                self.write(long)?;
                self.zeros(1 + padding(long.len() as u64 + 1))?;
            }
        }
        let mut header = Header::new_gnu();
        set_names(&mut header, path, target);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        self.block(&mut header)
    }

    fn block(&mut self, header: &mut Header) -> Result<(), Fault> {
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), Fault> {
        let zeros = [0; 8 << 10];
        while count > 0 {
            let part = count.min(zeros.len() as u64);
            self.write(&zeros[..part as usize])?;
            count -= part;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.out.write_all(bytes).map_err(Fault::Stream)
    }
}

/// Puts names into the header as far as they fit. Not by the header's own setters: those refuse names that a file can well have.
fn set_names(header: &mut Header, path: &[u8], target: &[u8]) {
    let old = header.as_old_mut();
    let (path, target) = (&path[..path.len().min(SHORT_NAME)], &target[..target.len().min(SHORT_NAME)]);
    old.name[..path.len()].copy_from_slice(path);
    old.linkname[..target.len()].copy_from_slice(target);
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}
