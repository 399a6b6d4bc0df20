//! `bus pub`.

use std::{sync::Arc, time::Duration};

use atoll_contract::{Error, ErrorCode, subject::BUS_PING};
use atoll_net::bus::Message;
use tokio::sync::broadcast;

use super::{super::Context, connect, messages};
use crate::{
    args::BusPubArgs,
    client::Bus,
    errors::{Result, plain},
    output::say,
};

/// How long the bus may take to have seen everything.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn run(context: &Context, args: BusPubArgs) -> Result<()> {
    let mut message = messages::from_args(&args.message)?;
    message.reply = args.reply.as_deref().map(Into::into);
    let bus = connect::open(context, &args.bus).await?;
    let mut refusals = bus.stock.refusals();
    let mut published = 0;
    let all = async {
        while published < args.count {
            bus.conn.publish(message.clone()).await?;
            published += 1;
        }
        round_trip(&bus).await
    };
    let interrupted = tokio::select! {
        done = all => done.map(|()| false)?,
        signal = tokio::signal::ctrl_c() => signal.map(|()| true).map_err(|error| crate::errors::io("A signal", &error))?,
    };
    if interrupted {
        // what was handed over is on its way; the rest isn't
        round_trip(&bus).await?;
        say(&format!("Stopped after {published} of {} messages.", args.count));
    }
    if let Some(words) = refusals.as_mut().and_then(said) {
        return Err(Error::new(ErrorCode::Forbidden, format!("The bus refused it: {}.", plain(&words))));
    }
    let done = serde_json::json!({ "subject": args.message.subject, "published": published, "bytes": message.payload.len() });
    context.output.show(&done, |_| match published {
        1 => format!("Published {} bytes to {}.", message.payload.len(), plain(&args.message.subject)),
        many => format!("Published {many} messages of {} bytes to {}.", message.payload.len(), plain(&args.message.subject)),
    })
}

/// After it the server has seen all that was sent before, and what it refused has come back. That nobody answers here is an answer, too, and so
/// is that asking isn't allowed.
async fn round_trip(bus: &Bus) -> Result<()> {
    match bus.conn.request(Message::new(BUS_PING, ""), PATIENCE).await {
        Err(error) if !matches!(error.code, ErrorCode::NoResponders | ErrorCode::Forbidden) => Err(error),
        _ => Ok(()),
    }
}

/// What the server refused, if it was not the round trip.
fn said(refusals: &mut broadcast::Receiver<Arc<str>>) -> Option<Arc<str>> {
    loop {
        match refusals.try_recv() {
            Ok(words) if words.contains(BUS_PING) => {}
            Ok(words) => return Some(words),
            Err(broadcast::error::TryRecvError::Lagged(_)) => {}
            Err(_) => return None,
        }
    }
}
