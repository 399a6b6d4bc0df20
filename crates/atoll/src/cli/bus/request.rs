//! `bus req`.

use atoll_contract::{Error, ErrorCode};
use atoll_net::bus::Message;
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
        status_error(&answer)?;
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
                    status_error(&answer)?;
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

/// An answer whose status says that it is an error: the contract's error if the payload is one.
fn status_error(answer: &Message) -> Result<()> {
    let Some(status) = answer.headers.status.filter(|status| *status >= 400) else { return Ok(()) };
    if let Ok(error) = serde_json::from_slice::<Error>(&answer.payload) {
        return Err(error);
    }
    let code = match status {
        403 => ErrorCode::Forbidden,
        404 => ErrorCode::NotFound,
        408 => ErrorCode::TimedOut,
        421 => ErrorCode::StaleAssignment,
        503 => return Err(Error::new(ErrorCode::NoResponders, "Nobody answers there.")),
        _ => ErrorCode::Unavailable,
    };
    Err(Error::new(code, format!("The answer is an error of status {status}.")))
}

#[cfg(test)]
mod tests {
    use atoll_net::bus::Headers;

    use super::*;

    #[test]
    fn statuses_are_errors() {
        let answer = |status: Option<u16>, payload: &str| Message {
            headers: Headers { status, ..Headers::default() },
            ..Message::new("r", payload.to_owned())
        };
        status_error(&answer(None, "x")).unwrap();
        status_error(&answer(Some(100), "")).unwrap();
        for (status, code) in [
            (503, ErrorCode::NoResponders),
            (408, ErrorCode::TimedOut),
            (403, ErrorCode::Forbidden),
            (404, ErrorCode::NotFound),
            (421, ErrorCode::StaleAssignment),
            (500, ErrorCode::Unavailable),
        ] {
            assert_eq!(status_error(&answer(Some(status), "")).unwrap_err().code, code, "{status}");
        }
        let told = Error::new(ErrorCode::Conflict, "It is taken.").mend("Choose another.");
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(status_error(&answer(Some(409), &text)).unwrap_err(), told);
    }
}
