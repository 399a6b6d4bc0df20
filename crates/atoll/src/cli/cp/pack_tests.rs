use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

use tokio::io::AsyncReadExt;
use tokio_tar::Archive;
use tokio_util::io::StreamReader;

use super::*;

/// Name, kind and content (or target) of every entry.
async fn read(packed: &mut Packed) -> io::Result<BTreeMap<String, (u8, u32, String)>> {
    let stream = std::mem::replace(&mut packed.stream, Box::pin(stream::empty()));
    let mut archive = Archive::new(StreamReader::new(stream));
    let mut entries = archive.entries()?;
    let mut found = BTreeMap::new();
    while let Some(entry) = entries.next().await {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let target = entry.link_name()?.map(|target| target.to_string_lossy().into_owned());
        let (kind, mode) = (entry.header().entry_type().as_byte(), entry.header().mode()?);
        let mut content = String::new();
        entry.read_to_string(&mut content).await?;
        found.insert(name, (kind, mode, target.unwrap_or(content)));
    }
    Ok(found)
}

#[tokio::test]
async fn a_folder_is_packed_with_modes_links_and_long_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let long = "n".repeat(150);
    let target = "t/".repeat(80) + "x";
    fs::create_dir_all(root.join("a/empty")).unwrap();
    fs::write(root.join("a/run.sh"), "#!").unwrap();
    fs::set_permissions(root.join("a/run.sh"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.join(&long), "long").unwrap();
    std::os::unix::fs::symlink(&target, root.join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere", root.join("dangling")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

    assert_eq!(totals(root).unwrap(), Totals { files: 4, bytes: 6 });
    let mut packed = pack(root.to_owned());
    let found = read(&mut packed).await.unwrap();
    let names: Vec<&str> = found.keys().map(|name| name.trim_end_matches('/')).collect();
    assert_eq!(names, ["a", "a/empty", "a/run.sh", "dangling", "link", &long]);
    // a set-user-id bit doesn't travel
    assert_eq!(found["a/run.sh"], (b'0', 0o755, "#!".into()));
    assert_eq!(found["link"].2, target);
    assert_eq!(found["dangling"].2, "/nowhere");
    assert_eq!(found[&long].2, "long");
    assert_eq!(packed.skipped.take(), [root.join("socket")]);
    assert_eq!(packed.bytes.get(), 6);
    assert!(packed.failure.take().is_none());
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_breaks_the_stream_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut packed = pack(dir.path().join("not-there"));
    let mut broke = false;
    while let Some(piece) = packed.stream.next().await {
        broke |= piece.is_err();
    }
    assert!(broke, "the stream ended as if all were there");
    assert_eq!(packed.failure.take().unwrap().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_file_that_becomes_shorter_is_an_error_and_one_that_grows_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "12345").unwrap();
    for (said, want) in [(3, Some("123")), (5, Some("12345")), (6, None)] {
        let file = tokio::fs::File::open(&path).await.unwrap();
        let mut exact = Exact { file, left: said, count: Count::default() };
        let mut text = String::new();
        let read = exact.read_to_string(&mut text).await;
        assert_eq!(read.is_ok().then_some(text.as_str()), want, "{said}");
    }
}
