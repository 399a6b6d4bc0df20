//! `bus bench`: the same load for any NATS server. `cargo xtask bench bus` runs it against Atoll's bus and nats-server in turn.

mod ask;
mod flow;
mod link;
mod load;
mod road;

use std::{
    fmt::Write,
    net::ToSocketAddrs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use atoll_contract::Error;
use serde::Serialize;

use self::{ask::Asker, flow::Flow, link::Target};
use super::{
    super::{Context, prompt},
    connect,
};
use crate::{
    args::BusBenchArgs,
    client,
    errors::{self, Result},
    values::human_size,
};

/// A payload and its line must fit into what a client reads at a time.
const MAX_SIZE: u64 = 8 << 20;

/// Where NATS servers listen if nothing is said.
const NATS_PORT: u16 = 4222;

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    /// Measured, without the warm-up.
    published: u64,
    delivered: u64,
    seconds: f64,
    published_per_second: f64,
    delivered_per_second: f64,
    /// Of payloads that were delivered.
    bytes_per_second: f64,
    /// Delivered in all, the warm-up included: what the bus has worked for.
    total_delivered: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
}

/// Of requests, from the write to the reply; microseconds.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "JSON's reader should see the unit")]
struct Latency {
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    max_us: f64,
}

pub async fn run(context: &Context, args: BusBenchArgs) -> Result<()> {
    let target = target(context, &args)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || measure(&args, &target, &told));
    let done = tokio::select! {
        done = &mut work => done,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(|error| errors::io("A signal", &error))?;
            stop.store(true, Ordering::Relaxed);
            work.await
        }
    };
    let report = done.map_err(|error| Error::internal(format!("The measurement ended: {error}.")))??;
    context.output.show(&report, Report::text)
}

fn measure(args: &BusBenchArgs, target: &Target, stop: &AtomicBool) -> Result<Report> {
    let size = args.size.0 as usize;
    if args.request {
        let responder = ask::Responder::open(target, size)?;
        return responder.beside(|| {
            let mut asker = Asker::open(target, size, args.in_flight)?;
            let before = asker.run(args.warm_up.0, stop)?;
            let mut asked = asker.run(args.duration.0, stop)?;
            let latency = Latency::of(&mut asked.latencies);
            Ok(Report { latency, ..Report::new(asked.replies, asked.replies, asked.time, before.replies, args.size.0) })
        });
    }
    let shape = flow::Shape {
        publishers: args.publishers,
        subscribers: args.subscribers,
        groups: args.groups,
        wildcards: args.wildcards,
        churn: args.churn,
        size,
        batch: args.batch.0 as usize,
        window: args.window.0,
    };
    let mut flow = Flow::open(target, &shape)?;
    let before = flow.run(args.warm_up.0, stop)?;
    let done = flow.run(args.duration.0, stop)?;
    Ok(Report::new(done.published, done.delivered, done.time, before.delivered, args.size.0))
}

fn target(context: &Context, args: &BusBenchArgs) -> Result<Target> {
    if args.size.0 > MAX_SIZE || args.batch.0 > MAX_SIZE {
        return Err(Error::invalid(format!("At most {} can be sent at a time.", human_size(MAX_SIZE))));
    }
    if args.groups.is_some_and(|groups| groups > args.subscribers) {
        return Err(Error::invalid("There are more queue groups than subscribers."));
    }
    let url = if args.server.contains("://") { args.server.clone() } else { format!("nats://{}", args.server) };
    let url = connect::check(&url)?;
    let bad = |why: String| Error::invalid(format!("{url} can't be measured: {why}.")).mend("Is it the right name?");
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let mut found = (host, url.port_or_known_default().unwrap_or(NATS_PORT)).to_socket_addrs().map_err(|error| bad(error.to_string()))?;
    let address = found.next().ok_or_else(|| bad("it has no address".into()))?;
    // over TCP the server says whether it wants TLS
    let trust = match (url.scheme(), &context.ca_file) {
        ("ws", _) => None,
        ("nats", None) => client::trusted(None).ok(),
        (_, ca_file) => Some(client::trusted(ca_file.as_deref())?),
    };
    let secret = |file: &Option<String>, what, flag| file.as_deref().map(|path| prompt::secret(Some(path), what, flag)).transpose();
    let connect = serde_json::json!({
        "verbose": false, "pedantic": false, "echo": true, "headers": true, "no_responders": true, "protocol": 1, "lang": "rust",
        "name": concat!("atoll-bench/", env!("CARGO_PKG_VERSION")), "version": env!("CARGO_PKG_VERSION"),
        "auth_token": secret(&args.token_file, "token", "--token-file")?,
        "user": args.user, "pass": secret(&args.password_file, "password", "--password-file")?,
    });
    Ok(Target { url, address, trust, connect: format!("CONNECT {connect}\r\n") })
}

impl Report {
    fn new(published: u64, delivered: u64, time: Duration, before: u64, size: u64) -> Self {
        let seconds = time.as_secs_f64().max(f64::MIN_POSITIVE);
        Self {
            published,
            delivered,
            seconds,
            published_per_second: published as f64 / seconds,
            delivered_per_second: delivered as f64 / seconds,
            bytes_per_second: (delivered * size) as f64 / seconds,
            total_delivered: before + delivered,
            latency: None,
        }
    }

    fn text(&self) -> String {
        let mut text = match &self.latency {
            Some(_) => format!("{} requests in {:.2} s: {:.0} a second", self.delivered, self.seconds, self.delivered_per_second),
            None => format!(
                "{} messages published and {} delivered in {:.2} s, none lost: {:.0} and {:.0} a second, {}/s of payload",
                self.published,
                self.delivered,
                self.seconds,
                self.published_per_second,
                self.delivered_per_second,
                human_size(self.bytes_per_second as u64)
            ),
        };
        if let Some(latency) = &self.latency {
            let Latency { p50_us, p90_us, p99_us, max_us } = latency;
            let _ = write!(text, "\nlatency: p50 {p50_us:.1} µs, p90 {p90_us:.1} µs, p99 {p99_us:.1} µs, longest {max_us:.1} µs");
        }
        text
    }
}

impl Latency {
    /// Nearest ranks. None of nothing.
    fn of(nanoseconds: &mut [u64]) -> Option<Self> {
        nanoseconds.sort_unstable();
        let last = nanoseconds.len().checked_sub(1)?;
        let rank = |share: f64| {
            let rank = (nanoseconds.len() as f64 * share).ceil() as usize;
            nanoseconds[rank.saturating_sub(1).min(last)] as f64 / 1000.0
        };
        Some(Self { p50_us: rank(0.5), p90_us: rank(0.9), p99_us: rank(0.99), max_us: nanoseconds[last] as f64 / 1000.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let mut all: Vec<u64> = (1..=100).rev().map(|number| number * 1000).collect();
        let latency = Latency::of(&mut all).unwrap();
        assert_eq!((latency.p50_us, latency.p90_us, latency.p99_us, latency.max_us), (50.0, 90.0, 99.0, 100.0));
        let latency = Latency::of(&mut [7000]).unwrap();
        assert_eq!((latency.p50_us, latency.p99_us), (7.0, 7.0));
        assert!(Latency::of(&mut []).is_none());
    }
}
