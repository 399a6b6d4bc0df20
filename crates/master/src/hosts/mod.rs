//! The hosts: who is a member, what each last said, and what follows from its silence.
//!
//! Membership is in the store. What hosts observe is in memory only and begins as unknown at every start of the master: a host says it
//! again with its first report.

mod authenticator;
mod observations;
mod reports;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use atoll_contract::{
    AccountId, Error, ErrorCode, Generation, HostId, ProjectId, Timestamp,
    api::{HostPatch, JoinTokenReply, JoinTokenRequest},
    claims::Jwks,
    host::{HostReport, HostView, JoinReply, JoinRequest, ReportAck},
    project::{ObservedProject, ObservedState, check_name},
};
use atoll_net::clock::SharedClock;
use tokio::sync::{broadcast, mpsc};

pub(crate) use authenticator::{MasterAuthenticator, host_grant, identity_grant};
pub(crate) use observations::{Observed, Presence};
pub(crate) use reports::{REPORTS, announce_changes, serve_reports, watch_for_silence};

use crate::{
    auth::{Token, TokenKind},
    edge::internal,
    mint,
    placement::{HostSnapshot, Promised},
    store::{HostRow, InFlight, Joined, NewHost, NewJoinToken, Store},
};
use observations::{Observations, Receipt};

/// Projects whose change waits to be published; beyond it watchers miss one and see the next.
const CHANGES: usize = 4096;
const DEFAULT_TOKEN_MINUTES: u32 = 60;
const MAX_TOKEN_MINUTES: u32 = 10_080;

pub(crate) struct Hosts {
    store: Store,
    clock: SharedClock,
    jwks: Jwks,
    /// Since when hosts could report to this process.
    since: Timestamp,
    state: RwLock<State>,
    /// Hosts that report again after a silence: whoever waits to try again tries now.
    back: broadcast::Sender<HostId>,
    changes: mpsc::Sender<ProjectId>,
}

/// The members by id and by key, as in the store, and what they say.
#[derive(Default)]
struct State {
    members: HashMap<HostId, HostRow>,
    by_key: HashMap<String, HostId>,
    observations: Observations,
}

impl State {
    fn admit(&mut self, row: HostRow) {
        self.by_key.insert(row.public_key.clone(), row.id);
        self.members.insert(row.id, row);
    }
}

impl Hosts {
    /// Also gives the projects that change, for [`announce_changes`].
    pub(crate) async fn load(store: Store, clock: SharedClock, jwks: Jwks) -> Result<(Arc<Self>, mpsc::Receiver<ProjectId>), Error> {
        let mut state = State::default();
        store.hosts().await.map_err(internal)?.into_iter().for_each(|row| state.admit(row));
        let (changes, changed) = mpsc::channel(CHANGES);
        let since = clock.now();
        let hosts = Self { store, clock, jwks, since, state: RwLock::new(state), back: broadcast::channel(256).0, changes };
        Ok((Arc::new(hosts), changed))
    }

    /// `by` is absent for the process itself, which makes a token for its own host before there is any account.
    ///
    /// # Errors
    /// `invalid_argument`.
    pub(crate) async fn create_join_token(&self, by: Option<AccountId>, request: JoinTokenRequest) -> Result<JoinTokenReply, Error> {
        if let Some(name) = &request.name {
            check_name(name)?;
        }
        let minutes = request.minutes.unwrap_or(DEFAULT_TOKEN_MINUTES);
        if !(1..=MAX_TOKEN_MINUTES).contains(&minutes) {
            return Err(Error::invalid(format!("A join token is good for 1 to {MAX_TOKEN_MINUTES} minutes.")));
        }
        let (token, now) = (Token::new(TokenKind::Join, &*self.clock), self.clock.now());
        let expires_at = now.saturating_add(std::time::Duration::from_secs(u64::from(minutes) * 60));
        let new = NewJoinToken { token: token.hash(), name: request.name, created_by: by, now, expires_at };
        self.store.create_join_token(new).await.map_err(internal)?;
        Ok(JoinTokenReply { token: token.reveal(), expires_at })
    }

    /// Trades a join token for membership.
    ///
    /// # Errors
    /// `unauthenticated` for a token that isn't good (any more), `already_exists` for a name or key that another host has,
    /// `invalid_argument` for a name or key that isn't one.
    pub(crate) async fn join(&self, request: JoinRequest) -> Result<JoinReply, Error> {
        check_name(&request.name)?;
        let key = nkeys::KeyPair::from_public_key(&request.public_key).ok();
        if key.is_none_or(|key| key.key_pair_type() != nkeys::KeyPairType::User) {
            return Err(Error::invalid("The public key isn't a user nkey (U…)."));
        }
        let bad = || {
            Error::new(ErrorCode::Unauthenticated, "The join token isn't valid, or not any more.")
                .mend("Make a new one with atoll host join-token.")
        };
        let token = TokenKind::Join.parse(&request.token).ok_or_else(bad)?;
        let new = NewHost {
            id: mint::id(&*self.clock),
            token,
            name: request.name.clone(),
            public_key: request.public_key,
            now: self.clock.now(),
        };
        let taken = |text| Err(Error::new(ErrorCode::AlreadyExists, text));
        match self.store.join(new).await.map_err(internal)? {
            Joined::Member(row) => {
                tracing::info!(host = %row.id, name = row.name, "a host has joined");
                let reply = JoinReply { host: row.id, name: row.name.clone(), jwks: self.jwks.clone() };
                self.change(|state| state.admit(row));
                Ok(reply)
            }
            Joined::BadToken => Err(bad()),
            Joined::OtherName(name) => Err(Error::new(ErrorCode::Forbidden, format!("The join token is for a host named {name:?}."))),
            Joined::NameTaken => taken(format!("There is a host {:?} already.", request.name)),
            Joined::KeyTaken(name) => taken(format!("This key belongs to the host {name:?}.")),
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<HostView>, Error> {
        let assigned = self.store.assigned().await.map_err(internal)?;
        let now = self.clock.now();
        let mut views = self.look(|state| {
            let view = |row: &HostRow| state.observations.view(row, assigned.get(&row.id).copied().unwrap_or(0), now);
            state.members.values().map(view).collect::<Vec<_>>()
        });
        views.sort_by_key(|view| view.id);
        Ok(views)
    }

    /// By id or name.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) async fn find(&self, id_or_name: &str) -> Result<HostView, Error> {
        let views = self.list().await?;
        let id = id_or_name.parse::<HostId>().ok();
        let found = views.into_iter().find(|view| Some(view.id) == id || view.name.eq_ignore_ascii_case(id_or_name));
        found.ok_or_else(|| Error::not_found("host"))
    }

    pub(crate) async fn patch(&self, host: HostId, patch: HostPatch) -> Result<(), Error> {
        let Some(draining) = patch.draining else { return Ok(()) };
        let row = self.store.set_draining(host, draining).await.map_err(internal)?.ok_or_else(|| Error::not_found("host"))?;
        self.change(|state| {
            // one that was removed in between doesn't become a member again
            if state.members.contains_key(&host) {
                state.admit(row);
            }
        });
        Ok(())
    }

    /// Ends a membership. The host keeps its key, which opens nothing any more.
    ///
    /// # Errors
    /// `conflict` while projects are assigned to it, `not_found`.
    pub(crate) async fn remove(&self, host: HostId) -> Result<(), Error> {
        match self.store.delete_host(host).await.map_err(internal)? {
            Ok(true) => {}
            Ok(false) => return Err(Error::not_found("host")),
            Err(projects) => {
                return Err(Error::new(ErrorCode::Conflict, format!("The host still has {projects} projects."))
                    .mend("Delete them first; a host that only shouldn't get new ones can be set to draining."));
            }
        }
        self.change(|state| {
            if let Some(row) = state.members.remove(&host) {
                state.by_key.remove(&row.public_key);
            }
            state.observations.remove(host);
        });
        Ok(())
    }

    /// All hosts as placement sees them, with what `in_flight` projects were promised and aren't reported yet.
    pub(crate) fn snapshots(&self, in_flight: &[InFlight]) -> Vec<HostSnapshot> {
        let now = self.clock.now();
        self.look(|state| {
            let mut promised: HashMap<HostId, Promised> = HashMap::new();
            for one in in_flight.iter().filter(|one| !state.observations.reports(one.host, one.project)) {
                promised.entry(one.host).or_default().add(&one.limits);
            }
            let snapshot = |row: &HostRow| {
                let view = state.observations.view(row, 0, now);
                HostSnapshot {
                    id: row.id,
                    name: view.name,
                    state: view.state,
                    draining: row.draining,
                    facts: view.facts,
                    capacity: view.capacity,
                    promised: promised.get(&row.id).copied().unwrap_or_default(),
                }
            };
            state.members.values().map(snapshot).collect()
        })
    }

    /// What is known of a project on the host that it is assigned to.
    pub(crate) fn observed(&self, host: HostId, project: ProjectId, generation: Generation) -> Observed {
        let now = self.clock.now();
        self.look(|state| state.observations.observed(host, project, generation, now))
    }

    /// The present facts of a host that reports; none of one that doesn't.
    pub(crate) fn public_url(&self, host: HostId) -> Option<String> {
        let now = self.clock.now();
        self.look(|state| state.observations.public_url(host, now))
    }

    /// Whether a host is there, as far as its reports say.
    pub(crate) fn presence(&self, host: HostId) -> Presence {
        let now = self.clock.now();
        self.look(|state| state.observations.presence(host, self.since, now))
    }

    pub(crate) fn by_key(&self, public_key: &str) -> Option<HostId> {
        self.look(|state| state.by_key.get(public_key).copied())
    }

    /// Takes a report in; the answer says what the host is to do.
    pub(crate) fn report(&self, report: HostReport) -> Option<ReportAck> {
        let (host, sequence, now) = (report.host, report.sequence, self.clock.now());
        let receipt = self.change(|state| state.members.contains_key(&host).then(|| state.observations.apply(report, now)))?;
        let mut resend = false;
        match receipt {
            Receipt::Taken { changed, back } => {
                if back {
                    tracing::info!(%host, "a host reports");
                    let _ = self.back.send(host); // nobody may be waiting
                }
                self.changed(changed);
            }
            Receipt::Resend => resend = true,
            Receipt::Old => {}
        }
        Some(ReportAck { sequence, now, jwks: self.jwks.clone(), resend })
    }

    /// Takes in what a host said of one project in the answer to a command.
    pub(crate) fn note(&self, host: HostId, observed: ObservedProject) {
        let project = observed.project;
        if self.change(|state| state.observations.note(host, observed)) {
            self.changed([project]);
        }
    }

    /// Marks hosts that have fallen silent, once each, and publishes that their projects are unknown.
    pub(crate) async fn sweep(&self) {
        let now = self.clock.now();
        for host in self.change(|state| state.observations.newly_silent(now)) {
            tracing::warn!(%host, "a host doesn't report any more; its projects are unknown");
            match self.store.projects_of(host).await {
                Ok(projects) => self.changed(projects),
                Err(error) => tracing::warn!(%error, "the silence of a host wasn't published"),
            }
        }
    }

    /// Publishes the present state of these projects, soon.
    pub(crate) fn changed(&self, projects: impl IntoIterator<Item = ProjectId>) {
        for project in projects {
            if self.changes.try_send(project).is_err() {
                tracing::debug!(%project, "too many changes at once; one isn't published");
            }
        }
    }

    /// Says when a host reports again after a silence.
    pub(crate) fn comebacks(&self) -> broadcast::Receiver<HostId> {
        self.back.subscribe()
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An answer for a project of which nothing is known.
pub(crate) const UNKNOWN: Observed = Observed { state: ObservedState::Unknown, error: None, used_bytes: None };
