//! A master and a host of this program's, with certificates of an authority of the test's own, as their owner and a user meet them.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]
#![allow(clippy::disallowed_methods, reason = "tests run the program")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use assert_cmd::assert::OutputAssertExt;
use atoll_net::testing::Authority;
use serde_json::Value;

/// Ended with the test that has it.
struct Running(Child);

impl Running {
    /// Starts a role and waits for the line in which it says where it serves.
    fn start(command: &mut Command, says: &str) -> (Self, String) {
        let mut running = Self(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with(says));
        let line = line.unwrap_or_else(|| panic!("it never said {says:?}"));
        // a pipe that nobody reads would stop it at last
        std::thread::spawn(move || lines.for_each(drop));
        (running, line[says.len()..].trim_end_matches('.').to_owned())
    }

    /// As its owner would.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn atoll(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atoll"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
    command.current_dir(home);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a master and a host of this test are told.
struct Site {
    home: tempfile::TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::new(home.path()).unwrap();
        fs::write(home.path().join("password"), "correct horse battery\n").unwrap();
        Self { home, authority }
    }

    fn run(&self, args: &[&str]) -> Output {
        atoll(self.home.path()).args(args).assert().success().get_output().clone()
    }

    /// Makes the first account, and names the authority for its master once and for all.
    fn set_up(&self, url: &str) {
        let secrets = ["--token-file", "master/setup-token", "--password-file", "password"];
        self.run(&[&["setup", "--master", url, "--ca-file", "ca.pem", "--name", "ada"], &secrets[..]].concat());
    }

    fn config(&self, master: &str, host: &str) {
        let dir = self.home.path().display();
        let tls = format!("tls_certificate = \"{dir}/cert.pem\"\ntls_key = \"{dir}/key.pem\"\n");
        let text = format!(
            "[master]\ndata_dir = \"{dir}/master\"\n{master}\n[host]\nname = \"a\"\nlisten = \"127.0.0.1:0\"\ndata_dir = \"{dir}/host\"\n{host}\n[host.storage]\nkind = \"dir\"\n"
        );
        fs::write(self.home.path().join("atoll.toml"), text.replace("TLS", &tls)).unwrap();
    }

    fn master(&self) -> (Running, String) {
        Running::start(atoll(self.home.path()).args(["serve", "master", "--config", "atoll.toml"]), "The master serves at ")
    }

    fn host(&self) -> (Running, String) {
        let mut command = atoll(self.home.path());
        Running::start(command.args(["serve", "host", "--config", "atoll.toml"]), "The host a serves at ")
    }

    fn join(&self, args: &[&str]) -> Command {
        let mut command = atoll(self.home.path());
        command.args(["host", "join", "--config", "atoll.toml", "--token-file", "join-token"]).args(args);
        command
    }

    fn setup(&self, url: &str) {
        self.run(&["setup", "--master", url, "--name", "ada", "--token-file", "master/setup-token", "--password-file", "password"]);
    }

    fn join_token(&self) {
        let token = self.run(&["host", "join-token", "--name", "a"]).stdout;
        fs::write(self.home.path().join("join-token"), token).unwrap();
    }

    /// Waits until the host has reported where it is; without podman it is there and unhealthy.
    fn reported(&self, url: &str) {
        let until = Instant::now() + Duration::from_mins(1);
        loop {
            let list: Value = serde_json::from_slice(&self.run(&["host", "list", "--json"]).stdout).unwrap();
            let host = &list["hosts"][0];
            if host["state"] != "offline" && host["facts"]["public_url"] == url {
                return;
            }
            assert!(Instant::now() < until, "{host}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_cluster_with_an_authority_of_its_own() {
    let site = Site::new();
    site.config("listen = \"127.0.0.1:0\"\nTLS", "TLS");
    let (_master, url) = site.master();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");

    // who doesn't trust it says nothing to it
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::new(elsewhere.path()).unwrap();
    let login = ["login", "--master", &url, "--name", "ada", "--password-file", "password", "--json"];
    let output = atoll(site.home.path()).args(login).arg("--ca-file").arg(stranger.ca_file()).assert().code(6).get_output().clone();
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&error["code"], &error["retry"]), (&"untrusted".into(), &false.into()));
    assert!(error["message"].as_str().unwrap().contains(&url) && error["mend"].as_str().unwrap().contains("--ca-file"), "{error}");
    // nor who speaks plain HTTP to it
    let plain = url.replace("https", "http");
    let output = atoll(site.home.path()).args(["health", "--master", &plain]).assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("Write https://"), "{}", text(&output.stderr));

    // the authority is named once, and remembered with the login
    let ca_file = site.authority.ca_file();
    site.set_up(&url);
    assert_eq!(text(&site.run(&["whoami"]).stdout), format!("ada (admin) at {url}\n"));
    atoll(site.home.path()).arg("logout").assert().success();
    atoll(site.home.path()).args(login).env("ATOLL_CA_FILE", &ca_file).assert().success();
    let file = fs::read_to_string(site.home.path().join(".config/atoll/credentials.json")).unwrap();
    assert!(file.contains(ca_file.to_str().unwrap()), "{file}");

    site.join_token();
    let stranger = format!("host.master_ca_file={}", stranger.ca_file().display());
    let here = format!("host.master_url={url}");
    let output = site.join(&["--set", &here, "--set", &stranger]).assert().code(6).get_output().clone();
    assert!(text(&output.stderr).contains("error[untrusted]") && text(&output.stderr).contains("host.master_ca_file"));
    site.config("", &format!("TLSmaster_url = \"{url}\"\nmaster_ca_file = \"{}\"", ca_file.display()));
    site.join(&[]).assert().success();
    let (host, host_url) = site.host();
    assert!(host_url.starts_with("https://127.0.0.1:"), "{host_url}");
    site.reported(&host_url);
    // over wss to the master's bus, and from there over the host's uplink
    let report: Value = serde_json::from_slice(&site.run(&["bus", "top", "--host", "a", "--once", "--json"]).stdout).unwrap();
    assert!(report["subscriptions"].as_u64().unwrap() > 0, "{report}");
    host.stop();

    // a session is forgotten also where the master can't be trusted any more
    fs::remove_file(&ca_file).unwrap();
    let output = atoll(site.home.path()).arg("whoami").assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("ca.pem") && text(&output.stderr).contains("--ca-file"), "{}", text(&output.stderr));
    let output = atoll(site.home.path()).arg("logout").assert().code(2).get_output().clone();
    assert!(text(&output.stderr).contains("forgotten here"), "{}", text(&output.stderr));
    atoll(site.home.path()).args(["whoami", "--master", &url]).assert().code(4);
}

#[test]
fn a_cluster_becomes_encrypted_without_a_new_join() {
    let site = Site::new();
    site.config("listen = \"127.0.0.1:0\"", "");
    let (master, url) = site.master();
    site.setup(&url);
    site.join_token();
    site.join(&["--set", &format!("host.master_url={url}")]).assert().success();
    let (host, host_url) = site.host();
    assert!(host_url.starts_with("http://"), "{host_url}");
    site.reported(&host_url);
    host.stop();
    master.stop();

    let (listen, ca_file) = (url.replace("http://", ""), site.authority.ca_file());
    site.config(
        &format!("listen = \"{listen}\"\nTLS"),
        &format!("TLSmaster_url = \"https://{listen}\"\nmaster_ca_file = \"{}\"", ca_file.display()),
    );
    let (_master, url) = site.master();
    assert_eq!(url, format!("https://{listen}"));
    site.run(&["login", "--master", &url, "--ca-file", "ca.pem", "--name", "ada", "--password-file", "password"]);
    let (host, host_url) = site.host();
    site.reported(&host_url);
    assert!(host_url.starts_with("https://"), "{host_url}");
    host.stop();
}

#[test]
fn up_with_certificates() {
    let site = Site::new();
    let ca_file = site.authority.ca_file();
    site.config("listen = \"127.0.0.1:0\"\nTLS", &format!("TLSmaster_ca_file = \"{}\"", ca_file.display()));
    let mut command = atoll(site.home.path());
    let (up, first) = Running::start(command.args(["up", "--config", "atoll.toml"]), "Make the first account: atoll setup --master ");
    let url = first.split(' ').next().unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    site.set_up(url);
    let list: Value = serde_json::from_slice(&site.run(&["host", "list", "--json"]).stdout).unwrap();
    assert_eq!(list["hosts"][0]["name"], "a");
    up.stop();
}
