//! The master's HTTP API: one file per resource. Handlers check who is calling, hand over, and shape the answer; nothing is decided here.

mod accounts;
mod edge;
mod extract;
mod health;
mod hosts;
mod keys;
mod operations;
mod placement;
mod projects;
mod session;
#[cfg(test)]
mod tests;
mod well_known;

use std::sync::Arc;

use atoll_net::{
    bus::{Authenticator, Router as Bus},
    clock::SharedClock,
};
use axum::{Router, extract::DefaultBodyLimit, middleware};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{auth::Auth, hosts::Hosts, keys::Signer, projects::Projects};

/// Bytes of a request's body. The largest that makes sense, a create with a full environment, is a fiftieth of it.
const MAX_BODY: usize = 1 << 20;
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

/// What handlers share.
pub(crate) struct Master {
    pub clock: SharedClock,
    pub auth: Arc<Auth>,
    pub hosts: Arc<Hosts>,
    pub projects: Arc<Projects>,
    pub signer: Arc<Signer>,
    pub bus: Arc<Bus>,
    pub authenticator: Arc<dyn Authenticator>,
    pub stop: CancellationToken,
}

pub(crate) type App = Arc<Master>;

#[derive(OpenApi)]
#[openapi(
    info(title = "Atoll master", description = "Accounts, hosts, projects and operations. Errors have one form, `Error`, with a stable code."),
    components(schemas(atoll_contract::Error)),
    security(("bearer" = [])),
    modifiers(&Bearer)
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("A session's or an API key's token.")).build();
        document.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::health))
        .routes(routes!(session::setup))
        .routes(routes!(session::login))
        .routes(routes!(session::logout))
        .routes(routes!(session::me))
        .routes(routes!(accounts::list, accounts::create))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::delete))
        .routes(routes!(projects::list, projects::create))
        .routes(routes!(projects::info, projects::delete))
        .routes(routes!(projects::start))
        .routes(routes!(projects::stop))
        .routes(routes!(projects::restart))
        .routes(routes!(projects::connect))
        .routes(routes!(placement::place))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::info, hosts::patch, hosts::delete))
        .routes(routes!(hosts::join))
        .routes(routes!(hosts::join_token))
        .routes(routes!(operations::list))
        .routes(routes!(operations::info))
        .routes(routes!(operations::cancel))
        .routes(routes!(well_known::jwks))
}

/// All that the master serves over HTTP.
pub(crate) fn router(master: App) -> Router {
    let (routes, document) = documented().split_for_parts();
    routes
        .merge(well_known::undocumented(&document))
        .fallback(edge::no_such_path)
        .method_not_allowed_fallback(edge::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(edge::panicked))
        .layer(middleware::from_fn_with_state(master.clone(), edge::around))
        .with_state(master)
}
