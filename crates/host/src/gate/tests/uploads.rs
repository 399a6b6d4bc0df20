use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::stream;
use proptest::prelude::*;

use super::*;

const TUS: (&str, &str) = ("tus-resumable", "1.0.0");
const OFFSET_STREAM: (&str, &str) = ("content-type", "application/offset+octet-stream");

async fn begin(world: &World, path: &str, length: usize) -> Answer {
    let (metadata, length) = (format!("filename eA==,path {}", STANDARD.encode(path)), length.to_string());
    let headers = [TUS, ("upload-length", &length), ("upload-metadata", &metadata)];
    world.call_as(Role::Collaborator, Method::POST, "uploads", &headers, Body::empty()).await
}

async fn head(world: &World, at: &str) -> Answer {
    world.call_as(Role::Collaborator, Method::HEAD, at, &[TUS], Body::empty()).await
}

async fn patch(world: &World, at: &str, offset: usize, body: impl Into<Body>) -> Answer {
    let offset = offset.to_string();
    world.call_as(Role::Collaborator, Method::PATCH, at, &[TUS, OFFSET_STREAM, ("upload-offset", &offset)], body).await
}

#[tokio::test]
async fn all_the_way() {
    let world = World::new();
    let begun = begin(&world, "new/dir/f", 10).await.ok(201);
    let at = begun.header("location").to_owned();
    assert_eq!(begun.header("upload-offset"), "0");
    assert!(begun.header("upload-expires").parse::<httpdate::HttpDate>().is_ok());
    assert_eq!(patch(&world, &at, 0, "01234").await.ok(204).header("upload-offset"), "5");
    let asked = head(&world, &at).await.ok(200);
    assert_eq!((asked.header("upload-offset"), asked.header("upload-length"), asked.header("cache-control")), ("5", "10", "no-store"));
    assert!(!world.at("new").exists());
    assert_eq!(patch(&world, &at, 5, "56789").await.ok(204).header("upload-offset"), "10");
    assert_eq!(fs::read(world.at("new/dir/f")).unwrap(), b"0123456789");
    // the last answer was lost, and the client asks
    assert_eq!(head(&world, &at).await.ok(200).header("upload-offset"), "10");
    patch(&world, &at, 10, "").await.ok(204);
    world.call_as(Role::Collaborator, Method::DELETE, &at, &[TUS], Body::empty()).await.ok(204);
    assert_eq!(fs::read(world.at("new/dir/f")).unwrap(), b"0123456789");
    assert_eq!(fs::read_dir(world.state().join("uploads")).unwrap().count(), 0);
    // one without bytes is there at once
    begin(&world, "empty", 0).await.ok(201);
    assert_eq!(fs::read(world.at("empty")).unwrap(), b"");
}

#[tokio::test]
async fn what_tus_demands() {
    let world = World::new();
    let options = world.call_as(Role::Collaborator, Method::OPTIONS, "uploads", &[], Body::empty()).await.ok(204);
    assert_eq!(options.header("tus-version"), "1.0.0");
    assert_eq!(options.header("tus-extension"), "creation,termination,expiration");
    let answer = world.call_as(Role::Collaborator, Method::POST, "uploads", &[("tus-resumable", "0.2.2")], Body::empty()).await;
    answer.error(412, ErrorCode::InvalidArgument);
    assert_eq!(answer.header("tus-version"), "1.0.0");
    let begun = begin(&world, "f", 10).await.ok(201);
    let at = begun.header("location");
    assert_eq!(begun.header("tus-resumable"), "1.0.0");
    let error = patch(&world, at, 3, "x").await.error(409, ErrorCode::Conflict);
    assert_eq!(error.details.unwrap()["offset"], 0);
    let other = world.call_as(Role::Collaborator, Method::PATCH, at, &[TUS, ("upload-offset", "0")], "x").await;
    other.error(415, ErrorCode::InvalidArgument);
    patch(&world, at, 0, "more than the ten bytes").await.error(413, ErrorCode::TooLarge);
    let many = Body::from_stream(stream::iter(["01234567"; 2].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)))));
    patch(&world, at, 0, many).await.error(413, ErrorCode::TooLarge);
    assert!(!world.at("f").exists());
    world.call_as(Role::Collaborator, Method::DELETE, at, &[TUS], Body::empty()).await.ok(204);
    assert_eq!(head(&world, at).await.status, 404);
    patch(&world, at, 0, "x").await.error(404, ErrorCode::NotFound);
}

#[tokio::test]
async fn bad_beginnings() {
    let world = World::new();
    let path = STANDARD.encode("f");
    let good = format!("path {path}");
    for headers in [
        vec![("upload-metadata", good.as_str())],
        vec![("upload-length", "5")],
        vec![("upload-length", "-5"), ("upload-metadata", &good)],
        vec![("upload-length", "+5"), ("upload-metadata", &good)],
        vec![("upload-length", "5"), ("upload-metadata", "path !!!")],
        vec![("upload-length", "5"), ("upload-metadata", "path Li4vZg==")],
        vec![("upload-length", "5"), ("upload-metadata", "path ")],
        vec![("upload-length", "5"), ("upload-metadata", "path Zg==,mode OTk5")],
        vec![("upload-defer-length", "1"), ("upload-metadata", &good)],
    ] {
        let headers: Vec<_> = headers.into_iter().chain([TUS]).collect();
        let answer = world.call_as(Role::Collaborator, Method::POST, "uploads", &headers, Body::empty()).await;
        answer.error(400, ErrorCode::InvalidArgument);
    }
    begin(&world, "f", 1 << 50).await.error(413, ErrorCode::TooLarge);
    for _ in 0..64 {
        begin(&world, "f", 1).await.ok(201);
    }
    begin(&world, "f", 1).await.error(429, ErrorCode::LimitExceeded);
}

#[tokio::test]
async fn who_comes_back_takes_over() {
    let world = World::new();
    let at = begin(&world, "f", 10).await.ok(201).header("location").to_owned();
    // a request of which nothing more comes, as after a lost connection
    let pieces = Box::pin(stream::unfold(0, |count| async move {
        if count == 1 {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::io::Error>(Bytes::from("0123")), count + 1))
    }));
    let token = sign(&claims(Role::Collaborator));
    let stuck = request(Some(&token), Method::PATCH, &at, &[TUS, OFFSET_STREAM, ("upload-offset", "0")], Body::from_stream(pieces));
    let stuck = tokio::spawn(world.app.clone().oneshot(stuck));
    // until it has begun, a HEAD sees 0 and takes nothing over
    let mut offset = 0;
    for _ in 0..1000 {
        if offset > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let data = fs::read_dir(world.state().join("uploads")).unwrap().map(|entry| entry.unwrap());
        if data.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "data")).any(|entry| entry.metadata().unwrap().len() > 0)
        {
            offset = head(&world, &at).await.ok(200).header("upload-offset").parse().unwrap();
        }
    }
    assert_eq!(offset, 4);
    assert_eq!(stuck.await.unwrap().unwrap().status(), 409);
    patch(&world, &at, 4, "456789").await.ok(204);
    assert_eq!(fs::read(world.at("f")).unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_place_that_is_taken_can_be_cleared() {
    let world = World::new();
    fs::create_dir(world.at("f")).unwrap();
    let at = begin(&world, "f", 3).await.ok(201).header("location").to_owned();
    patch(&world, &at, 0, "new").await.error(409, ErrorCode::Conflict);
    fs::remove_dir(world.at("f")).unwrap();
    patch(&world, &at, 3, "").await.ok(204);
    assert_eq!(fs::read(world.at("f")).unwrap(), b"new");
}

#[tokio::test]
async fn stale_ones_expire() {
    let world = World::new();
    let at = begin(&world, "f", 3).await.ok(201).header("location").to_owned();
    world.clock.advance(Duration::from_hours(25));
    let later = ConnectClaims { iat: NOW + 90_000, exp: NOW + 90_300, ..claims(Role::Owner) };
    let asked = world.send(request(Some(&sign(&later)), Method::HEAD, &at, &[TUS], Body::empty())).await;
    assert_eq!(asked.status(), 404);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn broken_at_any_offset_it_goes_on(length in 0usize..1_500_000, cuts in prop::collection::vec(0usize..700_000, 0..6)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let content: Vec<u8> = (0..length).map(|number| ((number * 31) >> 3) as u8).collect();
            let at = begin(&world, "f", length).await.ok(201).header("location").to_owned();
            let mut offset = 0;
            for cut in cuts {
                let end = length.min(offset + cut);
                if length == 0 || end == length {
                    break;
                }
                let pieces: Vec<_> = content[offset..end].chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                let broken = stream::iter(pieces.into_iter().chain([Err(std::io::Error::other("gone"))]));
                patch(&world, &at, offset, Body::from_stream(broken)).await.error(400, ErrorCode::InvalidArgument);
                let kept: usize = head(&world, &at).await.ok(200).header("upload-offset").parse().unwrap();
                assert_eq!(kept, end, "what came is kept");
                offset = kept;
            }
            patch(&world, &at, offset, content[offset..].to_vec()).await.ok(204);
            assert!(fs::read(world.at("f")).unwrap() == content);
        });
    }
}
