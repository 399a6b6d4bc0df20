//! The keys, the API's description, and the bus's door.

use std::{net::SocketAddr, sync::Arc};

use atoll_contract::claims::Jwks;
use axum::{
    Extension, Json, Router,
    extract::{ConnectInfo, State, WebSocketUpgrade},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, header};
use tracing::Instrument;
use utoipa::openapi::OpenApi;

use super::{App, edge::Failure};

/// The subprotocol that NATS clients in browsers ask for; others ask for none.
const SUBPROTOCOL: &str = "nats";

/// The keys that connect tokens are signed with (RFC 7517). Needs no credential.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "master", security(()), responses((status = 200, body = Jwks)))]
pub(super) async fn jwks(State(app): State<App>) -> Json<Jwks> {
    Json(app.signer.jwks().clone())
}

/// What isn't part of the description: itself, and the bus.
pub(super) fn undocumented(document: &OpenApi) -> Router<App> {
    // it doesn't change, so it is written once; a document made of our own types always serialises
    let text: Arc<str> = document.to_pretty_json().unwrap_or_default().into();
    let describe = move || {
        let text = text.clone();
        async move { ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text.to_string()) }
    };
    Router::new().route("/v1/openapi.json", get(describe)).route("/bus", get(bus))
}

/// The bus over WebSocket. Who may do what is settled by its own CONNECT, not here.
async fn bus(
    State(app): State<App>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        let error = atoll_contract::Error::invalid("The bus is a WebSocket.").mend("Use a NATS client with a ws:// or wss:// address.");
        return Failure(error).into_response();
    };
    let peer = peer.map_or_else(|| "unknown".to_owned(), |Extension(ConnectInfo(peer))| peer.to_string());
    let upgrade = app.bus.limits().bound_websocket(upgrade.protocols([SUBPROTOCOL]));
    let span = tracing::debug_span!("bus", peer);
    let serve = async move |socket| app.bus.serve_websocket(socket, peer, app.authenticator.clone(), app.stop.clone()).await;
    upgrade.on_upgrade(move |socket| serve(socket).instrument(span))
}
