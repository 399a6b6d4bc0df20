//! Over real sockets, with a stock HTTP client.

use std::net::SocketAddr;

use atoll_net::clock::Clock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

pub(super) async fn serve(world: &World) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = world.app.clone().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Waits until something holds, for at most ten seconds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test]
async fn a_connection_lost_in_the_middle_of_a_write() {
    let world = World::with(GateLimits { requests_per_project: 1, turn: Duration::from_millis(20), ..GateLimits::default() });
    fs::write(world.at("f"), "old").unwrap();
    let address = serve(&world).await;
    let token = sign(&claims(Role::Owner));
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "PUT /v1/projects/{PROJECT}/files/f HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\ncontent-length: 5000000\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&vec![1; 2_000_000]).await.unwrap();
    until("the write has begun", async || world.get("f").await.status == 429).await;
    drop(socket);
    until("the write has been given up", async || world.get("f").await.status == 200).await;
    assert_eq!(fs::read(world.at("f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(world.at("")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_its_turn_for_a_while_only() {
    let limits =
        GateLimits { requests_per_project: 1, turn: Duration::from_millis(20), idle: Duration::from_millis(300), ..GateLimits::default() };
    let world = World::with(limits);
    // random, so that it doesn't pack into what the socket's buffers hold
    let mut noise = vec![0; 64 << 20];
    world.clock.random(&mut noise);
    fs::write(world.at("big"), noise).unwrap();
    let address = serve(&world).await;
    for target in ["big", "?archive=tar", "?archive=zip"] {
        let token = sign(&claims(Role::Owner));
        let mut socket = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/projects/{PROJECT}/files/{target} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 15];
        socket.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK", "{target}");
        until("its turn is over", async || world.get("?stat").await.status == 200).await;
        // what it then still reads is cut off and not ended
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{target}");
        assert!(rest.len() < 64 << 20, "{target}");
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_sends_much() {
    let world = World::new();
    let address = serve(&world).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let token = sign(&claims(Role::Viewer));
    let url = format!("http://{address}/v1/projects/{PROJECT}/files/f");
    let answer = client.put(url).bearer_auth(token).body(vec![0; 8 << 20]).send().await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(answer.json::<Error>().await.unwrap().code, ErrorCode::Forbidden);
}
