use std::os::unix::fs::{PermissionsExt, symlink};

use atoll_contract::files::FileKind;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;
use crate::files::Tags;

#[test]
fn what_is_written_is_read() {
    let world = World::new();
    assert!(world.write("a", b"one").unwrap());
    assert!(!world.write("a", b"two").unwrap());
    assert_eq!(world.read("a").unwrap(), b"two");
    assert_eq!(names(&world.home.home), ["a"]);
    assert!(matches!(world.write("b/c", b""), Err(Fault::NotFound)));
    let mut draft = world.root.draft(&writer(), &path("b/c"), Condition::default(), Some(0o600), true).unwrap();
    draft.write(b"deep").unwrap();
    let (entry, created) = draft.commit(&world.root, &world.commits).unwrap();
    assert_eq!((entry.name.as_str(), entry.path.as_str(), entry.size, entry.mode, created), ("c", "b/c", 4, 0o600, true));
    assert_eq!(entry, world.root.stat(&reader(), &path("b/c")).unwrap());
}

#[test]
fn a_replaced_file_keeps_its_mode() {
    let world = World::new();
    world.write("script", b"one").unwrap();
    fs::set_permissions(world.at("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    world.write("script", b"two").unwrap();
    // but not that it runs as another user
    assert_eq!(fs::metadata(world.at("script")).unwrap().mode() & 0o7777, 0o751);
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let world = World::new();
    world.write("a", b"old").unwrap();
    let mut draft = world.root.draft(&writer(), &path("a"), Condition::default(), None, false).unwrap();
    draft.write(&vec![7; 100_000]).unwrap();
    drop(draft);
    assert_eq!(world.read("a").unwrap(), b"old");
    assert_eq!(names(&world.home.home), ["a"]);
}

#[test]
fn conditions_hold_at_the_beginning_and_at_the_end() {
    let world = World::new();
    let absent = || Condition { absent: true, ..Condition::default() };
    let matching = |tag: &str| Condition { matches: Some(Tags::These(vec![tag.into()])), absent: false };
    assert!(world.write_if("a", b"1", absent()).unwrap());
    assert!(matches!(world.write_if("a", b"2", absent()), Err(Fault::Changed)));
    let tag = world.root.stat(&reader(), &path("a")).unwrap().etag;
    assert!(!world.write_if("a", b"2", matching(&tag)).unwrap());
    assert!(matches!(world.write_if("a", b"3", matching(&tag)), Err(Fault::Changed)));
    assert!(matches!(world.write_if("b", b"3", Condition { matches: Some(Tags::Any), absent: false }), Err(Fault::Changed)));
    // two drafts that both began while the condition held: one wins
    let tag = world.root.stat(&reader(), &path("a")).unwrap().etag;
    let mut drafts: Vec<_> = (0..2).map(|_| world.root.draft(&writer(), &path("a"), matching(&tag), None, false).unwrap()).collect();
    let (second, first) = (drafts.pop().unwrap(), drafts.pop().unwrap());
    first.commit(&world.root, &world.commits).unwrap();
    assert!(matches!(second.commit(&world.root, &world.commits), Err(Fault::Changed)));
    // the same for "nothing is there"
    let draft = world.root.draft(&writer(), &path("c"), absent(), None, false).unwrap();
    fs::write(world.at("c"), "meanwhile").unwrap();
    assert!(matches!(draft.commit(&world.root, &world.commits), Err(Fault::Changed)));
    assert_eq!(world.read("c").unwrap(), b"meanwhile");
    assert_eq!(names(&world.home.home), ["a", "c"]);
}

#[test]
fn directories_and_names() {
    let world = World::new();
    let root = &world.root;
    assert!(root.mkdir(&writer(), &path("a"), false).unwrap().1);
    assert!(matches!(root.mkdir(&writer(), &path("a"), false), Err(Fault::Exists)));
    assert!(!root.mkdir(&writer(), &path("a"), true).unwrap().1);
    assert!(matches!(root.mkdir(&writer(), &path("x/y/z"), false), Err(Fault::NotFound)));
    assert!(root.mkdir(&writer(), &path("x/y/z"), true).unwrap().1);
    world.write("f", b"f").unwrap();
    assert!(matches!(root.mkdir(&writer(), &path("f"), true), Err(Fault::NotDirectory)));
    assert!(matches!(root.mkdir(&writer(), &path("f/g"), true), Err(Fault::NotDirectory)));
    assert!(matches!(root.mkdir(&writer(), &RelPath::default(), false), Err(Fault::Invalid(_))));

    assert!(matches!(root.rename(&writer(), &path("f"), &path("a"), false), Err(Fault::Exists)));
    assert_eq!(root.rename(&writer(), &path("f"), &path("x/g"), false).unwrap().path, "x/g");
    world.write("h", b"h").unwrap();
    assert!(matches!(root.rename(&writer(), &path("h"), &path("x/g"), false), Err(Fault::Exists)));
    root.rename(&writer(), &path("h"), &path("x/g"), true).unwrap();
    assert_eq!(world.read("x/g").unwrap(), b"h");
    assert!(matches!(root.rename(&writer(), &path("x"), &path("x/y/x"), false), Err(Fault::Invalid(_))));
    assert!(matches!(root.rename(&writer(), &path("a"), &path("x/y"), true), Err(Fault::NotEmpty)));
    assert!(matches!(root.rename(&writer(), &path("none"), &path("n"), true), Err(Fault::NotFound)));

    let link = root.symlink(&writer(), &path("l"), b"x/g").unwrap();
    assert_eq!((link.kind, link.target.as_deref()), (FileKind::Symlink, Some("x/g")));
    assert_eq!(world.read("l").unwrap(), b"h");
    assert!(matches!(root.symlink(&writer(), &path("m"), b""), Err(Fault::Invalid(_))));
}

#[test]
fn removal() {
    let world = World::new();
    let (root, never) = (&world.root, &world.never);
    fs::create_dir_all(world.at("a/b/c")).unwrap();
    world.write("a/f", b"").unwrap();
    symlink(world.canary(), world.at("a/link")).unwrap();
    let before = world.outside();
    assert!(matches!(root.remove(&writer(), &path("a"), false, never), Err(Fault::NotEmpty)));
    // a symlink goes itself, even when asked for with all that is in it
    symlink(world.canary(), world.at("link")).unwrap();
    root.remove(&writer(), &path("link"), true, never).unwrap();
    assert_eq!(root.remove(&writer(), &path("a"), true, never).unwrap(), 5);
    assert!(matches!(root.remove(&writer(), &path("a"), true, never), Err(Fault::NotFound)));
    assert!(matches!(root.remove(&writer(), &RelPath::default(), true, never), Err(Fault::Invalid(_))));
    assert_eq!(names(&world.home.home), [""; 0]);
    assert_eq!(world.outside(), before);
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    fs::create_dir_all(world.at("d/e")).unwrap();
    assert!(matches!(root.remove(&writer(), &path("d"), true, &cancelled), Err(Fault::Cancelled)));
}

#[test]
fn a_tree_deeper_than_any_path_is_removed_with_few_descriptors() {
    let world = World::new();
    let mut dir = rustix::fs::openat(CWD, &world.home.home, rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        rustix::fs::mknodat(&dir, "f", FileType::RegularFile, Mode::RWXU, 0).unwrap();
        dir = rustix::fs::openat(&dir, "d", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    }
    assert_eq!(world.root.remove(&writer(), &path("d"), true, &world.never).unwrap(), 1500 + 1499);
    assert_eq!(names(&world.home.home), ["f"]);
}

#[test]
fn pipes_sockets_and_devices_are_never_opened() {
    let world = World::new();
    mknodat(CWD, world.at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.at("socket")).unwrap();
    symlink("pipe", world.at("to-pipe")).unwrap();
    // a writer that waits for a reader isn't woken by a look; by a name that stays the pipe's, however late it comes to it
    let spare = world.dir().join("spare");
    fs::hard_link(world.at("pipe"), &spare).unwrap();
    let waiting = spare.clone();
    let writer_thread = std::thread::spawn(move || fs::OpenOptions::new().write(true).open(waiting).map(drop));
    for name in ["pipe", "socket", "to-pipe"] {
        assert!(matches!(world.root.find(&reader(), &path(name)), Err(Fault::Special)), "{name}");
    }
    assert_eq!(world.root.stat(&reader(), &path("pipe")).unwrap().kind, FileKind::Other);
    let mut bytes = Vec::new();
    world.root.write_tar(&reader(), &RelPath::default(), &mut bytes, &world.never).unwrap();
    world.root.write_zip(&reader(), &RelPath::default(), &mut Vec::new(), &world.never).unwrap();
    assert!(!writer_thread.is_finished());
    assert_eq!(bytes.len(), 3 * 512, "one header, of the symlink, and the end");
    // a write takes the pipe's place
    world.write("pipe", b"file").unwrap();
    assert_eq!(world.read("to-pipe").unwrap(), b"file");
    world.write("socket", b"file").unwrap();
    drop(fs::File::open(spare).unwrap());
    writer_thread.join().unwrap().unwrap();
}

#[test]
fn names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    let odd = std::ffi::OsStr::from_bytes(b"caf\xe9 %41\n");
    fs::write(world.home.home.join(odd), "odd").unwrap();
    let list = world.root.list(&reader(), &RelPath::default(), None, 10, &world.never).unwrap();
    let entry = &list.entries[0];
    assert_eq!((entry.name.as_str(), entry.path.as_str()), ("caf\u{fffd} %41\n", "caf%E9%20%2541%0A"));
    let asked = RelPath::from_url(&entry.path).unwrap();
    assert!(matches!(world.root.find(&reader(), &asked).unwrap(), Found::File(_)));
}

#[test]
fn a_hundred_thousand_files_in_pages() {
    let world = World::new();
    let dir = fs::File::open(&world.home.home).unwrap();
    let count = 100_000;
    for number in 0..count {
        // made in another order than they sort
        let name = format!("f{:06}", (number * 7919) % count);
        mknodat(&dir, &name, FileType::RegularFile, Mode::RWXU, 0).unwrap();
    }
    let timer = tokio::time::Instant::now();
    // the first pages one after the other, then some at random places, then the end
    let mut after = None;
    for first in [0, 1000, 2000, 3000, 50_000, 98_000, 99_000] {
        if first > 3000 {
            after = Some(URL_SAFE_NO_PAD.encode(format!("f{:06}", first - 1)));
        }
        let list = world.root.list(&reader(), &RelPath::default(), after.as_deref(), 1000, &world.never).unwrap();
        for (number, entry) in list.entries.iter().enumerate() {
            assert_eq!(entry.name, format!("f{:06}", first + number));
        }
        assert_eq!((list.entries.len(), list.next.is_some()), (1000, first != 99_000));
        after = list.next;
    }
    eprintln!("7 pages of 1000 of 100,000 files: {:?}", timer.elapsed());
    fs::create_dir(world.at("sub")).unwrap();
    for number in 0..count / 2 {
        let name = format!("f{number:06}");
        rustix::fs::renameat(&dir, &name, &dir, format!("sub/{name}")).unwrap();
    }
    let timer = tokio::time::Instant::now();
    assert_eq!(world.root.remove(&writer(), &path("sub"), true, &world.never).unwrap(), 50_001);
    eprintln!("50,000 files removed: {:?}", timer.elapsed());
}

#[test]
fn pages_have_borders() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.write(name, b"").unwrap();
    }
    let page = |after: Option<&str>, limit| world.root.list(&reader(), &RelPath::default(), after, limit, &world.never).unwrap();
    assert!(page(None, 3).next.is_none());
    let first = page(None, 2);
    assert_eq!(first.entries.len(), 2);
    let last = page(first.next.as_deref(), 2);
    assert_eq!((last.entries.len(), last.next), (1, None));
    assert!(matches!(world.root.list(&reader(), &path("a"), None, 2, &world.never), Err(Fault::NotDirectory)));
    assert!(matches!(world.root.list(&reader(), &RelPath::default(), Some("?"), 2, &world.never), Err(Fault::Invalid(_))));
}

/// Whether this test may do what only root may; says so if not.
fn as_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        crate::testing::skipped("files::plain", "needs root");
    }
    root
}

#[test]
fn what_is_made_belongs_to_the_projects_owner() {
    if !as_root() {
        return;
    }
    let mut world = World::new();
    world.home.owner = Owner { uid: 123_456, gid: 123_457 };
    world.root = Root::open(&world.home, clock()).unwrap();
    let mut draft = world.root.draft(&writer(), &path("new/dir/f"), Condition::default(), None, true).unwrap();
    draft.write(b"x").unwrap();
    draft.commit(&world.root, &world.commits).unwrap();
    world.root.mkdir(&writer(), &path("d"), false).unwrap();
    world.root.symlink(&writer(), &path("l"), b"/etc/passwd").unwrap();
    let mut tar = Vec::new();
    world.root.write_tar(&reader(), &RelPath::default(), &mut tar, &world.never).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(world.root.unpack_tar(&writer(), &path("t"), &*tar, &world.never)).unwrap();
    for made in ["new", "new/dir", "new/dir/f", "d", "l", "t", "t/new", "t/new/dir/f", "t/d", "t/l"] {
        let meta = fs::symlink_metadata(world.at(made)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (123_456, 123_457), "{made}");
    }
    assert_eq!(fs::metadata("/etc/passwd").unwrap().uid(), 0);
    // a file of another user of the container stays theirs
    std::os::unix::fs::chown(world.at("new/dir/f"), Some(124_456), Some(124_456)).unwrap();
    world.write("new/dir/f", b"y").unwrap();
    let meta = fs::metadata(world.at("new/dir/f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (124_456, 124_456));
}

/// A small file system on a directory for as long as this lives.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Option<Self> {
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount(c"tmpfs", at, c"tmpfs", flags, c"size=1m") {
            crate::testing::skipped("files::plain", &format!("can't mount: {error}"));
            return None;
        }
        Some(Self(at.into()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    if !as_root() {
        return;
    }
    let mut world = World::new();
    let Some(_small) = Small::mount(&world.home.home) else { return };
    world.root = Root::open(&world.home, clock()).unwrap();
    world.write("f", b"old").unwrap();
    assert!(matches!(world.write("f", &vec![1; 2 << 20]), Err(Fault::Full)));
    assert_eq!(world.read("f").unwrap(), b"old");
    assert_eq!(names(&world.home.home), ["f"]);
    // a part of it is free again
    world.write("g", &vec![1; 500_000]).unwrap();
}

#[test]
fn a_mount_inside_home_is_not_entered() {
    if !as_root() {
        return;
    }
    let world = World::new();
    fs::create_dir_all(world.at("d/mount")).unwrap();
    let Some(_small) = Small::mount(&world.at("d/mount")) else { return };
    fs::write(world.at("d/mount/f"), "other").unwrap();
    assert!(matches!(world.read("d/mount/f"), Err(Fault::Escapes)));
    assert!(matches!(world.root.remove(&writer(), &path("d"), true, &world.never), Err(Fault::Escapes | Fault::Denied)));
    assert_eq!(fs::read(world.at("d/mount/f")).unwrap(), b"other");
}
