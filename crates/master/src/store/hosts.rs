//! Hosts and the tokens with which they join.

use std::collections::HashMap;

use atoll_contract::{AccountId, HostId, Timestamp};
use rusqlite::{Connection, Row, params};

use super::{
    Durability, Result, Store,
    row::{all, change, flag, id, one, time},
};
use crate::auth::TokenHash;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRow {
    pub id: HostId,
    pub name: String,
    pub public_key: String,
    pub draining: bool,
    pub joined_at: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) struct NewJoinToken {
    pub token: TokenHash,
    /// The name that the host must have.
    pub name: Option<String>,
    pub created_by: Option<AccountId>,
    pub now: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) struct NewHost {
    pub id: HostId,
    pub token: TokenHash,
    pub name: String,
    pub public_key: String,
    pub now: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Joined {
    /// New, or the same host with the same key again.
    Member(HostRow),
    /// Unknown, expired, or used by another host.
    BadToken,
    /// The token is for a host of this name.
    OtherName(String),
    NameTaken,
    /// The key belongs to the host of this name.
    KeyTaken(String),
}

const HOST: &str = "SELECT id, name, public_key, draining, joined_at FROM host";

impl Store {
    pub(crate) async fn create_join_token(&self, new: NewJoinToken) -> Result<()> {
        self.write(Durability::Synced, move |tx| {
            let sql = "INSERT INTO join_token (token, name, created_by, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)";
            let by = new.created_by.map(|account| account.to_string());
            let row = params![new.token.as_str(), new.name, by, new.now.millis(), new.expires_at.millis()];
            change(tx, sql, row)?;
            Ok(())
        })
        .await
    }

    /// Trades a join token for membership. The token is used up by the first host that succeeds with it; the same host with the
    /// same key may ask again while the token lasts, since its answer may have been lost.
    pub(crate) async fn join(&self, new: NewHost) -> Result<Joined> {
        self.write(Durability::Synced, move |tx| {
            let sql = "SELECT name, used_by FROM join_token WHERE token = $1 AND expires_at > $2";
            let token = one(tx, sql, params![new.token.as_str(), new.now.millis()], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?))
            })?;
            let Some((bound, used_by)) = token else { return Ok(Joined::BadToken) };
            let known = one(tx, &format!("{HOST} WHERE public_key = $1"), params![new.public_key], host)?;
            if let Some(used_by) = used_by {
                let same = known.filter(|known| known.id.to_string() == used_by && known.name == new.name);
                return Ok(same.map_or(Joined::BadToken, Joined::Member));
            }
            if let Some(bound) = bound.filter(|bound| *bound != new.name) {
                return Ok(Joined::OtherName(bound));
            }
            let member = match known {
                Some(known) if known.name == new.name => known,
                Some(known) => return Ok(Joined::KeyTaken(known.name)),
                None => {
                    let row = HostRow { id: new.id, name: new.name, public_key: new.public_key, draining: false, joined_at: new.now };
                    let sql =
                        "INSERT INTO host (id, name, public_key, draining, joined_at) VALUES ($1, $2, $3, 0, $4) ON CONFLICT DO NOTHING";
                    if change(tx, sql, params![row.id.to_string(), row.name, row.public_key, row.joined_at.millis()])? == 0 {
                        return Ok(Joined::NameTaken);
                    }
                    row
                }
            };
            change(tx, "UPDATE join_token SET used_by = $1 WHERE token = $2", params![member.id.to_string(), new.token.as_str()])?;
            Ok(Joined::Member(member))
        })
        .await
    }

    pub(crate) async fn hosts(&self) -> Result<Vec<HostRow>> {
        self.read(|db| all(db, &format!("{HOST} ORDER BY id"), params![], host)).await
    }

    /// How many projects are assigned to each host; hosts without one are left out.
    pub(crate) async fn assigned(&self) -> Result<HashMap<HostId, u32>> {
        self.read(|db| {
            let rows =
                all(db, "SELECT host, COUNT(*) FROM project GROUP BY host", params![], |row| Ok((id(row, 0)?, row.get::<_, u32>(1)?)))?;
            Ok(rows.into_iter().collect())
        })
        .await
    }

    /// None if there is no such host.
    pub(crate) async fn set_draining(&self, host_id: HostId, draining: bool) -> Result<Option<HostRow>> {
        self.write(Durability::Synced, move |tx| {
            change(tx, "UPDATE host SET draining = $1 WHERE id = $2", params![i64::from(draining), host_id.to_string()])?;
            by_id(tx, host_id)
        })
        .await
    }

    /// Removes a host that has no projects and no operation. Err gives the number of projects that it still has.
    pub(crate) async fn delete_host(&self, host_id: HostId) -> Result<std::result::Result<bool, u32>> {
        self.write(Durability::Synced, move |tx| {
            let host_id = host_id.to_string();
            let sql = "SELECT COUNT(*) FROM project WHERE host = $1";
            let projects = one(tx, sql, params![host_id], |row| Ok(row.get::<_, u32>(0)?))?.unwrap_or(0);
            if projects > 0 {
                return Ok(Err(projects));
            }
            Ok(Ok(change(tx, "DELETE FROM host WHERE id = $1", params![host_id])? == 1))
        })
        .await
    }
}

fn by_id(db: &Connection, host_id: HostId) -> Result<Option<HostRow>> {
    one(db, &format!("{HOST} WHERE id = $1"), params![host_id.to_string()], host)
}

fn host(row: &Row<'_>) -> Result<HostRow> {
    Ok(HostRow { id: id(row, 0)?, name: row.get(1)?, public_key: row.get(2)?, draining: flag(row, 3)?, joined_at: time(row, 4)? })
}
