//! Archives against the system's own tar and zip readers.

use std::{
    io::Write as _,
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
};

use atoll_contract::files::Unpacked;

use super::*;

/// Runs an oracle with bytes as its input; none if this machine doesn't have it.
#[expect(clippy::disallowed_methods, reason = "a test's oracle, not the product")]
fn oracle(program: &str, arguments: &[&str], dir: &Path, input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(program);
    let spawned = command.args(arguments).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        crate::testing::skipped("archives", &format!("there is no {program} here"));
        return None;
    };
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let feed = std::thread::spawn(move || stdin.write_all(&input).map(drop));
    let output = child.wait_with_output().unwrap();
    let _ = feed.join().unwrap();
    assert!(output.status.success(), "{program} {arguments:?} failed");
    Some(output.stdout)
}

fn unpack(world: &World, into: &str, tar: &[u8]) -> Result<Unpacked, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(world.root.unpack_tar(&writer(), &path(into), tar, &world.never))
}

fn pack(world: &World, from: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    world.root.write_tar(&reader(), &path(from), &mut bytes, &world.never).unwrap();
    bytes
}

/// What is in a tree: path, kind, mode, size or target, time; hard links by group.
fn describe(dir: &Path) -> Vec<String> {
    fn walk(base: &Path, dir: &Path, lines: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let (kind, detail) = if meta.is_symlink() {
                ("link", format!("{:?}", fs::read_link(&path).unwrap()))
            } else if meta.is_dir() {
                walk(base, &path, lines);
                ("dir", String::new())
            } else {
                let content = fs::read(&path).unwrap();
                let sum = content.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
                ("file", format!("{} {sum} {} links {}", content.len(), meta.mtime(), meta.nlink()))
            };
            let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o777 };
            lines.push(format!("{:?} {kind} {mode:o} {detail}", path.strip_prefix(base).unwrap()));
        }
    }
    let mut lines = Vec::new();
    walk(dir, dir, &mut lines);
    lines.sort();
    lines
}

fn forest(world: &World, at: &str) {
    use std::os::unix::ffi::OsStrExt;
    let top = world.at(at);
    fs::create_dir_all(top.join("dir/empty")).unwrap();
    fs::write(top.join("empty"), "").unwrap();
    fs::write(top.join("dir/odd size"), vec![1; 513]).unwrap();
    fs::write(top.join("dir/big"), (0..3_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    fs::write(top.join(std::ffi::OsStr::from_bytes(b"not \xff utf8")), "x").unwrap();
    let long = format!("dir/{}", "n".repeat(200));
    fs::create_dir(top.join(&long)).unwrap();
    fs::write(top.join(&long).join("m".repeat(200)), "long").unwrap();
    fs::write(top.join("f".repeat(100)), "hundred").unwrap();
    fs::hard_link(top.join("dir/odd size"), top.join("hard")).unwrap();
    symlink("dir/big", top.join("link")).unwrap();
    symlink("/usr/bin/python3", top.join("absolute")).unwrap();
    symlink("t".repeat(300), top.join("long link")).unwrap();
    fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(top.join("dir/empty"), fs::Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(top.join("dir"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_tar_goes_out_and_comes_in_again() {
    let world = World::new();
    forest(&world, "from");
    let tar = pack(&world, "from");
    assert_eq!(tar.len() % 512, 0);
    let counts = unpack(&world, "new/to", &tar).unwrap();
    assert_eq!(describe(&world.at("new/to")), describe(&world.at("from")));
    let expected = Unpacked { files: 6, directories: 3, symlinks: 3, hard_links: 1, skipped: 0, bytes: 12_000_000 + 513 + 1 + 4 + 7 };
    assert_eq!(counts, expected);
    // once more over what is there
    unpack(&world, "new/to", &tar).unwrap();
    assert_eq!(describe(&world.at("new/to")), describe(&world.at("from")));
}

#[test]
fn the_systems_tar_reads_ours_and_we_read_its() {
    let world = World::new();
    forest(&world, "from");
    fs::create_dir(world.at("theirs")).unwrap();
    if oracle("tar", &["-xpf", "-", "--no-same-owner"], &world.at("theirs"), &pack(&world, "from")).is_none() {
        return;
    }
    assert_eq!(describe(&world.at("theirs")), describe(&world.at("from")));
    for format in ["--format=gnu", "--format=pax", "--format=oldgnu"] {
        let tar = oracle("tar", &["-cf", "-", format, "."], &world.at("from"), b"").unwrap();
        unpack(&world, format, &tar).unwrap();
        assert_eq!(describe(&world.at(format)), describe(&world.at("from")), "{format}");
    }
    // sparse files come in as what they read as
    fs::File::create(world.at("hole")).unwrap().set_len(1 << 20).unwrap();
    for format in ["--format=gnu", "--format=oldgnu"] {
        let tar = oracle("tar", &["-cSf", "-", format, "hole"], &world.home.home, b"").unwrap();
        unpack(&world, "sparse", &tar).unwrap();
        assert_eq!(fs::read(world.at("sparse/hole")).unwrap(), vec![0; 1 << 20], "{format}");
    }
}

#[test]
fn pythons_zipfile_reads_ours() {
    let world = World::new();
    forest(&world, "from");
    let mut bytes = Vec::new();
    world.root.write_zip(&reader(), &path("from"), &mut bytes, &world.never).unwrap();
    fs::write(world.at("ours.zip"), &bytes).unwrap();
    let script = "import zipfile\nz = zipfile.ZipFile('ours.zip')\nassert z.testzip() is None\n\
                  for i in sorted(z.infolist(), key=lambda i: i.filename): print(i.file_size, oct(i.external_attr >> 16), len(i.filename))\n\
                  print(z.read('dir/big') == open('from/dir/big', 'rb').read())";
    if let Some(output) = oracle("python3", &["-c", script], &world.home.home, b"") {
        let text = String::from_utf8(output).unwrap();
        assert_eq!(text.lines().count(), 14, "{text}");
        assert!(text.contains("513 0o100644 12\n") && text.contains("12000000 ") && text.ends_with("True\n"), "{text}");
    }
    if let Some(listing) = oracle("unzip", &["-tq", "ours.zip"], &world.home.home, b"") {
        assert!(String::from_utf8_lossy(&listing).contains("No errors"));
    }
}

#[test]
fn one_file_alone() {
    let world = World::new();
    world.write("f", b"content").unwrap();
    let tar = pack(&world, "f");
    unpack(&world, "d", &tar).unwrap();
    assert_eq!(world.read("d/f").unwrap(), b"content");
}

#[test]
fn a_file_that_changes_its_size_while_it_is_read() {
    /// Cuts or grows the file when the first bytes of the archive come out.
    struct Meddler<'a>(Vec<u8>, &'a dyn Fn());
    impl std::io::Write for Meddler<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                (self.1)();
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for length in [0, 100, 300_000, 2_000_000] {
        let world = World::new();
        fs::write(world.at("f"), vec![b'x'; 1_000_000]).unwrap();
        let change = || fs::OpenOptions::new().write(true).open(world.at("f")).unwrap().set_len(length).unwrap();
        let mut out = Meddler(Vec::new(), &change);
        world.root.write_tar(&reader(), &path("f"), &mut out, &world.never).unwrap();
        assert_eq!(out.0.len(), 512 + 1_000_448 + 1024);
        assert_eq!(unpack(&world, "d", &out.0).unwrap().bytes, 1_000_000);
        assert_eq!(fs::metadata(world.at("d/f")).unwrap().len(), 1_000_000);
    }
}

struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, name: &[u8], kind: tokio_tar::EntryType, target: &str, size: u64, content: &[u8]) -> Self {
        let mut header = tokio_tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
}

#[test]
fn hostile_archives() {
    use tokio_tar::EntryType::{Char, Directory, Fifo, GNULongName, Link, Regular, Symlink};
    let world = World::new();
    world.write("mine", b"mine").unwrap();
    let before = world.outside();
    let one = |name: &[u8]| Tar(vec![]).add(name, Regular, "", 1, b"x").0;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("goes up", one(b"../evil")),
        ("goes up inside", one(b"a/../../evil")),
        ("absolute", one(b"/tmp/evil")),
        ("through a link it brought", Tar(vec![]).add(b"l", Symlink, "..", 0, b"").add(b"l/mine", Regular, "", 1, b"x").0),
        (
            "through an absolute link",
            Tar(vec![]).add(b"l", Symlink, world.canary().to_str().unwrap(), 0, b"").add(b"l/secret", Regular, "", 1, b"x").0,
        ),
        ("directory through a link", Tar(vec![]).add(b"l", Symlink, "../..", 0, b"").add(b"l/canary", Directory, "", 0, b"").0),
        ("hard link out", Tar(vec![]).add(b"h", Link, "../mine", 0, b"").0),
        ("hard link through a link", Tar(vec![]).add(b"l", Symlink, "..", 0, b"").add(b"h", Link, "l/mine", 0, b"").0),
        ("hard link to nothing", Tar(vec![]).add(b"h", Link, "none", 0, b"").0),
        ("hard link to a directory", Tar(vec![]).add(b"d", Directory, "", 0, b"").add(b"h", Link, "d", 0, b"").0),
        ("broken off", Tar(vec![]).add(b"f", Regular, "", 100_000, &[1; 512]).0),
        ("broken off in a header", one(b"f")[..300].to_vec()),
        ("a name of a gigabyte", Tar(vec![]).add(b"n", GNULongName, "", 1 << 30, &vec![b'n'; 3 << 20]).0),
        ("a name of 5000 bytes", Tar(vec![]).add(b"n", GNULongName, "", 5000, &[b'n'; 5000]).add(b"x", Regular, "", 0, b"").0),
        ("a file over a directory", Tar(vec![]).add(b"d", Directory, "", 0, b"").add(b"d", Regular, "", 0, b"").0),
        ("not a tar", b"<html>".repeat(200)),
        ("home's own name", Tar(vec![]).add(b"./", Regular, "", 0, b"").0),
    ];
    for (name, mut tar) in cases {
        if !name.starts_with("broken") {
            tar.resize(tar.len() + 1024, 0);
        }
        let outcome = unpack(&world, "into", &tar);
        assert!(outcome.is_err(), "{name}: {outcome:?}");
        assert_eq!(world.outside(), before, "{name}");
        assert_eq!(world.read("mine").unwrap(), b"mine", "{name}");
        world.root.remove(&writer(), &path("into"), true, &world.never).unwrap();
    }
    let skipped = Tar(vec![]).add(b"dev", Char, "", 0, b"").add(b"pipe", Fifo, "", 0, b"").add(b"f", Regular, "", 1, b"x").0;
    let counts = unpack(&world, "into", &skipped).unwrap();
    assert_eq!((counts.skipped, counts.files), (2, 1));
    assert_eq!(names(&world.at("into")), ["f"]);
    assert_eq!(unpack(&world, "into", b"").unwrap(), Unpacked::default());
}
