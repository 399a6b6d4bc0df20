//! The JavaScript clients. What they are tried with is in node/checks.js.

use crate::{
    matrix::Row,
    stand::{INBOX, Stand, TOKEN},
    tools,
};

async fn try_it(client: &'static str, program: &str, url: impl Fn(&Stand) -> String, chromium: Option<&std::path::Path>) {
    let mut row = Row::new(client);
    let dir = match tools::node().await {
        Ok(dir) => dir,
        Err(reason) => return row.skip(&reason),
    };
    let stand = Stand::start().await;
    let mut node = tools::command("node");
    node.current_dir(&dir).arg(program).env("ATOLL_BUS", url(&stand)).env("ATOLL_TOKEN", TOKEN).env("ATOLL_INBOX_PREFIX", INBOX);
    if let Some(chromium) = chromium {
        node.env("ATOLL_CHROMIUM", chromium);
    }
    tools::check(&mut node, &mut row).await;
    row.all_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transport_node_over_tcp() {
    try_it("@nats-io/transport-node, TCP", "tcp.js", Stand::tcp_url, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_core_over_websocket_in_node() {
    try_it("@nats-io/nats-core, WebSocket in Node", "websocket.js", Stand::websocket_url, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_core_over_websocket_in_chromium() {
    let client = "@nats-io/nats-core, WebSocket in Chromium";
    match tools::find("chromium") {
        Some(chromium) => try_it(client, "chromium.js", Stand::websocket_url, Some(&chromium)).await,
        None => Row::new(client).skip("no chromium on this machine"),
    }
}
