//! nats-py. What it is tried with is in python/checks.py.

use crate::{
    matrix::Row,
    stand::{INBOX, Stand, TOKEN},
    tools,
};

async fn try_it(client: &'static str, encrypted: bool, url: impl Fn(&Stand) -> String) {
    let mut row = Row::new(client);
    let python = match tools::python().await {
        Ok(python) => python,
        Err(reason) => return row.skip(&reason),
    };
    let stand = if encrypted { Stand::encrypted().await } else { Stand::start().await };
    let mut program = tools::command(python);
    program.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/python/checks.py"));
    program.env("ATOLL_BUS", url(&stand)).env("ATOLL_TOKEN", TOKEN).env("ATOLL_INBOX_PREFIX", INBOX);
    if let Some(certificate) = stand.certificate() {
        program.env("SSL_CERT_FILE", certificate); // as OpenSSL has it: what is trusted
    }
    tools::check(&mut program, &mut row).await;
    row.all_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_py_over_tcp() {
    try_it("nats-py, TCP", false, Stand::tcp_url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_py_over_tls() {
    try_it("nats-py, TLS", true, Stand::tls_url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_py_over_websocket() {
    try_it("nats-py, WebSocket", false, Stand::websocket_url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_py_over_an_encrypted_websocket() {
    try_it("nats-py, WebSocket with TLS", true, Stand::websocket_url).await;
}
