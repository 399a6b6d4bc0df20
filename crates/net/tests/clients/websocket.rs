//! What goes into a WebSocket and comes out: frames of any kind and cut, and no compression unless somebody wants it.

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{
        Error, Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

use crate::stand::{SOON, Stand, TOKEN};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn connect_line() -> String {
    format!("CONNECT {{\"verbose\":false,\"auth_token\":\"{TOKEN}\"}}\r\n")
}

async fn open(stand: &Stand) -> Socket {
    let (mut socket, _) = tokio_tungstenite::connect_async(stand.websocket_url()).await.unwrap();
    expect(&mut socket, "\r\n").await;
    socket
}

/// Reads until all that came ends so; only binary frames come.
async fn expect(socket: &mut Socket, end: &str) {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) {
        match next(socket).await {
            Some(Ok(Message::Binary(bytes))) => all.extend_from_slice(&bytes),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
        }
    }
}

async fn next(socket: &mut Socket) -> Option<Result<Message, Error>> {
    tokio::time::timeout(SOON, socket.next()).await.expect("in time")
}

#[tokio::test]
async fn compression_is_not_agreed_to() {
    let stand = Stand::start().await;
    let mut stream = TcpStream::connect(stand.websocket).await.unwrap();
    let request = format!(
        "GET /bus HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame\r\n\r\n",
        stand.websocket
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        answer.push(tokio::time::timeout(SOON, stream.read_u8()).await.expect("in time").unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    assert!(!answer.contains("extensions") && !answer.contains("deflate"), "{answer}");
    // a frame that says it is compressed all the same (RSV1) ends the connection
    let mut masked = vec![0xc1, 0x86, 0, 0, 0, 0];
    masked.extend_from_slice(b"PING\r\n");
    stream.write_all(&masked).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("in time"); // an end, or a reset
    assert!(!rest.windows(4).any(|pong| pong == b"PONG"));
}

#[tokio::test]
async fn text_binary_and_pieces_are_one_stream_of_bytes() {
    let stand = Stand::start().await;
    let mut socket = open(&stand).await;
    let talk = connect_line() + "SUB t.a 1\r\nPUB t.a 6\r\ngr\u{fc}\u{df}e\r\nPING\r\n";
    let text = talk.replace("6\r\n", "7\r\n");
    // one operation over several frames, in text and in binary ones, and several in one
    let (a, b, c) = (&text[..10], &text[10..40], &text[40..]);
    socket.send(Message::text(a)).await.unwrap();
    socket.send(Message::binary(b.as_bytes().to_vec())).await.unwrap();
    socket.send(Message::text(c)).await.unwrap();
    expect(&mut socket, "MSG t.a 1 7\r\ngr\u{fc}\u{df}e\r\nPONG\r\n").await;
    // one message in three fragments, with a ping in between, which is answered on its own
    let fragment = |bytes: &'static [u8], code, last| Message::Frame(Frame::message(bytes, OpCode::Data(code), last));
    socket.send(fragment(b"PUB t.a 2\r", Data::Binary, false)).await.unwrap();
    socket.send(fragment(b"\nh", Data::Continue, false)).await.unwrap();
    socket.send(Message::Ping("are you there".into())).await.unwrap();
    assert!(matches!(next(&mut socket).await, Some(Ok(Message::Pong(bytes))) if bytes == "are you there"));
    socket.send(fragment(b"i\r\nPING\r\n", Data::Continue, true)).await.unwrap();
    expect(&mut socket, "MSG t.a 1 2\r\nhi\r\nPONG\r\n").await;
    // what nobody asked for is nothing
    socket.send(Message::Pong("unasked".into())).await.unwrap();
    socket.send(Message::binary(Vec::new())).await.unwrap();
    socket.send(Message::binary(b"PING\r\n".to_vec())).await.unwrap();
    expect(&mut socket, "PONG\r\n").await;
    // and a close is answered with one
    socket.close(None).await.unwrap();
    loop {
        match next(&mut socket).await {
            Some(Ok(Message::Close(_))) => {}
            None | Some(Err(Error::ConnectionClosed)) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_frame_that_is_too_large_ends_its_own_connection_alone() {
    let stand = Stand::start().await;
    let (mut good, mut bad) = (open(&stand).await, open(&stand).await);
    for socket in [&mut good, &mut bad] {
        socket.send(Message::binary(connect_line() + "SUB t.a 1\r\nPING\r\n")).await.unwrap();
        expect(socket, "PONG\r\n").await;
    }
    // the header alone says that 64 MiB are to come; nobody waits for them
    let MaybeTlsStream::Plain(stream) = bad.get_mut() else { panic!("there is no TLS here") };
    let mut header = vec![0x82, 0x80 | 127];
    header.extend_from_slice(&(64_u64 << 20).to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    stream.write_all(&header).await.unwrap();
    while let Some(Ok(_)) = next(&mut bad).await {}
    good.send(Message::binary(b"PUB t.a 2\r\nhi\r\nPING\r\n".to_vec())).await.unwrap();
    expect(&mut good, "MSG t.a 1 2\r\nhi\r\nPONG\r\n").await;
}
