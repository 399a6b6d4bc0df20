//! Both storages through one suite of promises, then what only one of them has.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use atoll_contract::{ErrorCode, Generation, ProjectId, VolumeId, host::StorageKind};
use atoll_host::{
    exec::{self, Call},
    runtime::Owner,
    storage::{self, Storage, StorageChoice, StorageConfig, Volumes, open_interrupted},
    testing::LoopBtrfs,
};
use rustix::process::{getegid, geteuid};

const MIB: u64 = 1 << 20;
const QUOTA: u64 = 64 * MIB;

fn project(number: u32) -> ProjectId {
    format!("0198c0de-0000-7000-8000-{number:012x}").parse().unwrap()
}

fn volume() -> VolumeId {
    "0198c0de-0000-7000-8000-0000000000aa".parse().unwrap()
}

fn owner() -> Owner {
    if geteuid().is_root() {
        Owner { uid: 1_879_048_192, gid: 1_879_048_192 }
    } else {
        Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }
}

fn config(kind: StorageChoice, path: &Path) -> StorageConfig {
    StorageConfig { kind, path: path.to_owned(), unshare: None }
}

async fn make(storage: &dyn Storage, number: u32) -> Volumes {
    storage.create(project(number), Generation(1), volume(), QUOTA, owner()).await.unwrap()
}

/// A fresh btrfs, or a line that says why the test is skipped.
async fn btrfs(test: &str, bytes: u64) -> Option<LoopBtrfs> {
    match LoopBtrfs::new(bytes).await {
        Ok(fixture) => Some(fixture),
        Err(reason) => {
            atoll_host::testing::skipped(test, &reason);
            None
        }
    }
}

/// What every storage promises.
async fn suite(storage: Arc<dyn Storage>, root: &Path) {
    creates_and_finds(&*storage, root).await;
    refuses_what_is_not_the_volume(&*storage, root).await;
    deletes_whatever_users_make(&*storage, root).await;
    many_at_once(storage).await;
}

async fn creates_and_finds(storage: &dyn Storage, root: &Path) {
    assert_eq!(storage.list().await.unwrap(), []);
    let made = make(storage, 1).await;
    assert_eq!(made.receipt.generation, Generation(1));
    let home = fs::metadata(&made.home).unwrap();
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777), (owner().uid, owner().gid, 0o755));
    assert_eq!(fs::metadata(&made.state).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(made.home.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
    fs::write(made.home.join("file"), "kept").unwrap();
    // again: nothing but generation and quota changes, whatever volume id the caller has now
    let other = "0198c0de-0000-7000-8000-0000000000bb".parse().unwrap();
    let again = storage.create(project(1), Generation(2), other, 2 * QUOTA, owner()).await.unwrap();
    assert_eq!((again.receipt.volume, again.receipt.generation), (volume(), Generation(2)));
    assert_eq!(fs::read_to_string(again.home.join("file")).unwrap(), "kept");
    let opened = storage.open(project(1), Generation(3), QUOTA).await.unwrap();
    assert_eq!((&opened.home, opened.receipt.generation), (&made.home, Generation(3)));
    let on_disk = fs::read_to_string(root.join(project(1).to_string()).join("receipt.json")).unwrap();
    assert_eq!(serde_json::from_str::<storage::ContentReceipt>(&on_disk).unwrap(), opened.receipt);
    assert_eq!(storage.list().await.unwrap(), [project(1)]);
    let space = storage.space().await.unwrap();
    assert!(space.free > 0 && space.free <= space.total);
    assert_eq!(storage.usage(project(1)).await.unwrap().is_some(), storage.capabilities().cheap_usage);
    assert_eq!(storage.usage(project(99)).await.unwrap(), None);
    storage.delete(project(1)).await.unwrap();
    storage.delete(project(1)).await.unwrap();
    assert_eq!(storage.list().await.unwrap(), []);
    assert!(!root.join(project(1).to_string()).exists());
}

async fn refuses_what_is_not_the_volume(storage: &dyn Storage, root: &Path) {
    let wrong = async |generation: u64| storage.open(project(2), Generation(generation), QUOTA).await.unwrap_err();
    assert_eq!(wrong(1).await.code, ErrorCode::WrongVolume, "none is there");
    let made = storage.create(project(2), Generation(5), volume(), QUOTA, owner()).await.unwrap();
    assert_eq!(wrong(4).await.code, ErrorCode::WrongVolume, "an older generation");
    let older = storage.create(project(2), Generation(4), volume(), QUOTA, owner()).await.unwrap_err();
    assert_eq!(older.code, ErrorCode::WrongVolume, "an older generation, when making");
    let receipt = root.join(project(2).to_string()).join("receipt.json");
    let good = fs::read_to_string(&receipt).unwrap();
    let others = good.replace(&project(2).to_string(), &project(3).to_string());
    for bad in ["", "{}", "null", &good[..good.len() / 2], &others, &"x".repeat(1 << 20)] {
        fs::write(&receipt, bad).unwrap();
        assert_eq!(wrong(5).await.code, ErrorCode::WrongVolume, "{bad:.60}");
        assert_eq!(storage.create(project(2), Generation(5), volume(), QUOTA, owner()).await.unwrap_err().code, ErrorCode::WrongVolume);
    }
    fs::remove_file(&receipt).unwrap();
    assert_eq!(wrong(5).await.code, ErrorCode::WrongVolume, "no receipt");
    std::os::unix::fs::symlink("/etc/passwd", &receipt).unwrap();
    assert!(storage.open(project(2), Generation(5), QUOTA).await.is_err(), "a link for a receipt");
    fs::remove_file(&receipt).unwrap();
    fs::write(&receipt, good).unwrap();
    fs::rename(&made.state, made.state.with_extension("away")).unwrap();
    assert_eq!(wrong(5).await.code, ErrorCode::WrongVolume, "no state");
    std::os::unix::fs::symlink("/tmp", &made.state).unwrap();
    assert_eq!(wrong(5).await.code, ErrorCode::WrongVolume, "a link for a volume");
    fs::remove_file(&made.state).unwrap();
    fs::rename(made.state.with_extension("away"), &made.state).unwrap();
    storage.open(project(2), Generation(5), QUOTA).await.unwrap();
    storage.delete(project(2)).await.unwrap();
    // neither strangers' names nor files in the root confuse it
    let strangers = [root.join("stranger"), root.join(format!("{}-copy", project(2)))];
    for path in &strangers {
        fs::write(path, "x").unwrap();
    }
    assert_eq!(storage.list().await.unwrap(), []);
    for path in &strangers {
        fs::remove_file(path).unwrap();
    }
}

async fn deletes_whatever_users_make(storage: &dyn Storage, root: &Path) {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "x").unwrap();
    let made = make(storage, 4).await;
    let deep = (0..200).fold(made.home.clone(), |path, _| path.join("deep"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path(), made.home.join("link")).unwrap();
    let shut = made.home.join("shut");
    fs::create_dir(&shut).unwrap();
    fs::write(shut.join("file"), "x").unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o0)).unwrap();
    storage.delete(project(4)).await.unwrap();
    assert!(outside.path().join("kept").exists());
    assert!(!root.join(project(4).to_string()).exists());
    assert_eq!(storage.list().await.unwrap(), []);
}

async fn many_at_once(storage: Arc<dyn Storage>) {
    let one = |number: u32, storage: Arc<dyn Storage>| async move {
        // two of the same project at once, too
        let (first, second) = tokio::join!(make(&*storage, number / 2), make(&*storage, number / 2));
        assert_eq!(first, second);
    };
    let all: Vec<_> = (100..132).map(|number| tokio::spawn(one(number, storage.clone()))).collect();
    for task in all {
        task.await.unwrap();
    }
    let listed = storage.list().await.unwrap();
    assert_eq!(listed.len(), 16);
    for project in listed {
        storage.delete(project).await.unwrap();
    }
}

/// Cuts every verb off at every point that it passes, and then calls it again, as after a crash.
async fn interrupted_anywhere(kind: StorageChoice, root: &Path) {
    let passed = Arc::new(AtomicUsize::new(0));
    let stop_at = Arc::new(AtomicUsize::new(usize::MAX));
    let seen: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let (count, stop, names) = (passed.clone(), stop_at.clone(), seen.clone());
    let hook = move |point| {
        let stops = count.fetch_add(1, Ordering::SeqCst) == stop.load(Ordering::SeqCst);
        if stops {
            names.lock().unwrap().push(point);
        }
        stops
    };
    let storage = open_interrupted(config(kind, root), Arc::new(hook)).unwrap();
    let stop_after = |points: usize| {
        passed.store(0, Ordering::SeqCst);
        stop_at.store(points, Ordering::SeqCst);
    };
    for point in 0..100 {
        stop_after(point);
        let cut = storage.create(project(7), Generation(1), volume(), QUOTA, owner()).await;
        stop_after(usize::MAX);
        if root.join(project(7).to_string()).exists() {
            // what has its name is usable at once
            storage.open(project(7), Generation(1), QUOTA).await.unwrap();
        } else {
            assert_eq!(storage.open(project(7), Generation(1), QUOTA).await.unwrap_err().code, ErrorCode::WrongVolume);
        }
        // one way on is to make it again, the other to delete it
        if point % 2 == 0 {
            let made = make(&*storage, 7).await;
            fs::write(made.home.join("file"), "x").unwrap();
        }
        storage.delete(project(7)).await.unwrap();
        nothing_left(root);
        if cut.is_ok() {
            break;
        }
    }
    let creating = seen.lock().unwrap().len();
    for point in 0..100 {
        let made = make(&*storage, 8).await;
        fs::create_dir_all(made.home.join("a/b")).unwrap();
        stop_after(point);
        let cut = storage.delete(project(8)).await;
        stop_after(usize::MAX);
        if cut.is_ok() {
            break;
        }
        // half-removed is never shown as a volume, and may be made anew
        assert_eq!(storage.open(project(8), Generation(1), QUOTA).await.unwrap_err().code, ErrorCode::WrongVolume);
        if point % 2 == 0 {
            let made = make(&*storage, 8).await;
            assert_eq!(fs::read_dir(made.home).unwrap().count(), 0);
            assert_eq!(storage.list().await.unwrap(), [project(8)]);
        }
        storage.delete(project(8)).await.unwrap();
        nothing_left(root);
    }
    let seen = seen.lock().unwrap();
    assert!((9..100).contains(&creating) && seen.len() > creating, "{seen:?}");
}

fn nothing_left(root: &Path) {
    let left: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| [".lock", ".atoll-storage", ".groups-gone"].contains(&name.as_str())), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dir_keeps_the_promises() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let storage = storage::open(config(StorageChoice::Dir, &root)).unwrap();
    assert_eq!(storage.kind(), StorageKind::Dir);
    assert_eq!(storage.capabilities(), atoll_contract::host::StorageCapabilities::default());
    assert_eq!(storage.findings()[0].code, "storage.dir_no_quota");
    suite(storage, &root).await;
}

#[tokio::test]
async fn dir_interrupted_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    interrupted_anywhere(StorageChoice::Dir, dir.path()).await;
}

#[tokio::test]
async fn dir_removes_a_hundred_thousand_files() {
    let dir = tempfile::tempdir().unwrap();
    let storage = storage::open(config(StorageChoice::Dir, dir.path())).unwrap();
    let made = make(&*storage, 1).await;
    for number in 0..100_000 {
        fs::File::create(made.home.join(number.to_string())).unwrap();
    }
    storage.delete(project(1)).await.unwrap();
    nothing_left(dir.path());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn btrfs_keeps_the_promises() {
    let Some(fixture) = btrfs("btrfs_keeps_the_promises", 512 * MIB).await else { return };
    // auto takes it
    let root = fixture.path().join("projects");
    let storage = storage::open(config(StorageChoice::Auto, &root)).unwrap();
    assert_eq!(storage.kind(), StorageKind::Btrfs);
    assert!(storage.capabilities().quotas && storage.capabilities().cheap_usage);
    suite(storage, &root).await;
}

#[tokio::test]
async fn btrfs_interrupted_anywhere() {
    let Some(fixture) = btrfs("btrfs_interrupted_anywhere", 512 * MIB).await else { return };
    interrupted_anywhere(StorageChoice::Btrfs, fixture.path()).await;
}

/// Writes until it fails, at most `bytes`; how much went in, and what stopped it.
fn fill(path: &Path, bytes: u64) -> (u64, Option<io::Error>) {
    let chunk = vec![7u8; MIB as usize];
    let mut file = match fs::File::create(path) {
        Ok(file) => file,
        Err(error) => return (0, Some(error)),
    };
    for written in 0..bytes / MIB {
        if let Err(error) = file.write_all(&chunk).and_then(|()| file.sync_data()) {
            return (written * MIB, Some(error));
        }
    }
    (bytes, None)
}

fn edquot(error: Option<&io::Error>) -> bool {
    error.is_some_and(|error| error.raw_os_error() == Some(rustix::io::Errno::DQUOT.raw_os_error()))
}

async fn run(program: &str, args: &[&str]) {
    let outcome = exec::run(Call::new(program).args(args.iter().copied())).await.unwrap();
    assert!(outcome.success(), "{program} {args:?}: {}", outcome.stderr.text());
}

#[tokio::test]
async fn the_quota_holds_also_in_subvolumes_made_inside() {
    let Some(fixture) = btrfs("the_quota_holds_also_in_subvolumes_made_inside", 1024 * MIB).await else { return };
    let root = fixture.path().join("projects");
    let storage = storage::open(config(StorageChoice::Btrfs, &root)).unwrap();
    let made = make(&*storage, 1).await;
    let neighbour = make(&*storage, 2).await;
    let (written, none) = fill(&made.home.join("a"), 30 * MIB);
    assert!(none.is_none() && written == 30 * MIB);
    let nested = made.home.join("nested");
    run("btrfs", &["subvolume", "create", nested.to_str().unwrap()]).await;
    let (written, error) = fill(&nested.join("b"), 100 * MIB);
    assert!(edquot(error.as_ref()) && written <= 36 * MIB, "{written} {error:?}");
    // state is in the same group; the neighbour isn't
    let (_, error) = fill(&made.state.join("c"), 10 * MIB);
    assert!(edquot(error.as_ref()), "{error:?}");
    assert!(fill(&neighbour.home.join("d"), 30 * MIB).1.is_none());
    let used = storage.usage(project(1)).await.unwrap().unwrap();
    assert!((50 * MIB..=QUOTA).contains(&used), "{used}");
    // files can be removed at the limit, and a larger limit works at once
    fs::remove_file(made.home.join("a")).unwrap();
    storage.open(project(1), Generation(1), 200 * MIB).await.unwrap();
    assert!(fill(&made.state.join("c"), 60 * MIB).1.is_none());
    storage.open(project(1), Generation(1), 10 * MIB).await.unwrap();
    assert!(edquot(fill(&made.home.join("e"), 60 * MIB).1.as_ref()));
    storage.delete(project(1)).await.unwrap();
    assert_eq!(storage.list().await.unwrap(), [project(2)]);
}

#[tokio::test]
async fn deleting_takes_nested_and_read_only_subvolumes_and_the_group_along() {
    let Some(fixture) = btrfs("deleting_takes_nested_and_read_only_subvolumes_and_the_group_along", 512 * MIB).await else { return };
    let mount = fixture.path().to_str().unwrap();
    let root = fixture.path().join("projects");
    let storage = storage::open(config(StorageChoice::Btrfs, &root)).unwrap();
    let made = make(&*storage, 1).await;
    let home = made.home.to_str().unwrap();
    for path in ["one", "one/two", "one/two/three", "one/dir/four", "five"] {
        fs::create_dir_all(made.home.join(path).parent().unwrap()).unwrap();
        run("btrfs", &["subvolume", "create", &format!("{home}/{path}")]).await;
    }
    for number in 0..200 {
        run("btrfs", &["subvolume", "create", &format!("{home}/five/a-rather-long-name-for-a-subvolume-{number}")]).await;
    }
    run("btrfs", &["subvolume", "snapshot", "-r", home, &format!("{home}/snapshot")]).await;
    for path in ["one/two", "one", ""] {
        run("btrfs", &["property", "set", "-ts", &format!("{home}/{path}"), "ro", "true"]).await;
    }
    storage.delete(project(1)).await.unwrap();
    nothing_left(&root);
    let left = exec::run(Call::new("btrfs").args(["subvolume", "list", mount])).await.unwrap();
    assert_eq!(left.stdout.text(), "");
    // the kernel cleans up in the background; then the group goes with some later call
    let gone = root.join(".groups-gone");
    let first = fs::read_dir(&gone).unwrap().next().unwrap().unwrap().path();
    let swept = async {
        while first.exists() {
            run("btrfs", &["filesystem", "sync", mount]).await; // wakes the kernel's cleaner
            make(&*storage, 2).await;
            storage.delete(project(2)).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_mins(2), swept).await.expect("the group is removed");
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing_half() {
    let Some(fixture) = btrfs("a_full_disk_is_said_and_leaves_nothing_half", 128 * MIB).await else { return };
    let root = fixture.path().join("projects");
    let storage = storage::open(config(StorageChoice::Dir, &root)).unwrap();
    let mut number = 0;
    while fill(&fixture.path().join(format!("filler{number}")), 64 * MIB).1.is_none() {
        number += 1;
    }
    let mut failed = None;
    for number in 0..20_000 {
        if let Err(error) = storage.create(project(number), Generation(1), volume(), QUOTA, owner()).await {
            failed = Some((number, error));
            break;
        }
    }
    let (number, error) = failed.expect("the disk is full some time");
    assert_eq!(error.code, ErrorCode::DiskFull, "{error:?}");
    assert_eq!(storage.open(project(number), Generation(1), QUOTA).await.unwrap_err().code, ErrorCode::WrongVolume);
    // with room again it is finished
    for entry in fs::read_dir(fixture.path()).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_file()) {
        fs::remove_file(entry.path()).unwrap();
    }
    run("sync", &["-f", fixture.path().to_str().unwrap()]).await;
    make(&*storage, number).await;
}

#[tokio::test]
async fn a_path_is_what_it_was_made_as() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |kind, path: &Path| storage::open(config(kind, path)).err().unwrap();
    assert_eq!(refused(StorageChoice::Auto, Path::new("relative")).code, ErrorCode::InvalidConfig);
    let first = storage::open(config(StorageChoice::Dir, dir.path())).unwrap();
    assert_eq!(refused(StorageChoice::Auto, dir.path()).code, ErrorCode::InvalidConfig, "in use");
    drop(first);
    assert_eq!(refused(StorageChoice::Btrfs, dir.path()).code, ErrorCode::InvalidConfig, "made as dir");
    drop(storage::open(config(StorageChoice::Auto, dir.path())).unwrap());
    let codes = |kind, path: &Path| storage::inspect(&config(kind, path)).into_iter().map(|finding| finding.code).collect::<Vec<_>>();
    assert!(codes(StorageChoice::Auto, dir.path()).contains(&"storage.dir_no_quota".to_owned()));
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(codes(StorageChoice::Btrfs, &other.path().join("not/there/yet")).contains(&"storage.unusable".to_owned()));
    assert!(!other.path().join("not").exists());
}

#[tokio::test]
async fn an_unmounted_btrfs_is_no_empty_tree() {
    let Some(fixture) = btrfs("an_unmounted_btrfs_is_no_empty_tree", 256 * MIB).await else { return };
    let path = fixture.path().to_owned();
    let storage = storage::open(config(StorageChoice::Btrfs, &path)).unwrap();
    make(&*storage, 1).await;
    drop(storage);
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(storage::open(config(StorageChoice::Btrfs, &path)).err().unwrap().code, ErrorCode::InvalidConfig);
    // even where directories are taken instead, the project isn't there
    let storage = storage::open(config(StorageChoice::Auto, &path)).unwrap();
    assert_eq!(storage.open(project(1), Generation(1), QUOTA).await.unwrap_err().code, ErrorCode::WrongVolume);
    drop(storage);
    fs::remove_dir_all(&path).unwrap();
}
