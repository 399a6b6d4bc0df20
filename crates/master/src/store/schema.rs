//! The tables, as migrations. A migration that has shipped is never changed; a new one is added.
//!
//! What is durable is intent: who may do what, what should be where, and what is being done about it. What hosts observe isn't here at
//! all: it would be stale the moment it is read back, and after a restart of the master a host says it again within seconds. Until then
//! its projects are `unknown`, which is the truth.

use rusqlite::{Connection, params};

use super::{Result, StoreError, in_transaction, row};

pub(super) const MIGRATIONS: &[&str] = &[FIRST];

const FIRST: &str = "
-- Who may log in. `password` is an argon2id hash in PHC form. Durable: nothing else knows it.
CREATE TABLE account (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    admin BIGINT NOT NULL,
    password TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX account_name ON account (lower(name));

-- Logins. `token` is the SHA-256 of the bearer text. Durable, so that a restart of the master logs nobody out.
CREATE TABLE session (
    token TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX session_account ON session (account, created_at);

-- Credentials of programs. Durable: their owners have the other half. `used_at` may lag by a minute.
CREATE TABLE api_key (
    id TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    used_at BIGINT
);
CREATE UNIQUE INDEX api_key_token ON api_key (token);
CREATE UNIQUE INDEX api_key_name ON api_key (account, lower(name));

-- One-time rights to join. Durable with `used_by`, since a token that came back to life after a restart would not be one-time.
CREATE TABLE join_token (
    token TEXT NOT NULL PRIMARY KEY,
    name TEXT,
    created_by TEXT REFERENCES account (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_by TEXT
);

-- Membership: which key is which host. Durable, since the key is all that a host proves itself with. What a host has and how it is
-- comes with its reports and is kept in memory.
CREATE TABLE host (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    public_key TEXT NOT NULL,
    draining BIGINT NOT NULL,
    joined_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX host_name ON host (lower(name));
CREATE UNIQUE INDEX host_public_key ON host (public_key);

-- Intent: what should be, and where. `host` and `generation` are the routing map. Durable above all else: a generation that was
-- handed out twice would let two hosts own one project.
CREATE TABLE project (
    id TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL REFERENCES account (id),
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    requirements TEXT NOT NULL,
    intent TEXT NOT NULL,
    host TEXT NOT NULL REFERENCES host (id),
    generation BIGINT NOT NULL,
    assigned_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX project_name ON project (owner, lower(name));
CREATE INDEX project_host ON project (host);
CREATE INDEX project_assigned ON project (assigned_at);

-- Long work, with the step that is next, saved before and after each. Durable: it is what a new master goes on with. `state` is JSON
-- with a version. Ended ones are kept for some time for people to read, hence no reference to a project that may be gone.
CREATE TABLE operation (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    project TEXT NOT NULL,
    project_name TEXT NOT NULL,
    owner TEXT NOT NULL,
    account TEXT NOT NULL,
    host TEXT NOT NULL,
    generation BIGINT NOT NULL,
    status TEXT NOT NULL,
    step TEXT NOT NULL,
    state TEXT NOT NULL,
    ended BIGINT NOT NULL,
    version BIGINT NOT NULL,
    request_key TEXT,
    request_digest TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX operation_holds ON operation (project) WHERE ended = 0;
CREATE UNIQUE INDEX operation_request ON operation (account, request_key);
CREATE INDEX operation_project ON operation (project, id);
CREATE INDEX operation_owner ON operation (owner, id);
";

/// Brings the schema to the newest version, each step in a transaction of its own.
///
/// # Errors
/// [`StoreError::TooNew`] if a later program has written the file: going on could lose what it knows.
pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    let known = MIGRATIONS.len() as i64;
    in_transaction(connection, |tx| {
        Ok(tx.execute_batch("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY)")?)
    })?;
    let found = version(connection)?;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for (at, migration) in (1..).zip(MIGRATIONS).filter(|(at, _)| *at > found) {
        in_transaction(connection, |tx| {
            tx.execute_batch(migration)?;
            tx.execute("INSERT INTO schema_version (version) VALUES ($1)", params![at])?;
            Ok(())
        })?;
        tracing::info!(version = at, "the store's schema was brought up to date");
    }
    Ok(())
}

pub(super) fn version(connection: &Connection) -> Result<i64> {
    let found = row::one(connection, "SELECT COALESCE(MAX(version), 0) FROM schema_version", params![], |row| Ok(row.get(0)?))?;
    Ok(found.unwrap_or(0))
}
