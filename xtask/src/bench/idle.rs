//! What an idle host and its dormant projects take.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use super::{now, percentiles};
use crate::{
    cli::Cli,
    demo::list,
    sh::{self, Context, Done, Fail, fail},
    testbed::{Testbed, until},
};

const DORMANT: usize = 1000;
const AT_ONCE: usize = 8;

/// Resident memory of the host program, and what 1,000 projects that don't run add to it. The anchor is the aim.
pub fn idle(bed: &mut Testbed) -> Done<Value> {
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
pub fn resident(pid: u32) -> Done<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kilobytes =
        text.lines().find_map(|line| line.strip_prefix("Pss:")).and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1024).ok_or_else(|| Fail("no Pss in smaps_rollup".into()))
}
