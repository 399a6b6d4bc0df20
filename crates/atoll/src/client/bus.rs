//! A project's host over the bus: connected with a connect token, which is renewed as long as the connection lives.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Auth, ConnectOptions, connection::State};
use atoll_contract::{
    Error, ErrorCode, ProjectId,
    api::ConnectReply,
    subject::{GRANT_ADD, GrantReply},
};
use atoll_net::{
    bus::{Conn, Message, stock},
    clock::SharedClock,
};

use super::{Master, base_url};
use crate::errors::Result;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const GRANT_TIMEOUT: Duration = Duration::from_secs(10);
/// A renewal that failed is tried again after this.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// However short a token lives, its renewal isn't asked for more often.
const RENEW_SOONEST: Duration = Duration::from_secs(5);

/// A live connection to the bus of a project's host.
pub struct Bus {
    pub conn: Arc<dyn Conn>,
    client: async_nats::Client,
    renewal: tokio::task::JoinHandle<()>,
}

impl Bus {
    /// Whether the connection is there at this moment. The client connects again by itself; who would rather begin anew asks this.
    pub fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Asks the master where the project is and connects there. If the host refuses or doesn't answer, the project may have moved in between, so
/// the master is asked once more.
///
/// # Errors
/// The master's; `host_unavailable` if the host can't be reached; `unauthenticated` if it refuses a fresh token.
pub async fn open(master: &Master, project: ProjectId, clock: &SharedClock) -> Result<Bus> {
    let place = master.connect(project).await?;
    let first = match join(&place).await {
        Ok(parts) => return Ok(bus(master, project, clock, &place, parts)),
        Err(error) => error,
    };
    let again = master.connect(project).await?;
    let moved = (again.host, again.generation, &again.host_url) != (place.host, place.generation, &place.host_url);
    if !moved && !matches!(first.code, ErrorCode::Unauthenticated | ErrorCode::StaleAssignment) {
        return Err(first);
    }
    let parts = join(&again).await?;
    Ok(bus(master, project, clock, &again, parts))
}

/// The token that is presented when the connection is made anew; a renewal replaces it.
type Token = Arc<Mutex<String>>;

async fn join(place: &ConnectReply) -> Result<(stock::StockConn, Token)> {
    let token: Token = Arc::new(Mutex::new(place.token.clone()));
    let presented = token.clone();
    let options = ConnectOptions::with_auth_callback(move |_nonce| {
        let token = presented.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            let mut auth = Auth::new();
            auth.token = Some(token);
            Ok(auth)
        }
    })
    .name(concat!("atoll/", env!("CARGO_PKG_VERSION")))
    .custom_inbox_prefix(&place.inbox_prefix)
    .connection_timeout(CONNECT_TIMEOUT)
    .ignore_discovered_servers();
    let conn = stock::connect(&bus_url(&place.host_url)?, options).await.map_err(|error| match error.code {
        ErrorCode::Unavailable | ErrorCode::TimedOut => {
            Error::new(ErrorCode::HostUnavailable, format!("The project's host at {} doesn't answer: {}", place.host_url, error.message))
                .mend("Can this machine reach that address? The host's own setting for it is host.public_url.")
        }
        _ => error,
    })?;
    Ok((conn, token))
}

fn bus(master: &Master, project: ProjectId, clock: &SharedClock, place: &ConnectReply, (conn, token): (stock::StockConn, Token)) -> Bus {
    let client = conn.client().clone();
    let conn: Arc<dyn Conn> = Arc::new(conn);
    let renewal = renew(master.clone(), project, clock.clone(), place.clone(), Arc::downgrade(&conn), token);
    Bus { conn, client, renewal: tokio::spawn(renewal) }
}

/// Presents a new token when three fifths of the old one's life are over, as long as the connection is there.
async fn renew(master: Master, project: ProjectId, clock: SharedClock, first: ConnectReply, conn: std::sync::Weak<dyn Conn>, token: Token) {
    let mut expires_at = first.expires_at;
    loop {
        tokio::time::sleep((expires_at.since(clock.now()) * 3 / 5).max(RENEW_SOONEST)).await;
        let Some(conn) = conn.upgrade() else { return };
        let renewed = async {
            let fresh = master.connect(project).await?;
            if fresh.host != first.host || fresh.generation != first.generation {
                // it has moved: this connection has served its time, and a new token isn't for this host
                return Err(Error::new(ErrorCode::StaleAssignment, "The project has moved to another host."));
            }
            let reply = conn.request(Message::new(GRANT_ADD, fresh.token.clone().into_bytes()), GRANT_TIMEOUT).await?;
            match serde_json::from_slice(&reply.payload) {
                Ok(GrantReply::Ok { .. }) => Ok(fresh),
                Ok(GrantReply::Error(error)) => Err(error),
                Err(error) => Err(Error::internal(format!("The host's answer to a grant can't be read: {error}."))),
            }
        };
        match renewed.await {
            Ok(fresh) => {
                expires_at = fresh.expires_at;
                *token.lock().unwrap_or_else(PoisonError::into_inner) = fresh.token;
            }
            Err(error) if error.code == ErrorCode::StaleAssignment => return,
            Err(error) => {
                tracing::warn!(code = error.code.as_str(), "a connect token could not be renewed: {error}");
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}

/// `http://h:1` becomes `ws://h:1/bus`, `https` becomes `wss`.
fn bus_url(host_url: &str) -> Result<String> {
    let base = base_url(host_url)?;
    Ok(format!("ws{}/bus", base.strip_prefix("http").unwrap_or(&base)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_is_beside_the_files() {
        assert_eq!(bus_url("http://h:1").unwrap(), "ws://h:1/bus");
        assert_eq!(bus_url("https://h/").unwrap(), "wss://h/bus");
        assert!(bus_url("nats://h:1").is_err());
    }
}
