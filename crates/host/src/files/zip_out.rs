//! A folder as a zip stream (PKWARE's APPNOTE 6.3.10): deflated, sizes after the data, zip64 where a number needs it.
//!
//! A library was tried first: it declares zip64 for every entry and then writes 32-bit sizes after the data, which readers that stream can't follow.

use std::io::{Read as _, Write};

use atoll_contract::{Access, Read};
use flate2::{Compression, write::DeflateEncoder};
use rustix::{
    fs::{FileType, ResolveFlags, Stat, readlinkat},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::{Fault, RelPath, Root, root::open_regular, walk::Item};

/// Bytes of the list of contents, which goes at the end and is kept until then: enough for some 500,000 files.
const MAX_DIRECTORY: usize = 64 << 20;
/// A file of at least this size gets 64-bit sizes. A bit below 4 GiB, since what doesn't compress grows by some bytes.
const LARGE: u64 = 0xff00_0000;
/// "See the zip64 field instead."
const ELSEWHERE: u32 = u32::MAX;
/// Made by version 4.5 on Unix: the upper half of the external attributes is the mode.
const MADE_BY: u16 = 0x032d;
/// Sizes and checksum come after the data.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_UTF8: u16 = 1 << 11;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

impl Root {
    /// Writes what is at a path as a zip; what goes into it is as with [`Root::write_tar`], only that hard links become files of their own.
    ///
    /// # Errors
    /// Those of [`Root::write_tar`], and [`Fault::Limit`] for too many files.
    pub fn write_zip(&self, _access: &Access<Read>, path: &RelPath, out: &mut dyn Write, cancel: &CancellationToken) -> Result<(), Fault> {
        let mut zip = ZipWriter { out: Counter { out, count: 0 }, directory: Vec::new(), entries: 0 };
        self.pack(path, cancel, &mut |item| zip.item(item))?;
        zip.finish()
    }
}

struct ZipWriter<'a> {
    out: Counter<'a>,
    /// The central directory so far.
    directory: Vec<u8>,
    entries: u64,
}

/// What is written about an entry before and after its data.
struct Entry<'a> {
    name: &'a [u8],
    method: u16,
    flags: u16,
    mode: u32,
    modified: i64,
    large: bool,
    offset: u64,
    crc: u32,
    compressed: u64,
    size: u64,
}

impl ZipWriter<'_> {
    fn item(&mut self, item: &Item) -> Result<(), Fault> {
        match item.file_type() {
            FileType::Directory => self.small(&[item.path, b"/"].concat(), item.stat, b""),
            FileType::Symlink => match readlinkat(item.dir, item.name, Vec::new()) {
                Ok(target) => self.small(item.path, item.stat, target.as_bytes()),
                Err(Errno::NOENT | Errno::INVAL) => Ok(()),
                Err(other) => Err(other.into()),
            },
            FileType::RegularFile => self.file(item),
            _ => Ok(()),
        }
    }

    /// An entry whose few bytes are at hand: stored as they are, sizes first.
    fn small(&mut self, name: &[u8], stat: &Stat, bytes: &[u8]) -> Result<(), Fault> {
        let mut entry = self.entry(name, STORED, 0, stat);
        entry.crc = crc32fast::hash(bytes);
        (entry.compressed, entry.size) = (bytes.len() as u64, bytes.len() as u64);
        self.write(&entry.local_header())?;
        self.write(bytes)?;
        self.note(&entry)
    }

    fn file(&mut self, item: &Item) -> Result<(), Fault> {
        let (fd, stat) = match open_regular(item.dir, item.name, ResolveFlags::NO_SYMLINKS) {
            Ok(opened) => opened,
            Err(Fault::NotFound | Fault::Special | Fault::IsDirectory | Fault::Loop | Fault::Escapes) => return Ok(()),
            Err(other) => return Err(other),
        };
        let announced = u64::try_from(stat.st_size).unwrap_or(0);
        let mut entry = self.entry(item.path, DEFLATED, FLAG_DESCRIPTOR, &stat);
        entry.large = announced >= LARGE;
        self.write(&entry.local_header())?;
        let start = self.out.count;
        let mut crc = crc32fast::Hasher::new();
        let mut encoder = DeflateEncoder::new(&mut self.out, Compression::fast());
        let mut reader = std::fs::File::from(fd).take(announced);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            crc.update(&buffer[..count]);
            entry.size += count as u64;
            encoder.write_all(&buffer[..count]).map_err(Fault::Stream)?;
        }
        encoder.finish().map_err(Fault::Stream)?;
        entry.crc = crc.finalize();
        entry.compressed = self.out.count - start;
        self.write(&entry.descriptor())?;
        self.note(&entry)
    }

    fn entry<'e>(&self, name: &'e [u8], method: u16, flags: u16, stat: &Stat) -> Entry<'e> {
        let utf8 = if std::str::from_utf8(name).is_ok() { FLAG_UTF8 } else { 0 };
        Entry {
            name,
            method,
            flags: flags | utf8,
            mode: stat.st_mode,
            modified: stat.st_mtime,
            large: false,
            offset: self.out.count,
            crc: 0,
            compressed: 0,
            size: 0,
        }
    }

    fn note(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.name.len() > usize::from(u16::MAX) {
            return Err(Fault::Limit("A path in the folder is too long for a zip; ask for a tar.".into()));
        }
        self.entries += 1;
        entry.central_header(&mut self.directory);
        if self.directory.len() > MAX_DIRECTORY {
            return Err(Fault::Limit("The folder has too many files for a zip; ask for a tar.".into()));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), Fault> {
        let (start, length) = (self.out.count, self.directory.len() as u64);
        let directory = std::mem::take(&mut self.directory);
        self.write(&directory)?;
        let mut end = Vec::new();
        let small = |value: u64| u32::try_from(value).unwrap_or(ELSEWHERE);
        if self.entries >= u64::from(u16::MAX) || start >= u64::from(ELSEWHERE) {
            let at = self.out.count;
            put(&mut end, &[b"PK\x06\x06", &44u64.to_le_bytes(), &MADE_BY.to_le_bytes(), &45u16.to_le_bytes(), &[0; 8]]);
            put(&mut end, &[&self.entries.to_le_bytes(), &self.entries.to_le_bytes(), &length.to_le_bytes(), &start.to_le_bytes()]);
            put(&mut end, &[b"PK\x06\x07", &[0; 4], &at.to_le_bytes(), &1u32.to_le_bytes()]);
        }
        let count = u16::try_from(self.entries).unwrap_or(u16::MAX).to_le_bytes();
        put(&mut end, &[b"PK\x05\x06", &[0; 4], &count, &count, &small(length).to_le_bytes(), &small(start).to_le_bytes(), &[0; 2]]);
        self.write(&end)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.out.write_all(bytes).map_err(Fault::Stream)
    }
}

impl Entry<'_> {
    /// Version needed to extract: 4.5 has zip64, 2.0 has directories and deflate.
    fn needed(&self) -> [u8; 2] {
        (if self.large || self.offset >= u64::from(ELSEWHERE) { 45u16 } else { 20 }).to_le_bytes()
    }

    fn common(&self) -> Vec<u8> {
        let (date, time) = dos_time(self.modified);
        [self.flags.to_le_bytes(), self.method.to_le_bytes(), time.to_le_bytes(), date.to_le_bytes()].concat()
    }

    /// The modification time in seconds of UTC ("UT"), since the other one is local time of nobody knows where.
    fn unix_time(&self) -> Vec<u8> {
        let seconds = i32::try_from(self.modified).unwrap_or(0).to_le_bytes();
        [&b"UT\x05\x00\x01"[..], &seconds].concat()
    }

    fn local_header(&self) -> Vec<u8> {
        let mut extra = self.unix_time();
        let sizes = if self.large {
            // the sizes are known only after the data, but that they will have 64 bits is said here
            put(&mut extra, &[&[1, 0, 16, 0], &[0; 16]]);
            [ELSEWHERE; 2]
        } else {
            [self.compressed as u32, self.size as u32]
        };
        let mut header = Vec::new();
        put(&mut header, &[b"PK\x03\x04", &self.needed(), &self.common(), &self.crc.to_le_bytes()]);
        put(&mut header, &[&sizes[0].to_le_bytes(), &sizes[1].to_le_bytes()]);
        put(&mut header, &[&length(self.name), &length(&extra), self.name, &extra]);
        header
    }

    fn descriptor(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, &[b"PK\x07\x08", &self.crc.to_le_bytes()]);
        if self.large {
            put(&mut bytes, &[&self.compressed.to_le_bytes(), &self.size.to_le_bytes()]);
        } else {
            put(&mut bytes, &[&(self.compressed as u32).to_le_bytes(), &(self.size as u32).to_le_bytes()]);
        }
        bytes
    }

    fn central_header(&self, out: &mut Vec<u8>) {
        let mut wide = Vec::new();
        let mut sizes = [self.compressed as u32, self.size as u32];
        if self.large {
            put(&mut wide, &[&self.size.to_le_bytes(), &self.compressed.to_le_bytes()]);
            sizes = [ELSEWHERE; 2];
        }
        let mut offset = self.offset as u32;
        if self.offset >= u64::from(ELSEWHERE) {
            put(&mut wide, &[&self.offset.to_le_bytes()]);
            offset = ELSEWHERE;
        }
        let mut extra = self.unix_time();
        if !wide.is_empty() {
            put(&mut extra, &[&[1, 0], &length(&wide), &wide]);
        }
        put(out, &[b"PK\x01\x02", &MADE_BY.to_le_bytes(), &self.needed(), &self.common(), &self.crc.to_le_bytes()]);
        put(out, &[&sizes[0].to_le_bytes(), &sizes[1].to_le_bytes(), &length(self.name), &length(&extra)]);
        // no comment, first disk, no internal attributes
        put(out, &[&[0; 6], &(self.mode << 16).to_le_bytes(), &offset.to_le_bytes(), self.name, &extra]);
    }
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// A length field. [`ZipWriter::note`] refuses names that it can't hold; fields are short.
fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes()
}

/// Date and time as DOS has them, in UTC, between 1980 and 2107.
fn dos_time(seconds: i64) -> (u16, u16) {
    // 1980-01-01 and 2107-12-31T23:59:58
    let seconds = seconds.clamp(315_532_800, 4_354_819_198);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // days since 0000-03-01, so that the leap day is a year's last
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let date = (year - 1980) << 9 | month << 5 | day;
    let time = (rest / 3600) << 11 | (rest / 60 % 60) << 5 | (rest % 60 / 2);
    (date as u16, time as u16)
}

struct Counter<'a> {
    out: &'a mut dyn Write,
    count: u64,
}

impl Write for Counter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::dos_time;

    #[test]
    fn dos_times() {
        for (seconds, date, time) in [
            (0, (1980, 1, 1), (0, 0, 0)),
            (951_782_400, (2000, 2, 29), (0, 0, 0)),
            (1_795_000_001, (2026, 11, 18), (11, 6, 40)),
            (1_709_251_199, (2024, 2, 29), (23, 59, 58)),
            (i64::MAX, (2107, 12, 31), (23, 59, 58)),
        ] {
            let (d, t) = dos_time(seconds);
            assert_eq!((1980 + (d >> 9), d >> 5 & 15, d & 31), date, "{seconds}");
            assert_eq!((t >> 11, t >> 5 & 63, (t & 31) * 2), time, "{seconds}");
        }
    }
}
