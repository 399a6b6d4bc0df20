//! btrfs by ioctl: the only unsafe code in the workspace.
//!
//! Numbers and structures are those of the kernel's user-space header `linux/btrfs.h` (and `linux/btrfs_tree.h` for items of trees), which
//! never change. Every structure here is plain old data in the header's own layout (`repr(C)`, only integers and arrays of them), and
//! its size, which is part of an ioctl's number, is asserted below.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `BTRFS_IOCTL_MAGIC`.
const MAGIC: u8 = 0x94;
/// `f_type` of statfs, from `linux/magic.h`.
pub(super) const BTRFS_SUPER_MAGIC: i64 = 0x9123_683E;
/// `BTRFS_FIRST_FREE_OBJECTID`: the inode number of every subvolume's root directory, and the least id of a subvolume of the user's.
pub(super) const FIRST_FREE_OBJECTID: u64 = 256;

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`, with the member of its last union that is used here.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    subvolid: u64,
    rest: [u64; 504],
}

/// `struct btrfs_ioctl_quota_ctl_args`
#[repr(C)]
struct QuotaCtlArgs {
    cmd: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_assign_args`
#[repr(C)]
struct QgroupAssignArgs {
    assign: u64,
    src: u64,
    dst: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`
#[repr(C)]
struct QgroupCreateArgs {
    create: u64,
    qgroupid: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args` with its `struct btrfs_qgroup_limit`
#[repr(C)]
struct QgroupLimitArgs {
    qgroupid: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct btrfs_ioctl_ino_lookup_args`
#[repr(C)]
struct InoLookupArgs {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_fs_info_args`: only the file system's id is read.
#[repr(C)]
struct FsInfoArgs {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

/// `struct btrfs_ioctl_search_args` with its `struct btrfs_ioctl_search_key`
#[repr(C)]
struct SearchArgs {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_more: [u64; 4],
    buf: [u8; 3992],
}

const _: () = {
    assert!(size_of::<VolArgs>() == 4096 && size_of::<VolArgsV2>() == 4096 && size_of::<InoLookupArgs>() == 4096);
    assert!(size_of::<SearchArgs>() == 4096 && size_of::<FsInfoArgs>() == 1024);
    assert!(size_of::<QuotaCtlArgs>() == 16 && size_of::<QgroupAssignArgs>() == 24);
    assert!(size_of::<QgroupCreateArgs>() == 16 && size_of::<QgroupLimitArgs>() == 48);
};

const SUBVOL_CREATE: Opcode = opcode::write::<VolArgs>(MAGIC, 14);
const TREE_SEARCH: Opcode = opcode::read_write::<SearchArgs>(MAGIC, 17);
const INO_LOOKUP: Opcode = opcode::read_write::<InoLookupArgs>(MAGIC, 18);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(MAGIC, 26);
const FS_INFO: Opcode = opcode::read::<FsInfoArgs>(MAGIC, 31);
const QUOTA_CTL: Opcode = opcode::read_write::<QuotaCtlArgs>(MAGIC, 40);
const QGROUP_ASSIGN: Opcode = opcode::write::<QgroupAssignArgs>(MAGIC, 41);
const QGROUP_CREATE: Opcode = opcode::write::<QgroupCreateArgs>(MAGIC, 42);
const QGROUP_LIMIT: Opcode = opcode::read::<QgroupLimitArgs>(MAGIC, 43); // _IOR in the header, although it is written
const SNAP_DESTROY_V2: Opcode = opcode::write::<VolArgsV2>(MAGIC, 63);

/// `BTRFS_SUBVOL_SPEC_BY_ID`
const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;
/// `BTRFS_QUOTA_CTL_ENABLE`
const QUOTA_ENABLE: u64 = 1;
/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA`, since Linux 6.7
const QUOTA_ENABLE_SIMPLE: u64 = 4;
/// `BTRFS_QGROUP_LIMIT_MAX_RFER`
const LIMIT_MAX_REFERENCED: u64 = 1;
/// A limit of this value is none (`CLEAR_VALUE` in fs/btrfs/qgroup.c).
const NO_LIMIT: u64 = u64::MAX;
/// `BTRFS_ROOT_TREE_OBJECTID`
const ROOT_TREE: u64 = 1;
/// `BTRFS_ROOT_REF_KEY`
const ROOT_REF: u32 = 156;

/// The one place where the kernel is handed a pointer.
#[allow(unsafe_code, reason = "an ioctl can't be made without; each use below gives the structure that its number stands for")]
fn call<const OPCODE: Opcode, T>(fd: BorrowedFd<'_>, argument: &mut T) -> io::Result<()> {
    // SAFETY: OPCODE is one of the constants above. Each was made with the very type that is passed here, whose layout and size are those
    // of the kernel's structure for it (asserted above), so the kernel reads and writes within `argument`. It is borrowed exclusively for
    // the call, and any bytes that the kernel writes are valid, since all the structures are made of integers.
    unsafe { ioctl(fd, Updater::<OPCODE, T>::new(argument)) }.map_err(Into::into)
}

/// Makes a subvolume of this name in a directory.
pub(super) fn create_subvolume(dir: impl AsFd, name: &str) -> io::Result<()> {
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    let bytes = name.as_bytes();
    // the last byte stays zero; the kernel wants it terminated
    args.name.get_mut(..bytes.len()).filter(|_| bytes.len() < 256).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    call::<SUBVOL_CREATE, _>(dir.as_fd(), &mut args)
}

/// Deletes a subvolume of this file system, whatever directory it is in. One that has subvolumes inside isn't empty.
pub(super) fn destroy_subvolume(fs: impl AsFd, id: u64) -> io::Result<()> {
    let mut args = VolArgsV2 { fd: 0, transid: 0, flags: SUBVOL_SPEC_BY_ID, unused: [0; 4], subvolid: id, rest: [0; 504] };
    call::<SNAP_DESTROY_V2, _>(fs.as_fd(), &mut args)
}

/// Makes a subvolume writable, which deleting what is in it needs.
pub(super) fn set_writable(subvolume: impl AsFd) -> io::Result<()> {
    call::<SUBVOL_SETFLAGS, _>(subvolume.as_fd(), &mut 0u64)
}

/// The id of the subvolume that a file is in.
pub(super) fn subvolume_id(file: impl AsFd) -> io::Result<u64> {
    let mut args = InoLookupArgs { treeid: 0, objectid: FIRST_FREE_OBJECTID, name: [0; 4080] };
    call::<INO_LOOKUP, _>(file.as_fd(), &mut args)?;
    Ok(args.treeid)
}

/// The path of a directory in a subvolume of this file system, relative to the subvolume; ends with a slash, or is empty for its root.
pub(super) fn directory_path(fs: impl AsFd, subvolume: u64, directory: u64) -> io::Result<Vec<u8>> {
    let mut args = InoLookupArgs { treeid: subvolume, objectid: directory, name: [0; 4080] };
    call::<INO_LOOKUP, _>(fs.as_fd(), &mut args)?;
    Ok(args.name.iter().copied().take_while(|byte| *byte != 0).collect())
}

/// The file system's id, as in `/sys/fs/btrfs/<uuid>`.
pub(super) fn file_system_id(fs: impl AsFd) -> io::Result<[u8; 16]> {
    let mut args = FsInfoArgs { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 124] };
    call::<FS_INFO, _>(fs.as_fd(), &mut args)?;
    Ok(args.fsid)
}

/// Turns quotas on. Does nothing if they are on, whichever kind they are.
pub(super) fn enable_quotas(fs: impl AsFd, simple: bool) -> io::Result<()> {
    let mut args = QuotaCtlArgs { cmd: if simple { QUOTA_ENABLE_SIMPLE } else { QUOTA_ENABLE }, status: 0 };
    call::<QUOTA_CTL, _>(fs.as_fd(), &mut args)
}

pub(super) fn create_group(fs: impl AsFd, group: u64) -> io::Result<()> {
    call::<QGROUP_CREATE, _>(fs.as_fd(), &mut QgroupCreateArgs { create: 1, qgroupid: group })
}

/// Fails with `EBUSY` while the group has members or bytes.
pub(super) fn remove_group(fs: impl AsFd, group: u64) -> io::Result<()> {
    call::<QGROUP_CREATE, _>(fs.as_fd(), &mut QgroupCreateArgs { create: 0, qgroupid: group })
}

pub(super) fn assign_group(fs: impl AsFd, member: u64, group: u64) -> io::Result<()> {
    call::<QGROUP_ASSIGN, _>(fs.as_fd(), &mut QgroupAssignArgs { assign: 1, src: member, dst: group })
}

/// Limits what a group's members refer to together, in bytes; none for no limit.
pub(super) fn limit_group(fs: impl AsFd, group: u64, bytes: Option<u64>) -> io::Result<()> {
    let mut args = QgroupLimitArgs {
        qgroupid: group,
        flags: LIMIT_MAX_REFERENCED,
        max_referenced: bytes.unwrap_or(NO_LIMIT),
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    call::<QGROUP_LIMIT, _>(fs.as_fd(), &mut args)
}

/// A subvolume that lies in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nested {
    pub(super) id: u64,
    /// Inode number of the directory that it is in, within the outer subvolume.
    pub(super) directory: u64,
    pub(super) name: Vec<u8>,
}

/// The subvolumes that lie directly in one, at most some dozens at a time: when those are deleted, ask again.
pub(super) fn nested_subvolumes(fs: impl AsFd, subvolume: u64) -> io::Result<Vec<Nested>> {
    let mut args = SearchArgs {
        tree_id: ROOT_TREE,
        min_objectid: subvolume,
        max_objectid: subvolume,
        min_offset: 0,
        max_offset: u64::MAX,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: ROOT_REF,
        max_type: ROOT_REF,
        nr_items: u32::MAX,
        unused: 0,
        unused_more: [0; 4],
        buf: [0; 3992],
    };
    call::<TREE_SEARCH, _>(fs.as_fd(), &mut args)?;
    Ok(read_references(&args.buf, args.nr_items, subvolume))
}

/// Items as `struct btrfs_ioctl_search_header` (transid, objectid, offset: u64; type, len: u32; in the machine's order), each followed by a
/// `struct btrfs_root_ref` (dirid, sequence: le64; name_len: le16; the name).
fn read_references(mut rest: &[u8], count: u32, subvolume: u64) -> Vec<Nested> {
    const HEADER: usize = 32;
    const REFERENCE: usize = 18;
    let mut found = Vec::new();
    for _ in 0..count {
        let Some((header, tail)) = rest.split_at_checked(HEADER) else { break };
        let long = |at: usize| header[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
        let short = |at: usize| header[at..at + 4].try_into().map_or(0, u32::from_ne_bytes);
        let Some((item, tail)) = tail.split_at_checked(short(28) as usize) else { break };
        rest = tail;
        if long(8) != subvolume || short(24) != ROOT_REF || item.len() < REFERENCE {
            continue;
        }
        let directory = item[..8].try_into().map_or(0, u64::from_le_bytes);
        let length = usize::from(u16::from_le_bytes([item[16], item[17]]));
        let name = item.get(REFERENCE..REFERENCE + length).unwrap_or_default().to_vec();
        found.push(Nested { id: long(16), directory, name });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // as strace prints them for btrfs-progs
        assert_eq!(u64::from(SUBVOL_CREATE), 0x5000_940e);
        assert_eq!(u64::from(QUOTA_CTL), 0xc010_9428);
        assert_eq!(u64::from(QGROUP_LIMIT), 0x8030_942b);
        assert_eq!(u64::from(SNAP_DESTROY_V2), 0x5000_943f);
        assert_eq!(u64::from(TREE_SEARCH), 0xd000_9411);
    }

    #[test]
    fn references_are_read_and_cut_ones_are_left() {
        let mut bytes = Vec::new();
        for (id, name) in [(300u64, "one"), (301, "two")] {
            for long in [0u64, 256, id] {
                bytes.extend(long.to_ne_bytes());
            }
            bytes.extend(ROOT_REF.to_ne_bytes());
            bytes.extend((18 + name.len() as u32).to_ne_bytes());
            bytes.extend(257u64.to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend(name.as_bytes());
        }
        let all = read_references(&bytes, 2, 256);
        assert_eq!(
            all.iter().map(|nested| (nested.id, nested.directory, nested.name.as_slice())).collect::<Vec<_>>(),
            [(300, 257, &b"one"[..]), (301, 257, b"two")]
        );
        assert_eq!(read_references(&bytes[..bytes.len() - 1], 2, 256).len(), 1);
        assert!(read_references(&bytes, 2, 999).is_empty());
        assert!(read_references(&[], 5, 256).is_empty());
    }
}
