//! Users on the bus, over a real WebSocket with the published client.

use atoll_contract::subject::{GRANT_ADD, GrantReply, inbox_prefix};
use atoll_net::bus::Message;
use futures_util::{FutureExt, StreamExt};

use super::{live::serve, *};

async fn connect(address: SocketAddr, token: &str, jti: &str) -> Result<async_nats::Client, async_nats::ConnectError> {
    let options = async_nats::ConnectOptions::with_token(token.into()).custom_inbox_prefix(inbox_prefix(jti));
    options.max_reconnects(1).connect(format!("ws://{address}/bus")).await
}

#[tokio::test]
async fn a_user_asks_the_agent_of_their_project() {
    let world = World::new();
    let address = serve(&world).await;
    let agent = world.bus.connect("agent", None);
    let mut asked = agent.subscribe(&format!("project.{PROJECT}.agent.info"), None).await.unwrap();
    let answering = agent.clone();
    tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                answering.publish(Message::new(reply, "here")).await.unwrap();
            }
        }
    });
    let claims = claims(Role::Viewer);
    let client = connect(address, &sign(&claims), &claims.jti).await.unwrap();
    let reply = client.request(format!("project.{PROJECT}.agent.info"), "".into()).await.unwrap();
    assert_eq!(&reply.payload[..], b"here");
    // another project takes another token, on the same socket
    let other = ConnectClaims { project: OTHER.parse().unwrap(), role: Role::Collaborator, ..claims.clone() };
    let granted = client.request(GRANT_ADD, sign(&other).into()).await.unwrap();
    assert!(matches!(serde_json::from_slice(&granted.payload).unwrap(), GrantReply::Ok { project, .. } if project.to_string() == OTHER));
    let bad = ConnectClaims { generation: Generation(7), ..other };
    let refused = client.request(GRANT_ADD, sign(&bad).into()).await.unwrap();
    assert!(
        matches!(serde_json::from_slice(&refused.payload).unwrap(), GrantReply::Error(error) if error.code == ErrorCode::StaleAssignment)
    );
    // a viewer's token doesn't open what is a collaborator's
    let mut spied = client.subscribe(format!("project.{PROJECT}.stream.>")).await.unwrap();
    let state = format!("project.{PROJECT}.state");
    let mut allowed = client.subscribe(state.clone()).await.unwrap();
    // an answer means that what was sent before has arrived, too
    client.request(format!("project.{PROJECT}.agent.info"), "".into()).await.unwrap();
    agent.publish(Message::new(format!("project.{PROJECT}.stream.x.out"), "secret")).await.unwrap();
    agent.publish(Message::new(state, "running")).await.unwrap();
    assert_eq!(&allowed.next().await.unwrap().payload[..], b"running");
    // what was published earlier would have come earlier
    assert!(spied.next().now_or_never().flatten().is_none());
}

#[tokio::test]
async fn who_has_no_good_token_does_not_come_in() {
    let world = World::new();
    let address = serve(&world).await;
    let good = claims(Role::Owner);
    for (name, claims) in [
        ("another host", ConnectClaims { aud: OTHER.parse().unwrap(), ..good.clone() }),
        ("expired", ConnectClaims { iat: NOW - 600, exp: NOW - 300, ..good.clone() }),
        ("stale", ConnectClaims { generation: Generation(9), ..good.clone() }),
    ] {
        assert!(connect(address, &sign(&claims), &claims.jti).await.is_err(), "{name}");
    }
    assert!(connect(address, "rubbish", "x").await.is_err());
    assert!(async_nats::ConnectOptions::new().max_reconnects(1).connect(format!("ws://{address}/bus")).await.is_err());
    connect(address, &sign(&good), &good.jti).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_host_closes_the_bus() {
    let world = World::new();
    let address = serve(&world).await;
    let good = claims(Role::Owner);
    let client = connect(address, &sign(&good), &good.jti).await.unwrap();
    client.flush().await.unwrap();
    live::until("the connection is counted", async || world.bus.stats().connections > 0).await;
    world.cancel.cancel();
    live::until("the connection is closed", async || world.bus.connections().is_empty()).await;
}
