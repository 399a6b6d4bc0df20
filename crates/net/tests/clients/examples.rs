//! The examples of docs/reference/bus.md are programs that run, and print what the page says.

use std::{collections::BTreeMap, path::Path};

use tokio::process::Command;

use crate::{
    matrix::skipped,
    stand::{INBOX, PROJECT, Stand, TOKEN},
    tools,
};

const PAGE: &str = include_str!("../../../../docs/reference/bus.md");

/// The same program in each language, and what all of them print.
struct Example {
    /// Over it on the page.
    heading: &'static str,
    /// The one in Rust among this crate's examples, which cargo builds.
    name: &'static str,
    source: &'static str,
}

const EXAMPLES: [Example; 2] = [
    Example { heading: "Messages", name: "bus_client", source: include_str!("../../examples/bus_client.rs") },
    Example { heading: "Logs and key-value stores", name: "bus_streams", source: include_str!("../../examples/bus_streams.rs") },
];

impl Example {
    /// The code blocks below the heading by their language.
    fn blocks(&self) -> BTreeMap<&'static str, &'static str> {
        let section = PAGE.split("\n## ").find(|section| section.starts_with("Examples\n")).unwrap();
        let part = section.split("\n### ").find(|part| part.lines().next() == Some(self.heading)).unwrap();
        let blocks = part.split("\n```").skip(1).step_by(2);
        blocks.map(|block| block.split_once('\n').unwrap()).map(|(language, code)| (language.trim(), code)).collect()
    }

    /// Runs a program on a bus and compares what it prints.
    async fn run(&self, language: &str, program: Command) {
        self.run_at(language, program, Stand::tcp_url).await;
    }

    async fn run_at(&self, language: &str, mut program: Command, url: impl Fn(&Stand) -> String) {
        let stand = Stand::start().await;
        program.env("ATOLL_BUS", url(&stand)).env("ATOLL_TOKEN", TOKEN).env("ATOLL_INBOX_PREFIX", INBOX);
        program.env("ATOLL_SUBJECTS", format!("project.{PROJECT}"));
        let printed = tools::run(&mut program).await.unwrap_or_else(|failed| panic!("{}, {language}: {failed}", self.heading));
        assert_eq!(printed.trim_end(), self.blocks()["text"].trim_end(), "{}, {language}", self.heading);
    }
}

#[test]
fn the_page_has_these_languages() {
    for example in EXAMPLES {
        let blocks = example.blocks();
        assert_eq!(blocks.keys().copied().collect::<Vec<_>>(), ["go", "js", "python", "rust", "text"], "{}", example.heading);
        let (_, code) = example.source.split_once("\n\n").unwrap();
        assert_eq!(blocks["rust"].trim_end(), code.trim_end(), "the page, and crates/net/examples/{}.rs", example.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() {
    let python = match tools::python().await {
        Ok(python) => python,
        Err(reason) => return skipped("examples::python", &reason),
    };
    for example in EXAMPLES {
        let program = || {
            let mut program = tools::command(&python);
            program.args(["-c", example.blocks()["python"]]);
            program
        };
        example.run("python", program()).await;
        example.run_at("python over WebSocket", program(), Stand::websocket_url).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn javascript() {
    let dir = match tools::node().await {
        Ok(dir) => dir,
        Err(reason) => return skipped("examples::javascript", &reason),
    };
    for example in EXAMPLES {
        let mut program = tools::command("node");
        program.current_dir(&dir).args(["--input-type=module", "--eval", example.blocks()["js"]]);
        example.run("javascript", program).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust() {
    // cargo puts the examples of a crate next to its tests' folder
    let here = std::env::current_exe().unwrap();
    let built = here.parent().and_then(Path::parent).unwrap().join("examples");
    for example in EXAMPLES {
        let program = built.join(example.name);
        if !program.is_file() {
            return skipped(
                "examples::rust",
                "the examples weren't built; `cargo test -p atoll-net` builds them, with one `--test` it doesn't",
            );
        }
        example.run("rust", tools::command(&program)).await;
        example.run_at("rust over WebSocket", tools::command(&program), Stand::websocket_url).await;
    }
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
    for example in EXAMPLES {
        let (source, program) = (dir.join(format!("{}.go", example.name)), dir.join(example.name));
        std::fs::write(&source, example.blocks()["go"]).unwrap();
        let mut build = tools::command(&go);
        build.current_dir(&dir).args(["build", "-o"]).args([&program, &source]);
        build
            .env("GO111MODULE", "off")
            .env("GOPATH", DEBIANS_GO)
            .env("GOCACHE", dir.join("cache"))
            .env("GOFLAGS", "")
            .env("CGO_ENABLED", "0");
        tools::run(&mut build).await.unwrap_or_else(|failed| panic!("{failed}"));
        example.run("go", tools::command(&program)).await;
        example.run_at("go over WebSocket", tools::command(&program), Stand::websocket_url).await;
    }
}
