//! Accounts, sessions and API keys.

use atoll_contract::{AccountId, ApiKeyId, Timestamp};
use rusqlite::{Connection, Row, params};

use super::{
    Durability, Result, Store,
    row::{all, change, flag, id, one, optional_time, time},
};
use crate::auth::TokenHash;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AccountRow {
    pub id: AccountId,
    pub name: String,
    pub admin: bool,
    pub created_at: Timestamp,
}

/// An account with what its password is checked against.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub account: AccountRow,
    pub password: String,
}

#[derive(Debug, Clone)]
pub(crate) struct NewAccount {
    pub id: AccountId,
    pub name: String,
    pub admin: bool,
    pub password: String,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub id: ApiKeyId,
    pub name: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub used_at: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub(crate) struct NewKey {
    pub id: ApiKeyId,
    pub account: AccountId,
    pub name: String,
    pub token: TokenHash,
    pub now: Timestamp,
    pub expires_at: Option<Timestamp>,
    /// Keys that the account may have at most.
    pub most: i64,
}

/// Whom a bearer credential stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    pub account: AccountRow,
    /// The key, if it isn't a session.
    pub key: Option<ApiKeyId>,
    pub expires_at: Option<Timestamp>,
    pub used_at: Option<Timestamp>,
}

impl Store {
    /// Whether there is any account. Until there is, the setup token makes one.
    pub(crate) async fn has_account(&self) -> Result<bool> {
        self.read(|db| Ok(one(db, "SELECT 1 FROM account LIMIT 1", params![], |_| Ok(()))?.is_some())).await
    }

    /// Makes the first account. False if there is one already.
    pub(crate) async fn create_first_account(&self, new: NewAccount) -> Result<bool> {
        self.write(Durability::Synced, move |tx| {
            let sql = "INSERT INTO account (id, name, admin, password, created_at)
                       SELECT $1, $2, CAST($3 AS BIGINT), $4, CAST($5 AS BIGINT) WHERE NOT EXISTS (SELECT 1 FROM account)";
            Ok(change(tx, sql, params![new.id.to_string(), new.name, i64::from(new.admin), new.password, new.now.millis()])? == 1)
        })
        .await
    }

    /// False if the name is taken.
    pub(crate) async fn create_account(&self, new: NewAccount) -> Result<bool> {
        self.write(Durability::Synced, move |tx| {
            let sql = "INSERT INTO account (id, name, admin, password, created_at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
            Ok(change(tx, sql, params![new.id.to_string(), new.name, i64::from(new.admin), new.password, new.now.millis()])? == 1)
        })
        .await
    }

    /// One page of accounts, oldest first.
    pub(crate) async fn accounts(&self, after: Option<AccountId>, limit: usize) -> Result<Vec<AccountRow>> {
        self.read(move |db| {
            let sql = "SELECT id, name, admin, created_at FROM account WHERE id > $1 ORDER BY id LIMIT $2";
            all(db, sql, params![after.map(|id| id.to_string()).unwrap_or_default(), limit as i64], |row| account(row, 0))
        })
        .await
    }

    pub(crate) async fn account(&self, id: AccountId) -> Result<Option<AccountRow>> {
        self.read(move |db| {
            let sql = "SELECT id, name, admin, created_at FROM account WHERE id = $1";
            one(db, sql, params![id.to_string()], |row| account(row, 0))
        })
        .await
    }

    pub(crate) async fn credential(&self, name: String) -> Result<Option<Credential>> {
        self.read(move |db| {
            let sql = "SELECT id, name, admin, created_at, password FROM account WHERE lower(name) = lower($1)";
            one(db, sql, params![name], |row| Ok(Credential { account: account(row, 0)?, password: row.get(4)? }))
        })
        .await
    }

    /// Opens a session, drops the account's expired ones, and of the rest all but the newest `most`.
    pub(crate) async fn open_session(
        &self,
        token: TokenHash,
        account: AccountId,
        now: Timestamp,
        expires_at: Timestamp,
        most: i64,
    ) -> Result<()> {
        self.write(Durability::Synced, move |tx| {
            let account = account.to_string();
            change(tx, "DELETE FROM session WHERE account = $1 AND expires_at <= $2", params![account, now.millis()])?;
            let keep = "DELETE FROM session WHERE account = $1 AND token NOT IN
                        (SELECT token FROM session WHERE account = $1 ORDER BY created_at DESC, token LIMIT $2)";
            change(tx, keep, params![account, most - 1])?;
            let sql = "INSERT INTO session (token, account, created_at, expires_at) VALUES ($1, $2, $3, $4)";
            change(tx, sql, params![token.as_str(), account, now.millis(), expires_at.millis()])?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn end_session(&self, token: TokenHash) -> Result<()> {
        self.write(Durability::Synced, move |tx| {
            change(tx, "DELETE FROM session WHERE token = $1", params![token.as_str()])?;
            Ok(())
        })
        .await
    }

    /// Whom a session's token stands for, if it is in force.
    pub(crate) async fn session(&self, token: TokenHash, now: Timestamp) -> Result<Option<Proven>> {
        self.read(move |db| session(db, &token, now)).await
    }

    /// As [`Store::session`], on the calling thread.
    pub(crate) fn session_now(&self, token: &TokenHash, now: Timestamp) -> Result<Option<Proven>> {
        self.read_now(|db| session(db, token, now))
    }

    /// Whom an API key stands for, if it is in force.
    pub(crate) async fn key(&self, token: TokenHash, now: Timestamp) -> Result<Option<Proven>> {
        self.read(move |db| key(db, &token, now)).await
    }

    /// As [`Store::key`], on the calling thread.
    pub(crate) fn key_now(&self, token: &TokenHash, now: Timestamp) -> Result<Option<Proven>> {
        self.read_now(|db| key(db, token, now))
    }

    /// Makes a key. Err(true) if the account has too many, Err(false) if the name is taken.
    pub(crate) async fn create_key(&self, new: NewKey) -> Result<std::result::Result<(), bool>> {
        self.write(Durability::Synced, move |tx| {
            let account = new.account.to_string();
            let count = one(tx, "SELECT COUNT(*) FROM api_key WHERE account = $1", params![account], |row| Ok(row.get::<_, i64>(0)?))?;
            if count.unwrap_or(0) >= new.most {
                return Ok(Err(true));
            }
            let sql = "INSERT INTO api_key (id, account, name, token, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
                       ON CONFLICT DO NOTHING";
            let expires = new.expires_at.map(Timestamp::millis);
            let row = params![new.id.to_string(), account, new.name, new.token.as_str(), new.now.millis(), expires];
            Ok(if change(tx, sql, row)? == 1 { Ok(()) } else { Err(false) })
        })
        .await
    }

    pub(crate) async fn keys(&self, account: AccountId) -> Result<Vec<KeyRow>> {
        self.read(move |db| {
            let sql = "SELECT id, name, created_at, expires_at, used_at FROM api_key WHERE account = $1 ORDER BY id";
            all(db, sql, params![account.to_string()], |row| {
                Ok(KeyRow {
                    id: id(row, 0)?,
                    name: row.get(1)?,
                    created_at: time(row, 2)?,
                    expires_at: optional_time(row, 3)?,
                    used_at: optional_time(row, 4)?,
                })
            })
        })
        .await
    }

    /// False if the account has no such key.
    pub(crate) async fn delete_key(&self, account: AccountId, key: ApiKeyId) -> Result<bool> {
        self.write(Durability::Synced, move |tx| {
            let sql = "DELETE FROM api_key WHERE id = $1 AND account = $2";
            Ok(change(tx, sql, params![key.to_string(), account.to_string()])? == 1)
        })
        .await
    }

    pub(crate) async fn touch_key(&self, key: ApiKeyId, now: Timestamp) -> Result<()> {
        self.write(Durability::Written, move |tx| {
            change(tx, "UPDATE api_key SET used_at = $1 WHERE id = $2", params![now.millis(), key.to_string()])?;
            Ok(())
        })
        .await
    }

    /// Drops what has expired: sessions and join tokens before `now`, ended operations older than `history`.
    pub(crate) async fn prune(&self, now: Timestamp, history: Timestamp) -> Result<usize> {
        self.write(Durability::Written, move |tx| {
            let sessions = change(tx, "DELETE FROM session WHERE expires_at <= $1", params![now.millis()])?;
            let tokens = change(tx, "DELETE FROM join_token WHERE expires_at <= $1", params![now.millis()])?;
            let sql = "DELETE FROM operation WHERE ended = 1 AND updated_at <= $1";
            Ok(sessions + tokens + change(tx, sql, params![history.millis()])?)
        })
        .await
    }
}

fn session(db: &Connection, token: &TokenHash, now: Timestamp) -> Result<Option<Proven>> {
    let sql = "SELECT a.id, a.name, a.admin, a.created_at, s.expires_at FROM session s JOIN account a ON a.id = s.account
               WHERE s.token = $1 AND s.expires_at > $2";
    one(db, sql, params![token.as_str(), now.millis()], |row| {
        Ok(Proven { account: account(row, 0)?, key: None, expires_at: optional_time(row, 4)?, used_at: None })
    })
}

fn key(db: &Connection, token: &TokenHash, now: Timestamp) -> Result<Option<Proven>> {
    let sql = "SELECT a.id, a.name, a.admin, a.created_at, k.id, k.expires_at, k.used_at FROM api_key k JOIN account a ON a.id = k.account
               WHERE k.token = $1 AND (k.expires_at IS NULL OR k.expires_at > $2)";
    one(db, sql, params![token.as_str(), now.millis()], |row| {
        Ok(Proven {
            account: account(row, 0)?,
            key: Some(id(row, 4)?),
            expires_at: optional_time(row, 5)?,
            used_at: optional_time(row, 6)?,
        })
    })
}

fn account(row: &Row<'_>, at: usize) -> Result<AccountRow> {
    Ok(AccountRow { id: id(row, at)?, name: row.get(at + 1)?, admin: flag(row, at + 2)?, created_at: time(row, at + 3)? })
}
