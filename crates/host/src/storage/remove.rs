//! Removing a tree that a user made: any number of files, any depth, any permissions; symbolic links are removed, never followed.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, fchmod, openat, renameat_with, unlinkat},
    io::Errno,
};

/// Levels that are gone down before a directory is moved up to the top, so that neither the stack nor open files grow with the tree.
const MAX_DEPTH: u32 = 64;
/// Where a directory can't be moved up (it is a file system of its own), levels are gone down this far.
const HARD_DEPTH: u32 = 1000;
/// Times that a directory is emptied anew because something was made in it meanwhile.
const REFILLS: u32 = 100;
/// Names that are held at once.
const BATCH: usize = 1024;

/// Removes what has this name in `top`: a file or a whole tree. Done if there is nothing. Cut off anywhere it leaves less, under this name
/// or names that begin with it.
pub(super) fn remove_tree(top: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    let mut removal = Removal { top, name: &name, moved: Vec::new(), counter: 0 };
    removal.entry(top, &name, 0)?;
    while let Some(moved) = removal.moved.pop() {
        removal.entry(top, &moved, 0)?;
    }
    Ok(())
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    name: &'a CStr,
    /// Deep directories that were moved to the top, still to be removed.
    moved: Vec<CString>,
    counter: u64,
}

impl Removal<'_> {
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: u32) -> io::Result<()> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {} // POSIX says EPERM for a directory, Linux EISDIR
            Err(error) => return Err(error.into()),
        }
        // an empty directory goes without being opened
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if depth >= MAX_DEPTH && self.move_up(dir, name, depth)? {
            return Ok(());
        }
        let inner = open_directory(dir, name)?;
        for _ in 0..REFILLS {
            self.contents(inner.as_fd(), depth)?;
            match unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST) => {} // an upload that had begun before goes on beneath its opened directory
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::NOTEMPTY.into())
    }

    /// Empties a directory, a batch of names at a time: file systems may skip names when others are removed while they are listed, so the
    /// list is begun anew until it is empty.
    fn contents(&mut self, dir: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
        loop {
            let names = names(dir)?;
            if names.is_empty() {
                return Ok(());
            }
            for name in &names {
                self.entry(dir, name, depth + 1)?;
            }
        }
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: u32) -> io::Result<bool> {
        loop {
            self.counter += 1;
            let new = CString::new(format!("{}.deep-{}", self.name.to_string_lossy(), self.counter))?;
            match renameat_with(dir, name, self.top, &new, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    self.moved.push(new);
                    return Ok(true);
                }
                Err(Errno::EXIST) => {}
                Err(_) if depth < HARD_DEPTH => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Opens a directory for emptying it. Its owner may have taken its own permissions away; root doesn't need them.
fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // the name is a directory's (it could not be unlinked), and nothing runs any more that could swap it
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            openat(dir, name, flags, Mode::empty())?
        }
        other => other?,
    };
    if !rustix::process::geteuid().is_root() {
        let _ = fchmod(&fd, Mode::RWXU); // removing entries needs it writable; if it isn't ours, the removal will say so
    }
    Ok(fd)
}

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
            if names.len() == BATCH {
                break;
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    fn top(path: &Path) -> rustix::fd::OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn nothing_a_file_and_a_tree_with_links() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, tree) = (dir.path().join("outside"), dir.path().join("tree"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("kept"), tree.join("a/b/link")).unwrap();
        let top = top(dir.path());
        remove_tree(top.as_fd(), "tree").unwrap();
        remove_tree(top.as_fd(), "tree").unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        fs::write(dir.path().join("file"), "x").unwrap();
        remove_tree(top.as_fd(), "file").unwrap();
        assert!(!dir.path().join("file").exists());
    }

    #[test]
    fn what_is_made_meanwhile_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        // as an upload does, beneath a directory that it has opened
        let (opened, top) = (top(&tree), top(dir.path()));
        let writer = std::thread::spawn(move || {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let made = |n: u32| openat(&opened, format!("file-{n}"), flags, Mode::RWXU).is_ok();
            (0..2000).take_while(|n| made(*n)).count()
        });
        remove_tree(top.as_fd(), "tree").unwrap();
        writer.join().unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn deeper_than_a_path_can_be_and_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let top = top(dir.path());
        rustix::fs::mkdirat(&top, "tree", Mode::RWXU).unwrap();
        let mut inner = openat(&top, "tree", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&inner, "d", Mode::RWXU).unwrap();
            inner = openat(&inner, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(inner);
        fs::create_dir_all(dir.path().join("tree/shut/inside")).unwrap();
        fs::set_permissions(dir.path().join("tree/shut"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(top.as_fd(), "tree").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_files() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for number in 0..5000 {
            fs::write(tree.join(number.to_string()), "").unwrap();
        }
        remove_tree(top(dir.path()).as_fd(), "tree").unwrap();
        assert!(!tree.exists());
    }
}
