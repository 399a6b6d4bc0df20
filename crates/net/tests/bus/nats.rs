//! nats-server, the oracle: nodes and clusters of it on loopback, ended with their handles.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;

use crate::support::until;

/// Whether there is a nats-server here; says on standard error that the test is skipped if not.
pub(crate) fn missing(test: &str) -> bool {
    #[expect(clippy::disallowed_methods, reason = "a test's oracle, not the product")]
    let there = std::process::Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let missing = there.is_err();
    if missing {
        let line = format!("skipped: {test}: there is no nats-server here (apt-get install nats-server)\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    missing
}

const PROGRAM: &str = "nats-server";

/// A node that runs. It is killed when this is dropped.
pub(crate) struct Node {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    /// `nats://127.0.0.1:PORT` for clients.
    pub(crate) clients: String,
    /// `127.0.0.1:PORT` for leaf nodes and for other nodes; empty if the config has no such.
    pub(crate) leafs: String,
    pub(crate) routes: String,
    _directory: TempDir,
}

impl Node {
    /// Starts a node and waits until it is ready. The config's addresses have port -1 for any.
    pub(crate) async fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("nats.conf");
        std::fs::write(&file, config).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test's oracle, not the product")]
        let mut child = std::process::Command::new(PROGRAM)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, stderr) = (log.clone(), child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let mut node = Self { child, log, clients: String::new(), leafs: String::new(), routes: String::new(), _directory: directory };
        // what it listens on is told before and after that it is ready
        let kinds = [("client", true), ("leafnode", config.contains("leafnodes {")), ("route", config.contains("cluster {"))];
        let ready = |node: &Self| node.has("Server is ready") && kinds.iter().all(|(kind, told)| !told || node.address(kind).is_some());
        until("nats-server is ready", async || ready(&node) || node.child.try_wait().unwrap().is_some()).await;
        assert!(ready(&node), "{:#?}", node.log.lock().unwrap());
        node.clients = format!("nats://{}", node.address("client").unwrap());
        node.leafs = node.address("leafnode").unwrap_or_default();
        node.routes = node.address("route").unwrap_or_default();
        node
    }

    pub(crate) fn has(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// Lines of its log with this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    fn address(&self, kind: &str) -> Option<String> {
        let mark = format!("Listening for {kind} connections on ");
        self.log.lock().unwrap().iter().find_map(|line| line.split_once(&mark).map(|(_, address)| address.trim().to_owned()))
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three nodes, connected, each with a listener for leaf nodes.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for name in ["n1", "n2", "n3"] {
            let routes: Vec<_> = nodes.iter().map(|node| format!("nats-route://{}", node.routes)).collect();
            nodes.push(Node::start(&Self::config(name, "127.0.0.1:-1", "127.0.0.1:-1", "127.0.0.1:-1", &routes)).await);
        }
        let cluster = Self { nodes };
        cluster.whole().await;
        cluster
    }

    fn config(name: &str, clients: &str, leafs: &str, own_routes: &str, routes: &[String]) -> String {
        format!(
            "server_name: {name}\nlisten: \"{clients}\"\nleafnodes {{ listen: \"{leafs}\" }}\n\
             cluster {{ name: c1, listen: \"{own_routes}\", routes: [{}] }}\n",
            routes.join(", ")
        )
    }

    /// Waits until each node hears each other one.
    pub(crate) async fn whole(&self) {
        for (at, from) in self.nodes.iter().enumerate() {
            for to in self.nodes.iter().skip(at + 1) {
                let (a, b) = (async_nats::connect(&from.clients).await.unwrap(), async_nats::connect(&to.clients).await.unwrap());
                crate::cluster::answers(&b, "whole.probe").await;
                until("the nodes are connected", async || a.request("whole.probe", "".into()).await.is_ok()).await;
            }
        }
    }

    /// Starts a killed node again where it was.
    pub(crate) async fn restart(&mut self, at: usize) {
        let clients = self.nodes[at].clients.trim_start_matches("nats://").to_owned();
        let (leafs, routes) = (self.nodes[at].leafs.clone(), self.nodes[at].routes.clone());
        let others: Vec<_> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != at)
            .map(|(_, node)| format!("nats-route://{}", node.routes))
            .collect();
        self.nodes[at] = Node::start(&Self::config(&format!("n{}", at + 1), &clients, &leafs, &routes, &others)).await;
    }
}

/// A file in a directory of its own.
pub(crate) fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}
