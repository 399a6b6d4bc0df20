//! `bench bus`: Atoll's bus and nats-server under the same load (`atoll bus bench`), in turns.
//!
//! Each shape has servers of its own, started for it and there for all its rounds. In every round each server is measured once, one after the
//! other, and ratios are taken within a round, so that a slow moment of the machine hits both sides of a ratio. The load counts what arrives: a lost
//! message fails the run.

mod report;
pub mod server;

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use self::server::{Kind, Server};
use super::Options;
use crate::{
    machine,
    sh::{self, Context, Done, Fail, fail},
};

/// What is measured, and what the issue aims at.
struct Shape {
    name: &'static str,
    args: &'static [&'static str],
    aim: Aim,
}

#[derive(Clone, Copy)]
enum Aim {
    /// So many times nats-server's deliveries a second, or more.
    Rate(f64),
    /// So much of nats-server's median latency, or less.
    Median(f64),
}

const fn rate(name: &'static str, args: &'static [&'static str], aim: f64) -> Shape {
    Shape { name, args, aim: Aim::Rate(aim) }
}

const SHAPES: &[Shape] = &[
    rate("1-1-16", &["--size", "16"], 1.5),
    rate("1-1-128", &["--size", "128"], 1.5),
    rate("1-1-4K", &["--size", "4K"], 1.5),
    rate("1-8-16", &["--size", "16", "--subscribers", "8"], 1.5),
    rate("1-8-128", &["--size", "128", "--subscribers", "8"], 1.5),
    rate("1-8-4K", &["--size", "4K", "--subscribers", "8"], 1.5),
    rate("8-1-16", &["--size", "16", "--publishers", "8"], 1.0),
    rate("8-1-128", &["--size", "128", "--publishers", "8"], 1.0),
    rate("8-1-4K", &["--size", "4K", "--publishers", "8"], 1.0),
    Shape { name: "request", args: &["--size", "128", "--request"], aim: Aim::Median(0.8) },
    rate("request-16", &["--size", "128", "--request", "--in-flight", "16"], 1.0),
    rate("wildcards", &["--size", "16", "--wildcards", "--subscribers", "4"], 1.0),
    rate("wildcards-churn", &["--size", "16", "--wildcards", "--churn", "--subscribers", "4"], 1.0),
    rate("queue-1x8", &["--size", "128", "--subscribers", "8", "--groups", "1"], 1.0),
    rate("queue-4x2", &["--size", "128", "--subscribers", "8", "--groups", "4"], 1.0),
];

/// How long each measurement takes, and how often it is done.
struct Effort {
    rounds: usize,
    duration: &'static str,
    warm_up: &'static str,
}

const FULL: Effort = Effort { rounds: 5, duration: "600ms", warm_up: "150ms" };
const QUICK: Effort = Effort { rounds: 3, duration: "300ms", warm_up: "100ms" };

/// One run of the load against one server.
struct Sample {
    rate: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// Seconds of processor for a million deliveries.
    server_cpu: f64,
    client_cpu: f64,
}

/// What `atoll bus bench --json` prints, as far as it matters here.
#[derive(Deserialize)]
struct Load {
    delivered_per_second: f64,
    total_delivered: u64,
    latency: Option<Latency>,
}

#[derive(Deserialize)]
struct Latency {
    p50_us: f64,
    p99_us: f64,
}

/// One shape's samples, by server and round.
struct Measured {
    shape: &'static Shape,
    atoll: Vec<Sample>,
    shipped: Vec<Sample>,
    best: Vec<Sample>,
}

/// The figures as JSON, and as a table for people.
pub fn run(options: &Options) -> Done<(Value, String)> {
    let shapes: Vec<&'static Shape> =
        SHAPES.iter().filter(|shape| options.only.as_deref().is_none_or(|only| shape.name.starts_with(only))).collect();
    if shapes.is_empty() {
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        return fail(format!("no shape begins so; there are {}", names.join(", ")));
    }
    let nats = sh::find("nats-server").ok_or_else(|| Fail("nats-server isn't installed (apt-get install nats-server)".into()))?;
    let atoll = options.binary.clone().map_or_else(|| machine::build(!options.debug), Ok)?;
    let effort = if options.quick { QUICK } else { FULL };
    let mut all = Vec::new();
    for shape in shapes {
        let measured = measure(shape, &effort, &atoll, &nats)?;
        eprintln!("{}", report::line(&measured));
        all.push(measured);
    }
    Ok((report::json(&all, &effort, &nats)?, report::table(&all)))
}

fn measure(shape: &'static Shape, effort: &Effort, atoll: &Path, nats: &Path) -> Done<Measured> {
    let start = |kind| Server::start(kind, atoll, nats);
    let servers = [start(Kind::Atoll)?, start(Kind::Nats)?, start(Kind::NatsBest)?];
    let mut samples: [Vec<Sample>; 3] = Default::default();
    for _ in 0..effort.rounds {
        for (server, samples) in servers.iter().zip(&mut samples) {
            samples.push(sample(shape, effort, atoll, server)?);
        }
    }
    let [atoll, shipped, best] = samples;
    Ok(Measured { shape, atoll, shipped, best })
}

fn sample(shape: &Shape, effort: &Effort, atoll: &Path, server: &Server) -> Done<Sample> {
    let address = server.address.to_string();
    let mut args = vec!["bus", "bench", "--json", "--server", &address, "--duration", effort.duration, "--warm-up", effort.warm_up];
    args.extend(shape.args);
    let (server_before, client_before) = (server.cpu()?, server::children_cpu()?);
    let text = sh::read(atoll, &args).context(format!("{} with {}", shape.name, server.kind.name()))?;
    let (server_cpu, client_cpu) = (server.cpu()? - server_before, server::children_cpu()? - client_before);
    let load: Load = serde_json::from_str(&text)?;
    let millions = load.total_delivered as f64 / 1e6;
    Ok(Sample {
        rate: load.delivered_per_second,
        p50_us: load.latency.as_ref().map(|latency| latency.p50_us),
        p99_us: load.latency.as_ref().map(|latency| latency.p99_us),
        server_cpu: server_cpu / millions,
        client_cpu: client_cpu / millions,
    })
}
