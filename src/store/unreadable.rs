//! Rows that cannot be read. Such a row permits nothing, keeps no other row from being read, and is named so that somebody
//! can put it right. Whatever of a row may be wrong by itself is read through here and never by `Row::get`.

use super::engine::Row;
use crate::domain::{SafeText, Timestamp};
use std::fmt;
use std::str::FromStr;

/// A row that is disabled because it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnreadableRow {
    /// The table or view it stands in.
    pub table: &'static str,
    /// What names it there, as far as that can be read: `user_ref 7d44…, grant_ref 0c1e…`. Safe to print.
    pub row: String,
    /// Whose row it is; it is read again with everything else of that user.
    pub user: Option<String>,
    pub column: &'static str,
    /// Why the column cannot be read: `is NULL`.
    pub why: String,
}

impl UnreadableRow {
    /// Each table whose rows are read one by one.
    pub const TABLES: [&str; 7] = [USERS, IDENTITIES, KEYS, SALTS, GRANTS, REVOCATIONS, REGISTRY];
    pub const REVOCATIONS: &str = REVOCATIONS;
    pub const REGISTRY: &str = REGISTRY;
}

pub(super) const USERS: &str = "users";
pub(super) const IDENTITIES: &str = "user_identities";
pub(super) const KEYS: &str = "api_keys";
pub(super) const SALTS: &str = "audit_salts";
/// The view, which may stand for a table of the operator's own.
pub(super) const GRANTS: &str = "grants";
pub(super) const REVOCATIONS: &str = "revocations";
pub(super) const REGISTRY: &str = "mcp_registry";

impl fmt::Display for UnreadableRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table, row, column, why, ..
        } = self;
        let then = match *table {
            REVOCATIONS => "what can be read of it holds for all that it may mean",
            _ => "it permits nothing",
        };
        write!(f, "a row of `{table}` cannot be read ({row}): `{column}` {why}; {then}")
    }
}

/// What is wrong with one column of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColumnError {
    pub column: &'static str,
    pub why: String,
}

impl ColumnError {
    pub(super) fn new(column: &'static str, why: impl fmt::Display) -> Self {
        let why = why.to_string();
        Self { column, why }
    }

    /// Names the row by these of its columns.
    pub(super) fn in_row(self, row: &Row, table: &'static str, keys: &[&'static str], user: Option<&str>) -> UnreadableRow {
        let named = keys.iter().filter_map(|key| {
            let text = row.cell::<String>(key).ok()?;
            Some(format!("{key} {}", SafeText::new(&text, 80)))
        });
        let named: Vec<String> = named.collect();
        UnreadableRow {
            table,
            row: if named.is_empty() {
                "without a readable key".to_owned()
            } else {
                named.join(", ")
            },
            user: user.map(str::to_owned),
            column: self.column,
            why: self.why,
        }
    }
}

/// For lists that people look at: the row, or `None` with a line in the log.
pub(super) fn or_left_out<T>(read: Result<T, ColumnError>, row: &Row, table: &'static str, keys: &[&'static str]) -> Option<T> {
    let told = |flaw: ColumnError| tracing::warn!("left out: {}", flaw.in_row(row, table, keys, None));
    read.map_err(told).ok()
}

pub(super) fn name<T: FromStr<Err: fmt::Display>>(row: &Row, column: &'static str) -> Result<T, ColumnError> {
    parsed(&row.cell::<String>(column)?, column)
}

pub(super) fn name_or_null<T: FromStr<Err: fmt::Display>>(row: &Row, column: &'static str) -> Result<Option<T>, ColumnError> {
    let text = row.cell_or_null::<String>(column)?;
    text.map(|text| parsed(&text, column)).transpose()
}

/// The names in a column that holds a JSON array: all of them, since a list that lacks some says something else.
pub(super) fn names<T: FromStr<Err: fmt::Display>>(row: &Row, column: &'static str) -> Result<Vec<T>, ColumnError> {
    names_in(&row.cell::<String>(column)?, column)
}

pub(super) fn names_in<T: FromStr<Err: fmt::Display>>(json: &str, column: &'static str) -> Result<Vec<T>, ColumnError> {
    let strings: Vec<String> = serde_json::from_str(json).map_err(|_| ColumnError::new(column, "is not a list of strings"))?;
    strings.iter().map(|text| parsed(text, column)).collect()
}

pub(super) fn time(row: &Row, column: &'static str) -> Result<Timestamp, ColumnError> {
    row.cell(column).map(Timestamp::from_micros)
}

pub(super) fn time_or_null(row: &Row, column: &'static str) -> Result<Option<Timestamp>, ColumnError> {
    Ok(row.cell_or_null::<i64>(column)?.map(Timestamp::from_micros))
}

fn parsed<T: FromStr<Err: fmt::Display>>(text: &str, column: &'static str) -> Result<T, ColumnError> {
    T::from_str(text).map_err(|error| ColumnError::new(column, format_args!("holds no name: {error}")))
}
