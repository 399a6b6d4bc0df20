//! The examples of docs/reference/bus.md are programs that run, and print what the page says.

use std::{collections::BTreeMap, path::Path};

use tokio::process::Command;

use crate::{
    matrix::skipped,
    stand::{INBOX, Stand, TOKEN},
    tools,
};

const PAGE: &str = include_str!("../../../../docs/reference/bus.md");

/// The code blocks of the page's examples by their language.
fn blocks() -> BTreeMap<&'static str, &'static str> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with("Examples\n")).unwrap();
    let blocks = section.split("\n```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').unwrap()).map(|(language, code)| (language.trim(), code)).collect()
}

/// Runs a program on a bus and compares what it prints.
async fn run(language: &str, program: Command) {
    run_at(language, program, Stand::tcp_url).await;
}

async fn run_at(language: &str, mut program: Command, url: impl Fn(&Stand) -> String) {
    let stand = Stand::start().await;
    program.env("ATOLL_BUS", url(&stand)).env("ATOLL_TOKEN", TOKEN).env("ATOLL_INBOX_PREFIX", INBOX);
    let printed = tools::run(&mut program).await.unwrap_or_else(|failed| panic!("{language}: {failed}"));
    assert_eq!(printed.trim_end(), blocks()["text"].trim_end(), "{language}");
}

#[test]
fn the_page_has_these_languages() {
    assert_eq!(blocks().keys().copied().collect::<Vec<_>>(), ["go", "js", "python", "rust", "text"]);
    let example = include_str!("../../examples/bus_client.rs");
    let (_, code) = example.split_once("\n\n").unwrap();
    assert_eq!(blocks()["rust"].trim_end(), code.trim_end(), "the page, and crates/net/examples/bus_client.rs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() {
    let python = match tools::python().await {
        Ok(python) => python,
        Err(reason) => return skipped("examples::python", &reason),
    };
    let program = |python| {
        let mut program = tools::command(python);
        program.args(["-c", blocks()["python"]]);
        program
    };
    run("python", program(&python)).await;
    run_at("python over WebSocket", program(&python), Stand::websocket_url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn javascript() {
    let dir = match tools::node().await {
        Ok(dir) => dir,
        Err(reason) => return skipped("examples::javascript", &reason),
    };
    let mut program = tools::command("node");
    program.current_dir(dir).args(["--input-type=module", "--eval", blocks()["js"]]);
    run("javascript", program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust() {
    // cargo puts the examples of a crate next to its tests' folder
    let here = std::env::current_exe().unwrap();
    let program = here.parent().and_then(Path::parent).unwrap().join("examples/bus_client");
    if !program.is_file() {
        return skipped("examples::rust", "the example wasn't built; `cargo test -p atoll-net` builds it, with one `--test` it doesn't");
    }
    run("rust", tools::command(&program)).await;
    run_at("rust over WebSocket", tools::command(&program), Stand::websocket_url).await;
}

/// Where Debian's packages of Go's libraries put their sources.
const DEBIANS_GO: &str = "/usr/share/gocode";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go() {
    let Some(go) = tools::find("go") else { return skipped("examples::go", "no go on this machine") };
    if !Path::new(DEBIANS_GO).join("src/github.com/nats-io").is_dir() {
        return skipped("examples::go", "no nats.go on this machine (Debian's package golang-github-nats-io-go-nats-dev)");
    }
    let dir = tools::go_folder();
    std::fs::write(dir.join("main.go"), blocks()["go"]).unwrap();
    let mut build = tools::command(go);
    build.current_dir(&dir).args(["build", "-o", "example", "main.go"]);
    build.env("GO111MODULE", "off").env("GOPATH", DEBIANS_GO).env("GOCACHE", dir.join("cache")).env("GOFLAGS", "").env("CGO_ENABLED", "0");
    tools::run(&mut build).await.unwrap_or_else(|failed| panic!("{failed}"));
    run("go", tools::command(dir.join("example"))).await;
    run_at("go over WebSocket", tools::command(dir.join("example")), Stand::websocket_url).await;
}
