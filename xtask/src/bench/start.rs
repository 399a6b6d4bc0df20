//! From the API call to a shell's prompt, against podman alone.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use super::{now, percentiles};
use crate::{
    cli::Cli,
    sh::{self, Context, Done, Fail},
    terminal::Shell,
    testbed::until,
};

const STARTS: usize = 20;

/// Times from the call to the prompt of a shell on a terminal, in turns with the anchor, so that a slow moment of the machine
/// hits both.
pub fn start(cli: &Cli, image: &str) -> Done<Value> {
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
