//! Answers: errors in the contract's form, and what every answer carries.

use std::sync::Arc;

use atoll_contract::{Error, ErrorCode};
use atoll_net::clock::random_text;
use axum::{
    Json,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tracing::Instrument;

use super::Gate;
use crate::files::Fault;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An error on its way out, with the status where HTTP wants another than the code's own.
#[derive(Debug)]
pub(super) struct Refusal {
    error: Error,
    status: Option<StatusCode>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// A fault of the thing that `what` names.
    pub(super) fn about(fault: Fault, what: &impl std::fmt::Display) -> Self {
        // RFC 9110, section 13.2.2: a condition that doesn't hold is 412
        let status = matches!(fault, Fault::Changed).then_some(StatusCode::PRECONDITION_FAILED);
        Self { status, ..Self::from(fault.about(what)) }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Error::invalid(message).into()
    }

    /// 405, with the methods that would do.
    pub(super) fn method(allowed: &'static str) -> Self {
        Self::invalid("The method can't be used here.")
            .status(StatusCode::METHOD_NOT_ALLOWED)
            .header(header::ALLOW, HeaderValue::from_static(allowed))
    }

    pub(super) fn into_response(self) -> Response {
        IntoResponse::into_response(self)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, status: None, headers: Vec::new() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let own = StatusCode::from_u16(self.error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (self.status.unwrap_or(own), Json(&self.error)).into_response();
        if self.error.code == ErrorCode::Unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.headers_mut().extend(self.headers);
        response.extensions_mut().insert(Arc::new(self.error));
        response
    }
}

/// Around every request: an id of its own, in the log and in the answer; what failed inside is logged here, once; and no answer is ever taken
/// for a page of this host by a browser.
pub(super) async fn finish(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let id = random_text(&*gate.clock);
    // what follows the area isn't logged: names of files are the project's own
    let area = request.uri().path().splitn(6, '/').take(5).collect::<Vec<_>>().join("/");
    let span = tracing::info_span!("request", id, method = %request.method(), area);
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(error) = response.extensions().get::<Arc<Error>>()
        && matches!(error.code, ErrorCode::Internal | ErrorCode::StorageFailed)
    {
        span.in_scope(|| tracing::error!(code = error.code.as_str(), "{error}"));
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox; frame-ancestors 'none'"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    response
}
