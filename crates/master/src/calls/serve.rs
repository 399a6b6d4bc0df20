//! Calls as they come over the bus.

use std::{sync::Arc, time::Duration};

use atoll_contract::{
    Error, ErrorCode,
    call::{self, CallSubject},
    subject::{CALLS, CALLS_QUEUE},
};
use atoll_net::bus::{Conn, Message, Subscription, error_answer};

use super::{Caller, Calls, Request, admission::Admitted};

/// Before a lost subscription is made again.
const AGAIN: Duration = Duration::from_millis(100);

/// Takes calls in until [`Calls::stop`]. `incoming` is a subscription to [`CALLS`]; one that the bus ends is made again.
pub(crate) async fn serve(calls: Calls, conn: Arc<dyn Conn>, mut incoming: Subscription) {
    let stop = calls.0.stop.clone();
    loop {
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            message = incoming.next() => message,
        };
        let Some(message) = message else {
            tracing::warn!("the bus has ended the subscription to calls; subscribing again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
            if let Ok(again) = conn.subscribe(CALLS, Some(CALLS_QUEUE)).await {
                incoming = again;
            }
            continue;
        };
        take(&calls, &conn, message);
    }
}

/// Begins a call, or answers at once that it can't be.
fn take(calls: &Calls, conn: &Arc<dyn Conn>, message: Message) {
    let Some(reply) = message.reply.clone() else {
        // nobody could be told what became of it
        tracing::debug!(subject = %message.subject, "a call without a reply subject is dropped");
        return;
    };
    match understand(calls, message) {
        Ok((caller, request, admitted)) => {
            let (calls, conn) = (calls.clone(), conn.clone());
            let tasks = calls.0.tasks.clone();
            tasks.spawn(async move {
                let answer = calls.admitted(caller, request, admitted).await;
                let answer = match answer {
                    Ok(answer) => Message { subject: reply.clone(), ..answer },
                    Err(error) => error_answer(reply.clone(), &error),
                };
                send(&*conn, answer).await;
            });
        }
        // not here: an asker that doesn't read its answers would hold up everybody's calls
        Err(error) => refuse(calls, conn, error_answer(reply, &error)),
    }
}

/// Sends an answer without waiting. The bus hands it over at once, and then only holds up who publishes to a crowded receiver.
fn refuse(calls: &Calls, conn: &Arc<dyn Conn>, answer: Message) {
    let Ok(place) = calls.0.refusals.clone().try_acquire_owned() else {
        tracing::debug!("a refusal is dropped, since too many are being sent");
        return;
    };
    let conn = conn.clone();
    calls.0.tasks.spawn(async move {
        send(&*conn, answer).await;
        drop(place);
    });
}

fn understand(calls: &Calls, message: Message) -> Result<(Caller, Request, Admitted), Error> {
    // a project is named by its id: names are an account's own, and could change between two calls
    let subject = CallSubject::parse(&message.subject)
        .ok_or_else(|| Error::not_found("project").mend("Name it by its id, which atoll project list shows: project.ID.…"))?;
    let caller = Caller::Account(subject.account);
    let admitted = calls.0.admission.admit(caller, message.size())?;
    let timeout = call::timeout(message.headers.get(call::TIMEOUT))?;
    let (project, rest) = (subject.project, subject.rest.to_owned());
    Ok((caller, Request { project, rest, headers: message.headers, payload: message.payload, timeout }, admitted))
}

async fn send(conn: &dyn Conn, answer: Message) {
    let reply = answer.subject.clone();
    let sent = match conn.publish(answer).await {
        // with what the way has added to it
        Err(error) if error.code == ErrorCode::TooLarge => conn.publish(error_answer(reply, &error)).await,
        sent => sent,
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a call's answer can't be sent");
    }
}
