//! Projects: intent, and the routing map.

use atoll_contract::{
    AccountId, Generation, HostId, OperationId, ProjectId, Timestamp,
    placement::Requirements,
    project::{Intent, ProjectSpec},
};
use rusqlite::{Connection, Row, params};

use super::{
    Result, Store,
    row::{all, id, json, one, time, word},
};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProjectRow {
    pub id: ProjectId,
    pub owner: AccountId,
    pub spec: ProjectSpec,
    pub requirements: Requirements,
    pub intent: Intent,
    pub host: HostId,
    pub host_name: String,
    pub generation: Generation,
    /// The operation that holds it now.
    pub operation: Option<OperationId>,
    pub created_at: Timestamp,
}

/// One page of projects.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProjectFilter {
    /// Only of this owner.
    pub owner: Option<AccountId>,
    pub after: Option<ProjectId>,
    pub limit: usize,
}

const PROJECT: &str = "SELECT p.id, p.owner, p.spec, p.requirements, p.intent, p.host, h.name, p.generation, o.id, p.created_at
    FROM project p JOIN host h ON h.id = p.host LEFT JOIN operation o ON o.project = p.id AND o.ended = 0";

impl Store {
    pub(crate) async fn project(&self, project: ProjectId) -> Result<Option<ProjectRow>> {
        self.read(move |db| by_id(db, project)).await
    }

    pub(crate) async fn project_by_name(&self, owner: AccountId, name: String) -> Result<Option<ProjectRow>> {
        self.read(move |db| {
            let sql = format!("{PROJECT} WHERE p.owner = $1 AND lower(p.name) = lower($2)");
            one(db, &sql, params![owner.to_string(), name], project_row)
        })
        .await
    }

    /// In the order of their making.
    pub(crate) async fn projects(&self, filter: ProjectFilter) -> Result<Vec<ProjectRow>> {
        self.read(move |db| {
            let after = filter.after.map(|id| id.to_string()).unwrap_or_default();
            let limit = filter.limit as i64;
            if let Some(owner) = filter.owner {
                let sql = format!("{PROJECT} WHERE p.owner = $1 AND p.id > $2 ORDER BY p.id LIMIT $3");
                all(db, &sql, params![owner.to_string(), after, limit], project_row)
            } else {
                let sql = format!("{PROJECT} WHERE p.id > $1 ORDER BY p.id LIMIT $2");
                all(db, &sql, params![after, limit], project_row)
            }
        })
        .await
    }

    /// The hosts that have a project of this owner.
    pub(crate) async fn hosts_of(&self, owner: AccountId) -> Result<Vec<HostId>> {
        self.read(move |db| {
            let sql = "SELECT DISTINCT host FROM project WHERE owner = $1";
            all(db, sql, params![owner.to_string()], |row| id(row, 0))
        })
        .await
    }

    /// The host's projects, in the order of their making.
    pub(crate) async fn projects_of(&self, host: HostId) -> Result<Vec<ProjectId>> {
        self.read(move |db| {
            let sql = "SELECT id FROM project WHERE host = $1 ORDER BY id";
            all(db, sql, params![host.to_string()], |row| id(row, 0))
        })
        .await
    }
}

pub(super) fn by_id(db: &Connection, project: ProjectId) -> Result<Option<ProjectRow>> {
    one(db, &format!("{PROJECT} WHERE p.id = $1"), params![project.to_string()], project_row)
}

fn project_row(row: &Row<'_>) -> Result<ProjectRow> {
    let operation: Option<String> = row.get(8)?;
    Ok(ProjectRow {
        id: id(row, 0)?,
        owner: id(row, 1)?,
        spec: json(row, 2)?,
        requirements: json(row, 3)?,
        intent: word(row, 4)?,
        host: id(row, 5)?,
        host_name: row.get(6)?,
        generation: Generation(row.get::<_, i64>(7)?.unsigned_abs()),
        operation: operation.map(|text| text.parse().map_err(super::row::bad)).transpose()?,
        created_at: time(row, 9)?,
    })
}
