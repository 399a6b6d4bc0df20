//! The JavaScript clients. What they are tried with is in node/checks.js.

use crate::{
    matrix::Row,
    stand::{INBOX, Stand, TOKEN},
    tools,
};

async fn try_it(client: &'static str, program: &str, encrypted: bool, url: impl Fn(&Stand) -> String, chromium: Option<&std::path::Path>) {
    let mut row = Row::new(client);
    let dir = match tools::node().await {
        Ok(dir) => dir,
        Err(reason) => return row.skip(&reason),
    };
    let stand = if encrypted { Stand::encrypted().await } else { Stand::start().await };
    let mut node = tools::command("node");
    node.current_dir(&dir).arg(program).env("ATOLL_BUS", url(&stand)).env("ATOLL_TOKEN", TOKEN).env("ATOLL_INBOX_PREFIX", INBOX);
    if let Some(certificate) = stand.certificate() {
        node.env("NODE_EXTRA_CA_CERTS", certificate);
    }
    if let Some(chromium) = chromium {
        node.env("ATOLL_CHROMIUM", chromium);
    }
    tools::check(&mut node, &mut row).await;
    row.all_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transport_node_over_tcp() {
    try_it("@nats-io/transport-node, TCP", "tcp.js", false, Stand::tcp_url, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_core_over_websocket_in_node() {
    try_it("@nats-io/nats-core, WebSocket in Node", "websocket.js", false, Stand::websocket_url, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_core_over_an_encrypted_websocket_in_node() {
    try_it("@nats-io/nats-core, WebSocket with TLS in Node", "websocket.js", true, Stand::websocket_url, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_core_over_websocket_in_chromium() {
    let client = "@nats-io/nats-core, WebSocket in Chromium";
    match tools::find("chromium") {
        Some(chromium) => try_it(client, "chromium.js", false, Stand::websocket_url, Some(&chromium)).await,
        None => Row::new(client).skip("no chromium on this machine"),
    }
}
