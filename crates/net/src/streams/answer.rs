//! What is answered, as messages. Their subject is filled in by who sends them.

use atoll_contract::{
    Error, ErrorCode,
    streams::{self, Data, Page, Record, Written},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{
    ask::Answer,
    db::PackedPage,
    packed::{Records, StoredRecord},
    service::to_json,
};
use crate::bus::{Headers, Message, error_answer};

/// How records are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Messages,
    Packed,
}

/// The status that ends an answer of several messages.
pub const END_OF_PAGE: u16 = 204;
/// Bytes of JSON in one answer: what the bus takes, without room for headers.
const MAX_JSON: usize = (1 << 20) - (4 << 10);

fn plain(headers: Headers, payload: impl Into<bytes::Bytes>) -> Message {
    Message { headers, ..Message::new("", payload) }
}

pub(super) fn error(error: &Error) -> Message {
    let mut message = error_answer("", error);
    if let Some(last) = error.details.as_ref().and_then(|details| details["last_sequence"].as_u64()) {
        message.headers = message.headers.with(streams::LAST_SEQUENCE, last.to_string());
    }
    message
}

pub(super) fn json_or_error<T: Serialize>(result: &Result<T, Error>) -> Message {
    match result {
        Ok(value) => plain(Headers::default(), to_json(value)),
        Err(failed) => error(failed),
    }
}

/// An answer that is one message.
pub(super) fn whole(answer: &Answer, form: Form) -> Message {
    match answer {
        Answer::Written(outcome) => {
            let written = Written { stream: outcome.stream.to_string(), sequence: outcome.sequence, duplicate: outcome.duplicate };
            plain(Headers::default(), to_json(&written))
        }
        Answer::Page(page) if page.first == 0 => value(page),
        Answer::Page(page) if form == Form::Packed => plain(place(page), page.records.clone()),
        Answer::Page(page) => json_or_error(&json_page(page)),
        Answer::Keys(keys) => plain(Headers::default(), to_json(keys)),
        Answer::Info(info) => plain(Headers::default(), to_json(info)),
        Answer::Done => plain(Headers::default(), to_json(&streams::Done {})),
    }
}

/// The value of a key as it is, or `not_found`. A page of one record that begins at 0, where no stream begins, is the answer to `get`.
fn value(page: &PackedPage) -> Message {
    match Records::new(page.records.clone()).next() {
        Some(Ok(record)) if !record.deleted => record_message(&record, &page.stream),
        Some(Err(failed)) => error(&failed),
        found => {
            let missing = Error::not_found("key");
            let revision = found.and_then(Result::ok).map(|record| record.sequence);
            error(&match revision {
                Some(revision) => missing.details(serde_json::json!({ "deleted": revision })),
                None => missing,
            })
        }
    }
}

/// A record as a message of its own: in answers and as a change.
pub(super) fn record_message(record: &StoredRecord, stream: &str) -> Message {
    let mut headers = Headers { fields: record.headers.clone(), ..Headers::default() }
        .with(streams::SEQUENCE, record.sequence.to_string())
        .with(streams::TIME, record.time.to_string())
        .with(streams::STREAM, stream);
    if !record.key.is_empty() {
        headers = headers.with(streams::KEY, &*record.key);
    }
    if record.deleted {
        headers = headers.with(streams::OPERATION, "DEL");
    }
    plain(headers, record.data.clone())
}

/// A page, one message a record, and the message that ends it.
pub(super) fn messages(page: &PackedPage) -> impl Iterator<Item = Message> + Send + use<> {
    let stream = page.stream.clone();
    let end = plain(Headers { status: Some(END_OF_PAGE), ..place(page) }, "");
    let records = Records::new(page.records.clone());
    records.map(move |record| record.map_or_else(|failed| error(&failed), |record| record_message(&record, &stream))).chain([end])
}

/// Where a page stands.
fn place(page: &PackedPage) -> Headers {
    Headers::default()
        .with(streams::STREAM, &*page.stream)
        .with(streams::FIRST_SEQUENCE, page.first.to_string())
        .with(streams::LAST_SEQUENCE, page.last.to_string())
        .with(streams::NEXT_SEQUENCE, page.next.to_string())
}

/// As many records as fit into one message.
fn json_page(page: &PackedPage) -> Result<Page, Error> {
    let mut out = Page {
        stream: page.stream.to_string(),
        first_sequence: page.first,
        last_sequence: page.last,
        next: page.next,
        records: Vec::new(),
    };
    let mut size = to_json(&out).len();
    for record in Records::new(page.records.clone()) {
        let record = json_record(record?);
        size += to_json(&record).len() + 1;
        if size <= MAX_JSON {
            out.records.push(record);
        } else if out.records.is_empty() {
            let text = format!("Record {} is too large for an answer in JSON.", record.sequence);
            return Err(Error::new(ErrorCode::TooLarge, text).mend("Ask for the format `messages` or `packed`."));
        } else {
            out.next = record.sequence;
            break;
        }
    }
    Ok(out)
}

fn json_record(record: StoredRecord) -> Record {
    let data = match std::str::from_utf8(&record.data) {
        Ok(text) => Data::Text(text.into()),
        Err(_) => Data::Base64(STANDARD.encode(&record.data)),
    };
    Record {
        sequence: record.sequence,
        time: record.time,
        key: Some(record.key).filter(|key| !key.is_empty()),
        deleted: record.deleted,
        headers: record.headers,
        data,
    }
}
