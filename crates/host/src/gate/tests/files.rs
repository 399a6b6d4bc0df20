use atoll_contract::files::{FileEntry, FileKind, FileList, Unpacked};
use bytes::Bytes;
use futures_util::stream;
use proptest::prelude::*;

use super::*;

#[tokio::test]
async fn written_read_described_renamed_removed() {
    let world = World::new();
    let put = world.call(Method::PUT, "a%20b.html", &[], "<script>").await.ok(201);
    let entry: FileEntry = put.json();
    assert_eq!((entry.name.as_str(), entry.path.as_str(), entry.mode), ("a b.html", "a%20b.html", 0o644));
    assert_eq!(put.header("etag"), entry.etag);
    let got = world.get(&entry.path).await.ok(200);
    assert_eq!(got.bytes(), b"<script>");
    assert_eq!(got.header("etag"), entry.etag);
    assert_eq!(got.header("content-type"), "text/html");
    assert_eq!(got.header("content-length"), "8");
    assert_eq!(got.header("content-disposition"), "attachment; filename*=UTF-8''a%20b.html");
    let head = world.call(Method::HEAD, &entry.path, &[], Body::empty()).await.ok(200);
    assert_eq!((head.header("content-length"), head.bytes()), ("8", &b""[..]));
    assert_eq!(world.get("a%20b.html?stat").await.ok(200).json::<FileEntry>(), entry);
    world.call(Method::PUT, "a%20b.html?mode=600", &[], "two").await.ok(200);
    world.call(Method::PUT, "new/dir/f?parents=true", &[], "deep").await.ok(201);
    world.call(Method::POST, "sub?op=mkdir", &[], Body::empty()).await.ok(201);
    world.call(Method::POST, "sub?op=mkdir", &[], Body::empty()).await.error(409, ErrorCode::AlreadyExists);
    world.call(Method::POST, "sub?op=mkdir&parents=true", &[], Body::empty()).await.ok(200);
    let moved: FileEntry = world.call(Method::POST, "a%20b.html?op=rename&to=sub/c+d%2Be", &[], Body::empty()).await.ok(200).json();
    assert_eq!((moved.name.as_str(), moved.path.as_str(), moved.mode), ("c d+e", "sub/c%20d%2Be", 0o600));
    world.call(Method::POST, "l?op=symlink&target=sub", &[], Body::empty()).await.ok(201);
    let list: FileList = world.get("").await.ok(200).json();
    let seen: Vec<_> = list.entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(seen, [("l", FileKind::Symlink), ("new", FileKind::Directory), ("sub", FileKind::Directory)]);
    assert_eq!(world.get("l/").await.ok(200).json::<FileList>().entries.len(), 1);
    let error = world.call(Method::DELETE, "sub", &[], Body::empty()).await.error(409, ErrorCode::Conflict);
    assert!(error.mend.contains("recursive"));
    world.call(Method::DELETE, "sub?recursive=true", &[], Body::empty()).await.ok(204);
    world.call(Method::DELETE, "sub", &[], Body::empty()).await.error(404, ErrorCode::NotFound);
    world.get("l").await.error(404, ErrorCode::NotFound);
    world.call(Method::DELETE, "l", &[], Body::empty()).await.ok(204);
    world.call(Method::DELETE, "", &[], Body::empty()).await.error(400, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn ranges_and_conditions() {
    let world = World::new();
    let content: Vec<u8> = (0..1_000_000u32).map(|number| number as u8).collect();
    fs::write(world.at("f"), &content).unwrap();
    for (range, part) in
        [("bytes=0-0", 0..1), ("bytes=-5", 999_995..1_000_000), ("bytes=300000-", 300_000..1_000_000), ("bytes=5-999999999", 5..1_000_000)]
    {
        let answer = world.call(Method::GET, "f", &[("range", range)], Body::empty()).await.ok(206);
        assert_eq!(answer.header("content-range"), format!("bytes {}-{}/1000000", part.start, part.end - 1));
        assert_eq!(answer.header("content-length"), part.len().to_string());
        assert!(answer.bytes() == &content[part], "{range}");
    }
    let answer = world.call(Method::GET, "f", &[("range", "bytes=1000000-")], Body::empty()).await;
    answer.error(416, ErrorCode::InvalidArgument);
    assert_eq!(answer.header("content-range"), "bytes */1000000");
    assert!(world.call(Method::GET, "f", &[("range", "bytes=0-1,5-6")], Body::empty()).await.ok(200).bytes() == content);

    let entry: FileEntry = world.get("f?stat").await.json();
    let modified = world.get("f").await.header("last-modified").to_owned();
    for (name, value, status) in [
        ("if-none-match", entry.etag.as_str(), 304),
        ("if-none-match", "\"other\"", 200),
        ("if-modified-since", &modified, 304),
        ("if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT", 200),
        ("if-match", &entry.etag, 200),
    ] {
        world.call(Method::GET, "f", &[(name, value)], Body::empty()).await.ok(status);
    }
    world.call(Method::GET, "f", &[("if-match", "\"other\"")], Body::empty()).await.error(412, ErrorCode::Conflict);
    world.call(Method::PUT, "f", &[("if-match", "\"other\"")], "new").await.error(412, ErrorCode::Conflict);
    world.call(Method::PUT, "f", &[("if-none-match", "*")], "new").await.error(412, ErrorCode::Conflict);
    world.call(Method::PUT, "g", &[("if-match", "*")], "new").await.error(412, ErrorCode::Conflict);
    world.call(Method::PUT, "g", &[("if-none-match", "*")], "new").await.ok(201);
    let changed = world.call(Method::PUT, "f", &[("if-match", &entry.etag)], "new").await.ok(200);
    world.call(Method::PUT, "f", &[("if-match", &entry.etag)], "newer").await.error(412, ErrorCode::Conflict);
    world.call(Method::PUT, "f", &[("if-match", changed.header("etag"))], "newer").await.ok(200);
    assert_eq!(world.get("f").await.bytes(), b"newer");
}

#[tokio::test]
async fn bad_requests() {
    let world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    fs::write(world.at("f"), "").unwrap();
    let long = "n".repeat(300);
    for target in [
        "%",
        "%4",
        "%zz",
        "a%00b",
        "..",
        "../x",
        "%2e%2e/x",
        "a/%2E%2E/%2e%2e/x",
        "a//b",
        "/a",
        "a%2fb",
        &long,
        "f?unknown=1",
        "f?stat=maybe",
        "?limit=0",
        "?limit=1001",
        "?limit=x",
        "?after=%FF",
        "?after=$",
        "f?archive=rar",
        "f?stat&stat",
        "f?archive=%",
    ] {
        world.get(target).await.error(400, ErrorCode::InvalidArgument);
    }
    for target in ["f?mode=888", "f?mode=4755", "f?mode=", "f?archive=zip", "f?recursive=true"] {
        world.call(Method::PUT, target, &[], "x").await.error(400, ErrorCode::InvalidArgument);
    }
    for target in
        ["f", "f?op=chmod", "f?op=rename", "f?op=rename&to=../x", "f?op=rename&to=", "f?op=symlink", "?op=mkdir", "f?op=mkdir&op=mkdir"]
    {
        world.call(Method::POST, target, &[], Body::empty()).await.error(400, ErrorCode::InvalidArgument);
    }
    world.get("f/x").await.error(400, ErrorCode::InvalidArgument);
    world.call(Method::PUT, "d", &[], "x").await.error(409, ErrorCode::Conflict);
    world.call(Method::PUT, "none/f", &[], "x").await.error(404, ErrorCode::NotFound);
    world.call(Method::PUT, "f", &[("content-range", "bytes 0-1/2")], "x").await.error(400, ErrorCode::InvalidArgument);
    std::os::unix::fs::symlink("/etc", world.at("out")).unwrap();
    world.get("out/passwd").await.error(403, ErrorCode::Forbidden);
    rustix::fs::mknodat(rustix::fs::CWD, world.at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    world.get("pipe").await.error(400, ErrorCode::InvalidArgument);
    let names: Vec<_> = fs::read_dir(world.at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[tokio::test]
async fn odd_names_go_out_and_come_back() {
    use std::os::unix::ffi::OsStrExt;
    let world = World::new();
    for name in ["\u{fc}n\u{ef}", "100%", "a?b#c&d=e+f", "%41", "quote\"quote", "line\nbreak"]
        .map(str::as_bytes)
        .into_iter()
        .chain([&b"\xff\xfe"[..]])
    {
        fs::write(world.at("").join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let (mut after, mut count) = (String::new(), 0);
    loop {
        let list: FileList = world.get(&format!("?limit=2{after}")).await.ok(200).json();
        for entry in &list.entries {
            let got = world.get(&entry.path).await.ok(200);
            assert_eq!(String::from_utf8_lossy(got.bytes()), entry.name);
            world
                .call(Method::POST, &format!("{}?op=rename&to=moved/{}", entry.path, entry.path), &[], Body::empty())
                .await
                .error(404, ErrorCode::NotFound);
            count += 1;
        }
        match list.next {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(count, 7);
}

#[tokio::test]
async fn a_write_that_breaks_off_changes_nothing() {
    let world = World::new();
    fs::write(world.at("f"), "old").unwrap();
    let pieces = stream::iter([Ok(Bytes::from(vec![1; 700_000])), Err(std::io::Error::other("gone"))]);
    world.call(Method::PUT, "f", &[], Body::from_stream(pieces)).await.error(400, ErrorCode::InvalidArgument);
    // and one whose sender just goes away, seen from the server: the request is dropped
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(1);
    let body =
        Body::from_stream(stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) }));
    let (app, sent) = (world.app.clone(), request(Some(&sign(&claims(Role::Owner))), Method::PUT, "files/f", &[], body));
    let running = tokio::spawn(async move { app.oneshot(sent).await });
    for _ in 0..4 {
        sender.send(Ok(Bytes::from(vec![2; 300_000]))).await.unwrap();
    }
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    assert_eq!(fs::read(world.at("f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(world.at("")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let world = World::with(GateLimits { idle: Duration::from_millis(50), ..GateLimits::default() });
    let pieces = stream::unfold(0, |count| async move {
        if count == 3 {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::io::Error>(Bytes::from("piece")), count + 1))
    });
    let answer = world.call(Method::PUT, "f", &[], Body::from_stream(Box::pin(pieces))).await;
    answer.error(408, ErrorCode::TimedOut);
    assert_eq!(fs::read_dir(world.at("")).unwrap().count(), 0);
}

#[tokio::test]
async fn folders_as_archives() {
    let world = World::new();
    fs::create_dir_all(world.at("from/sub")).unwrap();
    fs::write(world.at("from/sub/f"), vec![7; 3_000_000]).unwrap();
    std::os::unix::fs::symlink("sub/f", world.at("from/l")).unwrap();
    let tar = world.get("from?archive=tar").await.ok(200);
    assert_eq!(
        (tar.header("content-type"), tar.header("content-disposition")),
        ("application/x-tar", "attachment; filename*=UTF-8''from.tar")
    );
    let counts: Unpacked = world.call(Method::PUT, "to/deep?archive=tar", &[], tar.bytes().to_vec()).await.ok(200).json();
    assert_eq!(counts, Unpacked { files: 1, directories: 1, symlinks: 1, bytes: 3_000_000, ..Unpacked::default() });
    assert!(fs::read(world.at("to/deep/l")).unwrap() == vec![7; 3_000_000]);
    let zip = world.get("?archive=zip").await.ok(200);
    assert_eq!(zip.header("content-disposition"), "attachment; filename*=UTF-8''home.zip");
    assert!(zip.bytes().starts_with(b"PK\x03\x04"));
    world.get("none?archive=tar").await.error(404, ErrorCode::NotFound);
    world.call(Method::PUT, "to?archive=tar", &[], "no tar at all".repeat(100)).await.error(400, ErrorCode::InvalidArgument);
    let cut = Body::from_stream(stream::iter([Ok(Bytes::from(tar.bytes()[..2_000_000].to_vec())), Err(std::io::Error::other("gone"))]));
    world.call(Method::PUT, "cut?archive=tar", &[], cut).await.error(400, ErrorCode::InvalidArgument);
    assert_eq!(fs::read_dir(world.at("cut/sub")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_cannot_be_packed_is_said_before_the_first_byte() {
    let world = World::new();
    fs::create_dir_all(world.at(&format!("deep/{}", "d/".repeat(260)))).unwrap();
    world.get("deep?archive=zip").await.error(429, ErrorCode::LimitExceeded);
}

#[tokio::test]
async fn a_file_that_shrinks_breaks_the_download_off() {
    let world = World::new();
    fs::write(world.at("f"), vec![0; 8 << 20]).unwrap();
    let response = world.send(request(Some(&sign(&claims(Role::Viewer))), Method::GET, "files/f", &[], Body::empty())).await;
    fs::OpenOptions::new().write(true).open(world.at("f")).unwrap().set_len(1 << 20).unwrap();
    assert!(Answer::read(response).await.body.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_url_the_answer_is_in_form(path in "[a-c./%20efEF?&=+~:-]{0,30}", method in prop::sample::select(vec!["GET", "PUT", "POST", "DELETE", "HEAD"])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            fs::create_dir(world.at("a")).unwrap();
            let uri = format!("/v1/projects/{PROJECT}/files/{path}");
            if uri.parse::<http::Uri>().is_ok() {
                let answer = world.call(method.parse().unwrap(), &path, &[], "body").await;
                assert!(answer.status.as_u16() < 500, "{answer:?}");
                if answer.status.is_client_error() && method != "HEAD" {
                    let _: Error = answer.json();
                }
            }
        });
    }
}
