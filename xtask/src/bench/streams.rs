//! Logs over the bus, against plain SQLite with the same durability. The measuring program is an example of the crate that has both.

use std::path::Path;

use serde_json::Value;

use crate::{
    machine,
    sh::{self, Done},
    testbed::Testbed,
};

/// Acknowledged appends a second and the rate of a replay: on a btrfs file system, which projects' files are on where a host has one, and on the
/// disk that holds the workspace. A commit costs several times more on the one than on the other.
pub fn streams(debug: bool) -> Done<Value> {
    machine::prepare()?;
    let mut bed = Testbed::new(&sh::root().join(".data/bench-streams"), Path::new(""))?;
    let mut report = serde_json::json!({ "bench": "streams" });
    if sh::is_root() {
        let volumes = bed.volumes("streams")?;
        report["btrfs"] = on(&volumes, debug)?;
    }
    report["workspace"] = on(&bed.dir, debug)?;
    bed.tear_down()?;
    Ok(report)
}

fn on(dir: &Path, debug: bool) -> Done<Value> {
    let mut args = vec!["run", "--quiet", "--package", "atoll-net", "--example", "bench_streams"];
    if !debug {
        args.push("--release");
    }
    let mut cargo = sh::command(machine::cargo(), &args);
    cargo.arg("--").arg(dir).current_dir(sh::root()).stderr(std::process::Stdio::inherit());
    let output = sh::output(&mut cargo)?;
    if !output.status.success() {
        return sh::fail(format!("{} ended with {}", sh::shown(&cargo), output.status));
    }
    let mut report: Value = serde_json::from_slice(&output.stdout)?;
    // statfs(2) by way of coreutils
    report["file_system"] = sh::read("stat", &["--file-system", "--format=%T", crate::testbed::utf8(dir)?])?.into();
    Ok(report)
}
