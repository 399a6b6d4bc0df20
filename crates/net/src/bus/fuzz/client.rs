//! Our own client against a server that says anything.

use std::time::Duration;

use atoll_contract::ErrorCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::script::{Act, acts};
use crate::bus::{
    Conn, Message,
    client::{self, Options},
    wire::{ServerParser, Step, all},
};

/// Bounds that an input reaches.
const MAX_LINE: usize = 128;
const MAX_PAYLOAD: usize = 64;

/// However the bytes are split, the operations are the same, and each takes its own bytes alone.
pub(crate) fn parser(data: &[u8]) {
    let bytes: Vec<u8> = acts(data).flat_map(|act| if let Act::Send(bytes) = act { bytes } else { &[] }).copied().collect();
    let whole = operations([&bytes[..]].into_iter());
    let split = operations(acts(data).filter_map(|act| if let Act::Send(bytes) = act { Some(bytes) } else { None }));
    assert_eq!(whole, split);
    assert_eq!(whole, operations(bytes.chunks(1)));
}

fn operations<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut parser = ServerParser::new(MAX_LINE, MAX_PAYLOAD);
    let step = |buffer: &[u8]| {
        let step = parser.step(buffer)?;
        if let Step::Need(need) = step {
            assert!(need <= 2 * MAX_LINE + MAX_PAYLOAD, "{need} for {}", buffer.len());
        }
        Ok(step.map(|op| Some(format!("{op:?}"))))
    };
    all(step, chunks)
}

/// A client that subscribes and asks while the server says what the input has. It ends, or serves on; every wait of it is over in time.
pub(crate) async fn connection(data: &[u8]) {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let options = Options { pending_bytes: 4096, subscription_messages: 4, subscription_bytes: 1024, ..Options::default() };
    let user = tokio::spawn(async move {
        let Ok(client) = client::connect(ours, options).await else { return };
        let (subscribed, asked) =
            tokio::join!(client.subscribe("a.>", None), client.request(Message::new("a.x", "?"), Duration::from_secs(3)));
        if let Err(error) = asked {
            assert!(error.code != ErrorCode::Internal, "{error:?}");
        }
        if let Ok(mut subscription) = subscribed {
            while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(1), subscription.next()).await {
                assert!(message.payload.len() <= 1 << 20);
            }
        }
        client.close().await;
        client.closed().await;
    });
    let server = async {
        let _ = theirs.write_all(b"INFO {\"max_payload\":1024,\"nonce\":\"n\"}\r\nPONG\r\n").await; // the input may go on from there, or say INFO anew
        for act in acts(data) {
            let done = match act {
                Act::Send(bytes) => theirs.write_all(bytes).await.is_ok(),
                Act::Wait(time) => {
                    tokio::time::sleep(time).await;
                    true
                }
                Act::Reading(true) => {
                    tokio::time::timeout(Duration::from_millis(1), theirs.read(&mut [0; 512])).await.is_ok_and(|read| read.is_ok())
                }
                Act::Shut => theirs.shutdown().await.is_ok(),
                Act::Drop => false,
                _ => {
                    tokio::task::yield_now().await;
                    true
                }
            };
            if !done {
                break;
            }
        }
    };
    // a client that stops reading leaves the server waiting, which is no fault of it
    let _ = tokio::time::timeout(Duration::from_mins(10), server).await;
    drop(theirs);
    tokio::time::timeout(Duration::from_mins(5), user).await.expect("every wait of a client ends").expect("a client doesn't panic");
}
