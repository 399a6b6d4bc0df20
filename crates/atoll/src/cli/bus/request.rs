//! `bus req`.

use atoll_contract::{Error, ErrorCode};
use atoll_net::bus::{Message, answered_error};
use tokio::time::{Instant, timeout_at};

use super::{
    super::Context,
    connect,
    messages::{self, Printer},
};
use crate::{
    args::BusReqArgs,
    client::Bus,
    errors::{self, Result},
};

pub async fn run(context: &Context, args: BusReqArgs) -> Result<()> {
    let printer = Printer::new(context.output, args.raw)?;
    let message = messages::from_args(&args.message)?;
    let bus = connect::open(context, &args.bus).await?;
    let work = async {
        if args.replies > 1 {
            return several(&bus, message, &args, context, printer).await;
        }
        let answer = bus.conn.request(message, args.timeout.0).await?;
        answered_error(&answer).map_or(Ok(()), Err)?;
        printer.print(1, &answer).map(drop)
    };
    tokio::select! {
        done = work => done,
        signal = tokio::signal::ctrl_c() => {
            signal.map_err(|error| errors::io("A signal", &error))?;
            Err(Error::new(ErrorCode::Cancelled, "Stopped before all answers were there."))
        }
    }
}

/// Answers come to an inbox of this request's own, until there are enough or the time is up.
async fn several(bus: &Bus, message: Message, args: &BusReqArgs, context: &Context, printer: Printer) -> Result<()> {
    let until = Instant::now() + args.timeout.0;
    let inbox = bus.stock.client().new_inbox();
    let mut answers = bus.conn.subscribe(&inbox, None).await?;
    bus.conn.publish(Message { reply: Some(inbox.into()), ..message }).await?;
    let mut count = 0;
    while count < args.replies {
        match timeout_at(until, answers.next()).await {
            Ok(Some(answer)) => {
                // of many answers one may be an error; the first stands for all when it says that nobody is there
                if count == 0 {
                    answered_error(&answer).map_or(Ok(()), Err)?;
                }
                count += 1;
                if !printer.print(count, &answer)? {
                    return Ok(());
                }
            }
            Ok(None) => return Err(Error::new(ErrorCode::Unavailable, "The connection to the bus has ended.")),
            Err(_) if count == 0 => {
                return Err(Error::new(
                    ErrorCode::TimedOut,
                    format!("Nobody answered at {:?} within {}.", args.message.subject, args.timeout),
                ));
            }
            Err(_) => break,
        }
    }
    context.output.note(&format!("{count} answers."));
    Ok(())
}
