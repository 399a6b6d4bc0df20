//! Someone who watches a terminal and types into it: three streams, each at the viewer's own pace.

use std::sync::Arc;

use atoll_contract::{Error, ErrorCode, agent::TerminalEvent};
use atoll_net::byte_stream::{Receiver, Sender};
use tokio::sync::mpsc;

use super::session::{Place, Session};
use crate::serve::Parts;

/// Joins a session and begins to show it. Returns the offset of the first byte that is shown.
///
/// # Errors
/// Those of [`Session::join`] and of opening streams.
pub(super) async fn attach(parts: &Parts, session: &Arc<Session>, stream: &str, from: Option<u64>) -> Result<u64, Error> {
    let (place, events) = session.join(stream)?;
    let part = |part| parts.stream(stream, part);
    let (out, event, input) = (part("out"), part("event"), part("in"));
    let (out, event, input) =
        tokio::try_join!(Sender::open(parts.conn(), &out), Sender::open(parts.conn(), &event), Receiver::open(parts.conn(), &input))?;
    let from = session.begin(from);
    tokio::spawn(tell(event, events));
    tokio::spawn(Viewer { session: session.clone(), stream: stream.to_owned(), place, out, input }.run(from));
    Ok(from)
}

struct Viewer {
    session: Arc<Session>,
    stream: String,
    place: Place,
    out: Sender,
    input: Receiver,
}

impl Viewer {
    /// Until the program has ended and all is shown, or the viewer leaves or is silent for too long.
    async fn run(self, from: u64) {
        let Self { session, stream, place, mut out, input } = self;
        let end = tokio::select! {
            result = show(&session, &stream, &mut out, from) => result,
            () = listen(&session, input) => Ok(()),
            () = place.leave.cancelled() => Ok(()),
            () = place.late.cancelled() => Err(Error::new(ErrorCode::LimitExceeded, "This viewer doesn't take its events.")),
        };
        drop(place); // with it end the events
        if let Err(error) = &end {
            tracing::debug!(%error, "a viewer is put out");
        }
        if let Err(error) = out.finish(end).await {
            tracing::debug!(%error, "a viewer went before the end");
        }
    }
}

/// Shows the output. A viewer that is further behind than the scrollback goes on where it begins: the program must not wait because nobody looks.
async fn show(session: &Session, stream: &str, out: &mut Sender, mut offset: u64) -> Result<(), Error> {
    loop {
        let over = session.has_exited(); // asked first: what comes before the end is then in the scrollback
        let (begin, bytes) = session.output(offset);
        if begin > offset {
            session.tell_skipped(stream, begin);
        }
        offset = begin + bytes.len() as u64;
        if !bytes.is_empty() {
            out.send_at(bytes, begin).await?;
        } else if over {
            return Ok(());
        } else {
            tokio::select! {
                () = session.output_after(offset) => {}
                () = session.exited() => {}
                error = out.failed() => return Err(error),
            }
        }
    }
}

/// Tells the events until the viewer's place is given back. One that closes its events may watch on without.
async fn tell(mut event: Sender, mut events: mpsc::Receiver<TerminalEvent>) {
    let mut heard = true;
    while let Some(next) = events.recv().await {
        heard = heard && event.send(encode(&next)).await.is_ok();
    }
    if let Err(error) = event.finish(Ok(())).await {
        tracing::debug!(%error, "a viewer's events weren't taken to their end");
    }
}

/// Takes what the viewer types. It may end that and watch on; if its input breaks off, it is told by the stream's own end.
async fn listen(session: &Session, mut input: Receiver) {
    while let Some(bytes) = input.next().await {
        match bytes {
            Ok(bytes) => session.write(&bytes).await,
            Err(error) => {
                tracing::debug!(%error, "a viewer's input broke off");
                break;
            }
        }
    }
    drop(input);
    std::future::pending::<()>().await;
}

fn encode(event: &TerminalEvent) -> bytes::Bytes {
    serde_json::to_vec(event).unwrap_or_default().into() // numbers and flags always can
}
