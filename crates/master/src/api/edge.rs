//! What surrounds every request: an id, a time limit, a log line; and errors in the one form, whoever makes them.

use std::{any::Any, time::Duration};

use atoll_contract::{Error, ErrorCode};
use atoll_net::clock::random_text;
use axum::{
    Json,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use tracing::Instrument;

use super::App;

/// Longer than the longest wait that a request may ask for.
const TIMEOUT: Duration = Duration::from_secs(75);
const REQUEST_ID: &str = "x-request-id";

/// An error as a response: the contract's form with its code's status.
#[derive(Debug)]
pub(super) struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.0)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    // made here and never taken from the request, so that one id is one request in the log
    let id = random_text(&*app.clock);
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());
    let mut response = async {
        let response = match tokio::time::timeout(TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Failure(Error::new(ErrorCode::TimedOut, "The request took too long.")).into_response(),
        };
        if response.status().is_server_error() {
            tracing::warn!(status = response.status().as_u16(), "answered with a server error");
        } else {
            tracing::debug!(status = response.status().as_u16(), "answered");
        }
        response
    }
    .instrument(span)
    .await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    // answers hold tokens and what changes at any moment
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

pub(super) async fn no_such_path(uri: Uri) -> Failure {
    Failure(Error::new(ErrorCode::NotFound, format!("There is nothing at {}.", uri.path())).mend("The paths are in /v1/openapi.json."))
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> Response {
    let error = Error::invalid(format!("{} doesn't take {method}.", uri.path())).mend("The methods are in /v1/openapi.json.");
    (StatusCode::METHOD_NOT_ALLOWED, Json(error)).into_response()
}

pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    tracing::error!(panic = text.unwrap_or_default(), "a handler panicked");
    Failure(Error::internal("The master failed to do this; its log says why.")).into_response()
}
