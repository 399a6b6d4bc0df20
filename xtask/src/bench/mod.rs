//! `cargo xtask bench`: each figure beside its anchor, measured in the same run, since absolute times vary between machines.

mod bus;
mod idle;
mod scale;
mod start;
mod streams;

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use crate::{
    demo::list,
    image, machine,
    sh::{self, Done},
    testbed::{Testbed, until},
};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Name {
    /// API call to a shell prompt, against `podman run` and `podman exec`.
    Start,
    /// Memory of an idle host, alone and with 1,000 dormant projects.
    Idle,
    /// Messages over the bus, against nats-server.
    Bus,
    /// Memory of the bus with 10,000 connections and 1,000,000 subscriptions, against nats-server.
    Scale,
    /// Acknowledged appends and replay of a log over the bus, against plain SQLite.
    Streams,
}

#[derive(Debug, clap::Args)]
pub struct Options {
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// Measure the debug build (figures are then for finding mistakes, not for quoting).
    #[arg(long)]
    debug: bool,
    /// Of `bus`: shorter and fewer rounds, for work on one thing.
    #[arg(long)]
    quick: bool,
    /// Of `bus`: only shapes whose name begins so, such as `1-1` or `queue`.
    #[arg(long, value_name = "SHAPE")]
    only: Option<String>,
    /// Of `bus`: measure this program instead of building one, for comparing builds.
    #[arg(long, value_name = "FILE")]
    binary: Option<std::path::PathBuf>,
}

pub fn run(name: Name, options: &Options) -> Done {
    let (mut report, table) = match name {
        Name::Start => (on_a_cluster(options.debug, |bed, image| start::start(&bed.cli(), image))?, None),
        Name::Idle => (on_a_cluster(options.debug, |bed, _| idle::idle(bed))?, None),
        Name::Scale => (scale::scale(options)?, None),
        Name::Streams => (streams::streams(options.debug)?, None),
        Name::Bus => bus::run(options).map(|(report, table)| (report, Some(table)))?,
    };
    report["build"] = if options.debug { "debug" } else { "release" }.into();
    match table {
        _ if options.json => println!("{report}"),
        Some(table) => print!("{table}"),
        None => println!("{report:#}"),
    }
    Ok(())
}

/// Measures on a master and one host that are there for this alone; `measure` is also given an image to start projects from.
fn on_a_cluster(debug: bool, measure: impl FnOnce(&mut Testbed, &str) -> Done<Value>) -> Done<Value> {
    machine::prepare()?;
    let image = image::obtain(image::DEFAULT)?;
    let binary = machine::build(!debug)?;
    let mut bed = Testbed::new(&sh::root().join(".data/bench"), &binary)?;
    bed.start_master()?;
    bed.first_account("admin")?;
    let volumes = bed.volumes("a")?;
    bed.start_host("a", &volumes)?;
    let cli = bed.cli();
    until(Duration::from_secs(30), || Ok((list(&cli.json(&["host", "list"])?, "hosts")[0]["state"] == "online").then_some(())))?;
    let report = measure(&mut bed, &image)?;
    bed.tear_down()?;
    Ok(report)
}

/// The median and the 95th percentile (nearest rank), in seconds.
fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let rank = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1].as_secs_f64();
    (rank(0.5), rank(0.95))
}

#[expect(clippy::disallowed_methods, reason = "no tokio here")]
fn now() -> Instant {
    Instant::now()
}
