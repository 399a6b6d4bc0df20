//! Errors as answers: the status line says the code, the payload is the contract's error.

use std::sync::Arc;

use atoll_contract::{Error, ErrorCode};

use super::{Headers, Message};

/// An error as an answer to a request: `NATS/1.0 421 stale_assignment`, with the error as JSON. Clients that know no more than NATS take a 503 for
/// "no responders", whatever its payload says.
pub fn error_answer(reply: impl Into<Arc<str>>, error: &Error) -> Message {
    let headers = Headers { status: Some(error.code.nats_status()), description: error.code.as_str().into(), fields: Vec::new() };
    // an error is text and JSON: it can always be written
    let payload = serde_json::to_vec(error).unwrap_or_default();
    Message { headers, ..Message::new(reply, payload) }
}

/// The error that an answer is, if it is one: any status from 400 on. A bare 503 is the bus's own "no responders".
pub fn answered_error(answer: &Message) -> Option<Error> {
    let status = answer.headers.status?;
    let code = ErrorCode::from_nats_status(status)?;
    Some(serde_json::from_slice(&answer.payload).unwrap_or_else(|_| {
        let text = match (code, answer.headers.description.as_str()) {
            (ErrorCode::NoResponders, "") => "Nobody serves this right now.".to_owned(),
            (_, "") => format!("The answer is an error of status {status}."),
            (_, said) => format!("The answer is an error of status {status}: {said}."),
        };
        Error::new(code, text)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: Option<u16>, description: &str, payload: &str) -> Message {
        let headers = Headers { status, description: description.into(), fields: Vec::new() };
        Message { headers, ..Message::new("r", payload.to_owned()) }
    }

    #[test]
    fn an_error_is_read_back_as_it_was_written() {
        for code in
            [ErrorCode::StaleAssignment, ErrorCode::NoResponders, ErrorCode::HostUnavailable, ErrorCode::Conflict, ErrorCode::DiskFull]
        {
            let error = Error::new(code, "It isn't here.").mend("Ask again.").details(serde_json::json!({ "a": 1 }));
            let message = error_answer("r", &error);
            assert_eq!((message.headers.status, message.headers.description.as_str()), (Some(code.http_status()), code.as_str()));
            assert_eq!((&*message.subject, answered_error(&message)), ("r", Some(error)));
        }
    }

    #[test]
    fn others_errors_are_read_too_and_what_is_none_is_none() {
        for (status, description, payload, code) in [
            (None, "", "{}", None),
            (Some(100), "Idle Heartbeat", "", None),
            (Some(200), "", "x", None),
            (Some(503), "", "", Some(ErrorCode::NoResponders)),
            (Some(408), "Request Timeout", "", Some(ErrorCode::TimedOut)),
            (Some(404), "No Messages", "not JSON", Some(ErrorCode::NotFound)),
            (Some(421), "", "", Some(ErrorCode::StaleAssignment)),
            (Some(599), "", "", Some(ErrorCode::Internal)),
        ] {
            let error = answered_error(&answer(status, description, payload));
            assert_eq!(error.as_ref().map(|error| error.code), code, "{status:?}");
            assert!(error.is_none_or(|error| error.message.contains(description)), "{status:?}");
        }
    }
}
