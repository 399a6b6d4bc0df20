//! Arguments of what looks at a bus, uses it, and measures it.

use clap::{Args, Subcommand};

use crate::values::{HeaderLine, Size, Span};

/// Look at a bus, use it, measure it
///
/// For Atoll's own buses and for any NATS server. Without --server or --project: the master's bus, as the account that is logged in.
#[derive(Debug, Subcommand)]
pub enum Bus {
    Top(BusTopArgs),
    Sub(BusSubArgs),
    Pub(BusPubArgs),
    Req(BusReqArgs),
    Bench(BusBenchArgs),
}

/// Another bus than the master's, and who one is there.
#[derive(Debug, Clone, Default, Args)]
pub struct BusServerArgs {
    /// A NATS server or bus: nats://, tls://, ws:// or wss://
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// File with the token to connect with; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "server")]
    pub token_file: Option<String>,

    /// User to connect as
    #[arg(long, value_name = "NAME", requires_all = ["server", "password_file"], conflicts_with = "token_file")]
    pub user: Option<String>,

    /// File with the user's password; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<String>,

    /// File with a NATS user's JWT and seed, as `nsc` writes it
    #[arg(long, value_name = "FILE", requires = "server", conflicts_with_all = ["token_file", "user"])]
    pub creds: Option<std::path::PathBuf>,
}

/// Which bus to use.
#[derive(Debug, Clone, Default, Args)]
pub struct BusArgs {
    #[command(flatten)]
    pub server: BusServerArgs,

    /// The bus of this project's host, as the account that is logged in
    #[arg(long, value_name = "PROJECT", conflicts_with = "server")]
    pub project: Option<String>,
}

/// Show who uses a bus and how much, as it changes
///
/// By connection, account and beginning of the subject: messages and bytes a second, and how much of its bounds the bus uses. Only admins may
/// see this of the master's bus, and by way of it of a host's. Ctrl-C ends it and says the sum.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll bus top                                       the master's bus
  atoll bus top --host a                              a host's
  atoll bus top --server nats://127.0.0.1:4222 --once --json")]
pub struct BusTopArgs {
    #[command(flatten)]
    pub server: BusServerArgs,

    /// The bus of this host, asked by way of the master
    #[arg(long, value_name = "HOST", conflicts_with = "server")]
    pub host: Option<String>,

    /// Time between two looks, at least 200ms
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    pub interval: Span,

    /// Rows of each table
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub rows: u16,

    /// Show it once and leave
    #[arg(long)]
    pub once: bool,
}

/// Print what is published to a subject
///
/// Payloads that aren't text are shown in hexadecimal; with --json as `payload_base64`. Runs until Ctrl-C, or until --count messages have come.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll bus sub --server nats://127.0.0.1:4222 'orders.>'
  atoll bus sub --project thesis 'project.ID.log.*.changes'      ID as in atoll project list
  atoll bus sub --server tls://nats.example --creds ada.creds orders.new --queue workers --count 10 --json
  atoll bus sub --server ws://127.0.0.1:4334 logs --raw | grep error")]
pub struct BusSubArgs {
    /// Subject, with `*` and `>` if wanted
    pub subject: String,

    #[command(flatten)]
    pub bus: BusArgs,

    /// Share the messages with others in this queue group
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,

    /// Leave after so many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Payloads alone, as they are, each with a newline behind it
    #[arg(long)]
    pub raw: bool,
}

/// Publish a message
///
/// The payload is the argument, or comes from a file or standard input. Waits until the bus has taken the message, and fails if it refused it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll bus pub --server nats://127.0.0.1:4222 orders.new '{\"id\": 7}'
  atoll bus pub --server nats://127.0.0.1:4222 orders.new -H 'Nats-Msg-Id: 7' --file order.json
  date | atoll bus pub --server nats://127.0.0.1:4222 times --file - --count 3")]
pub struct BusPubArgs {
    #[command(flatten)]
    pub message: BusMessageArgs,

    #[command(flatten)]
    pub bus: BusArgs,

    /// Subject that answers should go to
    #[arg(long, value_name = "SUBJECT")]
    pub reply: Option<String>,

    /// Publish it so many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
}

/// Ask on a subject and print the answer
///
/// Nobody there, an answer that is an error, and no answer in time are errors of this command, too (exit codes 6 and others).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll bus req --server nats://127.0.0.1:4222 time.now
  atoll bus req --project thesis project.0198c0de-0000-7000-8000-000000000001.agent.info '{}' --raw
  atoll bus req --server nats://127.0.0.1:4222 who.is.there --replies 10 --timeout 2s")]
pub struct BusReqArgs {
    #[command(flatten)]
    pub message: BusMessageArgs,

    #[command(flatten)]
    pub bus: BusArgs,

    /// How long to wait for all answers together
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub timeout: Span,

    /// Wait for so many answers; fewer, but one at least, are no error
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub replies: u64,

    /// Payloads alone, as they are, each with a newline behind it
    #[arg(long)]
    pub raw: bool,
}

/// What is sent.
#[derive(Debug, Clone, Args)]
pub struct BusMessageArgs {
    /// Subject, without wildcards
    pub subject: String,

    /// Payload; empty without this and --file
    pub payload: Option<String>,

    /// Take the payload from a file; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    pub file: Option<String>,

    /// A header; may be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub headers: Vec<HeaderLine>,
}

/// Measure a bus: how many messages it carries, or how fast it answers
///
/// Publishes as fast as the bus takes it, counts what arrives, and fails if a message is lost or comes twice. At most --window bytes are on
/// their way at a time. With --request one client asks one that answers. Over TCP or WebSocket, with TLS or without, on a bus that nobody
/// else uses meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll bus bench                                       one publisher, one subscriber, at `atoll dev bus`
  atoll bus bench --server nats://127.0.0.1:4333 --subscribers 8 --size 4K
  atoll bus bench --subscribers 8 --groups 1            one queue group
  atoll bus bench --request --in-flight 16
  atoll bus bench --server wss://localhost:4334 --ca-file ca.pem")]
pub struct BusBenchArgs {
    /// The bus: nats://, tls://, ws:// or wss://
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
