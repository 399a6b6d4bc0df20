//! Every bound of the bus, in one place.

use std::time::Duration;

/// What one router allows. All that waits, to be written or to become a whole message, is bounded by `memory` and 128 KiB more for each connection;
/// what subscriptions take is bounded by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusLimits {
    /// Bytes of one message: headers and payload together. nats-server's default is the same 1 MiB.
    pub max_payload: usize,
    /// Bytes of one protocol line, CONNECT with its token included. nats-server's default is the same 4096.
    pub max_control_line: usize,
    /// Bytes that wait to be written to one client (or to be read by one subscription in process) before it is taken for a slow consumer.
    pub pending_bytes: usize,
    /// Messages that wait likewise.
    pub pending_messages: usize,
    /// Bytes that wait in all queues and buffers together, beyond the first 64 KiB of each. A receiver whose queue would need more is a slow
    /// consumer; a publisher whose message would isn't read until there is room, for `write_timeout` at the longest.
    pub memory: usize,
    /// Subscriptions of one connection.
    pub subscriptions_per_connection: usize,
    /// Subscriptions of all connections together.
    pub subscriptions: usize,
    /// Connections over a wire at once; those in process are the server's own and not counted.
    pub connections: usize,
    /// Connections over a wire whose grants name the same account.
    pub connections_per_account: usize,
    /// Tokens in a subject: bounds the depth of the trie.
    pub subject_tokens: usize,
    /// Grants that one connection may hold.
    pub grants_per_connection: usize,
    /// From the connection's beginning to a complete CONNECT.
    pub connect_timeout: Duration,
    /// How often a silent client is asked for a PONG.
    pub ping_interval: Duration,
    /// PINGs without an answer before a connection is stale.
    pub pings_outstanding: u32,
    /// A client whose socket takes nothing for so long while bytes wait is a slow consumer.
    pub write_timeout: Duration,
    /// How long a publisher is held up at most, per batch that it sends, by a receiver whose queue is half full.
    pub stall: Duration,
    /// The longest time between two looks at the clock for expired grants; each also has its own timer, which a stepped clock would fool.
    pub grant_check: Duration,
    /// How long [`Conn::subscribe`](super::Conn::subscribe) and the closing of a connection may take.
    pub close_timeout: Duration,
}

impl Default for BusLimits {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            max_control_line: 4096,
            pending_bytes: 8 << 20,
            pending_messages: 256 << 10,
            memory: 1 << 30,
            subscriptions_per_connection: 10_000,
            subscriptions: 1_000_000,
            connections: 10_000,
            connections_per_account: 256,
            subject_tokens: 64,
            grants_per_connection: 256,
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(30),
            pings_outstanding: 2,
            write_timeout: Duration::from_secs(10),
            stall: Duration::from_millis(5),
            grant_check: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
        }
    }
}
