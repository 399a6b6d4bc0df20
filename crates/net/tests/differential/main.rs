//! The same bytes to Debian's nats-server and to this bus: where the protocol fixes the replies they are the same, and what differs on
//! purpose is listed in `differences` and in docs/reference/bus.md.
//!
//! `ATOLL_DIFFERENTIAL_SEED` and `ATOLL_DIFFERENTIAL_SCRIPTS` make other generated scripts, and more.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests, helpers included")]

mod differences;
mod fixed;
mod generated;
mod script;
mod servers;
mod transcript;

use std::{collections::BTreeMap, io::Write};

use differences::{Difference, LIST, SILENT, only_last_words, refuses};
use generated::Plan;
use script::{Script, Which};
use servers::{Pair, Pairs};

#[test]
fn the_fixed_scripts_get_the_same_replies() {
    let Some(pairs) = Pairs::start("differential::fixed") else { return };
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for script in fixed::all() {
        let found = compare(pairs.of(script.which), &script);
        match (script.differs, found) {
            (None, Found::Same) => {}
            (None, Found::LastWords) => *seen.entry(SILENT).or_default() += 1,
            (None, Found::Refused(difference) | Found::Other(difference)) => wrong.push(difference),
            (Some(name), Found::Refused(_) | Found::Other(_)) => *seen.entry(name).or_default() += 1,
            (Some(name), _) => wrong.push(format!("{}: {name:?} is said to differ here and doesn't", script.shown())),
        }
    }
    for Difference { name, .. } in LIST {
        if !seen.contains_key(name) {
            wrong.push(format!("no script shows the difference {name:?}"));
        }
    }
    let unknown: Vec<_> = seen.keys().filter(|name| !LIST.iter().any(|known| known.name == **name)).collect();
    assert!(unknown.is_empty(), "{unknown:?} aren't in the list");
    assert!(wrong.is_empty(), "{} of the fixed scripts:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn generated_scripts_get_the_same_replies() {
    let Some(pairs) = Pairs::start("differential::generated") else { return };
    let count = std::env::var("ATOLL_DIFFERENTIAL_SCRIPTS").ok().and_then(|count| count.parse().ok()).unwrap_or(4000);
    let seed = std::env::var("ATOLL_DIFFERENTIAL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for number in 0..count {
        let plan = generated::plan(seed, number);
        match compare(pairs.of(plan.which), &plan.script()) {
            Found::Same | Found::LastWords => {}
            Found::Refused(_) => refused += 1,
            Found::Other(first) => {
                // the smallest part of it that still differs
                let small = plan.shrink(|plan| differs(&pairs, plan).is_some());
                let last = differs(&pairs, &small).unwrap_or_else(|| format!("not a second time: {first}"));
                wrong.push(format!("script {number} of seed {seed}: {last}"));
                if wrong.len() >= 8 {
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "generated scripts:\n\n{}", wrong.join("\n\n"));
    // what is stricter here meets damaged scripts alone; if it were more, the others would prove little
    assert!(refused * 20 < count, "{refused} of {count} scripts were refused here");
}

fn differs(pairs: &Pairs, plan: &Plan) -> Option<String> {
    match compare(pairs.of(plan.which), &plan.script()) {
        Found::Same | Found::LastWords | Found::Refused(_) => None,
        Found::Other(difference) => Some(difference),
    }
}

/// Says that a test can't run on this machine, past the test harness, for `cargo xtask test` to list.
fn skipped(test: &str, reason: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {test}: {reason}\n").as_bytes()); // nobody may be reading
}

enum Found {
    Same,
    /// [`SILENT`] alone.
    LastWords,
    /// Something is refused here by one of the stricter rules in the list (or a message counted), and what follows may differ for that.
    Refused(String),
    Other(String),
}

fn compare(pair: &Pair, script: &Script) -> Found {
    let ours = script.play(pair.ours);
    let theirs = script.play(pair.theirs);
    if theirs == ours {
        Found::Same
    } else if only_last_words(&theirs, &ours) {
        Found::LastWords
    } else {
        let shown = format!("{}\n  nats-server: {}\n  this bus:    {}", script.shown(), theirs.shown(), ours.shown());
        if refuses(&theirs, &ours) || theirs.no_responders() && script.limits() { Found::Refused(shown) } else { Found::Other(shown) }
    }
}

#[test]
fn the_reference_has_the_differences() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/bus.md")).unwrap();
    let table = differences::table();
    assert!(page.contains(&table), "docs/reference/bus.md, \"Differences from nats-server\", should have this table:\n\n{table}");
}

#[test]
fn in_lame_duck_mode_both_say_so() {
    let Some(mut pairs) = Pairs::start_only("differential::lame_duck", &[Which::Open]) else { return };
    let said = pairs.lame_duck();
    assert_eq!(said, ["INFO ldm", "INFO ldm"]);
}
