use std::os::unix::fs::MetadataExt;

use tokio_tar::{Builder, Header};

use super::*;

async fn archive(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
    let mut builder = Builder::new_non_terminated(Vec::new());
    for (name, kind, mode, content) in entries {
        let mut header = Header::new_gnu();
        // written as it is: the library's own setter refuses names that climb
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_mtime(1_000_000);
        let data = if kind.is_symlink() {
            header.set_link_name(content).unwrap();
            ""
        } else {
            content
        };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data.as_bytes()).await.unwrap();
    }
    builder.finish().await.unwrap();
    builder.into_inner().await.unwrap()
}

#[tokio::test]
async fn files_get_their_modes_but_no_set_user_id() {
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(&[
        ("d/", EntryType::Directory, 0o500, ""),
        ("d/run", EntryType::Regular, 0o4755, "x"),
        ("d/link", EntryType::Symlink, 0o777, "run"),
        ("pipe", EntryType::Fifo, 0o666, ""),
    ])
    .await;
    assert_eq!(unpack(tar.as_slice(), dir.path()).await.unwrap(), Copied { files: 2, bytes: 1 });
    let about = std::fs::metadata(dir.path().join("d/run")).unwrap();
    assert_eq!((about.mode() & 0o7777, about.mtime()), (0o755, 1_000_000));
    assert_eq!(std::fs::metadata(dir.path().join("d")).unwrap().mode() & 0o777, 0o500);
    assert_eq!(std::fs::read_link(dir.path().join("d/link")).unwrap(), Path::new("run"));
    assert!(!dir.path().join("pipe").exists());
    // so that the temporary directory can be removed by those who aren't root
    std::fs::set_permissions(dir.path().join("d"), Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn nothing_is_written_outside() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    for entries in [
        &[("../evil", EntryType::Regular, 0o644, "x")][..],
        &[("d", EntryType::Symlink, 0o777, ".."), ("d/evil", EntryType::Regular, 0o644, "x")],
        &[("a/../../evil", EntryType::Regular, 0o644, "x")],
    ] {
        let _ = unpack(archive(entries).await.as_slice(), &inner).await;
        assert!(!outer.path().join("evil").exists(), "{entries:?}");
        let _ = std::fs::remove_file(inner.join("d"));
    }
    // an absolute name is taken from the directory on
    unpack(archive(&[("/evil", EntryType::Regular, 0o644, "x")]).await.as_slice(), &inner).await.unwrap();
    assert!(inner.join("evil").exists());
}

#[tokio::test]
async fn what_broke_off_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let tar = archive(&[("a", EntryType::Regular, 0o644, &"x".repeat(2000))]).await;
    assert!(unpack(&tar[..1000], dir.path()).await.is_err());
}

#[tokio::test]
async fn a_file_does_not_take_a_directorys_place() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    let tar = archive(&[("a", EntryType::Regular, 0o644, "x")]).await;
    let error = unpack(tar.as_slice(), dir.path()).await.unwrap_err();
    assert!(error.message.contains('a'), "{}", error.message);
    assert!(dir.path().join("a").is_dir());
}
