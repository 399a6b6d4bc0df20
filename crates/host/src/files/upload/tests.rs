//! Uploads cut off at every step.

use std::fs;

use atoll_contract::Timestamp;
use atoll_net::clock::{Clock, TestClock};

use super::*;
use crate::files::tests::{World, names, path, reader, writer};

struct Setting {
    world: World,
    clock: std::sync::Arc<TestClock>,
}

impl Setting {
    fn new() -> Self {
        Self { world: World::new(), clock: TestClock::at(Timestamp::from_millis(1_800_000_000_000)) }
    }

    /// As after a restart.
    fn uploads(&self) -> Uploads {
        Uploads::open(&self.world.home, UploadLimits { count: 3, bytes: 1000, ..UploadLimits::default() }, self.clock.clone()).unwrap()
    }

    fn begin(&self, content: &[u8]) -> Upload {
        let plan = Plan { path: path("a/f"), length: content.len() as u64, mode: Some(0o640) };
        let mut upload = self.uploads().create(&writer(), plan).unwrap();
        self.uploads().append(&writer(), &mut upload, content).unwrap();
        upload
    }

    fn place(&self, id: &UploadId) -> Result<(), Fault> {
        let uploads = self.uploads();
        let mut upload = uploads.find(&writer(), id)?;
        uploads.place(&writer(), &self.world.root, &mut upload, &self.world.commits)
    }

    fn waiting(&self) -> Vec<String> {
        names(&self.world.home.state.join("uploads"))
    }
}

#[test]
fn all_the_way() {
    let setting = Setting::new();
    let upload = setting.begin(b"content");
    setting.place(&upload.id).unwrap();
    assert_eq!(setting.world.read("a/f").unwrap(), b"content");
    assert_eq!(setting.world.root.stat(&reader(), &path("a/f")).unwrap().mode, 0o640);
    assert_eq!(setting.waiting(), [upload.id.file("done")]);
    let found = setting.uploads().find(&writer(), &upload.id).unwrap();
    assert!(found.is_done() && found.offset == 7);
    // once means once
    fs::write(setting.world.at("a/f"), "changed since").unwrap();
    setting.place(&upload.id).unwrap();
    assert_eq!(setting.world.read("a/f").unwrap(), b"changed since");
}

#[test]
fn cut_off_between_any_two_steps() {
    for copy in [false, true] {
        for steps in 0..4 {
            let setting = Setting::new();
            let mut upload = setting.begin(b"content");
            let uploads = setting.uploads();
            let place = setting.world.root.place(&upload.plan.path, true).unwrap();
            if steps >= 1 {
                uploads.prepare(&setting.world.root, &mut upload, &place, copy).unwrap();
            }
            if steps >= 2 {
                uploads.rename(&upload, &place, copy, &setting.world.commits).unwrap();
                fs::write(setting.world.at("a/f"), "changed since").unwrap();
            }
            if steps >= 3 {
                uploads.save(&upload.id.file("done"), &Record { phase: Phase::Done, ..upload.record() }).unwrap();
            }
            let id = upload.id.clone();
            drop((upload, uploads));
            setting.place(&id).unwrap();
            let expected: &[u8] = if steps >= 2 { b"changed since" } else { b"content" };
            assert_eq!(setting.world.read("a/f").unwrap(), expected, "copy {copy}, after {steps} steps");
            assert_eq!(names(&setting.world.at("a")), ["f"], "copy {copy}, after {steps} steps");
            setting.uploads().sweep().unwrap();
            let left = setting.waiting();
            assert!(left.contains(&id.file("done")), "{left:?}");
            assert!(setting.uploads().find(&writer(), &id).unwrap().expires_at.is_none());
        }
    }
}

#[test]
fn a_copy_made_twice_leaves_one() {
    let setting = Setting::new();
    let mut upload = setting.begin(b"content");
    let place = setting.world.root.place(&upload.plan.path, true).unwrap();
    setting.uploads().prepare(&setting.world.root, &mut upload, &place, true).unwrap();
    // cut off before the record was saved: it still says that it is receiving
    upload.phase = Phase::Receiving;
    setting.uploads().save(&upload.id.file("json"), &upload.record()).unwrap();
    let hidden = upload.id.hidden();
    assert!(stat_at(&place.parent, &hidden).unwrap().is_some());
    let place = setting.world.root.place(&upload.plan.path, true).unwrap();
    setting.uploads().prepare(&setting.world.root, &mut upload, &place, true).unwrap();
    setting.place(&upload.id).unwrap();
    assert_eq!(names(&setting.world.at("a")), ["f"]);
}

#[test]
fn another_file_system() {
    let Ok(shm) = tempfile::tempdir_in("/dev/shm") else {
        crate::testing::skipped("another_file_system", "there is no /dev/shm");
        return;
    };
    let mut setting = Setting::new();
    setting.world.home.state = shm.path().to_path_buf();
    let upload = setting.begin(&[5; 900]);
    fs::create_dir_all(setting.world.at("a")).unwrap();
    fs::write(setting.world.at("a/f"), "old").unwrap();
    setting.place(&upload.id).unwrap();
    assert_eq!(setting.world.read("a/f").unwrap(), [5; 900]);
    assert_eq!(names(&setting.world.at("a")), ["f"]);
}

#[test]
fn what_cannot_be_placed_can_be_placed_later() {
    let setting = Setting::new();
    let upload = setting.begin(b"content");
    fs::create_dir_all(setting.world.at("a/f")).unwrap();
    assert!(matches!(setting.place(&upload.id), Err(Fault::IsDirectory)));
    fs::remove_dir(setting.world.at("a/f")).unwrap();
    setting.place(&upload.id).unwrap();
    assert_eq!(setting.world.read("a/f").unwrap(), b"content");
}

#[test]
fn bounds_and_expiry() {
    let setting = Setting::new();
    let create = |length| setting.uploads().create(&writer(), Plan { path: path("f"), length, mode: None });
    let first = create(600).unwrap();
    assert!(matches!(create(600), Err(Fault::Limit(_))));
    create(100).unwrap();
    create(100).unwrap();
    assert!(matches!(create(1), Err(Fault::Limit(_))));
    let mut first = setting.uploads().find(&writer(), &first.id).unwrap();
    assert!(matches!(setting.uploads().append(&writer(), &mut first, &[0; 601]), Err(Fault::TooLarge(_))));
    setting.clock.advance(Duration::from_hours(23));
    setting.uploads().append(&writer(), &mut first, b"more").unwrap();
    setting.uploads().rest(&writer(), &mut first).unwrap();
    assert!(first.expires_at.unwrap() > setting.clock.now().saturating_add(Duration::from_hours(23)));
    setting.clock.advance(Duration::from_hours(2));
    // the other two have gone, the first has not
    create(100).unwrap();
    assert_eq!(setting.uploads().sweep().unwrap(), (2, 700));
    setting.clock.advance(Duration::from_hours(25));
    assert!(matches!(setting.uploads().find(&writer(), &first.id), Err(Fault::NotFound)));
    assert_eq!(setting.uploads().sweep().unwrap(), (0, 0));
    assert_eq!(setting.waiting(), [""; 0]);
}

#[test]
fn leftovers_are_swept() {
    let setting = Setting::new();
    let upload = setting.begin(b"content");
    let dir = setting.world.home.state.join("uploads");
    fs::remove_file(dir.join(upload.id.file("json"))).unwrap();
    setting.clock.advance(Duration::from_hours(25));
    setting.uploads().sweep().unwrap();
    assert_eq!(names(&dir), [""; 0]);
    // done ones are forgotten after a while
    let upload = setting.begin(b"content");
    setting.place(&upload.id).unwrap();
    setting.clock.advance(Duration::from_hours(2));
    setting.uploads().sweep().unwrap();
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn ids_are_exact() {
    for bad in
        ["", "a", "../../../../etc/passwd/abc", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxy1", "abcdefghijklmnopqrstuvwxyza"]
    {
        assert!(bad.parse::<UploadId>().is_err(), "{bad}");
    }
}
