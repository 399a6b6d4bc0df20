//! The bridge and a hub in operator mode, where accounts and users are tokens that an operator's and an account's key have signed.

use atoll_contract::ErrorCode;
use atoll_net::bus::{BridgeOptions, Message};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::{
    cluster::{answers, joined, options},
    nats::{Node, file, missing},
    support::{SOON, open_bus, until},
};

/// A token as nsc makes it: claims about `subject`, signed by `issuer` (github.com/nats-io/jwt, version 2).
fn token(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims =
        json!({ "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name, "nats": nats });
    let signed = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A user's `.creds` file.
fn creds(account: &KeyPair, name: &str) -> String {
    let user = KeyPair::new_user();
    let nats = json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
    let (token, seed) = (token(account, &user, name, &nats), user.seed().unwrap());
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creds_of_an_account_open_a_hub_in_operator_mode() {
    if missing("operator::creds_of_an_account_open_a_hub_in_operator_mode") {
        return;
    }
    let (operator, account, stranger) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = json!({ "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1 });
    let nats = json!({ "type": "account", "version": 2, "limits": limits });
    let node = Node::start(&format!(
        "listen: \"127.0.0.1:-1\"\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\noperator: \"{}\"\nresolver: MEMORY\nresolver_preload: {{ {}: \"{}\" }}\n",
        token(&operator, &operator, "op", &json!({ "type": "operator", "version": 2 })),
        account.public_key(),
        token(&operator, &account, "atoll", &nats),
    ))
    .await;
    let (_kept, router) = file("router.creds", &creds(&account, "router"));
    let (_kept, client) = file("client.creds", &creds(&account, "client"));
    let a = joined(BridgeOptions { credentials_file: Some(router), ..options(&[&node.leafs]) }).await;
    let outside = async_nats::ConnectOptions::with_credentials_file(client).await.unwrap().connect(&node.clients).await.unwrap();
    answers(&outside, "call.outside").await;
    let here = a.router.connect("here", None);
    until("the answer comes from outside", async || {
        here.request(Message::new("call.outside", "?"), SOON).await.is_ok_and(|answer| answer.payload == "?")
    })
    .await;
    assert_eq!(here.request(Message::new("call.nobody", "?"), SOON).await.unwrap_err().code, ErrorCode::NoResponders);

    // a user of an account that the operator doesn't know
    let (_kept, wrong) = file("wrong.creds", &creds(&stranger, "router"));
    let bus = open_bus();
    let refused = node.count("authentication error");
    tokio::spawn(bus.router.join(BridgeOptions { credentials_file: Some(wrong), ..options(&[&node.leafs]) }, bus.cancel.clone()).unwrap());
    until("the hub has refused it", async || node.count("authentication error") > refused).await;
    assert_eq!(bus.router.bridge_view().unwrap().connects, 0);
}
