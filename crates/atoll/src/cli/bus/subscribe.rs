//! `bus sub`.

use std::sync::Arc;

use atoll_contract::{Error, ErrorCode};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::broadcast,
};

use super::{super::Context, connect, messages::Printer};
use crate::{
    args::BusSubArgs,
    errors::{self, Result, plain},
    values::human_size,
};

pub async fn run(context: &Context, args: BusSubArgs) -> Result<()> {
    let printer = Printer::new(context.output, args.raw)?;
    let bus = connect::open(context, &args.bus).await?;
    let mut refusals = bus.stock.refusals();
    let failed = |error: std::io::Error| errors::io("A signal", &error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut subscription = tokio::select! {
        subscribed = bus.conn.subscribe(&args.subject, args.queue.as_deref()) => subscribed?,
        words = refused(&mut refusals) => return Err(forbidden(&words)),
    };
    context.output.note(&format!("Subscribed to {}. Ctrl-C ends it.", plain(&args.subject)));
    let (mut count, mut bytes) = (0, 0);
    let outcome = loop {
        let message = tokio::select! {
            message = subscription.next() => message,
            words = refused(&mut refusals) => break Err(forbidden(&words)),
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
        };
        let Some(message) = message else {
            break Err(Error::new(ErrorCode::Unavailable, "The subscription has ended; messages may have been missed."));
        };
        count += 1;
        bytes += message.payload.len() as u64;
        if !printer.print(count, &message)? || args.count == Some(count) {
            break Ok(());
        }
    };
    context.output.note(&format!("{count} messages, {} of payload.", human_size(bytes)));
    outcome
}

/// Returns when the server refuses something about subscriptions; what else it says (to the round trip, for example) isn't about this command.
async fn refused(refusals: &mut Option<broadcast::Receiver<Arc<str>>>) -> Arc<str> {
    while let Some(receiver) = refusals {
        match receiver.recv().await {
            Ok(words) if words.to_ascii_lowercase().contains("subscription") => return words,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => break,
        }
    }
    std::future::pending().await
}

fn forbidden(words: &str) -> Error {
    Error::new(ErrorCode::Forbidden, format!("The bus refused the subscription: {}.", plain(words)))
}
