//! What the proxy holds in memory, read as one snapshot, and what changed since, read from the change feed.
//!
//! Rows written by hand may hold what no name of this program can. Such a part is left out and told in the log: it never
//! grants anything, and it never keeps the others from loading.

use super::engine::{Row, Sql, Tx, args};
use super::registry::{RegistryRow, read_registry};
use super::{Store, StoreError};
use crate::domain::{
    ApiKey, EnvironmentName, Grant, GrantStatus, Issuer, Member, MemberStatus, PrincipalKind, Revocation, RevocationKind, Scope,
    Scopes, Subject, Timestamp, UserId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

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
    pub members: Vec<Member>,
    pub revocations: Vec<Revocation>,
    pub registry: Vec<RegistryRow>,
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
    pub revocations: Option<Vec<Revocation>>,
    pub registry: Option<Vec<RegistryRow>>,
    pub catalogue_changed: bool,
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
    postgres: "SELECT f.seq, f.tag, f.relation, f.op, f.user_ref, s.gaps, s.fingerprint FROM feed_state s LEFT JOIN
                 (SELECT seq, tag::text AS tag, relation, op, user_ref FROM change_log
                  WHERE environment = $1 AND seq >= $2 ORDER BY seq LIMIT 1002) f ON true ORDER BY f.seq",
    sqlite: concat!(
        "SELECT f.seq, f.tag, f.relation, f.op, f.user_ref, s.gaps, s.fingerprint FROM ",
        sqlite_feed_state!(),
        " s LEFT JOIN (SELECT seq, tag, relation, op, user_ref FROM change_log
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
struct Part {
    all: Sql,
    some: Sql,
}

macro_rules! part {
    ($user:literal, $postgres:literal, $sqlite:literal, $order:literal) => {
        Part {
            all: Sql {
                postgres: concat!($postgres, " WHERE environment = $1 ORDER BY ", $order),
                sqlite: concat!($sqlite, " WHERE environment = $1 ORDER BY ", $order),
            },
            some: Sql {
                postgres: concat!(
                    $postgres,
                    " WHERE environment = $1 AND ",
                    $user,
                    " = ANY (ARRAY(SELECT jsonb_array_elements_text($2::jsonb)::uuid)) ORDER BY ",
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

const USERS: Part = part!(
    "id",
    "SELECT id::text AS id, kind, email, display_name, array_to_json(roles)::text AS roles, status FROM users",
    "SELECT id, kind, email, display_name, roles, status FROM users",
    "id"
);
const IDENTITIES: Part = part!(
    "user_id",
    "SELECT user_id::text AS user_id, issuer, subject FROM user_identities",
    "SELECT user_id, issuer, subject FROM user_identities",
    "issuer, subject"
);
const KEYS: Part = part!(
    "user_id",
    "SELECT user_id::text AS user_id, key_id, name, key_hash, pepper_version::bigint AS pepper_version, scopes::text AS scopes,
       micros(created_at) AS created_at, micros(expires_at) AS expires_at, micros(revoked_at) AS revoked_at FROM api_keys",
    "SELECT user_id, key_id, name, key_hash, pepper_version, scopes, created_at, expires_at, revoked_at FROM api_keys",
    "key_id"
);
const GRANTS: Part = part!(
    "user_ref",
    "SELECT user_ref::text AS user_id, grant_ref::text AS id, server_name, client_id, status, scopes::text AS scopes,
       micros(expires_at) AS expires_at, row_version FROM grants",
    "SELECT user_ref AS user_id, grant_ref AS id, server_name, client_id, status, scopes, expires_at, row_version FROM grants",
    "server_name, coalesce(client_id, '')"
);

impl Store {
    /// All members, revocations and servers of an environment with the feed's position at that moment.
    pub async fn directory(&self, env: &EnvironmentName) -> Result<Directory, StoreError> {
        let mut tx = self.read().await?;
        let head = tx.fetch(&HEAD, args![env.as_str()]).await?;
        let anchor = anchor_of(first_of(&head)?)?;
        self.require_whole_feed(first_of(&head)?)?;
        let directory = Directory {
            anchor,
            members: read_members(&mut tx, env, None).await?,
            revocations: read_revocations(&mut tx, env).await?,
            registry: read_registry(&mut tx, env).await?,
        };
        tx.commit().await?;
        Ok(directory)
    }

    /// What was committed since `from`, read in one transaction; to learn that nothing was takes one statement.
    pub async fn catch_up(&self, env: &EnvironmentName, from: &Anchor) -> Result<CatchUp, StoreError> {
        let glance = self.once(&FEED, args![env.as_str(), from.seq]).await?;
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
        match Changed::of(changes)? {
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
                place: self.place(),
                what,
            }),
        }
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
    let user = super::people::uuid_of(user)?;
    Ok(read_members(tx, env, Some(&BTreeSet::from([user]))).await?.pop())
}

/// What a stretch of the feed says must be read again.
#[derive(Debug, Default)]
struct Changed {
    users: BTreeSet<String>,
    revocations: bool,
    registry: bool,
    catalogue: bool,
}

impl Changed {
    /// `None`: something that only a reload can follow.
    fn of(changes: &[Row]) -> Result<Option<Self>, StoreError> {
        let mut changed = Self::default();
        for row in changes {
            let (relation, op): (String, String) = (row.get("relation")?, row.get("op")?);
            match (relation.as_str(), row.get::<Option<String>>("user_ref")?) {
                _ if op == "T" => return Ok(None),
                ("grant" | "key" | "user" | "identity", Some(user)) => {
                    changed.users.insert(user);
                }
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
            catalogue_changed: self.catalogue,
            ..Delta::default()
        };
        if !self.users.is_empty() {
            let found = read_members(tx, env, Some(&self.users)).await?;
            let mut found: BTreeMap<String, Member> = found.into_iter().map(|member| (member.id.to_string(), member)).collect();
            let users = self
                .users
                .iter()
                .filter_map(|user| Some((UserId::parse(user).ok()?, found.remove(user))));
            delta.members = users.collect();
        }
        if self.revocations {
            delta.revocations = Some(read_revocations(tx, env).await?);
        }
        if self.registry {
            delta.registry = Some(read_registry(tx, env).await?);
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
    rows.first().ok_or_else(|| StoreError::Broken {
        place: "the store".to_owned(),
        what: "the state of the change feed is missing".to_owned(),
    })
}

async fn read_members(tx: &mut Tx, env: &EnvironmentName, of: Option<&BTreeSet<String>>) -> Result<Vec<Member>, StoreError> {
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    for row in read_part(tx, &USERS, env, of).await? {
        let id: String = row.get("id")?;
        if let Some(member) = member_of(&row, &id)? {
            members.insert(id, member);
        }
    }
    for row in read_part(tx, &IDENTITIES, env, of).await? {
        if let (Some(member), Some(identity)) = (owner(&mut members, &row)?, identity_of(&row)?) {
            member.identities.push(identity);
        }
    }
    for row in read_part(tx, &KEYS, env, of).await? {
        if let (Some(member), Some(key)) = (owner(&mut members, &row)?, key_of(&row)?) {
            member.keys.push(key);
        }
    }
    for row in read_part(tx, &GRANTS, env, of).await? {
        if let (Some(member), Some(grant)) = (owner(&mut members, &row)?, grant_of(&row)?) {
            member.grants.push(grant);
        }
    }
    Ok(members.into_values().collect())
}

async fn read_part(
    tx: &mut Tx,
    part: &Part,
    env: &EnvironmentName,
    of: Option<&BTreeSet<String>>,
) -> Result<Vec<Row>, StoreError> {
    match of {
        None => tx.fetch(&part.all, args![env.as_str()]).await,
        Some(users) => {
            tx.fetch(&part.some, args![env.as_str(), serde_json::json!(users).to_string()])
                .await
        }
    }
}

fn owner<'a>(members: &'a mut BTreeMap<String, Member>, row: &Row) -> Result<Option<&'a mut Member>, StoreError> {
    Ok(members.get_mut(&row.get::<String>("user_id")?))
}

fn member_of(row: &Row, id: &str) -> Result<Option<Member>, StoreError> {
    let status: String = row.get("status")?;
    let roles: String = row.get("roles")?;
    Ok(Some(Member {
        id: match name(id, "users.id") {
            Some(id) => id,
            None => return Ok(None),
        },
        kind: kind_of(&row.get::<String>("kind")?),
        email: row.get("email")?,
        display_name: row.get("display_name")?,
        roles: names(&roles, "users.roles").0,
        status: if status == "active" {
            MemberStatus::Active
        } else {
            MemberStatus::Disabled
        },
        identities: Vec::new(),
        keys: Vec::new(),
        grants: Vec::new(),
    }))
}

pub(super) fn kind_of(text: &str) -> PrincipalKind {
    if text == "service" {
        PrincipalKind::Service
    } else {
        PrincipalKind::User
    }
}

pub(super) fn identity_of(row: &Row) -> Result<Option<(Issuer, Subject)>, StoreError> {
    let (issuer, subject): (String, String) = (row.get("issuer")?, row.get("subject")?);
    Ok(name(&issuer, "user_identities.issuer").zip(name(&subject, "user_identities.subject")))
}

fn key_of(row: &Row) -> Result<Option<ApiKey>, StoreError> {
    let (id, hash, scopes): (String, Vec<u8>, String) = (row.get("key_id")?, row.get("key_hash")?, row.get("scopes")?);
    let (scopes, whole) = names::<Scope>(&scopes, "api_keys.scopes");
    let (Some(id), Ok(hash), Ok(pepper_version), true) = (
        name(&id, "api_keys.key_id"),
        hash.try_into(),
        i32::try_from(row.get::<i64>("pepper_version")?),
        whole,
    ) else {
        // an empty list of scopes means all of the owner's, so a list that cannot be read whole must not become one
        return Ok(None);
    };
    Ok(Some(ApiKey {
        id,
        name: row.get("name")?,
        hash,
        pepper_version,
        scopes: scopes.into_iter().collect(),
        created_at: Timestamp::from_micros(row.get("created_at")?),
        expires_at: time_of(row, "expires_at")?,
        revoked_at: time_of(row, "revoked_at")?,
    }))
}

pub(super) fn grant_of(row: &Row) -> Result<Option<Grant>, StoreError> {
    let (id, server, client): (String, String, Option<String>) = (row.get("id")?, row.get("server_name")?, row.get("client_id")?);
    let (status, scopes): (String, String) = (row.get("status")?, row.get("scopes")?);
    let client = match client {
        None => None,
        // a client that cannot be read must not become "any client"
        Some(client) => match name(&client, "mcp_authorizations.client_id") {
            Some(client) => Some(client),
            None => return Ok(None),
        },
    };
    let Some((id, server)) = name(&id, "mcp_authorizations.id").zip(name(&server, "mcp_authorizations.server_name")) else {
        return Ok(None);
    };
    Ok(Some(Grant {
        id,
        server,
        client,
        status: match status.as_str() {
            "verified" => GrantStatus::Verified,
            "idle" => GrantStatus::Idle,
            _ => GrantStatus::Revoked,
        },
        scopes: names::<Scope>(&scopes, "mcp_authorizations.scopes")
            .0
            .into_iter()
            .collect::<Scopes>(),
        expires_at: time_of(row, "expires_at")?,
        version: row.get("row_version")?,
    }))
}

async fn read_revocations(tx: &mut Tx, env: &EnvironmentName) -> Result<Vec<Revocation>, StoreError> {
    let rows = tx.fetch(&REVOCATIONS, args![env.as_str()]).await?;
    let mut revocations = Vec::with_capacity(rows.len());
    for row in &rows {
        let (issuer, kind): (String, String) = (row.get("issuer")?, row.get("kind")?);
        // an issuer that is no name can have issued no token that is accepted
        let Some(issuer) = name(&issuer, "revocations.issuer") else {
            continue;
        };
        revocations.push(Revocation {
            issuer,
            kind: match kind.as_str() {
                "session" => RevocationKind::Session,
                "client" => RevocationKind::Client,
                "jti" => RevocationKind::Jti,
                _ => RevocationKind::Subject,
            },
            value: row.get("value")?,
            issued_before: Timestamp::from_micros(row.get("issued_before")?),
            expires_at: Timestamp::from_micros(row.get("expires_at")?),
        });
    }
    Ok(revocations)
}

pub(super) fn time_of(row: &Row, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
    Ok(row.get::<Option<i64>>(column)?.map(Timestamp::from_micros))
}

/// A name as it stands in a row, or `None` with a line in the log.
pub(super) fn name<T: FromStr<Err: std::fmt::Display>>(text: &str, column: &'static str) -> Option<T> {
    match T::from_str(text) {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::warn!(column, %error, "a row of the store is left out");
            None
        }
    }
}

/// The names in a JSON array, and whether all of its elements were names.
pub(super) fn names<T: FromStr<Err: std::fmt::Display>>(json: &str, column: &'static str) -> (Vec<T>, bool) {
    let Ok(elements) = serde_json::from_str::<Vec<serde_json::Value>>(json) else {
        tracing::warn!(column, "a row of the store holds a list that cannot be read");
        return (Vec::new(), false);
    };
    let names: Vec<T> = elements
        .iter()
        .filter_map(|element| name(element.as_str().unwrap_or(""), column))
        .collect();
    let whole = names.len() == elements.len();
    (names, whole)
}
