//! From rows to values and back. A value that doesn't parse is a [`StoreError::Row`], never a default.

use std::fmt::Display;

use atoll_contract::{
    Timestamp,
    id::{Id, Kind},
};
use rusqlite::{Connection, Params, Row};
use serde::{Serialize, de::DeserializeOwned};

use super::{Result, StoreError};

pub(super) fn all<T>(connection: &Connection, sql: &str, params: impl Params, read: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut values = Vec::new();
    while let Some(row) = rows.next()? {
        values.push(read(row)?);
    }
    Ok(values)
}

pub(super) fn one<T>(connection: &Connection, sql: &str, params: impl Params, read: impl Fn(&Row<'_>) -> Result<T>) -> Result<Option<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(read).transpose()
}

/// Runs a statement that returns no rows; gives the number of rows that it changed.
pub(super) fn change(connection: &Connection, sql: &str, params: impl Params) -> Result<usize> {
    Ok(connection.prepare_cached(sql)?.execute(params)?)
}

pub(super) fn id<K: Kind>(row: &Row<'_>, column: usize) -> Result<Id<K>> {
    row.get_ref(column)?.as_str().map_err(bad)?.parse().map_err(bad)
}

pub(super) fn time(row: &Row<'_>, column: usize) -> Result<Timestamp> {
    Ok(Timestamp::from_millis(row.get(column)?))
}

pub(super) fn optional_time(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_millis))
}

pub(super) fn flag(row: &Row<'_>, column: usize) -> Result<bool> {
    Ok(row.get::<_, i64>(column)? != 0)
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str().map_err(bad)?).map_err(bad)
}

/// A contract enum by its name on the wire.
pub(super) fn word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(serde_json::Value::String(text)).map_err(bad)
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(bad)
}

pub(super) fn to_word(value: impl Serialize) -> Result<String> {
    match serde_json::to_value(value).map_err(bad)? {
        serde_json::Value::String(text) => Ok(text),
        other => Err(bad(format!("{other} isn't a word"))),
    }
}

pub(super) fn bad(error: impl Display) -> StoreError {
    StoreError::Row(error.to_string())
}
