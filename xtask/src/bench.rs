//! `cargo xtask bench`: each figure beside its anchor, measured in the same run, since absolute times vary between machines.

use std::{
    fs,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{
    cli::Cli,
    demo::list,
    image, machine,
    sh::{self, Context, Done, Fail, fail},
    terminal::Shell,
    testbed::{Testbed, until},
};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Name {
    /// API call to a shell prompt, against `podman run` and `podman exec`.
    Start,
    /// Memory of an idle host, alone and with 1,000 dormant projects.
    Idle,
}

pub fn run(name: Name, json: bool, debug: bool) -> Done {
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
    let mut report = match name {
        Name::Start => start(&cli, &image)?,
        Name::Idle => idle(&mut bed)?,
    };
    bed.tear_down()?;
    report["build"] = if debug { "debug" } else { "release" }.into();
    if json {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}

const STARTS: usize = 20;

/// Times from the call to the prompt of a shell on a terminal, in turns with the anchor, so that a slow moment of the machine
/// hits both.
fn start(cli: &Cli, image: &str) -> Done<Value> {
    cli.run(&["project", "create", "bench", "--image", image, "--memory", "256M", "--disk", "500M"])?;
    let [files, processes] = ulimits()?;
    let works =
        |runtime: &&str| sh::works("podman", &["--runtime", runtime, "run", "--rm", "--network=none", &files, &processes, image, "true"]);
    let runtime = ["crun", "runc"].into_iter().find(works).ok_or_else(|| Fail("neither crun nor runc runs a container here".into()))?;
    let (mut ours, mut anchors) = (Vec::new(), Vec::new());
    for round in 0..=STARTS {
        let time = start_once(cli)?;
        let anchor = podman_once(image, runtime)?;
        // the first of each warms the caches up
        if round > 0 {
            ours.push(time);
            anchors.push(anchor);
        }
        eprintln!("{round:>3}  atoll {:.3} s  podman {:.3} s", time.as_secs_f64(), anchor.as_secs_f64());
    }
    let [(ours_50, ours_95), (anchor_50, anchor_95)] = [percentiles(&mut ours), percentiles(&mut anchors)];
    Ok(json!({
        "bench": "start", "runs": STARTS,
        "atoll": { "p50_s": ours_50, "p95_s": ours_95 },
        "anchor": { "what": "podman run --detach, then podman exec to the prompt", "p50_s": anchor_50, "p95_s": anchor_95 },
        "ratio_p50": ours_50 / anchor_50, "ratio_p95": ours_95 / anchor_95, "aim_ratio": 1.0, "aim_p95_s": 0.6,
    }))
}

fn start_once(cli: &Cli) -> Done<Duration> {
    let begin = now();
    cli.run(&["project", "start", "bench"])?;
    let shell = Shell::open(cli, "bench", "main")?;
    prompt(&shell)?;
    let time = begin.elapsed();
    shell.detach()?;
    cli.run(&["project", "stop", "bench"])?;
    Ok(time)
}

/// The same with podman alone and the same limits: what a person would type without Atoll.
fn podman_once(image: &str, runtime: &str) -> Done<Duration> {
    let [files, processes] = ulimits()?;
    let begin = now();
    let args = [
        "--runtime",
        runtime,
        "run",
        "--detach",
        "--memory=256m",
        "--cpus=1",
        "--pids-limit=4096",
        &files,
        &processes,
        image,
        "sleep",
        "600",
    ];
    let id = sh::read("podman", &args)?;
    let mut exec = sh::command("podman", &["--runtime", runtime, "exec", "--interactive", "--tty", &id, "bash"]);
    exec.env("TERM", "xterm-256color");
    let shell = Shell::spawn(exec)?;
    prompt(&shell)?;
    let time = begin.elapsed();
    shell.leave();
    sh::read("podman", &["rm", "--force", "--time", "0", &id])?;
    Ok(time)
}

/// Hard limits that podman may set here: no more than this process has, and no more processes than the kernel numbers.
fn ulimits() -> Done<[String; 2]> {
    let own = |resource| rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let ids: u64 = fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse().context("pid_max")?;
    let (files, processes) = (own(rustix::process::Resource::Nofile).min(1 << 20), own(rustix::process::Resource::Nproc).min(ids));
    Ok([format!("--ulimit=nofile={files}:{files}"), format!("--ulimit=nproc={processes}:{processes}")])
}

fn prompt(shell: &Shell) -> Done {
    let at_prompt = || shell.text().trim_end().ends_with(['#', '$']);
    until(Duration::from_secs(30), || Ok(at_prompt().then_some(())))
        .with_context(|| format!("waiting for a prompt, seen {:?}", shell.text()))
}

trait WithContext<T> {
    fn with_context(self, what: impl FnOnce() -> String) -> Done<T>;
}

impl<T> WithContext<T> for Done<T> {
    fn with_context(self, what: impl FnOnce() -> String) -> Self {
        self.map_err(|error| Fail(format!("{}: {error}", what())))
    }
}

/// The median and the 95th percentile (nearest rank), in seconds.
fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let rank = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1].as_secs_f64();
    (rank(0.5), rank(0.95))
}

const DORMANT: usize = 1000;
const AT_ONCE: usize = 8;

/// Resident memory of the host program, and what 1,000 projects that don't run add to it. The anchor is the aim.
fn idle(bed: &mut Testbed) -> Done<Value> {
    let cli = bed.cli();
    let host = bed.pid("host-a")?;
    let before = resident(host)?;
    create_dormant(&cli)?;
    // a fresh program with the same records: what creating them left in the allocator isn't what a dormant project costs
    bed.kill("host-a")?;
    bed.restart("host-a")?;
    until(Duration::from_mins(1), || {
        let page = cli.json(&["project", "list"])?;
        let projects = list(&page, "projects");
        Ok((projects.len() == DORMANT && projects.iter().all(|project| project["observed"] == "stopped")).then_some(()))
    })
    .context("waiting for all projects to be reported")?;
    let host = bed.pid("host-a")?;
    let after = resident(host)?;
    let per_project = after.saturating_sub(before) / DORMANT as u64;
    let mut lists = Vec::new();
    for _ in 0..10 {
        let begin = now();
        cli.json(&["project", "list"])?;
        lists.push(begin.elapsed());
    }
    let (list_50, _) = percentiles(&mut lists);
    let mut anchors = Vec::new();
    for _ in 0..10 {
        let begin = now();
        sh::read("podman", &["ps", "--all", "--format", "json"])?;
        anchors.push(begin.elapsed());
    }
    let (anchor_50, _) = percentiles(&mut anchors);
    Ok(json!({
        "bench": "idle", "projects": DORMANT,
        "host_bytes": before, "aim_host_bytes": 60_000_000, "ratio_host": before as f64 / 60e6,
        "per_dormant_project_bytes": per_project, "aim_per_dormant_project_bytes": 20_000, "ratio_per_project": per_project as f64 / 20e3,
        "project_list_s": list_50, "anchor": { "what": "podman ps --all with no containers", "p50_s": anchor_50 }, "ratio_list": list_50 / anchor_50,
    }))
}

fn create_dormant(cli: &Cli) -> Done {
    let image = "localhost/atoll-bench-dormant:latest";
    // dormant projects never start, so the image only has to be there
    let empty = tempfile::NamedTempFile::new()?;
    fs::write(empty.path(), [0u8; 1024])?;
    sh::read("podman", &["import", "--quiet", crate::testbed::utf8(empty.path())?, image])?;
    let create = |number: usize| {
        let name = format!("dormant-{number}");
        cli.run(&["project", "create", &name, "--image", image, "--disk", "1M"]).map(drop)
    };
    let made = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..AT_ONCE).map(|worker| scope.spawn(move || (worker..DORMANT).step_by(AT_ONCE).try_for_each(create))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| fail("a thread died")))
    });
    let _ = sh::read("podman", &["rmi", "--force", image]);
    made
}

/// Bytes of memory that are this process's own (`Pss`), from /proc.
fn resident(pid: u32) -> Done<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| Fail("no Pss in smaps_rollup".into()))
}

#[expect(clippy::disallowed_methods, reason = "no tokio here")]
fn now() -> Instant {
    Instant::now()
}
