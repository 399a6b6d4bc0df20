//! Sockets that many clients may come to at once.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel holds until they are accepted. When a server comes back all of its clients come at once, and each that finds the queue
/// full waits for a second or more. Linux takes no more than net.core.somaxconn, by default the same 4096.
const BACKLOG: u32 = 4096;

/// Listens as [`TcpListener::bind`] does, which holds 128 connections only.
///
/// # Errors
/// Those of socket(2), bind(2) and listen(2).
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    const CROWD: usize = 500;

    /// A connection that isn't accepted is there nevertheless, as long as the queue has room.
    #[tokio::test]
    async fn a_crowd_is_let_in_before_anyone_is_accepted() {
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
        if most.is_none_or(|most: usize| most < CROWD) {
            eprintln!("skipped: a_crowd_is_let_in_before_anyone_is_accepted: net.core.somaxconn is below {CROWD}");
            return;
        }
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let begin = tokio::time::Instant::now();
        let crowd: Vec<_> = (0..CROWD).map(|_| TcpStream::connect(address).unwrap()).collect();
        // a queue of 128 makes some wait for the kernel's next try, of which each takes twice as long as the one before
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
        for _ in &crowd {
            listener.accept().await.unwrap();
        }
    }
}
