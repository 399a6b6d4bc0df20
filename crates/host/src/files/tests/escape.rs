//! Nothing leads out of home, whatever symlinks there are and however they change.

use std::{
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
};

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::*;

#[derive(Debug, Clone)]
enum Node {
    Dir,
    File,
    Link(String),
}

/// A few names only, so that links meet what is there; `C` stands for the absolute path of the directory outside.
fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "home", "canary", "secret", "inner"]);
    let start = prop::sample::select(vec!["", "C/canary/", "C/home/", "/proc/self/root/C/canary/", "/proc/self/cwd/", "../", "../../"]);
    (start, prop::collection::vec(part, 0..4)).prop_map(|(start, parts)| {
        let text = format!("{start}{}", parts.join("/"));
        if text.is_empty() { ".".into() } else { text }
    })
}

fn place() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "secret", "inner"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn tree() -> impl Strategy<Value = Vec<(String, Node)>> {
    let node = prop_oneof![2 => Just(Node::Dir), 1 => Just(Node::File), 3 => target().prop_map(Node::Link)];
    prop::collection::vec((place(), node), 1..12)
}

#[derive(Debug, Clone)]
enum Op {
    Read,
    List,
    Write,
    Mkdir,
    Rename(String),
    Link(String),
    Remove,
    Tar,
    Unpack(String, Option<String>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Read),
        Just(Op::List),
        Just(Op::Write),
        Just(Op::Mkdir),
        place().prop_map(Op::Rename),
        target().prop_map(Op::Link),
        Just(Op::Remove),
        Just(Op::Tar),
        (place(), prop::option::of(target())).prop_map(|(name, target)| Op::Unpack(name, target)),
    ]
}

/// Makes a directory by the test's own hands, step by step, and only as long as no link leads these outside.
fn make_inside(world: &World, dir: &Path) -> bool {
    if dir == world.home.home {
        return true;
    }
    if !make_inside(world, dir.parent().unwrap()) {
        return false;
    }
    if dir.symlink_metadata().is_err() {
        fs::create_dir(dir).unwrap();
    }
    dir.canonicalize().is_ok_and(|real| real.is_dir() && real.starts_with(&world.home.home))
}

fn plant(world: &World, tree: &[(String, Node)]) {
    let outside = world.dir().to_str().unwrap();
    for (at, node) in tree {
        let full = world.at(at);
        if !make_inside(world, full.parent().unwrap()) {
            continue;
        }
        let _ = match node {
            Node::Dir => fs::create_dir(&full),
            Node::File if full.symlink_metadata().is_err() => fs::write(&full, "inside"),
            Node::File => Ok(()),
            Node::Link(target) => symlink(target.replace('C', outside), &full),
        };
    }
}

/// A tar with a file or link of that name, and a file below it.
fn small_tar(name: &str, link: Option<&str>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |name: &str, kind, target: &str, content: &[u8]| {
        let mut header = tokio_tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len().min(100)].copy_from_slice(&target.as_bytes()[..target.len().min(100)]);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    };
    if let Some(target) = link {
        add(name, tokio_tar::EntryType::Symlink, target, b"");
        add(&format!("{name}/secret"), tokio_tar::EntryType::Regular, "", b"written");
        add("hard", tokio_tar::EntryType::Link, &format!("{name}/secret"), b"");
    } else {
        add(name, tokio_tar::EntryType::Regular, "", b"written");
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn run(world: &World, runtime: &tokio::runtime::Runtime, at: &str, op: &Op) -> Result<Vec<u8>, Fault> {
    let (root, at_path) = (&world.root, path(at));
    let outside = world.dir().to_str().unwrap();
    match op {
        Op::Read => world.read(at),
        Op::List => root.list(&reader(), &at_path, None, 100, &world.never).map(|list| serde_json::to_vec(&list.entries.len()).unwrap()),
        Op::Write => world.write(at, b"written").map(|_| vec![]),
        Op::Mkdir => root.mkdir(&writer(), &at_path, true).map(|_| vec![]),
        Op::Rename(to) => root.rename(&writer(), &at_path, &path(to), true).map(|_| vec![]),
        Op::Link(target) => root.symlink(&writer(), &at_path, target.replace('C', outside).as_bytes()).map(|_| vec![]),
        Op::Remove => root.remove(&writer(), &at_path, true, &world.never).map(|_| vec![]),
        Op::Tar => {
            let mut bytes = Vec::new();
            root.write_tar(&reader(), &at_path, &mut bytes, &world.never)?;
            root.write_zip(&reader(), &at_path, &mut std::io::sink(), &world.never)?;
            Ok(bytes)
        }
        Op::Unpack(name, target) => {
            let tar = small_tar(name, target.as_ref().map(|target| target.replace('C', outside)).as_deref());
            runtime.block_on(root.unpack_tar(&writer(), &at_path, &*tar, &world.never)).map(|_| vec![])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_tree_and_no_request_leads_out(tree in tree(), requests in prop::collection::vec((place(), op()), 1..12)) {
        let world = World::new();
        plant(&world, &tree);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let before = world.outside();
        for (at, op) in &requests {
            if let Ok(bytes) = run(&world, &runtime, at, op) {
                let secret = SECRET.as_bytes();
                prop_assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{at} {op:?} read the canary");
            }
        }
        prop_assert_eq!(world.outside(), before);
    }
}

#[test]
fn links_inside_are_followed_and_links_out_are_not() {
    let world = World::new();
    fs::create_dir_all(world.at("real/deep")).unwrap();
    world.write("real/f", b"inside").unwrap();
    let before = world.outside();
    for (name, target, good) in [
        ("good", "real", true),
        ("up", "real/deep/../../real", true),
        ("absolute", world.at("real").to_str().unwrap(), false),
        ("out", "../canary", false),
        ("out-and-back", "../home/real", false),
        ("proc", "/proc/self/root", false),
    ] {
        symlink(target, world.at(name)).unwrap();
        let file = format!("{name}/f");
        if good {
            assert_eq!(world.read(&file).unwrap(), b"inside", "{name}");
            world.write(&file, b"inside").unwrap();
        } else {
            for secret in [&file, &format!("{name}/secret")] {
                assert!(matches!(world.read(secret), Err(Fault::Escapes)), "{name}");
                assert!(matches!(world.write(secret, b"x"), Err(Fault::Escapes)), "{name}");
                assert!(matches!(world.root.remove(&writer(), &path(secret), true, &world.never), Err(Fault::Escapes)), "{name}");
                assert!(matches!(world.root.mkdir(&writer(), &path(secret), true), Err(Fault::Escapes)), "{name}");
            }
        }
    }
    symlink("loop", world.at("loop")).unwrap();
    assert!(matches!(world.read("loop"), Err(Fault::Loop)));
    assert!(matches!(world.read("loop/f"), Err(Fault::Loop)));
    // a write to a link takes the link's place
    symlink("../canary/secret", world.at("link")).unwrap();
    world.write("link", b"mine").unwrap();
    assert!(fs::symlink_metadata(world.at("link")).unwrap().is_file());
    assert_eq!(world.outside(), before);
}

#[test]
fn a_directory_swapped_for_a_link_while_in_use() {
    let world = World::new();
    fs::create_dir_all(world.at("swap/inner")).unwrap();
    fs::write(world.at("swap/secret"), "inside").unwrap();
    symlink(world.canary(), world.at("other")).unwrap();
    let before = world.outside();
    let stop = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut good, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (one, two) = (world.at("swap"), world.at("other"));
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).unwrap();
                std::thread::yield_now();
            }
        });
        // bounded, and on until both states were met often
        for round in 0..30_000 {
            if round >= 3000 && good >= 300 && refused >= 300 {
                break;
            }
            std::thread::yield_now();
            let op = match round % 7 {
                0 => Op::Write,
                1 | 2 => Op::Read,
                3 => Op::List,
                4 => Op::Tar,
                5 => Op::Unpack("inner/f".into(), None),
                _ => Op::Mkdir,
            };
            let at = match op {
                Op::Write | Op::Read => "swap/secret",
                Op::Mkdir => "swap/inner/new",
                _ => "swap",
            };
            match run(&world, &runtime, at, &op) {
                Ok(bytes) => {
                    good += 1;
                    let secret = SECRET.as_bytes();
                    assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{op:?} read the canary");
                }
                Err(_) => refused += 1,
            }
            if round % 10 == 0 {
                let _ = world.root.remove(&writer(), &path("swap/inner"), true, &world.never);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("while it was swapped {good} requests went well and {refused} were refused");
    assert!(good > 0 && refused > 0);
    assert_eq!(world.outside(), before);
}
