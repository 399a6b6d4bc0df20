//! One server over HTTP: JSON in and out, bounded in time and size, errors as the contract has them.

use std::{path::Path, time::Duration};

use atoll_contract::{Error, ErrorCode};
use atoll_net::tls;
use futures_util::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::errors::Result;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For one ordinary call, from sending it to the end of the answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two pieces of a long answer (a download), before the connection is taken to be dead.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
/// A JSON answer larger than this isn't read. A page of 1,000 projects with their environments stays below.
const MAX_ANSWER: usize = 32 << 20;

/// A server and a credential for it.
#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    /// As [`super::base_url`] makes it.
    base: String,
    token: Option<String>,
    /// "master" or "host", for messages.
    who: &'static str,
}

impl Http {
    /// `ca_file` has certificates (PEM) that are trusted besides the system's.
    ///
    /// # Errors
    /// `invalid_argument` if `url` isn't one; `invalid_config` if the CA file can't be used; `internal` if TLS can't be set up.
    pub fn new(who: &'static str, url: &str, token: Option<String>, ca_file: Option<&Path>) -> Result<Self> {
        let base = super::base_url(url)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // a bearer credential must not follow a redirect, and the API has none
            .redirect(reqwest::redirect::Policy::none());
        builder = if base.starts_with("http://") {
            // no certificates are needed, and an image without a set of them must not be a reason to fail
            builder.tls_certs_only([])
        } else {
            builder.tls_backend_preconfigured(super::trusted(ca_file)?)
        };
        let client = builder.build().map_err(|error| Error::internal(format!("TLS can't be set up: {}.", chain(&error))))?;
        Ok(Self { client, base, token, who })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A request to `path` (with its leading slash, percent-encoded), with the credential. No bound on the whole yet: set one, or bound the
    /// reading.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T> {
        self.json(self.request(Method::GET, path).query(query).timeout(CALL_TIMEOUT)).await
    }

    /// A GET that the server may answer only after `wait`.
    pub async fn get_later<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)], wait: Duration) -> Result<T> {
        self.json(self.request(Method::GET, path).query(query).timeout(wait + CALL_TIMEOUT)).await
    }

    pub async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: &(impl Serialize + Sync)) -> Result<T> {
        self.json(self.request(method, path).json(body).timeout(CALL_TIMEOUT)).await
    }

    /// A request without a body whose answer has one.
    pub async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        self.json(self.request(method, path).timeout(CALL_TIMEOUT)).await
    }

    /// A request of whose answer only the success matters.
    pub async fn tell(&self, request: RequestBuilder) -> Result<()> {
        self.raw(request.timeout(CALL_TIMEOUT)).await.map(drop)
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.raw(request).await?;
        self.read(response).await
    }

    /// The JSON of an answer.
    pub async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| {
            Error::internal(format!("The {} at {} answered with something else than expected: {error}.", self.who, self.base))
                .mend("Are this program and the server of the same version?")
        })
    }

    /// Sends a request and gives the answer if it is a success, whose body is still to be read.
    pub async fn raw(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await.unwrap_or_default();
        Err(serde_json::from_slice(&body).unwrap_or_else(|_| self.foreign(status)))
    }

    async fn body(&self, response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.unreachable(&error))?;
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(Error::new(ErrorCode::TooLarge, format!("The {}'s answer is larger than {MAX_ANSWER} bytes.", self.who)));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// The error for a request that got no answer.
    pub fn unreachable(&self, error: &reqwest::Error) -> Error {
        let (who, base) = (self.who, &self.base);
        if let Some(error) = tls::handshake_error(&format!("The {who} at {base}"), error) {
            return error;
        }
        if error.is_timeout() && !error.is_connect() {
            return Error::new(ErrorCode::TimedOut, format!("The {who} at {base} didn't answer in time."));
        }
        let mend = match who {
            "master" => "Is it running, and is this its address? Name another with --master or ATOLL_MASTER.",
            _ => "Is it running, and can it be reached from here at that address?",
        };
        Error::new(ErrorCode::Unavailable, format!("The {who} at {base} doesn't answer: {}.", chain(error))).mend(mend)
    }

    /// The error for a failure whose body isn't the contract's: a proxy's, or another program's.
    fn foreign(&self, status: StatusCode) -> Error {
        let code = match status.as_u16() {
            400 => ErrorCode::InvalidArgument,
            401 => ErrorCode::Unauthenticated,
            403 => ErrorCode::Forbidden,
            404 => ErrorCode::NotFound,
            408 => ErrorCode::TimedOut,
            409 | 412 => ErrorCode::Conflict,
            413 => ErrorCode::TooLarge,
            421 => ErrorCode::StaleAssignment,
            429 => ErrorCode::LimitExceeded,
            502..=504 => ErrorCode::Unavailable,
            507 => ErrorCode::DiskFull,
            _ => ErrorCode::Internal,
        };
        Error::new(code, format!("The {} at {} answered with HTTP status {status}.", self.who, self.base))
    }
}

/// The last causes of an error in a line: reqwest's own text says little more than "error sending request".
fn chain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    text.split(" (os error").next().unwrap_or(&text).trim_end_matches('.').to_owned()
}
