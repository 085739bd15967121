//! What the proxy holds in memory, read as one snapshot, and what changed since, read from the change feed.
//!
//! Rows written by hand, or by whoever owns a table that is mapped, may hold what cannot be read. Such a row is disabled by
//! itself and named: it never grants anything, what it would have taken away stays away, and it never keeps the others from
//! loading.

use super::engine::{Row, Sql, Tx, args};
use super::registry::{RegistryRow, read_registry};
use super::unreadable::{ColumnError, UnreadableRow, name, name_or_null, names, time, time_or_null};
use super::unreadable::{
    GRANTS as OF_GRANTS, IDENTITIES as OF_IDENTITIES, KEYS as OF_KEYS, REVOCATIONS as OF_REVOCATIONS, SALTS as OF_SALTS,
    USERS as OF_USERS,
};
use super::{Store, StoreError};
use crate::domain::{
    ApiKey, EnvironmentName, Grant, GrantId, GrantStatus, InputSalt, Issuer, Member, MemberStatus, PartialRevocation,
    PrincipalKind, Revocation, RevocationKind, Scopes, ServerName, Subject, Timestamp, UserId,
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// A position of the change feed. The tag tells it from the same position of another history (a restore, a failover).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Anchor {
    pub seq: i64,
    pub tag: String,
    /// Of the triggers and views that the feed depends on. Where it differs, the feed may have missed a change.
    pub fingerprint: String,
}

impl Anchor {
    /// Before the first change of a new feed.
    pub fn is_start(&self) -> bool {
        self.seq == 0 && self.tag.is_empty()
    }
}

/// Everything of one environment, of one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Directory {
    pub anchor: Anchor,
    /// Those enrolled longest first.
    pub members: Vec<Member>,
    pub revocations: RevocationRows,
    pub registry: Vec<RegistryRow>,
    /// All rows that are disabled because they cannot be read.
    pub unreadable: Vec<UnreadableRow>,
}

/// The table `revocations`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationRows {
    pub whole: Vec<Revocation>,
    /// Of rows that cannot be read, what is in force all the same.
    pub partial: Vec<PartialRevocation>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum CatchUp {
    /// The anchor is not of this history, or too much happened: read the directory anew.
    Reload,
    Since(Delta),
}

/// What changed since an anchor, as it stands at the new one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    pub anchor: Anchor,
    /// `None`: the user is gone.
    pub members: Vec<(UserId, Option<Member>)>,
    /// `Some`: all of them, in place of those held.
    pub revocations: Option<RevocationRows>,
    pub registry: Option<Vec<RegistryRow>>,
    pub catalogue_changed: bool,
    /// When each change to users, identities, keys, grants and revocations was committed, by the database's clock.
    pub committed: Vec<Timestamp>,
    /// Those of the members above, and of the revocations and the registry where these were read.
    pub unreadable: Vec<UnreadableRow>,
}

/// What the view `feed_state` is on Postgres: which triggers are missing, and a number that changes with the schema.
macro_rules! sqlite_feed_state {
    () => {
        "(SELECT
           (SELECT 'trigger ' || group_concat('`' || wanted.name || '`', ', ') || ' is missing' FROM
             (SELECT 'feed_' || t.column1 || '_' || o.column1 AS name FROM
               (VALUES ('grant'), ('key'), ('user'), ('identity'), ('registry'), ('revocation'), ('catalogue')) t,
               (VALUES ('i'), ('u'), ('d')) o) wanted
             WHERE NOT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND name = wanted.name)) AS gaps,
           (SELECT CAST(schema_version AS text) FROM pragma_schema_version) AS fingerprint)"
    };
}

/// More changes than this are read faster as a whole directory.
const MANY: usize = 1_000;

// Each statement gives at least one row, with the state of the feed itself; `seq` is NULL where the feed is empty.

const HEAD: Sql = Sql {
    postgres: "SELECT f.seq, f.tag, s.gaps, s.fingerprint FROM feed_state s LEFT JOIN
                 (SELECT seq, tag::text AS tag FROM change_log WHERE environment = $1 ORDER BY seq DESC LIMIT 1) f ON true",
    sqlite: concat!(
        "SELECT f.seq, f.tag, s.gaps, s.fingerprint FROM ",
        sqlite_feed_state!(),
        " s LEFT JOIN (SELECT seq, tag FROM change_log WHERE environment = $1 ORDER BY seq DESC LIMIT 1) f"
    ),
};

// 1,002: the anchor, `MANY` changes, and one to show that there are more
const FEED: Sql = Sql {
    postgres: "SELECT f.seq, f.tag, f.at, f.relation, f.op, f.user_ref, s.gaps, s.fingerprint FROM feed_state s LEFT JOIN
                 (SELECT seq, tag::text AS tag, micros(at) AS at, relation, op, user_ref FROM change_log
                  WHERE environment = $1 AND seq >= $2 ORDER BY seq LIMIT 1002) f ON true ORDER BY f.seq",
    sqlite: concat!(
        "SELECT f.seq, f.tag, f.at, f.relation, f.op, f.user_ref, s.gaps, s.fingerprint FROM ",
        sqlite_feed_state!(),
        " s LEFT JOIN (SELECT seq, tag, at, relation, op, user_ref FROM change_log
           WHERE environment = $1 AND seq >= $2 ORDER BY seq LIMIT 1002) f ORDER BY f.seq"
    ),
};

const REVOCATIONS: Sql = Sql {
    postgres: "SELECT issuer, kind, value, micros(issued_before) AS issued_before, micros(expires_at) AS expires_at
               FROM revocations WHERE environment = $1 ORDER BY issuer, kind, value",
    sqlite: "SELECT issuer, kind, value, issued_before, expires_at
             FROM revocations WHERE environment = $1 ORDER BY issuer, kind, value",
};

/// One table of a member: of everybody, or of those in the JSON array `$2`.
struct MemberTable {
    table: &'static str,
    /// The column that says whose row it is.
    user: &'static str,
    /// The columns that name a row.
    keys: &'static [&'static str],
    all: Sql,
    some: Sql,
}

// Of the users in the feed those who have a UUID: what a mapped table calls a user may be any text, and no row is theirs.
macro_rules! member_table {
    ($table:expr, $user:literal, $keys:expr, $postgres:literal, $sqlite:literal, $order:literal) => {
        MemberTable {
            table: $table,
            user: $user,
            keys: &$keys,
            all: Sql {
                postgres: concat!($postgres, " WHERE environment = $1 ORDER BY ", $order),
                sqlite: concat!($sqlite, " WHERE environment = $1 ORDER BY ", $order),
            },
            some: Sql {
                postgres: concat!(
                    $postgres,
                    " WHERE environment = $1 AND ",
                    $user,
                    " = ANY (ARRAY(SELECT one::uuid FROM jsonb_array_elements_text($2::jsonb) AS one
                                   WHERE one ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')) ORDER BY ",
                    $order
                ),
                sqlite: concat!(
                    $sqlite,
                    " WHERE environment = $1 AND ",
                    $user,
                    " IN (SELECT value FROM json_each($2)) ORDER BY ",
                    $order
                ),
            },
        }
    };
}

const USERS: MemberTable = member_table!(
    OF_USERS,
    "id",
    ["id"],
    "SELECT id::text AS id, kind, email, display_name, array_to_json(roles)::text AS roles, status,
       micros(created_at) AS created_at FROM users",
    "SELECT id, kind, email, display_name, roles, status, created_at FROM users",
    "id"
);
const IDENTITIES: MemberTable = member_table!(
    OF_IDENTITIES,
    "user_id",
    ["user_id", "issuer", "subject"],
    "SELECT user_id::text AS user_id, issuer, subject FROM user_identities",
    "SELECT user_id, issuer, subject FROM user_identities",
    "issuer, subject"
);
const KEYS: MemberTable = member_table!(
    OF_KEYS,
    "user_id",
    ["user_id", "key_id"],
    "SELECT user_id::text AS user_id, key_id, name, key_hash, pepper_version::bigint AS pepper_version, scopes::text AS scopes,
       micros(created_at) AS created_at, micros(expires_at) AS expires_at, micros(revoked_at) AS revoked_at FROM api_keys",
    "SELECT user_id, key_id, name, key_hash, pepper_version, scopes, created_at, expires_at, revoked_at FROM api_keys",
    "key_id"
);
const SALTS: MemberTable = member_table!(
    OF_SALTS,
    "user_id",
    ["user_id"],
    "SELECT user_id::text AS user_id, salt FROM audit_salts",
    "SELECT user_id, salt FROM audit_salts",
    "user_id"
);
// Under the view's own names, by which its rows are told. A client of another type is read as text: left unread it would no
// longer go before the grant for any client.
const GRANTS: MemberTable = member_table!(
    OF_GRANTS,
    "user_ref",
    ["user_ref", "grant_ref", "server_name"],
    "SELECT user_ref::text AS user_ref, grant_ref::text AS grant_ref, server_name, client_id::text AS client_id, status,
       scopes::text AS scopes, micros(expires_at) AS expires_at, row_version FROM grants",
    "SELECT user_ref, grant_ref, server_name, CAST(client_id AS TEXT) AS client_id, status, scopes, expires_at, row_version
     FROM grants",
    "server_name, coalesce(client_id, '')"
);

impl Store {
    /// All members, revocations and servers of an environment with the feed's position at that moment.
    pub async fn directory(&self, env: &EnvironmentName) -> Result<Directory, StoreError> {
        let mut tx = self.read().await?;
        let head = tx.fetch(&HEAD, args![env.as_str()]).await?;
        let anchor = anchor_of(first_of(&head)?)?;
        self.require_whole_feed(first_of(&head)?)?;
        let mut unreadable = Vec::new();
        let directory = Directory {
            anchor,
            members: read_members(&mut tx, env, None, &mut unreadable).await?,
            revocations: read_revocations(&mut tx, env, &mut unreadable).await?,
            registry: read_registry(&mut tx, env, &mut unreadable).await?,
            unreadable,
        };
        tx.commit().await?;
        Ok(directory)
    }

    /// What was committed since `from`, read in one transaction; to learn that nothing was takes one statement.
    pub async fn catch_up(&self, env: &EnvironmentName, from: &Anchor) -> Result<CatchUp, StoreError> {
        let glance = self.query(&FEED, args![env.as_str(), from.seq]).await?;
        self.require_whole_feed(first_of(&glance)?)?;
        // an empty feed has one row too, without a position: it stays where it was only if it was empty then
        if glance.len() == 1 && anchor_of(first_of(&glance)?)? == *from {
            return Ok(CatchUp::Since(Delta {
                anchor: from.clone(),
                ..Delta::default()
            }));
        }
        let mut tx = self.read().await?;
        let feed = tx.fetch(&FEED, args![env.as_str(), from.seq]).await?;
        let first = first_of(&feed)?;
        let changes = &feed[1..];
        if anchor_of(first)? != *from || from.is_start() || changes.len() > MANY {
            return Ok(CatchUp::Reload);
        }
        match ChangedParts::of(changes)? {
            None => Ok(CatchUp::Reload),
            Some(changed) => {
                let anchor = anchor_of(changes.last().unwrap_or(first))?;
                let delta = changed.read(&mut tx, env, anchor).await?;
                tx.commit().await?;
                Ok(CatchUp::Since(delta))
            }
        }
    }

    /// A change that the feed does not tell of could be a revocation: nothing is confirmed by a feed with gaps.
    fn require_whole_feed(&self, row: &Row) -> Result<(), StoreError> {
        match row.get::<Option<String>>("gaps")? {
            None => Ok(()),
            Some(what) => Err(StoreError::FeedMissing {
                place: self.location(),
                what,
            }),
        }
    }

    /// These users as they are now, whatever the feed says of them.
    pub async fn members(&self, env: &EnvironmentName, users: &[UserId], at: &Anchor) -> Result<Delta, StoreError> {
        let changed = ChangedParts {
            users: users.iter().filter_map(|user| uuid_in(user.as_str())).collect(),
            ..ChangedParts::default()
        };
        let mut tx = self.read().await?;
        let delta = changed.read(&mut tx, env, at.clone()).await?;
        tx.commit().await?;
        Ok(delta)
    }

    /// One member with everything that hangs on it.
    pub async fn member(&self, env: &EnvironmentName, user: &UserId) -> Result<Option<Member>, StoreError> {
        let mut tx = self.read().await?;
        let member = read_member(&mut tx, env, user).await?;
        tx.commit().await?;
        Ok(member)
    }
}

pub(super) async fn read_member(tx: &mut Tx, env: &EnvironmentName, user: &UserId) -> Result<Option<Member>, StoreError> {
    let user = super::users::uuid_of(user)?;
    let mut unreadable = Vec::new();
    let found = read_members(tx, env, Some(&BTreeSet::from([user])), &mut unreadable)
        .await?
        .pop();
    unreadable.iter().for_each(|row| tracing::warn!("left out: {row}"));
    Ok(found)
}

/// What a stretch of the feed says must be read again.
#[derive(Debug, Default)]
struct ChangedParts {
    users: BTreeSet<String>,
    revocations: bool,
    registry: bool,
    catalogue: bool,
    committed: Vec<Timestamp>,
}

impl ChangedParts {
    /// `None`: something that only a reload can follow.
    fn of(changes: &[Row]) -> Result<Option<Self>, StoreError> {
        let mut changed = Self::default();
        for row in changes {
            let (relation, op): (String, String) = (row.get("relation")?, row.get("op")?);
            if !matches!(relation.as_str(), "registry" | "catalogue") {
                changed.committed.push(Timestamp::from_micros(row.get("at")?));
            }
            match (relation.as_str(), row.get::<Option<String>>("user_ref")?) {
                _ if op == "T" => return Ok(None),
                ("grant" | "key" | "user" | "identity", Some(user)) => match uuid_in(&user) {
                    Some(user) => drop(changed.users.insert(user)),
                    // a mapped view may translate it, from an e-mail address say
                    None => return Ok(None),
                },
                ("revocation", _) => changed.revocations = true,
                ("registry", _) => changed.registry = true,
                ("catalogue", _) => changed.catalogue = true,
                _ => return Ok(None),
            }
        }
        Ok(Some(changed))
    }

    async fn read(self, tx: &mut Tx, env: &EnvironmentName, anchor: Anchor) -> Result<Delta, StoreError> {
        let mut delta = Delta {
            anchor,
            committed: self.committed,
            catalogue_changed: self.catalogue,
            ..Delta::default()
        };
        if !self.users.is_empty() {
            let found = read_members(tx, env, Some(&self.users), &mut delta.unreadable).await?;
            let mut found: BTreeMap<String, Member> = found.into_iter().map(|member| (member.id.to_string(), member)).collect();
            let users = self
                .users
                .iter()
                .filter_map(|user| Some((UserId::parse(user).ok()?, found.remove(user))));
            delta.members = users.collect();
        }
        if self.revocations {
            delta.revocations = Some(read_revocations(tx, env, &mut delta.unreadable).await?);
        }
        if self.registry {
            delta.registry = Some(read_registry(tx, env, &mut delta.unreadable).await?);
        }
        Ok(delta)
    }
}

/// Where the feed stands: at a row of it, or before its first where it is empty.
fn anchor_of(row: &Row) -> Result<Anchor, StoreError> {
    Ok(Anchor {
        seq: row.get::<Option<i64>>("seq")?.unwrap_or(0),
        tag: row.get::<Option<String>>("tag")?.unwrap_or_default(),
        fingerprint: row.get("fingerprint")?,
    })
}

fn first_of(rows: &[Row]) -> Result<&Row, StoreError> {
    rows.first()
        .ok_or_else(|| StoreError::broken("the store", "the state of the change feed is missing"))
}

/// The UUID in a feed row, in the one spelling that rows are found by. Postgres accepts braces and leaves hyphens out at will.
fn uuid_in(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, '-' | '{' | '}')).collect();
    Uuid::try_parse(&digits).ok().map(|uuid| uuid.to_string())
}

async fn read_members(
    tx: &mut Tx,
    env: &EnvironmentName,
    of: Option<&BTreeSet<String>>,
    unreadable: &mut Vec<UnreadableRow>,
) -> Result<Vec<Member>, StoreError> {
    let mut members: EnrolledMembers = BTreeMap::new();
    for row in USERS.read(tx, env, of).await? {
        let id = row.cell::<String>(USERS.user);
        match id.clone().and_then(|id| Ok((id, member_of(&row)?))) {
            Ok((id, member)) => {
                // Says only who is loaded first where not everybody may be.
                let since = row.cell("created_at").unwrap_or(i64::MAX);
                members.insert(id, (since, member));
            }
            Err(flaw) => unreadable.push(USERS.unreadable(&row, id.as_deref().ok(), flaw)),
        }
    }
    for row in IDENTITIES.read(tx, env, of).await? {
        if let Some((id, member)) = IDENTITIES.member_of_row(&mut members, &row, unreadable) {
            match identity_of(&row) {
                Ok(identity) => member.identities.push(identity),
                Err(flaw) => unreadable.push(IDENTITIES.unreadable(&row, Some(&id), flaw)),
            }
        }
    }
    for row in KEYS.read(tx, env, of).await? {
        if let Some((id, member)) = KEYS.member_of_row(&mut members, &row, unreadable) {
            match key_of(&row) {
                Ok(key) => member.keys.push(key),
                Err(flaw) => unreadable.push(KEYS.unreadable(&row, Some(&id), flaw)),
            }
        }
    }
    for row in SALTS.read(tx, env, of).await? {
        if let Some((id, member)) = SALTS.member_of_row(&mut members, &row, unreadable) {
            match salt_of(&row) {
                Ok(salt) => member.input_salt = Some(salt),
                Err(flaw) => unreadable.push(SALTS.unreadable(&row, Some(&id), flaw)),
            }
        }
    }
    for row in GRANTS.read(tx, env, of).await? {
        if let Some((id, member)) = GRANTS.member_of_row(&mut members, &row, unreadable) {
            match grant_of(&row) {
                Ok(grant) => member.grants.push(grant),
                Err(flaw) => {
                    member.grants.extend(in_its_place(&row));
                    unreadable.push(GRANTS.unreadable(&row, Some(&id), flaw));
                }
            }
        }
    }
    let mut members: Vec<(i64, Member)> = members.into_values().collect();
    members.sort_by_cached_key(|(since, _)| *since);
    Ok(members.into_iter().map(|(_, member)| member).collect())
}

/// By id, each with the moment since when.
type EnrolledMembers = BTreeMap<String, (i64, Member)>;

impl MemberTable {
    async fn read(&self, tx: &mut Tx, env: &EnvironmentName, of: Option<&BTreeSet<String>>) -> Result<Vec<Row>, StoreError> {
        match of {
            None => tx.fetch(&self.all, args![env.as_str()]).await,
            Some(users) => {
                tx.fetch(&self.some, args![env.as_str(), serde_json::json!(users).to_string()])
                    .await
            }
        }
    }

    /// Whose row this is. A row of nobody who is enrolled says nothing, and need not be readable.
    fn member_of_row<'a>(
        &self,
        members: &'a mut EnrolledMembers,
        row: &Row,
        unreadable: &mut Vec<UnreadableRow>,
    ) -> Option<(String, &'a mut Member)> {
        match row.cell::<String>(self.user) {
            Ok(id) => members.get_mut(&id).map(|(_, member)| (id, member)),
            Err(flaw) => {
                unreadable.push(self.unreadable(row, None, flaw));
                None
            }
        }
    }

    fn unreadable(&self, row: &Row, user: Option<&str>, flaw: ColumnError) -> UnreadableRow {
        flaw.in_row(row, self.table, self.keys, user)
    }
}

/// All of it or nothing: without one of their roles, somebody might be spared what is forbidden to it.
fn member_of(row: &Row) -> Result<Member, ColumnError> {
    Ok(Member {
        id: name(row, "id")?,
        kind: kind_of(row)?,
        email: row.cell_or_null("email")?,
        display_name: row.cell_or_null("display_name")?,
        roles: names(row, "roles")?,
        status: status_of(row)?,
        identities: Vec::new(),
        keys: Vec::new(),
        grants: Vec::new(),
        input_salt: None,
    })
}

pub(super) fn kind_of(row: &Row) -> Result<PrincipalKind, ColumnError> {
    match row.cell::<String>("kind")?.as_str() {
        "user" => Ok(PrincipalKind::User),
        "service" => Ok(PrincipalKind::Service),
        _ => Err(ColumnError::new("kind", "is neither `user` nor `service`")),
    }
}

/// Any word but the one lets nobody in.
pub(super) fn status_of(row: &Row) -> Result<MemberStatus, ColumnError> {
    Ok(match row.cell::<String>("status")?.as_str() {
        "active" => MemberStatus::Active,
        _ => MemberStatus::Disabled,
    })
}

pub(super) fn identity_of(row: &Row) -> Result<(Issuer, Subject), ColumnError> {
    Ok((name(row, "issuer")?, name(row, "subject")?))
}

fn salt_of(row: &Row) -> Result<InputSalt, ColumnError> {
    let salt: Vec<u8> = row.cell("salt")?;
    let salt = salt
        .try_into()
        .map_err(|_| ColumnError::new("salt", "is not 32 bytes long"))?;
    Ok(InputSalt(salt))
}

fn key_of(row: &Row) -> Result<ApiKey, ColumnError> {
    let hash: Vec<u8> = row.cell("key_hash")?;
    let pepper_version: i64 = row.cell("pepper_version")?;
    Ok(ApiKey {
        id: name(row, "key_id")?,
        name: row.cell("name")?,
        hash: hash
            .try_into()
            .map_err(|_| ColumnError::new("key_hash", "is not 32 bytes long"))?,
        pepper_version: i32::try_from(pepper_version).map_err(|_| ColumnError::new("pepper_version", "is out of range"))?,
        // an empty list means all scopes of the owner, so a list that cannot be read whole must not become one
        scopes: names(row, "scopes")?.into_iter().collect(),
        created_at: time(row, "created_at")?,
        expires_at: time_or_null(row, "expires_at")?,
        revoked_at: time_or_null(row, "revoked_at")?,
    })
}

pub(super) fn grant_of(row: &Row) -> Result<Grant, ColumnError> {
    Ok(Grant {
        id: name(row, "grant_ref")?,
        server: name(row, "server_name")?,
        // a client that cannot be read must not become "any client"
        client: name_or_null(row, "client_id")?,
        status: match row.cell::<String>("status")?.as_str() {
            "verified" => GrantStatus::Verified,
            "idle" => GrantStatus::Idle,
            _ => GrantStatus::Revoked,
        },
        scopes: names(row, "scopes")?.into_iter().collect(),
        // an end that cannot be read must not become "never"
        expires_at: time_or_null(row, "expires_at")?,
        version: row.cell("row_version")?,
    })
}

/// A grant for one client goes before the one for any client, even if only to refuse. So it does if it cannot be read, or
/// that client would be given what it was to be kept from. What is no name of a server or client goes before nothing: no
/// caller comes by such a name.
fn in_its_place(row: &Row) -> Option<Grant> {
    let server: ServerName = name(row, "server_name").ok()?;
    let client = name_or_null(row, "client_id").ok()??;
    Some(Grant {
        id: name(row, "grant_ref").unwrap_or_else(|_| GrantId::parse("unreadable").expect("it is visible ASCII")),
        server,
        client: Some(client),
        status: GrantStatus::Unreadable,
        scopes: Scopes::default(),
        expires_at: None,
        version: 0,
    })
}

async fn read_revocations(
    tx: &mut Tx,
    env: &EnvironmentName,
    unreadable: &mut Vec<UnreadableRow>,
) -> Result<RevocationRows, StoreError> {
    let mut revocations = RevocationRows::default();
    for row in tx.fetch(&REVOCATIONS, args![env.as_str()]).await? {
        match revocation_of(&row) {
            Ok(revocation) => revocations.whole.push(revocation),
            Err((flaw, partial)) => {
                unreadable.push(flaw.in_row(&row, OF_REVOCATIONS, &["issuer", "kind", "value"], None));
                revocations.partial.extend(partial);
            }
        }
    }
    Ok(revocations)
}

/// Somebody wrote this row to keep a credential out, so what cannot be read of it is taken for the most it could say: no
/// issuer, and it is the value at any issuer; no kind, and it is a subject, a session, a client and a token alike; no value,
/// and it is each token of the issuer; no moment or end, and it is for those of any age, for ever. Whoever is refused for that
/// and should not be is let in again by putting the row right or deleting it, and the others are served meanwhile: an issuer
/// whose tokens are all refused has callers who sign in again, unless the moment is lost too. A row that tells neither issuer
/// nor value would refuse everybody for the sake of nobody in particular; it is only told.
fn revocation_of(row: &Row) -> Result<Revocation, (ColumnError, Option<PartialRevocation>)> {
    let issuer: Result<Issuer, _> = name(row, "issuer");
    let kind = match row.cell::<String>("kind") {
        Ok(kind) => match kind.as_str() {
            "subject" => Ok(RevocationKind::Subject),
            "session" => Ok(RevocationKind::Session),
            "client" => Ok(RevocationKind::Client),
            "jti" => Ok(RevocationKind::Jti),
            _ => Err(ColumnError::new("kind", "is no kind of revocation")),
        },
        Err(flaw) => Err(flaw),
    };
    let value: Result<String, _> = row.cell("value");
    let (issued_before, expires_at) = (time(row, "issued_before"), time(row, "expires_at"));
    let far = Timestamp::from_micros(i64::MAX);
    let partial = PartialRevocation {
        issuer: issuer.clone().ok(),
        kind: kind.clone().ok(),
        value: value.clone().ok(),
        issued_before: issued_before.clone().unwrap_or(far),
        expires_at: expires_at.clone().unwrap_or(far),
    };
    let whole = || {
        Ok(Revocation {
            issuer: issuer?,
            kind: kind?,
            value: value?,
            issued_before: issued_before?,
            expires_at: expires_at?,
        })
    };
    let names_something = partial.issuer.is_some() || partial.value.is_some();
    whole().map_err(|flaw| (flaw, names_something.then_some(partial)))
}
