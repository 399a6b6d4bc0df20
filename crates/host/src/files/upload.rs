//! Uploads that may be interrupted: bytes wait in the volume `state` until all are there, then go into home in one step, once.
//!
//! For each upload there is `<id>.data`, whose length is the offset, and `<id>.json`, the record. What is done leaves `<id>.done` for a while, so
//! that a client whose last answer was lost learns that it is. The record is always replaced as a whole, and each step below can be cut off anywhere:
//!
//! | phase | on disk | resumed by |
//! |---|---|---|
//! | receiving | record, data | writing on from the data's length; placing once all is there |
//! | placing | record names the inode that is about to be renamed into home | renaming it if it still has its old name; if not, it was |
//! | done | `.done` | – |

use std::{
    os::fd::OwnedFd,
    os::unix::fs::FileExt,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use atoll_contract::{Access, Timestamp, Write};
use atoll_net::clock::{SharedClock, random_text};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, Mode, OFlags, Stat, Timespec, Timestamps, copy_file_range, fdatasync, fstat, fsync, futimens, ioctl_ficlone,
        mkdirat, openat, renameat, unlinkat,
    },
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    Fault, Home, RelPath, Root,
    draft::{Nameless, Place},
    root::{stat_at, sync_dir},
};

/// How the directories here are opened: they are the host's own, and nobody else's link stands in their place.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Uploads of one project that aren't done.
    pub count: usize,
    /// Bytes that these announce together.
    pub bytes: u64,
    /// An upload that nothing was added to for so long is given up.
    pub idle: Duration,
    /// How long it is remembered that an upload is done.
    pub remember: Duration,
    /// Done uploads that are remembered.
    pub remembered: usize,
}

impl Default for UploadLimits {
    fn default() -> Self {
        let day = Duration::from_hours(24);
        Self { count: 64, bytes: 1 << 40, idle: day, remember: Duration::from_hours(1), remembered: 1000 }
    }
}

/// 26 characters of `a-z2-7`: 130 random bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl FromStr for UploadId {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let good = |byte: u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte);
        if text.len() == 26 && text.bytes().all(good) { Ok(Self(text.into())) } else { Err(Fault::NotFound) }
    }
}

impl std::fmt::Display for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is to be uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub path: RelPath,
    pub length: u64,
    /// What the file gets; absent: what the replaced one has, or 644.
    pub mode: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The path's bytes in base64: they needn't be UTF-8.
    path: String,
    length: u64,
    mode: Option<u32>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Receiving,
    /// About to be renamed; the inode tells whether what has the name is it.
    Placing {
        /// Whether it is a copy in the target's directory, or the data itself.
        copied: bool,
        inode: u64,
    },
    Done,
}

/// One upload as it is now.
#[derive(Debug)]
pub struct Upload {
    pub id: UploadId,
    pub plan: Plan,
    /// Bytes that are there.
    pub offset: u64,
    /// When it is given up if nothing more comes; absent once it is done.
    pub expires_at: Option<Timestamp>,
    phase: Phase,
    data: Option<std::fs::File>,
}

/// A project's uploads.
pub struct Uploads {
    dir: OwnedFd,
    clock: SharedClock,
    limits: UploadLimits,
}

impl Uploads {
    /// Opens the place where a project's uploads wait, making it if need be.
    ///
    /// # Errors
    /// [`Fault::NoVolume`].
    pub fn open(home: &Home, limits: UploadLimits, clock: SharedClock) -> Result<Self, Fault> {
        let state = openat(CWD, &home.state, DIRECTORY, Mode::empty()).map_err(|_| Fault::NoVolume)?;
        match mkdirat(&state, c"uploads", Mode::from_raw_mode(0o700)) {
            Ok(()) => sync_dir(&state)?,
            Err(Errno::EXIST) => {}
            Err(other) => return Err(other.into()),
        }
        Ok(Self { dir: openat(&state, c"uploads", DIRECTORY, Mode::empty())?, clock, limits })
    }

    /// As [`Uploads::open`], and none if nothing was ever uploaded: who only tidies up makes nothing.
    ///
    /// # Errors
    /// [`Fault::NoVolume`].
    pub fn open_if_any(home: &Home, limits: UploadLimits, clock: SharedClock) -> Result<Option<Self>, Fault> {
        let state = openat(CWD, &home.state, DIRECTORY, Mode::empty()).map_err(|_| Fault::NoVolume)?;
        match openat(&state, c"uploads", DIRECTORY, Mode::empty()) {
            Ok(dir) => Ok(Some(Self { dir, clock, limits })),
            Err(Errno::NOENT) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// Begins an upload. The caller sees to it that one project's uploads aren't begun at the same time.
    ///
    /// # Errors
    /// [`Fault::Limit`] if too much is waiting, [`Fault::Invalid`] for home itself, [`Fault::Full`], [`Fault::Quota`].
    pub fn create(&self, _access: &Access<Write>, plan: Plan) -> Result<Upload, Fault> {
        if plan.path.is_home() {
            return Err(Fault::Invalid("An upload needs the path of a file.".into()));
        }
        let (count, bytes) = self.sweep()?;
        if count >= self.limits.count || bytes.saturating_add(plan.length) > self.limits.bytes {
            let (most, size) = (self.limits.count, self.limits.bytes);
            return Err(Fault::Limit(format!("{count} uploads of {bytes} bytes aren't done; at most {most} of {size} bytes may be.")));
        }
        let id = UploadId(random_text(&*self.clock));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let data = openat(&self.dir, id.file("data"), flags, Mode::from_raw_mode(0o600))?;
        self.touch(&data)?;
        let record = Record { path: STANDARD.encode(plan.path.bytes()), length: plan.length, mode: plan.mode, phase: Phase::Receiving };
        self.save(&id.file("json"), &record)?;
        self.load(&id)
    }

    /// Finds an upload.
    ///
    /// # Errors
    /// [`Fault::NotFound`] also for one that was given up.
    pub fn find(&self, _access: &Access<Write>, id: &UploadId) -> Result<Upload, Fault> {
        self.load(id)
    }

    /// Adds bytes at the upload's offset.
    ///
    /// # Errors
    /// [`Fault::TooLarge`] beyond the announced length (nothing is written then), [`Fault::Full`], [`Fault::Quota`].
    pub fn append(&self, _access: &Access<Write>, upload: &mut Upload, bytes: &[u8]) -> Result<(), Fault> {
        if upload.offset.saturating_add(bytes.len() as u64) > upload.plan.length {
            return Err(Fault::TooLarge(format!("More bytes came than the {} that were announced.", upload.plan.length)));
        }
        let Some(data) = &upload.data else { return Err(Fault::Changed) };
        data.write_all_at(bytes, upload.offset)?;
        upload.offset += bytes.len() as u64;
        Ok(())
    }

    /// Makes durable what was added.
    pub fn rest(&self, _access: &Access<Write>, upload: &mut Upload) -> Result<(), Fault> {
        let Some(data) = &upload.data else { return Ok(()) };
        self.touch(data)?;
        fdatasync(data)?;
        upload.expires_at = Some(self.clock.now().saturating_add(self.limits.idle));
        Ok(())
    }

    /// Puts a complete upload in its place in home, unless that has happened already. May be called again after any failure. Missing directories
    /// on the way to it are made. `commits` is the project's own lock, as for [`Draft::commit`](super::Draft::commit).
    ///
    /// # Errors
    /// [`Fault::Changed`] for one that isn't complete, [`Fault::IsDirectory`], [`Fault::Escapes`] and others of writing in home.
    pub fn place(&self, access: &Access<Write>, root: &Root, upload: &mut Upload, commits: &Mutex<()>) -> Result<(), Fault> {
        match upload.phase {
            Phase::Done => return Ok(()),
            Phase::Placing { copied, inode } => {
                if let Some(place) = interrupted(root, upload, copied, inode)? {
                    self.put(root, upload, &place, copied, commits)?;
                }
            }
            Phase::Receiving => {
                if upload.offset != upload.plan.length {
                    return Err(Fault::Changed);
                }
                self.rest(access, upload)?;
                let place = root.place(&upload.plan.path, true)?;
                let copied = self.prepare(root, upload, &place, false)?;
                self.put(root, upload, &place, copied, commits)?;
            }
        }
        self.finish(upload)
    }

    /// Gives an upload up, or forgets one that is done.
    pub fn remove(&self, _access: &Access<Write>, upload: Upload) -> Result<(), Fault> {
        self.drop_files(&upload.id)
    }

    /// Removes what is too old. Gives number and announced bytes of those that wait.
    pub fn sweep(&self) -> Result<(usize, u64), Fault> {
        let now = self.clock.now();
        let (mut count, mut bytes, mut done) = (0, 0u64, Vec::new());
        let mut entries = Dir::read_from(&self.dir)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some((id, kind)) = name.split_once('.') else { continue };
            let Ok(id) = id.parse::<UploadId>() else { continue };
            let Some(stat) = stat_at(&self.dir, name.as_bytes())? else { continue };
            let age = now.since(modified(&stat));
            match kind {
                "done" if age > self.limits.remember => self.unlink(name)?,
                "done" => done.push((modified(&stat), id)),
                "json" => match self.load(&id) {
                    Ok(upload) => {
                        count += 1;
                        bytes = bytes.saturating_add(upload.plan.length);
                    }
                    // given up, or cut off between the last two steps
                    Err(Fault::NotFound) => self.drop_files(&id)?,
                    // a broken one must not be in the way of others; it counts until somebody looks
                    Err(_) => count += 1,
                },
                // cut off before its record was there, or after it had gone
                _ if age > self.limits.idle => self.unlink(name)?,
                _ => {}
            }
        }
        if done.len() > self.limits.remembered {
            done.sort_unstable_by_key(|(time, _)| std::cmp::Reverse(*time));
            for (_, id) in done.drain(self.limits.remembered..) {
                self.unlink(&id.file("done"))?;
            }
        }
        Ok((count, bytes))
    }

    fn load(&self, id: &UploadId) -> Result<Upload, Fault> {
        if let Some(record) = self.read(&id.file("done"))? {
            let plan = plan_of(&record)?;
            return Ok(Upload { id: id.clone(), offset: plan.length, plan, expires_at: None, phase: Phase::Done, data: None });
        }
        let record = self.read(&id.file("json"))?.ok_or(Fault::NotFound)?;
        let noted = stat_at(&self.dir, id.file("json").as_bytes())?.ok_or(Fault::NotFound)?;
        let plan = plan_of(&record)?;
        let (data, offset, touched) =
            match openat(&self.dir, id.file("data"), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(data) => {
                    let stat = fstat(&data)?;
                    (Some(data.into()), u64::try_from(stat.st_size).unwrap_or(0), modified(&stat).max(modified(&noted)))
                }
                // renamed into home already
                Err(Errno::NOENT) if matches!(record.phase, Phase::Placing { .. }) => (None, plan.length, modified(&noted)),
                Err(other) => return Err(other.into()),
            };
        let expires_at = touched.saturating_add(self.limits.idle);
        if expires_at < self.clock.now() {
            return Err(Fault::NotFound);
        }
        Ok(Upload { id: id.clone(), plan, offset, expires_at: Some(expires_at), phase: record.phase, data })
    }

    /// Makes ready what is then renamed, and notes it. Tells whether that is a copy.
    fn prepare(&self, root: &Root, upload: &mut Upload, place: &Place, copy: bool) -> Result<bool, Fault> {
        let Some(data) = &upload.data else { return Err(Fault::Changed) };
        place.current()?;
        let stat = fstat(data)?;
        let copied = copy || stat.st_dev != fstat(&place.parent)?.st_dev;
        let inode = if copied {
            let copy = Nameless::create(root, &place.parent)?;
            let fd = copy.fd()?;
            fill(&fd, data, upload.plan.length)?;
            place.dress(root, &fd, upload.plan.mode)?;
            fsync(&fd)?;
            // one that an earlier try has left
            unlink_at(&place.parent, &upload.id.hidden())?;
            copy.link(&place.parent, &upload.id.hidden())?;
            fstat(&fd)?.st_ino
        } else {
            let fd: OwnedFd = data.try_clone()?.into();
            place.dress(root, &fd, upload.plan.mode)?;
            fsync(&fd)?;
            stat.st_ino
        };
        upload.phase = Phase::Placing { copied, inode };
        self.save(&upload.id.file("json"), &upload.record())?;
        Ok(copied)
    }

    fn put(&self, root: &Root, upload: &mut Upload, place: &Place, copied: bool, commits: &Mutex<()>) -> Result<(), Fault> {
        match self.rename(upload, place, copied, commits) {
            // two mounts of one file system: only trying shows it
            Err(Fault::OtherVolume) if !copied => {
                self.prepare(root, upload, place, true)?;
                self.rename(upload, place, true, commits)
            }
            other => other,
        }
    }

    fn rename(&self, upload: &Upload, place: &Place, copied: bool, commits: &Mutex<()>) -> Result<(), Fault> {
        let _guard = commits.lock().unwrap_or_else(PoisonError::into_inner);
        place.current()?;
        let outcome = if copied {
            renameat(&place.parent, upload.id.hidden(), &place.parent, &place.name)
        } else {
            renameat(&self.dir, upload.id.file("data"), &place.parent, &place.name)
        };
        match outcome {
            Ok(()) => sync_dir(&place.parent),
            Err(Errno::XDEV) => Err(Fault::OtherVolume),
            Err(other) => Err(other.into()),
        }
    }

    fn finish(&self, upload: &mut Upload) -> Result<(), Fault> {
        upload.phase = Phase::Done;
        upload.data = None;
        upload.offset = upload.plan.length;
        upload.expires_at = None;
        self.save(&upload.id.file("done"), &upload.record())?;
        self.unlink(&upload.id.file("json"))?;
        self.unlink(&upload.id.file("data"))
    }

    fn drop_files(&self, id: &UploadId) -> Result<(), Fault> {
        // the record goes last: as long as it is there, the rest is found again
        ["data", "tmp", "json", "done"].iter().try_for_each(|kind| self.unlink(&id.file(kind)))
    }

    fn read(&self, name: &str) -> Result<Option<Record>, Fault> {
        let file = match openat(&self.dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        // written by this program alone, so what can't be read is a broken volume
        serde_json::from_reader(file).map(Some).map_err(|_| Fault::Io(Errno::IO))
    }

    fn save(&self, name: &str, record: &Record) -> Result<(), Fault> {
        let bytes = serde_json::to_vec(record).map_err(|_| Fault::Io(Errno::INVAL))?;
        let temp = format!("{}.tmp", name.split('.').next().unwrap_or(name));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = std::fs::File::from(openat(&self.dir, &temp, flags, Mode::from_raw_mode(0o600))?);
        file.write_all_at(&bytes, 0)?;
        self.touch(&file)?;
        fsync(&file)?;
        renameat(&self.dir, &temp, &self.dir, name)?;
        Ok(fsync(&self.dir)?)
    }

    /// Sets a file's time by our own clock, which is the one that ages are reckoned by.
    fn touch(&self, file: &impl std::os::fd::AsFd) -> Result<(), Fault> {
        let millis = self.clock.now().millis();
        let time = Timespec { tv_sec: millis.div_euclid(1000), tv_nsec: millis.rem_euclid(1000) * 1_000_000 };
        Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
    }

    fn unlink(&self, name: &str) -> Result<(), Fault> {
        unlink_at(&self.dir, name.as_bytes())
    }
}

impl Upload {
    pub const fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    fn record(&self) -> Record {
        Record { path: STANDARD.encode(self.plan.path.bytes()), length: self.plan.length, mode: self.plan.mode, phase: self.phase }
    }
}

impl UploadId {
    fn file(&self, kind: &str) -> String {
        format!("{}.{kind}", self.0)
    }

    /// The name of the copy in the target's directory, for the moment until the rename.
    fn hidden(&self) -> Vec<u8> {
        format!(".atoll-upload-{}", self.0).into_bytes()
    }
}

/// Where an interrupted placing is to be taken up; none if the rename has happened.
///
/// A copy that was renamed and one that somebody in the project has removed or carried off under its hidden name look the same. It is taken for
/// renamed: then nothing is ever put in place twice over what was changed since.
fn interrupted(root: &Root, upload: &Upload, copied: bool, inode: u64) -> Result<Option<Place>, Fault> {
    if !copied {
        return match upload.data {
            Some(_) => root.place(&upload.plan.path, true).map(Some),
            None => Ok(None),
        };
    }
    let place = match root.place(&upload.plan.path, false) {
        Ok(place) => place,
        Err(Fault::NotFound) => return Ok(None),
        Err(other) => return Err(other),
    };
    let waiting = stat_at(&place.parent, &upload.id.hidden())?;
    Ok(waiting.is_some_and(|stat| stat.st_ino == inode).then_some(place))
}

fn plan_of(record: &Record) -> Result<Plan, Fault> {
    let path = STANDARD.decode(&record.path).map_err(|_| Fault::Io(Errno::IO))?;
    Ok(Plan { path: RelPath::from_bytes(&path)?, length: record.length, mode: record.mode })
}

fn modified(stat: &Stat) -> Timestamp {
    super::entry::modified_at(stat)
}

fn unlink_at(dir: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

/// Copies a file's bytes: shared where the file system can (btrfs, also between subvolumes), else in the kernel, else by hand.
fn fill(to: &OwnedFd, from: &std::fs::File, length: u64) -> Result<(), Fault> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let (mut read, mut written) = (0, 0);
    while written < length {
        let part = usize::try_from((length - written).min(64 << 20)).unwrap_or(64 << 20);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), part) {
            Ok(0) => return Err(Fault::Io(Errno::IO)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => return copy_by_hand(to, from, written, length),
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(to: &OwnedFd, from: &std::fs::File, mut at: u64, length: u64) -> Result<(), Fault> {
    let to = std::fs::File::from(to.try_clone()?);
    let mut buffer = vec![0; 256 << 10];
    while at < length {
        let part = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buffer[..part], at)?;
        to.write_all_at(&buffer[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
