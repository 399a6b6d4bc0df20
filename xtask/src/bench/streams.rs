//! Logs over the bus, against plain SQLite with the same durability. The measuring program is an example of the crate that has both.

use serde_json::Value;

use crate::{
    machine,
    sh::{self, Done},
};

/// Acknowledged appends a second and the rate of a replay, on the disk that holds the workspace.
pub fn streams(debug: bool) -> Done<Value> {
    let dir = sh::root().join(".data/bench-streams");
    std::fs::create_dir_all(&dir)?;
    let mut args = vec!["run", "--quiet", "--package", "atoll-net", "--example", "bench_streams"];
    if !debug {
        args.push("--release");
    }
    let mut cargo = sh::command(machine::cargo(), &args);
    cargo.arg("--").arg(&dir).current_dir(sh::root()).stderr(std::process::Stdio::inherit());
    let output = sh::output(&mut cargo)?;
    if !output.status.success() {
        return sh::fail(format!("{} ended with {}", sh::shown(&cargo), output.status));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
