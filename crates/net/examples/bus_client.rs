//! The Rust example of docs/reference/bus.md; a test sees that both are the same.

use async_nats::{ConnectOptions, HeaderMap, client::RequestErrorKind};
use futures_util::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nc = ConnectOptions::with_token(std::env::var("ATOLL_TOKEN")?)
        .custom_inbox_prefix(std::env::var("ATOLL_INBOX_PREFIX")?)
        .connect(std::env::var("ATOLL_BUS")?)
        .await?;

    let mut greetings = nc.queue_subscribe("demo.greet", "greeters".into()).await?;
    let greeter = nc.clone();
    tokio::spawn(async move {
        while let Some(message) = greetings.next().await {
            let text = format!("hello {}", String::from_utf8_lossy(&message.payload));
            if let Some(reply) = message.reply {
                greeter.publish(reply, text.into()).await.ok();
            }
        }
    });
    let answer = nc.request("demo.greet", "world".into()).await?;
    println!("{}", String::from_utf8_lossy(&answer.payload));

    let mut events = nc.subscribe("demo.event.>").await?;
    let mut headers = HeaderMap::new();
    headers.insert("Kind", "test");
    nc.publish_with_headers("demo.event.started", headers, "42".into()).await?;
    let event = events.next().await.ok_or("the connection has ended")?;
    let kind = event.headers.as_ref().and_then(|headers| headers.get("Kind")).ok_or("no such header")?;
    println!("{} {kind} {}", event.subject, String::from_utf8_lossy(&event.payload));

    match nc.request("demo.nobody", "".into()).await {
        Err(error) if error.kind() == RequestErrorKind::NoResponders => println!("nobody is there"),
        other => println!("unexpected: {other:?}"),
    }

    nc.drain().await?;
    Ok(())
}
