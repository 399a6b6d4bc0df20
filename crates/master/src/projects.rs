//! What one may ask of projects: find, list, create, change. Between the API and the operations.

use std::sync::Arc;

use atoll_contract::{
    Error, ErrorCode, Role, Timestamp,
    api::{ConnectReply, CreateProject, ProjectAccepted, ProjectList},
    host::OFFLINE_AFTER_SECONDS,
    operation::OperationKind,
    placement::{Placement, PlacementRequest, Requirements},
    project::{ProjectView, check_name},
};
use atoll_net::clock::SharedClock;
use sha2::{Digest, Sha256};

use crate::{
    auth::{Identity, hex},
    edge::internal,
    hosts::Hosts,
    mint,
    operations::{Executor, Operation},
    placement::place,
    routing::Routing,
    store::{Change, Declined, NewProject, Outcome, ProjectFilter, ProjectRow, RequestKey, Store},
};

const MAX_REQUEST_KEY: usize = 64;
const MAX_LABELS: usize = 32;
const MAX_LABEL_LEN: usize = 128;

pub(crate) struct Projects {
    pub store: Store,
    pub clock: SharedClock,
    pub hosts: Arc<Hosts>,
    pub routing: Routing,
    pub executor: Executor,
}

impl Projects {
    /// By id, or by the name that one of the caller's own projects has. An admin finds every project by its id.
    ///
    /// # Errors
    /// `not_found`, also for a project that the caller may not know of.
    pub(crate) async fn find(&self, who: &Identity, id_or_name: &str) -> Result<ProjectRow, Error> {
        let found = match id_or_name.parse() {
            Ok(id) => self.store.project(id).await,
            Err(_) if check_name(id_or_name).is_ok() => self.store.project_by_name(who.account, id_or_name.to_owned()).await,
            Err(_) => Ok(None),
        };
        let found = found.map_err(internal)?.filter(|row| who.admin || row.owner == who.account);
        found.ok_or_else(|| Error::not_found("project"))
    }

    pub(crate) fn view(&self, row: ProjectRow) -> ProjectView {
        view(row, &self.hosts)
    }

    /// One page, oldest first.
    pub(crate) async fn list(&self, filter: ProjectFilter) -> Result<ProjectList, Error> {
        let rows = self.store.projects(filter).await.map_err(internal)?;
        let next = if rows.len() == filter.limit { rows.last().map(|row| row.id.to_string()) } else { None };
        Ok(ProjectList { projects: rows.into_iter().map(|row| self.view(row)).collect(), next })
    }

    /// Accepts a create. What is accepted goes on whatever becomes of the caller.
    ///
    /// # Errors
    /// `no_room` with the reasons, `already_exists`, `conflict` for a request key that was used for another request, `invalid_argument`.
    pub(crate) async fn create(self: &Arc<Self>, who: &Identity, request: CreateProject) -> Result<ProjectAccepted, Error> {
        request.spec.check()?;
        check_requirements(&request.requirements)?;
        self.executor.check_room()?;
        let key = request.idempotency_key.clone().map(|key| request_key(key, &request)).transpose()?;
        let name = request.spec.name.clone();
        let new = NewProject {
            id: mint::id(&*self.clock),
            operation: mint::id(&*self.clock),
            owner: who.account,
            spec: request.spec,
            requirements: request.requirements,
            start: request.start,
            request: key,
            now: self.clock.now(),
        };
        let (limits, requirements, hosts) = (new.spec.limits, new.requirements.clone(), self.hosts.clone());
        let since = self.promised_since();
        let this = self.clone();
        let begun = uninterrupted(async move {
            let choose = move |in_flight: &[_]| place(&hosts.snapshots(in_flight), &limits, &requirements);
            let outcome = this.store.accept_create(new, since, choose).await.map_err(internal)?;
            this.begin(outcome, &name)
        });
        Ok(accepted(begun.await?))
    }

    /// Accepts a start, stop, restart or delete.
    ///
    /// # Errors
    /// `operation_in_progress` with the holder in `details.operation`, `conflict` if it is being deleted, `not_found`.
    pub(crate) async fn change(
        self: &Arc<Self>,
        who: &Identity,
        project: &ProjectRow,
        kind: OperationKind,
    ) -> Result<ProjectAccepted, Error> {
        self.executor.check_room()?;
        let ask = Change { kind, project: project.id, operation: mint::id(&*self.clock), account: who.account, now: self.clock.now() };
        let (this, name) = (self.clone(), project.spec.name.clone());
        let begun = uninterrupted(async move {
            let outcome = this.store.accept_change(ask).await.map_err(internal)?;
            this.begin(outcome, &name)
        });
        Ok(accepted(begun.await?))
    }

    /// Where a create would go, and why.
    pub(crate) async fn dry_run(&self, request: &PlacementRequest) -> Result<Placement, Error> {
        request.limits.check()?;
        check_requirements(&request.requirements)?;
        let in_flight = self.store.in_flight(self.promised_since()).await.map_err(internal)?;
        Ok(place(&self.hosts.snapshots(&in_flight), &request.limits, &request.requirements))
    }

    /// Where the project is, with a token for the caller.
    pub(crate) fn connect(&self, who: &Identity, project: &ProjectRow) -> Result<ConnectReply, Error> {
        if project.owner != who.account {
            tracing::info!(account = %who.account, project = %project.id, "an admin connects to another account's project");
        }
        // there are owners and admins only; collaborators come with shared access
        self.routing.connect(project, who.account, Role::Owner)
    }

    /// Projects assigned since then may be missing in a host's last report. Twice the silence after which a host gets nothing.
    fn promised_since(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.now().millis() - 2000 * OFFLINE_AFTER_SECONDS as i64)
    }

    fn begin(&self, outcome: Outcome, name: &str) -> Result<Operation, Error> {
        match outcome {
            Outcome::Begun(op) => {
                self.executor.run(op.clone());
                Ok(op)
            }
            Outcome::Known(op) => Ok(op),
            Outcome::Declined(declined) => Err(refuse(declined, name)),
        }
    }
}

/// A project as the API shows it: intent from the store, observation from what its host last said.
pub(crate) fn view(row: ProjectRow, hosts: &Hosts) -> ProjectView {
    let observed = hosts.observed(row.host, row.id, row.generation);
    ProjectView {
        id: row.id,
        owner: row.owner,
        spec: row.spec,
        intent: row.intent,
        observed: observed.state,
        error: observed.error,
        host: Some(row.host),
        host_name: Some(row.host_name),
        generation: Some(row.generation),
        operation: row.operation,
        used_bytes: observed.used_bytes,
        created_at: row.created_at,
    }
}

/// Lets work that has begun go on when the caller goes away: between the commit that accepts an operation and its executor no one
/// may be lost, else it would wait for the next start of the master.
async fn uninterrupted<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(internal)?
}

fn accepted(op: Operation) -> ProjectAccepted {
    ProjectAccepted { project: op.project, operation: op.id, placement: op.state.placement }
}

fn refuse(declined: Declined, name: &str) -> Error {
    match declined {
        Declined::NameTaken => {
            Error::new(ErrorCode::AlreadyExists, format!("You have a project {name:?} already.")).mend("Choose another name.")
        }
        Declined::NoRoom(placement) => Error::new(ErrorCode::NoRoom, format!("No host can take {name:?}."))
            .mend("See the reason for each host, and ask for less or add a host.")
            .details(serde_json::json!({ "refusals": placement.candidates })),
        Declined::KeyReused => {
            Error::new(ErrorCode::Conflict, "This idempotency key was used for another request.").mend("Use a new key for a new request.")
        }
        Declined::Held(operation, kind) => {
            Error::new(ErrorCode::OperationInProgress, format!("{name:?} is held by a {} that hasn't ended.", kind.as_str()))
                .mend(format!("Wait for it, or cancel it: atoll operation wait {operation}."))
                .details(serde_json::json!({ "operation": operation, "kind": kind }))
        }
        Declined::Gone => Error::not_found("project"),
        Declined::Deleting => Error::new(ErrorCode::Conflict, format!("{name:?} is partly deleted.")).mend("Delete it again to finish."),
    }
}

fn check_requirements(requirements: &Requirements) -> Result<(), Error> {
    let too_long = |text: &String| text.len() > MAX_LABEL_LEN;
    let labels = &requirements.labels;
    if labels.len() > MAX_LABELS
        || labels.iter().any(|(label, value)| too_long(label) || too_long(value))
        || requirements.region.as_ref().is_some_and(too_long)
        || requirements.host.as_ref().is_some_and(too_long)
    {
        return Err(Error::invalid(format!("Requirements have at most {MAX_LABELS} labels, and texts of at most {MAX_LABEL_LEN} bytes.")));
    }
    Ok(())
}

fn request_key(key: String, request: &CreateProject) -> Result<RequestKey, Error> {
    if key.is_empty() || key.len() > MAX_REQUEST_KEY || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Error::invalid(format!("An idempotency key is 1 to {MAX_REQUEST_KEY} printable ASCII characters.")));
    }
    // maps are ordered and the fields' order is the type's, so equal requests have equal text
    let text = serde_json::to_string(request).map_err(internal)?;
    Ok(RequestKey { key, digest: hex(&Sha256::digest(text.as_bytes())) })
}
