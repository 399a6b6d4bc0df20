//! The TypeScript helpers for streams against the program, by Node.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that panics is a test that fails, and this one runs programs")]

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// `cargo xtask test` lists these lines at its end; so they go to the process's own stderr, which the test harness doesn't swallow.
fn skipped(reason: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: streams_typescript: {reason}\n").as_bytes());
}

fn works(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn the_typescript_helpers_do_what_they_say() {
    if let Some(missing) = ["node", "npm"].into_iter().find(|program| !works(program)) {
        return skipped(&format!("there is no {missing} (Debian packages nodejs and npm)"));
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ui/streams");
    let npm =
        |args: &[&str]| Command::new("npm").args(args).current_dir(&dir).env("ATOLL_BINARY", env!("CARGO_BIN_EXE_atoll")).output().unwrap();
    // npm writes the list of what it has installed last; it is older than what is wanted if that has changed since
    let written = |file: &str| dir.join(file).metadata().and_then(|metadata| metadata.modified()).ok();
    if written("node_modules/.package-lock.json") < written("package-lock.json") {
        let installed = npm(&["ci", "--no-audit", "--no-fund"]);
        if !installed.status.success() {
            return skipped(&format!(
                "its packages can't be had: {}",
                String::from_utf8_lossy(&installed.stderr).trim().replace('\n', " ")
            ));
        }
    }
    let tested = npm(&["test"]);
    let said = String::from_utf8_lossy(&tested.stdout);
    assert!(tested.status.success(), "{said}\n{}", String::from_utf8_lossy(&tested.stderr));
    // a run in which no test was found would also be a success
    assert!(said.lines().any(|line| line.trim().strip_prefix("# pass ").is_some_and(|count| count.parse::<u32>().unwrap() >= 6)), "{said}");
}
