//! Connections to a bus. That of a project's host is made with a connect token, which is renewed as long as the connection lives.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Auth, ConnectOptions, connection::State};
use atoll_contract::{
    Error, ErrorCode, ProjectId,
    api::ConnectReply,
    project::{Intent, ObservedState, ProjectView},
    subject::{GRANT_ADD, GrantReply, inbox_prefix},
};
use atoll_net::{
    bus::{Conn, Message, stock},
    clock::SharedClock,
};
use tokio::time::Instant;

use super::{Master, base_url};
use crate::errors::Result;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const GRANT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a project that should run may be without an agent before a command gives up.
const COMING: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A renewal that failed is tried again after this.
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// However short a token lives, its renewal isn't asked for more often.
const RENEW_SOONEST: Duration = Duration::from_secs(5);

/// A live connection to a bus.
pub struct Bus {
    pub conn: Arc<dyn Conn>,
    /// The same connection, for what is the published client's own.
    pub stock: stock::StockConn,
    /// Of the connect token, if it is the bus of a project's host.
    renewal: Option<tokio::task::JoinHandle<()>>,
}

impl Bus {
    /// Whether the connection is there at this moment. The client connects again by itself; who would rather begin anew asks this.
    pub fn connected(&self) -> bool {
        self.stock.client().connection_state() == State::Connected
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
    }
}

/// Asks the master where the project is and connects there. If the host refuses or doesn't answer, the project may have moved in between, so
/// the master is asked once more.
///
/// # Errors
/// The master's; `host_unavailable` if the host can't be reached; `unauthenticated` if it refuses a fresh token.
pub async fn open(master: &Master, project: ProjectId, clock: &SharedClock) -> Result<Bus> {
    let place = master.connect(project).await?;
    let first = match join(&place, master.ca_file()).await {
        Ok(parts) => return Ok(bus(master, project, clock, &place, parts)),
        Err(error) => error,
    };
    let again = master.connect(project).await?;
    let moved = (again.host, again.generation, &again.host_url) != (place.host, place.generation, &place.host_url);
    if !moved && !matches!(first.code, ErrorCode::Unauthenticated | ErrorCode::StaleAssignment) {
        return Err(first);
    }
    let parts = join(&again, master.ca_file()).await?;
    Ok(bus(master, project, clock, &again, parts))
}

/// Opens the bus and asks the project's agent something. A host program that restarts is away for a moment, and so are the agents of its
/// projects: as long as the master says that the project runs or is being started, both are tried again for up to [`COMING`]. Nothing is asked
/// again that may have been heard: only what found nobody there.
///
/// # Errors
/// Those of [`open`] and of `ask`; `no_responders` with the project's state if its agent isn't there.
pub async fn ask_agent<T>(
    master: &Master,
    project: ProjectId,
    clock: &SharedClock,
    ask: impl AsyncFn(&Arc<dyn Conn>) -> Result<T>,
) -> Result<(Bus, T)> {
    let until = Instant::now() + COMING;
    let mut pause = FIRST_PAUSE;
    loop {
        let asked = async {
            let bus = open(master, project, clock).await?;
            let answer = ask(&bus.conn).await?;
            Ok::<_, Error>((bus, answer))
        };
        let error = match asked.await {
            Err(error) if matches!(error.code, ErrorCode::NoResponders | ErrorCode::HostUnavailable) => error,
            result => return result,
        };
        let view = master.project(&project.to_string()).await?;
        if !is_coming(&view) || Instant::now() + pause > until {
            return Err(if error.code == ErrorCode::NoResponders { not_there(&view) } else { error });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the project's agent should be there by itself soon, if it isn't now.
fn is_coming(view: &ProjectView) -> bool {
    let seen = match view.observed {
        ObservedState::Running | ObservedState::Starting | ObservedState::Unknown => true,
        // between its acceptance and its last step, a start shows as that
        ObservedState::Absent | ObservedState::Stopped | ObservedState::Stopping => view.operation.is_some(),
        ObservedState::Failed => false,
    };
    view.intent == Intent::Running && seen
}

/// The agent of a project isn't there; its state says why.
fn not_there(view: &ProjectView) -> Error {
    let name = &view.spec.name;
    let error = |text: String| Error::new(ErrorCode::NoResponders, text);
    match (&view.error, view.observed) {
        (Some(why), ObservedState::Failed) => {
            error(format!("{name} has failed: {}", why.message)).mend(format!("Start it again with atoll project start {name}."))
        }
        (_, ObservedState::Absent | ObservedState::Stopped | ObservedState::Failed) if view.operation.is_none() => {
            error(format!("{name} doesn't run.")).mend(format!("Start it with atoll project start {name}."))
        }
        (_, ObservedState::Stopping) => {
            error(format!("{name} is being stopped.")).mend(format!("Start it with atoll project start {name}."))
        }
        (_, ObservedState::Running) => error(format!("{name} runs, but its agent doesn't answer."))
            .mend(format!("Try again; if that doesn't help, atoll project restart {name}.")),
        _ => error(format!("{name} isn't running yet.")).mend(format!("See atoll project info {name}, and try again.")),
    }
}

/// The token that is presented when the connection is made anew; a renewal replaces it.
type Token = Arc<Mutex<String>>;

async fn join(place: &ConnectReply, ca_file: Option<&Path>) -> Result<(stock::StockConn, Token)> {
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
    .custom_inbox_prefix(&place.inbox_prefix);
    let url = bus_url(&place.host_url)?;
    let conn = stock::connect(&url, common(options, &url, ca_file)?).await.map_err(|error| match error.code {
        ErrorCode::Unavailable | ErrorCode::TimedOut => {
            Error::new(ErrorCode::HostUnavailable, format!("The project's host at {} doesn't answer: {}", place.host_url, error.message))
                .mend("Can this machine reach that address? The host's own setting for it is host.public_url.")
        }
        _ => error,
    })?;
    Ok((conn, token))
}

fn bus(master: &Master, project: ProjectId, clock: &SharedClock, place: &ConnectReply, (conn, token): (stock::StockConn, Token)) -> Bus {
    let stock = conn.clone();
    let conn: Arc<dyn Conn> = Arc::new(conn);
    let renewal = renew(master.clone(), project, clock.clone(), place.clone(), Arc::downgrade(&conn), token);
    Bus { conn, stock, renewal: Some(tokio::spawn(renewal)) }
}

/// What is the same for every connection of this program's.
fn common(options: ConnectOptions, url: &str, ca_file: Option<&Path>) -> Result<ConnectOptions> {
    let options =
        options.name(concat!("atoll/", env!("CARGO_PKG_VERSION"))).connection_timeout(CONNECT_TIMEOUT).ignore_discovered_servers();
    // nats:// is encrypted if the server wants it; the published client then takes the system's certificates by itself
    let encrypted = url.starts_with("wss://") || url.starts_with("tls://");
    Ok(if encrypted || ca_file.is_some() { options.tls_client_config(super::trusted(ca_file)?) } else { options })
}

/// Connects to any NATS server, as the options say.
///
/// # Errors
/// `unauthenticated`, `untrusted`, `timed_out`, `unavailable`; `invalid_config` if the CA file can't be used.
pub async fn open_server(url: &str, options: ConnectOptions, ca_file: Option<&Path>) -> Result<Bus> {
    let stock = stock::connect(url, common(options, url, ca_file)?).await?;
    Ok(Bus { conn: Arc::new(stock.clone()), stock, renewal: None })
}

/// Connects to the master's own bus, as whoever uses `master`. Lasts as long as the session.
///
/// # Errors
/// The master's, and those of [`open_server`].
pub async fn open_master(master: &Master) -> Result<Bus> {
    let account = master.me().await?;
    let options = ConnectOptions::new().token(master.token()?.to_owned()).custom_inbox_prefix(inbox_prefix(&account.id.to_string()));
    open_server(&bus_url(master.url())?, options, master.ca_file()).await
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
            // first of all for the next time that the connection is made anew, whatever comes of this one
            token.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&fresh.token);
            let grant = Message::new(GRANT_ADD, fresh.token.clone().into_bytes());
            let reply = match conn.request(grant.clone(), GRANT_TIMEOUT).await {
                // connected anew with a token that has another inbox, so that the answer has no way back; the grant needs none
                Err(error) if error.code == ErrorCode::Unavailable => {
                    conn.publish(grant).await?;
                    return Ok(fresh);
                }
                reply => reply?,
            };
            match serde_json::from_slice(&reply.payload) {
                Ok(GrantReply::Ok { .. }) => Ok(fresh),
                Ok(GrantReply::Error(error)) => Err(error),
                Err(error) => Err(Error::internal(format!("The host's answer to a grant can't be read: {error}."))),
            }
        };
        match renewed.await {
            Ok(fresh) => expires_at = fresh.expires_at,
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
    use atoll_contract::project::{Limits, ProjectSpec};

    use super::*;

    #[test]
    fn the_bus_is_beside_the_files() {
        assert_eq!(bus_url("http://h:1").unwrap(), "ws://h:1/bus");
        assert_eq!(bus_url("https://h/").unwrap(), "wss://h/bus");
        assert!(bus_url("nats://h:1").is_err());
    }

    fn view(intent: Intent, observed: ObservedState, operation: bool) -> ProjectView {
        let id = "0198c0de-0000-7000-8000-000000000001";
        ProjectView {
            id: id.parse().unwrap(),
            owner: id.parse().unwrap(),
            spec: ProjectSpec { name: "p".into(), image: "i".into(), limits: Limits::default(), env: std::collections::BTreeMap::new() },
            intent,
            observed,
            error: None,
            host: None,
            host_name: None,
            generation: None,
            operation: operation.then(|| id.parse().unwrap()),
            used_bytes: None,
            created_at: atoll_contract::Timestamp::from_millis(0),
        }
    }

    #[test]
    fn only_a_project_that_should_run_is_waited_for() {
        for (intent, observed, operation, coming, said) in [
            (Intent::Running, ObservedState::Running, false, true, "doesn't answer"),
            (Intent::Running, ObservedState::Starting, false, true, "isn't running yet"),
            (Intent::Running, ObservedState::Unknown, false, true, "isn't running yet"),
            (Intent::Running, ObservedState::Stopped, true, true, "isn't running yet"),
            (Intent::Running, ObservedState::Stopped, false, false, "doesn't run"),
            (Intent::Running, ObservedState::Failed, true, false, "isn't running yet"),
            (Intent::Running, ObservedState::Failed, false, false, "doesn't run"),
            (Intent::Stopped, ObservedState::Stopped, false, false, "doesn't run"),
            (Intent::Stopped, ObservedState::Running, true, false, "doesn't answer"),
            (Intent::Deleted, ObservedState::Stopping, true, false, "is being stopped"),
        ] {
            let view = view(intent, observed, operation);
            assert_eq!(is_coming(&view), coming, "{intent:?} {observed:?}");
            assert!(not_there(&view).message.contains(said), "{intent:?} {observed:?}: {}", not_there(&view).message);
        }
    }
}
