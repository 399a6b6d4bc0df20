//! Operations, and the transactions with which they begin and end.

use atoll_contract::{
    AccountId, Generation, HostId, OperationId, ProjectId, Timestamp,
    operation::{OperationKind, OperationStatus},
    placement::{Placement, Requirements},
    project::{Intent, Limits, ProjectSpec},
};
use rusqlite::{Connection, Row, Transaction, params};

use super::{
    Durability, Result, Store, projects,
    row::{all, change, id, json, one, time, to_json, to_word, word},
};
use crate::operations::{Operation, State, plan};

/// A create, checked and allowed.
#[derive(Debug, Clone)]
pub(crate) struct NewProject {
    pub id: ProjectId,
    pub operation: OperationId,
    pub owner: AccountId,
    pub spec: ProjectSpec,
    pub requirements: Requirements,
    pub start: bool,
    pub request: Option<RequestKey>,
    pub now: Timestamp,
}

/// The caller's own key for a request, and the digest of what was asked under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestKey {
    pub key: String,
    pub digest: String,
}

/// A start, stop, restart or delete, allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub kind: OperationKind,
    pub project: ProjectId,
    pub operation: OperationId,
    pub account: AccountId,
    pub now: Timestamp,
}

/// A project that a host has been promised to, or may have been since it last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InFlight {
    pub project: ProjectId,
    pub host: HostId,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Begun(Operation),
    /// The same request again: what it began then.
    Known(Operation),
    Declined(Declined),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Declined {
    /// The owner has a project of this name.
    NameTaken,
    NoRoom(Placement),
    /// The request's key was used for another request.
    KeyReused,
    /// Another operation holds the project.
    Held(OperationId, OperationKind),
    /// The project is gone.
    Gone,
    /// The project is being deleted, or a delete of it has stopped half-way; only another delete makes sense.
    Deleting,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OperationFilter {
    /// Only of projects of this owner.
    pub owner: Option<AccountId>,
    pub project: Option<ProjectId>,
    /// Only older ones than this.
    pub before: Option<OperationId>,
    pub limit: usize,
}

const OPERATION: &str = "SELECT id, kind, project, project_name, owner, account, host, generation, status, step, state, version,
    created_at, updated_at FROM operation";

impl Store {
    /// Accepts a create: places the project, assigns it at the first generation and begins the operation, or leaves nothing. `choose`
    /// is handed the projects that were assigned after `since` or are still in an operation's hands. All in one transaction of the one
    /// writer, so that two requests can't both be promised the last room.
    pub(crate) async fn accept_create(
        &self,
        new: NewProject,
        since: Timestamp,
        choose: impl FnOnce(&[InFlight]) -> Placement + Send + 'static,
    ) -> Result<Outcome> {
        self.write(Durability::Synced, move |tx| {
            if let Some(request) = &new.request
                && let Some((known, digest)) = by_request(tx, new.owner, &request.key)?
            {
                return Ok(if digest == request.digest { Outcome::Known(known) } else { Outcome::Declined(Declined::KeyReused) });
            }
            let owner = new.owner.to_string();
            let taken = "SELECT 1 FROM project WHERE owner = $1 AND lower(name) = lower($2)";
            if one(tx, taken, params![owner, new.spec.name], |_| Ok(()))?.is_some() {
                return Ok(Outcome::Declined(Declined::NameTaken));
            }
            let placement = choose(&in_flight(tx, since)?);
            let Some(host) = placement.chosen else { return Ok(Outcome::Declined(Declined::NoRoom(placement))) };
            let intent = if new.start { Intent::Running } else { Intent::Stopped };
            let sql = "INSERT INTO project (id, owner, name, spec, requirements, intent, host, generation, assigned_at, created_at)
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
            change(
                tx,
                sql,
                params![
                    new.id.to_string(),
                    owner,
                    new.spec.name,
                    to_json(&new.spec)?,
                    to_json(&new.requirements)?,
                    to_word(intent)?,
                    host.to_string(),
                    Generation::FIRST.0 as i64,
                    new.now.millis(),
                    new.now.millis()
                ],
            )?;
            let operation = Operation {
                id: new.operation,
                kind: OperationKind::Create,
                project: new.id,
                project_name: new.spec.name.clone(),
                owner: new.owner,
                account: new.owner,
                host,
                generation: Generation::FIRST,
                status: OperationStatus::Running,
                step: plan::of(OperationKind::Create, new.start).first(),
                state: State { start: new.start, spec: Some(new.spec), placement: Some(placement), ..State::new(Intent::Deleted, new.now) },
                version: 1,
                created_at: new.now,
                updated_at: new.now,
            };
            insert(tx, &operation, new.request.as_ref())?;
            Ok(Outcome::Begun(operation))
        })
        .await
    }

    /// Accepts a start, stop, restart or delete: sets the intent and begins the operation, or leaves all as it is.
    pub(crate) async fn accept_change(&self, ask: Change) -> Result<Outcome> {
        self.write(Durability::Synced, move |tx| {
            let Some(project) = projects::by_id(tx, ask.project)? else { return Ok(Outcome::Declined(Declined::Gone)) };
            let held = "SELECT id, kind FROM operation WHERE project = $1 AND ended = 0";
            if let Some((holder, kind)) = one(tx, held, params![ask.project.to_string()], |row| Ok((id(row, 0)?, word(row, 1)?)))? {
                return Ok(Outcome::Declined(Declined::Held(holder, kind)));
            }
            let intent = match ask.kind {
                OperationKind::Delete => Intent::Deleted,
                _ if project.intent == Intent::Deleted => return Ok(Outcome::Declined(Declined::Deleting)),
                OperationKind::Stop => Intent::Stopped,
                OperationKind::Start | OperationKind::Restart | OperationKind::Create => Intent::Running,
            };
            set_intent(tx, ask.project, intent)?;
            let operation = Operation {
                id: ask.operation,
                kind: ask.kind,
                project: ask.project,
                project_name: project.spec.name,
                owner: project.owner,
                account: ask.account,
                host: project.host,
                generation: project.generation,
                status: OperationStatus::Running,
                step: plan::of(ask.kind, false).first(),
                state: State::new(project.intent, ask.now),
                version: 1,
                created_at: ask.now,
                updated_at: ask.now,
            };
            insert(tx, &operation, None)?;
            Ok(Outcome::Begun(operation))
        })
        .await
    }

    /// Saves where an operation is, and with its end the intent that an undo sets back. An operation that has ended is never changed.
    pub(crate) async fn save_operation(&self, op: Operation) -> Result<()> {
        self.write(Durability::Written, move |tx| {
            let sql = "UPDATE operation SET status = $1, step = $2, state = $3, ended = $4, version = $5, updated_at = $6
                       WHERE id = $7 AND ended = 0";
            let row = params![
                to_word(op.status)?,
                to_word(op.step)?,
                to_json(&op.state)?,
                i64::from(op.ended()),
                op.version as i64,
                op.updated_at.millis(),
                op.id.to_string()
            ];
            if change(tx, sql, row)? == 1
                && let Some(intent) = op.intent_to_restore()
            {
                set_intent(tx, op.project, intent)?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets a project, if it is still at this generation. Done, too, if it is forgotten already.
    pub(crate) async fn forget_project(&self, project: ProjectId, generation: Generation) -> Result<()> {
        self.write(Durability::Synced, move |tx| {
            change(tx, "DELETE FROM project WHERE id = $1 AND generation = $2", params![project.to_string(), generation.0 as i64])?;
            Ok(())
        })
        .await
    }

    /// What a master that starts has to go on with.
    pub(crate) async fn open_operations(&self) -> Result<Vec<Operation>> {
        self.read(|db| all(db, &format!("{OPERATION} WHERE ended = 0 ORDER BY id"), params![], operation)).await
    }

    pub(crate) async fn operation(&self, operation_id: OperationId) -> Result<Option<Operation>> {
        self.read(move |db| one(db, &format!("{OPERATION} WHERE id = $1"), params![operation_id.to_string()], operation)).await
    }

    /// Newest first.
    pub(crate) async fn operations(&self, filter: OperationFilter) -> Result<Vec<Operation>> {
        self.read(move |db| {
            // '~' sorts after every id
            let before = filter.before.map_or_else(|| "~".into(), |id| id.to_string());
            let limit = filter.limit as i64;
            match (filter.project, filter.owner) {
                (Some(project), owner) => {
                    let sql = format!("{OPERATION} WHERE project = $1 AND id < $2 ORDER BY id DESC LIMIT $3");
                    let mut found = all(db, &sql, params![project.to_string(), before, limit], operation)?;
                    // a project has one owner, so this hides all of them or none
                    found.retain(|op| owner.is_none_or(|owner| owner == op.owner));
                    Ok(found)
                }
                (None, Some(owner)) => {
                    let sql = format!("{OPERATION} WHERE owner = $1 AND id < $2 ORDER BY id DESC LIMIT $3");
                    all(db, &sql, params![owner.to_string(), before, limit], operation)
                }
                (None, None) => {
                    let sql = format!("{OPERATION} WHERE id < $1 ORDER BY id DESC LIMIT $2");
                    all(db, &sql, params![before, limit], operation)
                }
            }
        })
        .await
    }

    /// As [`Store::accept_create`] hands it to its `choose`.
    pub(crate) async fn in_flight(&self, since: Timestamp) -> Result<Vec<InFlight>> {
        self.read(move |db| in_flight(db, since)).await
    }
}

fn in_flight(db: &Connection, since: Timestamp) -> Result<Vec<InFlight>> {
    let sql = "SELECT p.id, p.host, p.spec FROM project p
               WHERE p.assigned_at >= $1 OR p.id IN (SELECT project FROM operation WHERE ended = 0)";
    all(db, sql, params![since.millis()], |row| {
        Ok(InFlight { project: id(row, 0)?, host: id(row, 1)?, limits: json::<ProjectSpec>(row, 2)?.limits })
    })
}

fn by_request(db: &Connection, account: AccountId, key: &str) -> Result<Option<(Operation, String)>> {
    let sql = "SELECT id, kind, project, project_name, owner, account, host, generation, status, step, state, version, created_at,
               updated_at, request_digest FROM operation WHERE account = $1 AND request_key = $2";
    one(db, sql, params![account.to_string(), key], |row| Ok((operation(row)?, row.get(14)?)))
}

fn set_intent(tx: &Transaction<'_>, project: ProjectId, intent: Intent) -> Result<()> {
    change(tx, "UPDATE project SET intent = $1 WHERE id = $2", params![to_word(intent)?, project.to_string()])?;
    Ok(())
}

fn insert(tx: &Transaction<'_>, op: &Operation, request: Option<&RequestKey>) -> Result<()> {
    let sql = "INSERT INTO operation (id, kind, project, project_name, owner, account, host, generation, status, step, state, ended,
               version, request_key, request_digest, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13, $14, $15, $16)";
    let row = params![
        op.id.to_string(),
        op.kind.as_str(),
        op.project.to_string(),
        op.project_name,
        op.owner.to_string(),
        op.account.to_string(),
        op.host.to_string(),
        op.generation.0 as i64,
        to_word(op.status)?,
        to_word(op.step)?,
        to_json(&op.state)?,
        op.version as i64,
        request.map(|request| request.key.as_str()),
        request.map(|request| request.digest.as_str()),
        op.created_at.millis(),
        op.updated_at.millis()
    ];
    change(tx, sql, row)?;
    Ok(())
}

fn operation(row: &Row<'_>) -> Result<Operation> {
    Ok(Operation {
        id: id(row, 0)?,
        kind: word(row, 1)?,
        project: id(row, 2)?,
        project_name: row.get(3)?,
        owner: id(row, 4)?,
        account: id(row, 5)?,
        host: id(row, 6)?,
        generation: Generation(row.get::<_, i64>(7)?.unsigned_abs()),
        status: word(row, 8)?,
        step: word(row, 9)?,
        state: json(row, 10)?,
        version: row.get::<_, i64>(11)?.unsigned_abs(),
        created_at: time(row, 12)?,
        updated_at: time(row, 13)?,
    })
}
