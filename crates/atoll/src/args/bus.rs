//! Arguments of what looks at a bus, and measures one.

use clap::{Args, Subcommand};

use crate::values::{Size, Span};

/// Look at a bus, use it, measure it
#[derive(Debug, Subcommand)]
pub enum Bus {
    Bench(BusBenchArgs),
}

/// Measure a bus: how many messages it carries, or how fast it answers
///
/// Publishes as fast as the bus takes it, counts what arrives, and fails if a message is lost or comes twice. At most --window bytes are on
/// their way at a time. With --request one client asks one that answers. For NATS over TCP without TLS, on a bus that nobody else uses
/// meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll bus bench                                       one publisher, one subscriber, at `atoll dev bus`
  atoll bus bench --server nats://127.0.0.1:4333 --subscribers 8 --size 4K
  atoll bus bench --subscribers 8 --groups 1            one queue group
  atoll bus bench --request --in-flight 16")]
pub struct BusBenchArgs {
    /// The bus
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222")]
    pub server: String,

    /// File with the token to connect with; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,

    /// User to connect as
    #[arg(long, value_name = "NAME", requires = "password_file", conflicts_with = "token_file")]
    pub user: Option<String>,

    /// File with the user's password; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<String>,

    /// Connections that publish
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub publishers: u16,

    /// Connections that subscribe
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub subscribers: u16,

    /// Spread the subscribers over so many queue groups; without it each gets every message
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub groups: Option<u16>,

    /// Spread 10,000 subscriptions with wildcards over the subscribers, and publish to 250,000 subjects of which each matches two or three
    #[arg(long, conflicts_with_all = ["groups", "request"])]
    pub wildcards: bool,

    /// With --wildcards: subscribe and unsubscribe elsewhere, once for every thousand messages
    #[arg(long, requires = "wildcards")]
    pub churn: bool,

    /// Requests and replies instead: one client asks, one answers
    #[arg(long, conflicts_with_all = ["publishers", "subscribers", "groups"])]
    pub request: bool,

    /// With --request: how many are under way at a time
    #[arg(long, value_name = "N", default_value_t = 1, requires = "request", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub in_flight: u16,

    /// Bytes of a payload
    #[arg(long, value_name = "SIZE", default_value = "128")]
    pub size: Size,

    /// How long to publish
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub duration: Span,

    /// How long to do the same before, unmeasured
    #[arg(long, value_name = "DURATION", default_value = "500ms")]
    pub warm_up: Span,

    /// Bytes handed to a socket at a time
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    pub batch: Size,

    /// Bytes on their way to the slowest subscriber before the publishers wait
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    pub window: Size,
}
