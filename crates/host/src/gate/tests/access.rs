use super::*;

async fn code(world: &World, token: Option<&str>, method: Method, target: &str) -> Result<StatusCode, ErrorCode> {
    let answer = Answer::read(world.send(request(token, method, target, &[("tus-resumable", "1.0.0")], Body::empty())).await).await;
    if answer.status.is_success() { Ok(answer.status) } else { Err(answer.json::<Error>().code) }
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    use ErrorCode::{Forbidden, StaleAssignment, Unauthenticated};
    let world = World::new();
    let good = claims(Role::Viewer);
    let gone: ProjectId = "0198c0de-0000-7000-8000-00000000000a".parse().unwrap();
    let cases = [
        ("another host", ConnectClaims { aud: OTHER.parse().unwrap(), ..good.clone() }, Unauthenticated),
        ("expired", ConnectClaims { iat: NOW - 600, exp: NOW - 300, ..good.clone() }, Unauthenticated),
        ("another project", ConnectClaims { project: OTHER.parse().unwrap(), ..good.clone() }, Forbidden),
        ("older generation", ConnectClaims { generation: Generation(0), ..good.clone() }, StaleAssignment),
        ("newer generation", ConnectClaims { generation: Generation(2), ..good.clone() }, StaleAssignment),
    ];
    for (name, claims, expected) in cases {
        assert_eq!(code(&world, Some(&sign(&claims)), Method::GET, "files/").await, Err(expected), "{name}");
    }
    let claims = ConnectClaims { project: gone, ..good.clone() };
    let target = format!("/v1/projects/{gone}/files/");
    assert_eq!(code(&world, Some(&sign(&claims)), Method::GET, &target).await, Err(StaleAssignment), "a project that isn't here");
    for token in [None, Some(""), Some("rubbish")] {
        assert_eq!(code(&world, token, Method::GET, "files/").await, Err(Unauthenticated), "{token:?}");
    }
    assert_eq!(code(&world, Some(&sign(&good)), Method::GET, "files/").await, Ok(StatusCode::OK));
    world.places.set_generation(PROJECT, 2);
    let stale = Answer::read(world.send(request(Some(&sign(&good)), Method::GET, "files/", &[], Body::empty())).await).await;
    assert!(stale.error(421, StaleAssignment).mend.contains("master"));
    world.keys.set(KeySet::default());
    assert_eq!(code(&world, Some(&sign(&good)), Method::GET, "files/").await, Err(Unauthenticated));
}

#[tokio::test]
async fn a_token_counts_in_the_header_only() {
    let world = World::new();
    let token = sign(&claims(Role::Owner));
    for (name, value) in
        [("authorization", token.clone()), ("authorization", format!("Basic {token}")), ("cookie", format!("token={token}"))]
    {
        let request = request(None, Method::GET, "files/", &[(name, &value)], Body::empty());
        Answer::read(world.send(request).await).await.error(401, ErrorCode::Unauthenticated);
    }
    let in_url = request(None, Method::GET, &format!("files/?token={token}"), &[], Body::empty());
    let answer = Answer::read(world.send(in_url).await).await;
    answer.error(401, ErrorCode::Unauthenticated);
    assert_eq!(answer.header("www-authenticate"), "Bearer");
}

#[tokio::test]
async fn a_viewer_reads_and_changes_nothing() {
    let world = World::new();
    fs::write(world.at("f"), "content").unwrap();
    let token = sign(&claims(Role::Viewer));
    for (method, target) in [(Method::GET, "files/f"), (Method::HEAD, "files/f"), (Method::GET, "files/?archive=tar")] {
        code(&world, Some(&token), method, target).await.unwrap();
    }
    for (method, target) in [
        (Method::PUT, "files/f"),
        (Method::PUT, "files/?archive=tar"),
        (Method::POST, "files/d?op=mkdir"),
        (Method::POST, "files/f?op=rename&to=g"),
        (Method::DELETE, "files/f"),
        (Method::POST, "uploads"),
        (Method::DELETE, "uploads/abcdefghijklmnopqrstuvwxyz"),
    ] {
        assert_eq!(code(&world, Some(&token), method.clone(), target).await, Err(ErrorCode::Forbidden), "{method} {target}");
    }
    assert_eq!(fs::read_to_string(world.at("f")).unwrap(), "content");
    assert_eq!(fs::read_dir(world.at("")).unwrap().count(), 1);
}

#[tokio::test]
async fn what_is_not_there_is_an_error_in_the_contracts_form() {
    let world = World::new();
    let token = sign(&claims(Role::Owner));
    for (method, target, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1", 404),
        (Method::GET, "/v1/projects/not-an-id/files/a", 404),
        (Method::GET, "/v1/projects/", 404),
        (Method::POST, "/v1/health", 405),
        (Method::PATCH, "files/a", 405),
        (Method::OPTIONS, "files/a", 405),
        (Method::GET, "uploads", 405),
        (Method::PUT, "uploads/abcdefghijklmnopqrstuvwxyz", 405),
        (Method::GET, "/bus", 400),
    ] {
        let sent = request(Some(&token), method.clone(), target, &[("tus-resumable", "1.0.0")], Body::empty());
        let answer = Answer::read(world.send(sent).await).await;
        let _: Error = answer.json();
        assert_eq!(answer.status, status, "{method} {target}");
        assert_eq!(answer.headers.contains_key("allow"), status == 405, "{method} {target}");
    }
    let health: Health = Answer::read(world.send(request(None, Method::GET, "/v1/health", &[], Body::empty())).await).await.ok(200).json();
    assert_eq!(health.role, "host");
}

#[tokio::test]
async fn too_many_requests_of_one_project_wait_and_are_then_refused() {
    let limits = GateLimits { requests_per_project: 2, turn: Duration::from_millis(50), ..GateLimits::default() };
    let world = World::with(limits);
    fs::write(world.at("f"), vec![0; 4 << 20]).unwrap();
    let token = sign(&claims(Role::Owner));
    // answers that nobody reads keep their turn
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(world.send(request(Some(&token), Method::GET, "files/f", &[], Body::empty())).await);
    }
    assert_eq!(code(&world, Some(&token), Method::GET, "files/").await, Err(ErrorCode::LimitExceeded));
    let other = ConnectClaims { project: OTHER.parse().unwrap(), ..claims(Role::Owner) };
    code(&world, Some(&sign(&other)), Method::GET, &format!("/v1/projects/{OTHER}/files/")).await.unwrap();
    // dropped, they give it back; their tasks notice by themselves
    drop(held);
    let mut tries = 0;
    while code(&world, Some(&token), Method::GET, "files/").await.is_err() {
        tries += 1;
        assert!(tries < 100);
    }
}
