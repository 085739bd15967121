//! What can go wrong with the store, each as one plain sentence. Driver errors end here: their texts may quote values, so
//! only the sentence made of them travels on, and nothing of a URL but user, host and database.

use super::engine::StoreLocation;
use sqlx::migrate::MigrateError;
use std::fmt::Display;
use std::io::ErrorKind;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Configuration(String),
    #[error("cannot reach {place}: {why}")]
    Unreachable { place: String, why: String },
    #[error("{place} refuses the login `{user}`: wrong password, or it may not connect")]
    WrongPassword { place: String, user: String },
    #[error("{0} does not exist")]
    DatabaseMissing(String),
    #[error("no trusted TLS connection to {place}: {why}")]
    Tls { place: String, why: String },
    #[error("{0} has no tables of this version yet: run `guardian db migrate`")]
    NotMigrated(String),
    #[error("{place} is at schema version {found}, this program knows {known}: it needs a newer guardian")]
    NewerSchema { place: String, found: i64, known: i64 },
    #[error("{place} must not be used as it is: {what}")]
    Unusable { place: String, what: String },
    /// A change of grants, keys, users, … could be committed without the change feed telling of it.
    #[error("{place} does not tell of every change: {what}")]
    FeedMissing { place: String, what: String },
    #[error("this login may not do this in {place}: {what}")]
    Permission { place: String, what: String },
    /// Locked, overloaded, shutting down: the same again may succeed.
    #[error("{place} cannot do this now: {why}")]
    Busy { place: String, why: String },
    /// The disk of the file is full or fails: the same again may succeed.
    #[error("{place} cannot do this now: {why}")]
    DiskFails { place: String, why: String },
    #[error("no {0}")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    /// The database refuses the values themselves.
    #[error("{place} cannot hold these values: {what}")]
    Unstorable { place: String, what: String },
    #[error("{place} failed: {what}")]
    Broken { place: String, what: String },
}

impl StoreError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } | Self::DiskFails { .. } => true,
            Self::Configuration(_)
            | Self::WrongPassword { .. }
            | Self::DatabaseMissing(_)
            | Self::Tls { .. }
            | Self::NotMigrated(_)
            | Self::NewerSchema { .. }
            | Self::Unusable { .. }
            | Self::FeedMissing { .. }
            | Self::Permission { .. }
            | Self::NotFound(_)
            | Self::Invalid(_)
            | Self::Conflict(_)
            | Self::Unstorable { .. }
            | Self::Broken { .. } => false,
        }
    }

    pub(super) fn unreachable(place: impl Display, why: impl Into<String>) -> Self {
        let (place, why) = (place.to_string(), why.into());
        Self::Unreachable { place, why }
    }

    pub(super) fn tls(place: impl Display, why: impl Into<String>) -> Self {
        let (place, why) = (place.to_string(), why.into());
        Self::Tls { place, why }
    }

    pub(super) fn permission(place: impl Display, what: impl Into<String>) -> Self {
        let (place, what) = (place.to_string(), what.into());
        Self::Permission { place, what }
    }

    pub(super) fn busy(place: impl Display, why: impl Into<String>) -> Self {
        let (place, why) = (place.to_string(), why.into());
        Self::Busy { place, why }
    }

    pub(super) fn disk_fails(place: impl Display, why: impl Into<String>) -> Self {
        let (place, why) = (place.to_string(), why.into());
        Self::DiskFails { place, why }
    }

    pub(super) fn unstorable(place: impl Display, what: impl Into<String>) -> Self {
        let (place, what) = (place.to_string(), what.into());
        Self::Unstorable { place, what }
    }

    pub(super) fn broken(place: impl Display, what: impl Into<String>) -> Self {
        let (place, what) = (place.to_string(), what.into());
        Self::Broken { place, what }
    }

    pub(super) fn of(error: sqlx::Error, location: &StoreLocation) -> Self {
        match error {
            sqlx::Error::Database(error) => match location {
                StoreLocation::Postgres { .. } => of_postgres(error.code().as_deref().unwrap_or(""), error.message(), location),
                StoreLocation::Sqlite { .. } => of_sqlite(error.code().as_deref().unwrap_or(""), error.message(), location),
            },
            // rustls reports a refused certificate as invalid data
            sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData => Self::tls(location, error.to_string()),
            sqlx::Error::Io(error) => Self::unreachable(location, plain(&error)),
            sqlx::Error::Tls(error) => Self::tls(location, error.to_string()),
            sqlx::Error::PoolTimedOut => Self::unreachable(location, "no connection in time"),
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Self::unreachable(location, "the store is closed"),
            sqlx::Error::Migrate(error) => Self::of_migration(*error, location),
            sqlx::Error::Encode(error) => Self::unstorable(location, error.to_string()),
            sqlx::Error::ColumnDecode { index, .. } => Self::broken(location, format!("column {index} has another type")),
            other => Self::broken(location, other.to_string()),
        }
    }

    pub(super) fn of_migration(error: MigrateError, location: &StoreLocation) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Self::of(error, location),
            MigrateError::VersionMismatch(version) => Self::broken(
                location,
                format!("migration {version} was applied with another text than this program has"),
            ),
            MigrateError::Dirty(version) => Self::broken(location, format!("migration {version} was left half applied")),
            other => Self::broken(location, other.to_string()),
        }
    }
}

fn of_postgres(code: &str, message: &str, location: &StoreLocation) -> StoreError {
    let what = message.to_owned();
    match code {
        "28000" | "28P01" => StoreError::WrongPassword {
            place: location.to_string(),
            user: location.user().to_owned(),
        },
        "3D000" => StoreError::DatabaseMissing(location.to_string()),
        // undefined table, schema, function, column
        "42P01" | "3F000" | "42883" | "42703" => StoreError::NotMigrated(location.to_string()),
        "42501" => StoreError::permission(location, what),
        // raised by the functions of the schema: no such row; and a refusal in words of ours
        "P0002" => StoreError::NotFound(what),
        "P0001" => StoreError::Conflict(what),
        "23503" => StoreError::NotFound(format!("row that this refers to ({what})")),
        "23505" => StoreError::Conflict(format!("it exists already ({what})")),
        "25006" => StoreError::permission(location, "the database is read-only (a standby?)"),
        "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "53300" | "53100" | "53200" | "53400" | "40001" | "40P01" | "55P03"
        | "55006" => StoreError::busy(location, what),
        _ if code.starts_with("08") => StoreError::unreachable(location, what),
        _ if code.starts_with("22") || code.starts_with("23") || code.starts_with("54") => StoreError::unstorable(location, what),
        _ => StoreError::broken(location, format!("{what} ({code})")),
    }
}

fn of_sqlite(code: &str, message: &str, at: impl Display) -> StoreError {
    let code: u32 = code.parse().unwrap_or(1);
    let what = message.to_owned();
    match (code & 0xff, code) {
        (5 | 6, _) => StoreError::busy(at, "another process holds it locked"),
        // I/O error, disk full
        (10 | 13, _) => StoreError::disk_fails(at, what),
        (14, _) => StoreError::unreachable(at, "the file cannot be opened"),
        (8, _) => StoreError::permission(at, "the file is read-only"),
        (11 | 26, _) => StoreError::broken(at, "the file is damaged or not an SQLite database"),
        (19, 787) => StoreError::NotFound("row that this refers to".to_owned()),
        (19, 1555 | 2067) => StoreError::Conflict(format!("it exists already ({what})")),
        (19, 1811) => StoreError::permission(at, what),
        (18..=20, _) => StoreError::unstorable(at, what),
        (1, _) if message.starts_with("no such table") || message.starts_with("no such column") => {
            StoreError::NotMigrated(at.to_string())
        }
        _ => StoreError::broken(at, format!("{what} ({code})")),
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::NotFound => "no such file or socket".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "the connection broke off".to_owned(),
        ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_meaning() {
        let postgres = StoreLocation::Postgres {
            host: "h:5432".into(),
            database: "d".into(),
            user: "u".into(),
        };
        for (code, transient, text) in [
            (
                "28P01",
                false,
                "the Postgres database `d` at `h:5432` refuses the login `u`: wrong password, or it may not connect",
            ),
            (
                "57P01",
                true,
                "the Postgres database `d` at `h:5432` cannot do this now: words",
            ),
            (
                "53300",
                true,
                "the Postgres database `d` at `h:5432` cannot do this now: words",
            ),
            (
                "40P01",
                true,
                "the Postgres database `d` at `h:5432` cannot do this now: words",
            ),
            ("08006", true, "cannot reach the Postgres database `d` at `h:5432`: words"),
            (
                "22021",
                false,
                "the Postgres database `d` at `h:5432` cannot hold these values: words",
            ),
            (
                "23514",
                false,
                "the Postgres database `d` at `h:5432` cannot hold these values: words",
            ),
            (
                "54000",
                false,
                "the Postgres database `d` at `h:5432` cannot hold these values: words",
            ),
            (
                "25006",
                false,
                "this login may not do this in the Postgres database `d` at `h:5432`: the database is read-only (a standby?)",
            ),
            ("XX000", false, "the Postgres database `d` at `h:5432` failed: words (XX000)"),
        ] {
            let error = of_postgres(code, "words", &postgres);
            assert_eq!(
                (error.to_string().as_str(), error.is_transient()),
                (text, transient),
                "{code}"
            );
        }
        for (code, transient, text) in [
            ("5", true, "the file cannot do this now: another process holds it locked"),
            ("517", true, "the file cannot do this now: another process holds it locked"),
            ("13", true, "the file cannot do this now: words"),
            ("2570", true, "the file cannot do this now: words"),
            ("8", false, "this login may not do this in the file: the file is read-only"),
            ("275", false, "the file cannot hold these values: words"),
            ("26", false, "the file failed: the file is damaged or not an SQLite database"),
            ("1", false, "the file failed: words (1)"),
        ] {
            let error = of_sqlite(code, "words", "the file");
            assert_eq!(
                (error.to_string().as_str(), error.is_transient()),
                (text, transient),
                "{code}"
            );
        }
    }
}
