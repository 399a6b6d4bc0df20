//! What handlers take out of a request, with the contract's errors where it isn't there.

use atoll_contract::{
    Error, ErrorCode,
    id::{Id, Kind},
};
use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Path, Query, Request,
        rejection::{BytesRejection, FailedToBufferBody, JsonRejection},
    },
};
use http::{header, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};

use super::{App, DEFAULT_PAGE, MAX_PAGE, edge::Failure};
use crate::auth::Identity;

/// Whoever calls, proven by `Authorization: Bearer`.
pub(super) struct Caller(pub Identity);

impl FromRequestParts<App> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = value.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = bearer else {
            return Err(Failure(Error::new(ErrorCode::Unauthenticated, "This needs a credential.").mend("Log in first: atoll login.")));
        };
        Ok(Self(app.auth.identify(token.trim()).await?))
    }
}

/// A caller who is an admin.
pub(super) struct Admin(pub Identity);

impl FromRequestParts<App> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let Caller(identity) = Caller::from_request_parts(parts, app).await?;
        if identity.admin { Ok(Self(identity)) } else { Err(Failure(Error::new(ErrorCode::Forbidden, "Only an admin may do this."))) }
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        match Json::<T>::from_request(request, app).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)))) => {
                Err(Failure(Error::new(ErrorCode::TooLarge, "The body is larger than 1 MiB.")))
            }
            Err(JsonRejection::MissingJsonContentType(_)) => {
                Err(Failure(Error::invalid("The body isn't marked as JSON.").mend("Send Content-Type: application/json.")))
            }
            Err(other) => Err(Failure(Error::invalid(format!("The body can't be understood: {}.", detail(&other.body_text()))))),
        }
    }
}

/// The query's parameters.
pub(super) struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(Failure(Error::invalid(format!("The query can't be understood: {}.", detail(&error.body_text()))))),
        }
    }
}

/// The one variable part of a path, percent-decoded.
pub(super) struct Name(pub String);

impl Name {
    /// # Errors
    /// `not_found`: what isn't an id names nothing.
    pub(super) fn id<K: Kind>(&self) -> Result<Id<K>, Error> {
        self.0.parse().map_err(|_| Error::not_found(K::NAME))
    }
}

impl FromRequestParts<App> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(_) => Err(Failure(Error::invalid("The path can't be understood."))),
        }
    }
}

/// Which page of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// `next` of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// Entries at most, 1 to 1000; 100 if absent.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// A page's cursor and size, checked.
pub(super) fn page<K: Kind>(after: Option<&String>, limit: Option<usize>) -> Result<(Option<Id<K>>, usize), Error> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Error::invalid(format!("limit is {limit}; it must be from 1 to {MAX_PAGE}.")));
    }
    let after = after.map(|text| text.parse().map_err(|_| Error::invalid("after isn't what an earlier page gave as next."))).transpose()?;
    Ok((after, limit))
}

/// The part of a library's message that helps, without a full stop of its own.
fn detail(text: &str) -> &str {
    text.split_once(": ").map_or(text, |(_, rest)| rest).trim_end_matches('.')
}
