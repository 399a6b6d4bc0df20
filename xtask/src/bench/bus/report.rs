//! Figures and ratios, for programs and for people.

use std::{fmt::Write, path::Path};

use serde_json::{Value, json};

use super::{
    Aim, Effort, Measured, Sample,
    server::{BEST_CONFIG, BEST_ENVIRONMENT},
};
use crate::sh::{self, Done};

/// A ratio within each round.
struct Ratio {
    median: f64,
    least: f64,
    most: f64,
}

impl Ratio {
    fn of(ours: &[Sample], theirs: &[Sample], figure: impl Fn(&Sample) -> f64) -> Self {
        let all: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| figure(ours) / figure(theirs)).collect();
        let least = all.iter().copied().fold(f64::INFINITY, f64::min);
        let most = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self { median: median(all), least, most }
    }

    fn json(&self) -> Value {
        json!({ "median": round(self.median), "min": round(self.least), "max": round(self.most) })
    }

    fn text(&self) -> String {
        format!("{:.2} ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}

/// The figure that the aim is about.
fn figure(aim: Aim) -> impl Fn(&Sample) -> f64 {
    move |sample| match aim {
        Aim::Rate(_) => sample.rate,
        Aim::Median(_) => sample.p50_us.unwrap_or(f64::NAN),
    }
}

fn met(aim: Aim, ratio: &Ratio) -> bool {
    match aim {
        Aim::Rate(least) => ratio.median >= least,
        Aim::Median(most) => ratio.median <= most,
    }
}

fn aim_text(aim: Aim) -> String {
    match aim {
        Aim::Rate(least) => format!("≥ {least:.1}"),
        Aim::Median(most) => format!("≤ {most:.1}"),
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    let half = all.len() / 2;
    match all.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => all[half],
        _ => f64::midpoint(all[half - 1], all[half]),
    }
}

fn middle(samples: &[Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(figure).collect())
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Progress: one line for a shape that is done.
pub fn line(measured: &Measured) -> String {
    let aim = measured.shape.aim;
    let shipped = Ratio::of(&measured.atoll, &measured.shipped, figure(aim));
    let best = Ratio::of(&measured.atoll, &measured.best, figure(aim));
    format!("{:<16} {} as shipped, {} at its best, aim {}", measured.shape.name, shipped.text(), best.text(), aim_text(aim))
}

const HEAD: [&str; 9] = [
    "shape",
    "atoll",
    "nats-server",
    "ratio (min–max)",
    "at its best",
    "ratio (min–max)",
    "aim",
    "met",
    "CPU s/M: atoll, nats, best, load",
];

pub fn table(all: &[Measured]) -> String {
    let mut rows = vec![HEAD.map(String::from)];
    for measured in all {
        let aim = measured.shape.aim;
        let shipped = Ratio::of(&measured.atoll, &measured.shipped, figure(aim));
        let best = Ratio::of(&measured.atoll, &measured.best, figure(aim));
        let met = match [met(aim, &shipped), met(aim, &best)] {
            [true, true] => "yes",
            [true, false] => "as shipped only",
            [false, true] => "at best only",
            [false, false] => "no",
        };
        let cpu = |samples: &[Sample]| format!("{:.2}", middle(samples, |sample| sample.server_cpu));
        let load = format!("{:.2}", middle(&measured.atoll, |sample| sample.client_cpu));
        rows.push([
            measured.shape.name.into(),
            shown(aim, &measured.atoll),
            shown(aim, &measured.shipped),
            shipped.text(),
            shown(aim, &measured.best),
            best.text(),
            aim_text(aim),
            met.into(),
            [cpu(&measured.atoll), cpu(&measured.shipped), cpu(&measured.best), load].join(", "),
        ]);
    }
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    rows.iter().fold(String::new(), |mut text, row| {
        let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
        text
    })
}

/// Deliveries a second, or the median and the 99th percentile.
fn shown(aim: Aim, samples: &[Sample]) -> String {
    match aim {
        Aim::Rate(_) => match middle(samples, |sample| sample.rate) {
            rate if rate >= 1e6 => format!("{:.2} M/s", rate / 1e6),
            rate => format!("{:.1} k/s", rate / 1e3),
        },
        Aim::Median(_) => {
            let [p50, p99] = [|sample: &Sample| sample.p50_us, |sample: &Sample| sample.p99_us]
                .map(|figure| middle(samples, |sample| figure(sample).unwrap_or(f64::NAN)));
            format!("{p50:.1}, p99 {p99:.1} µs")
        }
    }
}

pub fn json(all: &[Measured], effort: &Effort, nats: &Path) -> Done<Value> {
    let side = |samples: &[Sample]| {
        let optional = |figure: fn(&Sample) -> Option<f64>| {
            let all: Vec<f64> = samples.iter().filter_map(figure).collect();
            (!all.is_empty()).then(|| round(median(all)))
        };
        json!({
            "messages_per_second": middle(samples, |sample| sample.rate).round(),
            "p50_us": optional(|sample| sample.p50_us), "p99_us": optional(|sample| sample.p99_us),
            "server_cpu_s_per_million": round(middle(samples, |sample| sample.server_cpu)),
            "load_cpu_s_per_million": round(middle(samples, |sample| sample.client_cpu)),
        })
    };
    let shapes: Vec<Value> = all
        .iter()
        .map(|measured| {
            let aim = measured.shape.aim;
            let shipped = Ratio::of(&measured.atoll, &measured.shipped, figure(aim));
            let best = Ratio::of(&measured.atoll, &measured.best, figure(aim));
            let aim_json = match aim {
                Aim::Rate(least) => json!({ "of": "messages_per_second", "at_least": least }),
                Aim::Median(most) => json!({ "of": "p50_us", "at_most": most }),
            };
            json!({
                "shape": measured.shape.name, "load": measured.shape.args,
                "atoll": side(&measured.atoll), "nats_server": side(&measured.shipped), "nats_server_best": side(&measured.best),
                "ratio": shipped.json(), "ratio_best": best.json(), "aim": aim_json,
                "met": met(aim, &shipped), "met_best": met(aim, &best),
            })
        })
        .collect();
    let environment = BEST_ENVIRONMENT.iter().map(|(name, value)| format!("{name}={value}"));
    let best: Vec<String> = environment.chain(BEST_CONFIG.lines().map(Into::into)).collect();
    Ok(json!({
        "bench": "bus", "rounds": effort.rounds, "duration": effort.duration,
        "anchor": { "what": sh::read(nats, &["--version"])?, "best": best },
        "load": "atoll bus bench: one thread for all connections that flow, a thread each for requests",
        "processors": std::thread::available_parallelism()?.get(),
        "load_average": std::fs::read_to_string("/proc/loadavg")?.split(' ').next(),
        "shapes": shapes,
    }))
}
