//! Byte streams over the router, through real sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use atoll_net::{
    bus::{BusLimits, Conn, client},
    byte_stream::{CHUNK_BYTES, Receiver, Sender, WINDOW_BYTES, WINDOW_CHUNKS},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use crate::support::{bus, until};

/// A hundred windows and more.
const TOTAL: u64 = 32 << 20;
/// Of what is read first, slowly.
const SLOW_CHUNKS: usize = 200;
/// What may wait in the bus for one stream: its window, with a line and headers for each message in it.
const QUEUED: usize = WINDOW_BYTES as usize + CHUNK_BYTES + WINDOW_CHUNKS * 256;

/// Bytes that don't repeat within the window.
fn chunk(number: u64) -> Bytes {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = (0..CHUNK_BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect::<Vec<_>>().into()
}

async fn connect(address: &str, name: &str) -> Arc<dyn Conn> {
    let socket = TcpStream::connect(address.trim_start_matches("nats://")).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let options = client::Options { name: name.into(), ..client::Options::default() };
    Arc::new(client::connect(socket, options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_output_to_a_slow_reader_neither_drops_nor_grows() {
    let bus = bus(BusLimits::default(), Arc::default());
    let address = bus.tcp().await;
    let (writing, reading) = (connect(&address, "writer").await, connect(&address, "reader").await);
    let mut receiver = Receiver::open(reading, "bulk").await.unwrap();
    let mut sender = Sender::open(writing, "bulk").await.unwrap();

    let sent = Arc::new(AtomicU64::new(0));
    let writer = tokio::spawn({
        let sent = sent.clone();
        async move {
            let mut digest = Sha256::new();
            for number in 0..TOTAL / CHUNK_BYTES as u64 {
                let chunk = chunk(number);
                digest.update(&chunk);
                sender.send(chunk).await.unwrap();
                sent.fetch_add(CHUNK_BYTES as u64, Ordering::SeqCst);
            }
            sender.finish(Ok(())).await.unwrap();
            digest.finalize()
        }
    });

    // nobody reads: the writer gets as far as its window, two chunks are in its hands, and there it stands
    let full = || sent.load(Ordering::SeqCst) >= WINDOW_BYTES;
    until("the window is full", async || full()).await;
    let (mut digest, mut read, mut most_queued, mut most_ahead) = (Sha256::new(), 0, 0, 0);
    let mut chunks = 0;
    while let Some(bytes) = receiver.next().await {
        let bytes = bytes.unwrap();
        digest.update(&bytes);
        // before the look at what was sent: what is sent in between counts against the bound
        let ahead = sent.load(Ordering::SeqCst).saturating_sub(read);
        read += bytes.len() as u64;
        most_ahead = most_ahead.max(ahead);
        most_queued = bus.router.connections().iter().map(|view| view.pending_bytes).max().unwrap().max(most_queued);
        chunks += 1;
        if chunks < SLOW_CHUNKS {
            tokio::time::sleep(Duration::from_millis(2)).await; // this is the slow reader: 16 MB/s at most
        }
    }
    assert_eq!(read, TOTAL);
    assert_eq!(digest.finalize(), writer.await.unwrap());
    assert!(most_queued <= QUEUED, "{most_queued} bytes waited in the bus for one connection");
    let window = WINDOW_BYTES + 3 * CHUNK_BYTES as u64;
    assert!(most_ahead <= window, "the writer was {most_ahead} bytes ahead");
    assert_eq!(bus.router.stats().slow_consumers, 0);
}
