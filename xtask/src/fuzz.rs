//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, built with instrumentation by the compiler that is there (docs/runbooks/fuzzing.md).

use std::{fs, path::PathBuf, process::Child};

use crate::{
    machine,
    sh::{self, Context, Done, fail},
};

const TARGETS: &[&str] = &["bus_tcp", "bus_websocket", "bus_server_ops", "bus_headers"];
/// What `cargo fuzz` passes, too: coverage that libFuzzer reads, and the address sanitizer. Only a nightly compiler takes `-Z` by itself.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Zsanitizer=address",
    "-Cforce-frame-pointers=yes",
    "-Ccodegen-units=1",
];
/// Of one process; the address sanitizer takes most of it.
const MEMORY_MB: usize = 3000;
/// Seconds that one input may take: a thousand times what they take.
const SLOWEST: usize = 60;
/// Bytes of an input at most.
const LONGEST: usize = 2048;

/// Runs the targets at once, each for so long. Fails if one finds something; the input is then in `fuzz/artifacts`.
pub fn run(minutes: u64, only: &[String]) -> Done {
    if let Some(unknown) = only.iter().find(|name| !TARGETS.contains(&name.as_str())) {
        return fail(format!("{unknown} isn't a target; there are {}", TARGETS.join(", ")));
    }
    let targets: Vec<_> = TARGETS.iter().filter(|target| only.is_empty() || only.iter().any(|name| name == *target)).collect();
    let programs = build()?;
    let running = targets.iter().map(|target| start(&programs, target, minutes)).collect::<Done<Vec<_>>>()?;
    let mut found = Vec::new();
    for (target, mut child) in targets.iter().zip(running) {
        if !child.wait()?.success() {
            found.push(format!("{target}: see fuzz/artifacts/{target} and fuzz/artifacts/{target}.log"));
        }
    }
    if found.is_empty() { Ok(()) } else { fail(found.join("\n")) }
}

/// Builds all targets. The folder with the programs.
fn build() -> Done<PathBuf> {
    let version = sh::read("rustc", &["--version", "--verbose"])?;
    let Some(host) = version.lines().find_map(|line| line.strip_prefix("host: ")) else { return fail("rustc doesn't say what it runs on") };
    let folder = sh::root().join("fuzz");
    let mut cargo = sh::command(machine::cargo(), &["build", "--release", "--target", host]);
    cargo.current_dir(&folder).env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS.join(" "));
    if !cargo.status().context(sh::shown(&cargo))?.success() {
        return fail("the fuzz targets can't be built; the messages are above");
    }
    Ok(folder.join("target").join(host).join("release"))
}

/// Starts a target on its seeds and on what earlier runs found to be new.
fn start(programs: &std::path::Path, target: &str, minutes: u64) -> Done<Child> {
    let folder = sh::root().join("fuzz");
    let (corpus, artifacts) = (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let log = fs::File::create(artifacts.with_extension("log"))?;
    let mut command = sh::command(programs.join(target), &[]);
    command
        .arg(corpus)
        .arg(folder.join("seeds").join(target))
        .arg(format!("-dict={}", folder.join("nats.dict").display()))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={}", minutes * 60))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-timeout={SLOWEST}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg("-print_final_stats=1");
    println!("{target}: {minutes} min, log in fuzz/artifacts/{target}.log");
    command.stdout(log.try_clone()?).stderr(log).spawn().context(sh::shown(&command))
}
