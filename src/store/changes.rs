//! Changes of the store and who made them. A command changes rows through a `ChangeTx`, which covers the rows that triggers
//! wrote meanwhile with records in the chain of the environment, in the same transaction. What an instance changes by itself
//! is handed back, for a record of its journal.

use super::change_words::RowChange;
use super::engine::{Access, Row, Sql, Tx, args};
use super::{Store, StoreError};
use crate::domain::{
    Actor, AdminAction, Chain, Digest, EnvironmentName, Event, Incarnation, RecordedChange, SealedRecord, Timestamp, UserId,
};
use serde_json::Value as Json;
use std::sync::Arc;

/// Who changes the store through a handle of it.
#[derive(Debug, Clone)]
pub enum Author {
    /// Somebody who runs a command.
    Command {
        actor: Actor,
        /// Who they say they are.
        claimed_by: Option<String>,
    },
    /// An instance, which has a journal of its own.
    Instance(Actor),
}

/// A transaction that changes rows of one environment.
pub(super) struct ChangeTx {
    pub tx: Tx,
    environment: EnvironmentName,
    author: Option<Arc<Author>>,
    /// The database's own rows before the first of this transaction, on SQLite, which has one writer at a time.
    before: i64,
}

/// A row that a trigger wrote in this transaction.
struct OwnRow {
    at: Timestamp,
    user: Option<UserId>,
    server: Option<String>,
    /// Of `change` as JSON.
    size: usize,
    change: RecordedChange,
    detail: String,
}

/// The changes of a record, as JSON, are no longer than this; the rest of it has its place in what a record may hold.
const MOST_CHANGES: usize = 11_000;
/// The values of a change that is longer in the store's own words are left to its digest. `tells_of` has the same number.
const LONGEST_CHANGE: usize = 6_000;
/// Characters of what was changed, and of a record's detail.
const LONGEST_NAME: usize = 300;
const LONGEST_DETAIL: usize = 600;

const BEFORE: Sql = Sql::each("", "SELECT ifnull(max(seq), -1) AS seq FROM recorded_changes");

/// `row_text` is the same text on both: what a digest of the row is made from.
const OWN_CHANGES: Sql = Sql {
    postgres: "SELECT seq, at, relation, op, user_ref, server_name, change, row_text FROM own_changes($1)",
    sqlite:
        "SELECT a.seq, a.occurred_at AS at, a.method AS relation, a.reason AS op, a.user_id AS user_ref, a.server_name, a.change,
               a.seq || char(10) || a.occurred_at || char(10) || a.environment || char(10) || a.method || char(10) || a.reason
                 || char(10) || ifnull(a.user_id, '') || char(10) || ifnull(a.server_name, '') || char(10) || a.recorded_by
                 || char(10) || a.change AS row_text
             FROM audit_trail a JOIN recorded_changes r ON r.seq = a.seq AND r.record IS NULL
             WHERE a.incarnation = zeroblob(16) AND a.environment = $1 AND a.seq > $2 ORDER BY a.seq",
};

const NEW_CHAIN: Sql = Sql::each(
    "",
    "INSERT INTO change_chain (environment) VALUES ($1) ON CONFLICT DO NOTHING",
);

const LOCK_CHAIN: Sql = Sql {
    postgres: "SELECT incarnation, next, head, login, at FROM lock_change_chain($1)",
    sqlite: "SELECT incarnation, next, head, NULL AS login, (SELECT micros FROM clock) AS at FROM change_chain WHERE environment = $1",
};

/// On Postgres the database checks the bytes and computes the hashes.
const APPEND: Sql = Sql {
    postgres: "SELECT append_change($1, $2)::text",
    sqlite: "INSERT INTO audit_trail (incarnation, seq, occurred_at, environment, kind, reason, user_id, server_name, actor, claimed_by,
               bytes, leaf, head) VALUES ($4, $5, $6, $1, 'admin', $7, $8, $9, $10, $11, $2, $3, $12)",
};
const COVER: Sql = Sql::each(
    "",
    "UPDATE recorded_changes SET incarnation = $1, record = $2 WHERE seq = $3 AND record IS NULL",
);
const ADVANCE: Sql = Sql::each("", "UPDATE change_chain SET next = $2, head = $3 WHERE environment = $1");

/// What a journal's record covers, once it is shipped.
const COVER_SHIPPED: Sql = Sql::of_postgres("SELECT cover_changes($1, $2)::text");
const SHIPPED_ROW: Sql = Sql::each(
    "",
    "SELECT a.seq || char(10) || a.occurred_at || char(10) || a.environment || char(10) || a.method || char(10) || a.reason
       || char(10) || ifnull(a.user_id, '') || char(10) || ifnull(a.server_name, '') || char(10) || a.recorded_by
       || char(10) || a.change AS row_text
     FROM audit_trail a WHERE a.incarnation = zeroblob(16) AND a.seq = $1 AND a.environment = $2
       AND a.method IN ('users', 'user_identities', 'server_tools')",
);

const UNHASHED: Sql = Sql::each(
    "SELECT unhashed_changes($1) AS unhashed",
    "SELECT count(*) AS unhashed FROM recorded_changes WHERE environment = $1 AND record IS NULL",
);

impl Store {
    /// The same store, with changes made through it by this author.
    pub fn authored(mut self, author: Author) -> Self {
        let author = Some(Arc::new(author));
        match &mut self {
            Store::Postgres(engine) => engine.author = author,
            Store::Sqlite(engine) => engine.author = author,
        }
        self
    }

    fn author(&self) -> Option<Arc<Author>> {
        match self {
            Store::Postgres(engine) => engine.author.clone(),
            Store::Sqlite(engine) => engine.author.clone(),
        }
    }

    /// How many changes no record covers: made by another program than Guardian, or by an instance whose record is not shipped
    /// yet.
    pub async fn unhashed_changes(&self, env: &EnvironmentName) -> Result<u64, StoreError> {
        let rows = self.query(&UNHASHED, args![env.as_str()]).await?;
        let count = rows.first().map_or(Ok(0), |row| row.get::<i64>("unhashed"))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Begins a change that somebody makes with a command.
    pub(super) async fn change(&self, env: &EnvironmentName) -> Result<ChangeTx, StoreError> {
        match self.author().as_deref() {
            Some(Author::Command { .. }) => self.change_by_anyone(env).await,
            Some(Author::Instance(_)) | None => {
                let text = "this handle of the store names nobody who makes changes";
                Err(StoreError::Invalid(text.to_owned()))
            }
        }
    }

    /// Begins a change that an instance may make by itself too.
    pub(super) async fn change_by_anyone(&self, env: &EnvironmentName) -> Result<ChangeTx, StoreError> {
        let (tx, before) = match self {
            Store::Postgres(engine) => (engine.begin("BEGIN ISOLATION LEVEL READ COMMITTED").await?, -1),
            Store::Sqlite(engine) => {
                let mut tx = engine.begin(Access::Write).await?;
                let row = tx.fetch_one(&BEFORE, args![]).await?;
                let before = row.map_or(Ok(-1), |row| row.get("seq"))?;
                (tx, before)
            }
        };
        Ok(ChangeTx {
            tx,
            environment: env.clone(),
            author: self.author(),
            before,
        })
    }
}

impl ChangeTx {
    /// Commits the rows with the records that cover them. Returns what an instance has to record in its journal instead;
    /// nothing where somebody's command made the change, or nothing was changed.
    pub(super) async fn commit(mut self) -> Result<Vec<AdminAction>, StoreError> {
        let rows = self.own_rows().await?;
        let author = self.author.clone();
        let left = match author.as_deref() {
            Some(Author::Command { actor, claimed_by }) => {
                self.append_records(rows, actor, claimed_by.as_deref()).await?;
                Vec::new()
            }
            Some(Author::Instance(actor)) => self.actions(rows, Some(actor)),
            None => self.actions(rows, None),
        };
        self.tx.commit().await?;
        Ok(left)
    }

    /// Commits together with a record of what was done, which need not have changed a row.
    pub(super) async fn commit_noting(mut self, action: &str, detail: String) -> Result<(), StoreError> {
        let author = self.author.clone();
        let (actor, claimed_by) = match author.as_deref() {
            Some(Author::Command { actor, claimed_by }) => (actor, claimed_by.as_deref()),
            Some(Author::Instance(_)) | None => return self.tx.commit().await,
        };
        let mut chain = self.lock_chain().await?;
        let mut noted = AdminAction::new(chain.at, self.environment.clone(), action, shortened(&detail, LONGEST_DETAIL));
        (noted.actor, noted.claimed_by) = (Some(actor.clone()), claimed_by.map(str::to_owned));
        self.append(&mut chain, noted).await?;
        self.tx.commit().await
    }

    async fn own_rows(&mut self) -> Result<Vec<OwnRow>, StoreError> {
        let args = args![self.environment.as_str(), self.before];
        let args = if self.before == -1 && self.tx.is_postgres() {
            &args[..1]
        } else {
            &args[..]
        };
        self.tx.fetch(&OWN_CHANGES, args).await?.iter().map(own_row).collect()
    }

    fn actions(&self, rows: Vec<OwnRow>, actor: Option<&Actor>) -> Vec<AdminAction> {
        let packed = pack(rows).into_iter();
        packed
            .map(|rows| AdminAction {
                actor: actor.cloned(),
                ..action_of(rows, &self.environment)
            })
            .collect()
    }

    async fn append_records(&mut self, rows: Vec<OwnRow>, actor: &Actor, claimed_by: Option<&str>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut chain = self.lock_chain().await?;
        for rows in pack(rows) {
            let action = AdminAction {
                at: chain.at,
                actor: Some(actor.clone()),
                claimed_by: claimed_by.map(str::to_owned),
                ..action_of(rows, &self.environment)
            };
            self.append(&mut chain, action).await?;
        }
        Ok(())
    }

    async fn lock_chain(&mut self) -> Result<LockedChain, StoreError> {
        let env = self.environment.as_str();
        if !self.tx.is_postgres() {
            self.tx.execute(&NEW_CHAIN, args![env]).await?;
        }
        let row = self.tx.fetch_one(&LOCK_CHAIN, args![env]).await?;
        let row = row.ok_or_else(|| StoreError::broken("the store", "the chain of changes is missing"))?;
        let bytes = |column| row.get::<Vec<u8>>(column);
        let length = |_| StoreError::broken("the store", "the chain of changes cannot be read");
        let mut chain = Chain::new(Incarnation(bytes("incarnation")?.try_into().map_err(length)?));
        chain.next = u64::try_from(row.get::<i64>("next")?).unwrap_or(0);
        chain.head = Digest::from_bytes(bytes("head")?.try_into().map_err(length)?);
        Ok(LockedChain {
            chain,
            login: row.get("login")?,
            at: Timestamp::from_micros(row.get("at")?),
        })
    }

    async fn append(&mut self, locked: &mut LockedChain, action: AdminAction) -> Result<(), StoreError> {
        let action = AdminAction {
            login: locked.login.clone(),
            ..action
        };
        let seq = locked.chain.next;
        let event = Event::Admin(action.clone());
        let event = serde_json::to_vec(&event).map_err(|error| StoreError::broken("the store", error.to_string()))?;
        let mut bytes = Vec::with_capacity(event.len() + 256);
        let before = locked.chain.clone();
        locked.chain.seal(&event, &mut bytes);
        let env = self.environment.as_str();
        if self.tx.is_postgres() {
            self.tx.fetch(&APPEND, args![env, &bytes[..]]).await?;
            return Ok(());
        }
        let sealed = before.clone().accept(&bytes).expect("what was sealed is the next record");
        let seq = i64::try_from(seq).unwrap_or(i64::MAX);
        let args = args![
            env,
            &bytes[..],
            &sealed.leaf.as_bytes()[..],
            &sealed.incarnation.0[..],
            seq,
            action.at.micros(),
            action.action.as_str(),
            action.user.as_ref().map(|user| user.as_str()),
            action.server.as_deref(),
            action.actor.as_ref().map(ToString::to_string),
            action.claimed_by.as_deref(),
            &sealed.head.as_bytes()[..],
        ];
        self.tx.execute(&APPEND, args).await?;
        for change in &action.changes {
            let row = i64::try_from(change.seq).unwrap_or(i64::MAX);
            self.tx.execute(&COVER, args![&sealed.incarnation.0[..], seq, row]).await?;
        }
        let advanced = args![env, seq + 1, &locked.chain.head.as_bytes()[..]];
        self.tx.execute(&ADVANCE, advanced).await.map(drop)
    }
}

/// The chain of an environment's changes, which nobody else can append to until this transaction ends.
struct LockedChain {
    chain: Chain,
    login: Option<String>,
    /// By the database's clock.
    at: Timestamp,
}

/// Marks the rows that shipped records of a journal cover.
pub(super) async fn cover_shipped(tx: &mut Tx, records: &[(&SealedRecord, AdminAction)]) -> Result<(), StoreError> {
    for (record, action) in records {
        let (incarnation, seq) = (&record.incarnation.0[..], i64::try_from(record.seq).unwrap_or(i64::MAX));
        if tx.is_postgres() {
            tx.fetch(&COVER_SHIPPED, args![incarnation, seq]).await?;
            continue;
        }
        for change in &action.changes {
            let row = i64::try_from(change.seq).unwrap_or(i64::MAX);
            let found = tx.fetch_one(&SHIPPED_ROW, args![row, action.environment.as_str()]).await?;
            let text: Option<String> = found.map(|found| found.get("row_text")).transpose()?;
            if text.is_some_and(|text| Digest::of(text.as_bytes()) == change.row) {
                tx.execute(&COVER, args![incarnation, seq, row]).await?;
            }
        }
    }
    Ok(())
}

fn own_row(row: &Row) -> Result<OwnRow, StoreError> {
    let (relation, op): (String, String) = (row.get("relation")?, row.get("op")?);
    let change: Option<String> = row.get("change")?;
    let whole = change.as_ref().map_or(0, String::len);
    let change: Json = change
        .and_then(|change| serde_json::from_str(&change).ok())
        .unwrap_or_default();
    let server: Option<String> = row.get("server_name")?;
    let told = RowChange {
        relation: &relation,
        op: &op,
        server: server.as_deref(),
        old: change.get("old"),
        new: change.get("new"),
    };
    let user: Option<String> = row.get("user_ref")?;
    let values = |name: &str| change.get(name).filter(|_| whole <= LONGEST_CHANGE).cloned();
    let recorded = RecordedChange {
        seq: u64::try_from(row.get::<i64>("seq")?).unwrap_or(0),
        row: Digest::of(row.get::<String>("row_text")?.as_bytes()),
        change: told.words().to_owned(),
        of: shortened(&told.of(), LONGEST_NAME),
        old: values("old"),
        new: values("new"),
    };
    Ok(OwnRow {
        at: Timestamp::from_micros(row.get("at")?),
        user: user.and_then(|user| UserId::parse(&user).ok()),
        size: serde_json::to_vec(&recorded).map_or(LONGEST_CHANGE, |json| json.len()),
        detail: told.detail(),
        server,
        change: recorded,
    })
}

/// The rows of each record: in their order, of one user and one server, and no more than a record can hold.
fn pack(rows: Vec<OwnRow>) -> Vec<Vec<OwnRow>> {
    let mut packed: Vec<Vec<OwnRow>> = Vec::new();
    let mut size = 0;
    for row in rows {
        let joins = packed
            .last()
            .and_then(|rows| rows.last())
            .is_some_and(|last| (&last.user, &last.server) == (&row.user, &row.server) && size + row.size <= MOST_CHANGES);
        size = if joins { size + row.size } else { row.size };
        match packed.last_mut().filter(|_| joins) {
            Some(rows) => rows.push(row),
            None => packed.push(vec![row]),
        }
    }
    packed
}

fn action_of(rows: Vec<OwnRow>, environment: &EnvironmentName) -> AdminAction {
    let words = rows.iter().map(|row| row.change.change.as_str()).collect();
    let details = rows.iter().map(|row| row.detail.as_str()).collect();
    let at = rows.first().map_or(Timestamp::from_micros(0), |row| row.at);
    let (words, details) = summary(words, details);
    AdminAction {
        user: rows.first().and_then(|row| row.user.clone()),
        server: rows.first().and_then(|row| row.server.clone()),
        changes: rows.into_iter().map(|row| row.change).collect(),
        ..AdminAction::new(at, environment.clone(), &words, details)
    }
}

/// What was done and to what, in one line each, of the words and details of several changes.
pub(super) fn summary(mut words: Vec<&str>, details: Vec<&str>) -> (String, String) {
    words.dedup();
    (
        shortened(&words.join(", "), LONGEST_NAME),
        shortened(&details.join("; "), LONGEST_DETAIL),
    )
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
