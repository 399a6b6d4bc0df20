//! The program as users meet it, without any server.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

use std::{fs, path::Path};

use assert_cmd::Command;

/// The program in an environment of its own.
fn atoll(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.timeout(std::time::Duration::from_mins(1));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_and_version_are_there() {
    let home = tempfile::tempdir().unwrap();
    let output = atoll(home.path()).arg("--help").assert().success().get_output().clone();
    for word in ["project", "exec", "shell", "cp", "doctor", "Examples:", "Exit codes:"] {
        assert!(text(&output.stdout).contains(word), "{word}");
    }
    assert!(!text(&output.stdout).contains("\n  agent"), "the container's command is shown");
    atoll(home.path()).arg("--version").assert().success();
    atoll(home.path()).args(["project", "create", "--help"]).assert().success();
}

#[test]
fn wrong_usage_exits_with_2() {
    let home = tempfile::tempdir().unwrap();
    for args in
        [&["nonsense"][..], &["project"], &["up", "--listen", "here"], &["project", "create", "p", "--image", "i", "--memory", "lots"]]
    {
        let output = atoll(home.path()).args(args).assert().code(2).get_output().clone();
        assert!(text(&output.stderr).contains("error:") || text(&output.stderr).contains("Usage:"), "{args:?}");
    }
    let output = atoll(home.path()).args(["--json", "nonsense"]).assert().code(2).get_output().clone();
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["code"], "invalid_argument");
}

#[test]
fn a_wrong_config_is_refused_before_anything_is_done() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("a.toml");
    fs::write(&config, "[master]\nlistn = \"127.0.0.1:0\"\n").unwrap();
    for role in ["master", "host"] {
        let output = atoll(home.path()).args(["serve", role, "--config"]).arg(&config).assert().code(2).get_output().clone();
        let stderr = text(&output.stderr);
        assert!(stderr.contains("error[invalid_config]: master.listn"), "{stderr}");
        assert!(stderr.contains("line 2") && stderr.contains("mend: Known here: master.listen"), "{stderr}");
    }
    let output = atoll(home.path()).args(["serve", "master", "--set", "master.listen=x"]).assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("the command line"));
    let output = atoll(home.path()).env("ATOLL_MASTER_LISTEN", "x").args(["serve", "master"]).assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("ATOLL_MASTER_LISTEN"));
    atoll(home.path()).args(["serve", "master", "--config", "/nonexistent"]).assert().code(2);
    assert!(!home.path().join(".local").exists(), "a data directory was made");
}

#[test]
fn up_on_all_addresses_needs_a_public_url() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let output = atoll(home.path()).args(["up", "--listen", "0.0.0.0:0", "--data-dir"]).arg(&dir).assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("host.public_url"), "{}", text(&output.stderr));
    assert!(!dir.exists());
}

#[test]
fn a_host_that_has_not_joined_says_how_to() {
    let home = tempfile::tempdir().unwrap();
    let set = format!("host.data_dir={}", home.path().join("h").display());
    let output = atoll(home.path()).args(["serve", "host", "--set", &set]).assert().failure().get_output().clone();
    assert!(text(&output.stderr).contains("atoll host join"), "{}", text(&output.stderr));
}

#[test]
fn doctor_works_without_any_server() {
    let home = tempfile::tempdir().unwrap();
    let set = format!("host.data_dir={}", home.path().join("h").display());
    let output = atoll(home.path()).args(["doctor", "--json", "--set", &set]).assert().get_output().clone();
    let findings: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    let findings = findings.as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["code"] == "binary.static" && finding["severity"] == "ok"));
    let broken = findings.iter().any(|finding| finding["severity"] == "error");
    assert_eq!(output.status.code(), Some(i32::from(broken)));
}

#[test]
fn without_a_login_there_is_a_mend() {
    let home = tempfile::tempdir().unwrap();
    let output = atoll(home.path()).args(["project", "list"]).assert().code(4).get_output().clone();
    let stderr = text(&output.stderr);
    assert!(stderr.contains("error[unauthenticated]: You aren't logged in at http://127.0.0.1:7420."), "{stderr}");
    assert!(stderr.contains("mend: Run atoll login"), "{stderr}");
}

#[test]
fn an_unreachable_master_is_unavailable() {
    let home = tempfile::tempdir().unwrap();
    // bound and closed at once: nobody listens there
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let command = || {
        let mut command = atoll(home.path());
        command.env("ATOLL_TOKEN", "x").env("ATOLL_MASTER", &url);
        command
    };
    let output = command().args(["project", "list"]).assert().code(6).get_output().clone();
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("error[unavailable]: The master at http://127.0.0.1:"), "{stderr}");
    assert!(stderr.contains("refused") && stderr.contains("\n  mend: Is it running"), "{stderr}");
    let output = command().args(["project", "list", "--json"]).assert().code(6).get_output().clone();
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&error["code"], &error["retry"]), (&"unavailable".into(), &true.into()));
    assert!(output.stdout.is_empty());
    // exec's own failures have a code of their own
    command().args(["exec", "p", "--", "true"]).assert().code(125);
}

#[test]
fn secrets_come_from_files_and_questions_need_a_terminal() {
    let home = tempfile::tempdir().unwrap();
    let output =
        atoll(home.path()).args(["login", "--name", "ada", "--password-file", "/nonexistent"]).assert().code(3).get_output().clone();
    assert!(text(&output.stderr).contains("/nonexistent"));
    fs::write(home.path().join("empty"), "\n").unwrap();
    let output = atoll(home.path())
        .args(["login", "--name", "ada", "--password-file"])
        .arg(home.path().join("empty"))
        .assert()
        .code(2)
        .get_output()
        .clone();
    assert!(text(&output.stderr).contains("empty"));
}

#[test]
fn completion_names_the_commands() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = atoll(home.path()).args(["completion", shell]).assert().success().get_output().clone();
        assert!(text(&output.stdout).contains("join-token"), "{shell}");
    }
}

#[test]
fn cp_refuses_what_has_no_side_in_a_project() {
    let home = tempfile::tempdir().unwrap();
    for paths in [["a", "b"], ["p:a", "q:b"], ["p:../a", "b"], ["-", "p:"]] {
        let output = atoll(home.path()).arg("cp").args(["--"]).args(paths).assert().code(2).get_output().clone();
        assert!(text(&output.stderr).starts_with("error[invalid_argument]"), "{paths:?}: {}", text(&output.stderr));
    }
}
