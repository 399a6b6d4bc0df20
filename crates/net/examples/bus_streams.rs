//! The Rust example for streams of docs/reference/bus.md; a test sees that both are the same.

use async_nats::{ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

fn header<'a>(message: &'a async_nats::Message, name: &str) -> Result<&'a str, Error> {
    let headers = message.headers.as_ref().ok_or_else(|| String::from_utf8_lossy(&message.payload).into_owned())?;
    Ok(headers.get(name).ok_or_else(|| format!("no {name}: {message:?}"))?.as_str())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let nc = ConnectOptions::with_token(std::env::var("ATOLL_TOKEN")?)
        .custom_inbox_prefix(std::env::var("ATOLL_INBOX_PREFIX")?)
        .connect(std::env::var("ATOLL_BUS")?)
        .await?;
    let of = std::env::var("ATOLL_SUBJECTS")?;

    let write = async |subject: &str, data: &'static str, conditions: &[(&str, &str)]| {
        let mut headers = HeaderMap::new();
        conditions.iter().for_each(|(name, value)| headers.insert(*name, *value));
        let answer = nc.request_with_headers(format!("{of}.{subject}"), headers, data.into()).await?;
        let said: Value = serde_json::from_slice(&answer.payload)?;
        match answer.status.map(|status| status.as_u16()) {
            None if said["duplicate"] == true => println!("{subject} {} again", said["sequence"]),
            None => println!("{subject} {}", said["sequence"]),
            Some(409) => println!("{subject} conflict at {}", header(&answer, "Nats-Last-Sequence")?),
            Some(_) => return Err(said["message"].to_string().into()),
        }
        Ok::<_, Error>(())
    };
    // one message a record, then one with a status: 204 at the end of the page
    let read = async |subject: &str| {
        let inbox = nc.new_inbox();
        let mut records = nc.subscribe(inbox.clone()).await?;
        nc.publish_with_reply(format!("{of}.{subject}"), inbox, r#"{"format": "messages"}"#.into()).await?;
        while let Some(record) = records.next().await {
            if record.status.is_some() {
                return Ok::<u64, Error>(header(&record, "Atoll-Next-Sequence")?.parse()?);
            }
            println!("{subject} {} {}", header(&record, "Nats-Sequence")?, String::from_utf8_lossy(&record.payload));
        }
        Err("the connection has ended".into())
    };

    write("log.notes.append", "one", &[("Nats-Msg-Id", "note-1")]).await?;
    write("log.notes.append", "one", &[("Nats-Msg-Id", "note-1")]).await?;
    write("log.notes.append", "two", &[("Nats-Expected-Last-Sequence", "0")]).await?;
    write("log.notes.append", "two", &[("Nats-Expected-Last-Sequence", "1")]).await?;

    let mut changes = nc.subscribe(format!("{of}.log.notes.changes")).await?;
    nc.flush().await?;
    let next = read("log.notes.read").await?;
    write("log.notes.append", "three", &[]).await?;
    while let Some(change) = changes.next().await {
        let sequence = header(&change, "Nats-Sequence")?;
        if sequence.parse::<u64>()? >= next {
            println!("log.notes.changes {sequence} {}", String::from_utf8_lossy(&change.payload));
            break; // smaller ones were in what was read
        }
    }

    write("kv.settings.put.theme", "light", &[("Nats-Expected-Last-Subject-Sequence", "0")]).await?;
    let value = nc.request(format!("{of}.kv.settings.get.theme"), "".into()).await?;
    let revision = header(&value, "Nats-Sequence")?;
    println!("kv.settings.get.theme {revision} {}", String::from_utf8_lossy(&value.payload));
    write("kv.settings.put.theme", "dark", &[("Nats-Expected-Last-Subject-Sequence", "0")]).await?;
    write("kv.settings.put.theme", "dark", &[("Nats-Expected-Last-Subject-Sequence", revision)]).await?;
    read("kv.settings.history.theme").await?;

    nc.drain().await?;
    Ok(())
}
