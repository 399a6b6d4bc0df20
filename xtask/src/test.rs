//! `cargo xtask test`: every test, and at the end what was skipped and why.

use std::io::{BufRead, BufReader};

use crate::{
    image, machine,
    sh::{self, Context, Done, fail},
};

/// A test that can't run on this machine writes a line that begins so to stderr.
const SKIPPED: &str = "skipped: ";

pub fn run(args: &[String]) -> Done {
    machine::prepare_for_tests()?;
    let image = image::obtain(image::DEFAULT)?;
    let binary = machine::build(false)?;
    let mut cargo = sh::command(machine::cargo(), &["test", "--workspace", "--no-fail-fast"]);
    if !args.is_empty() {
        cargo = sh::command(machine::cargo(), &["test"]);
        cargo.args(args);
    }
    // the real cluster tests run the binary and this image
    cargo.current_dir(sh::root()).env("ATOLL_TEST_BINARY", &binary).env("ATOLL_TEST_IMAGE", &image);
    let mut child = cargo.stderr(std::process::Stdio::piped()).spawn().context(sh::shown(&cargo))?;
    let mut skipped = Vec::new();
    for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line?;
        eprintln!("{line}");
        skipped.extend(line.strip_prefix(SKIPPED).map(str::to_owned));
    }
    let status = child.wait()?;
    let models = if args.is_empty() { models() } else { Ok(()) };
    // a call for some tests alone is somebody at work on those
    let faults = if args.is_empty() { crate::faults::run(&binary, &image) } else { Ok(()) };
    let tidy = crate::tidy::run();
    if skipped.is_empty() {
        println!("\nnothing was skipped");
    } else {
        println!("\n{} skipped on this machine:", skipped.len());
        skipped.iter().for_each(|line| println!("  {line}"));
    }
    models.and(faults).and(tidy)?;
    if status.success() { Ok(()) } else { fail("some tests failed; see above") }
}

/// The models of the bus's concurrent parts: a build of their own, since they replace its locks.
fn models() -> Done {
    sh::run(machine::cargo(), &["test", "--package", "atoll-net", "--features", "model", "--lib", "bus::model"])
}

/// The fault cases alone.
pub fn faults() -> Done {
    machine::prepare()?;
    let image = image::obtain(image::DEFAULT)?;
    crate::faults::run(&machine::build(false)?, &image)
}
