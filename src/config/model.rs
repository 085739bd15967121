//! The keys of `guardian.toml`. The doc comments of fields become descriptions in the exported JSON Schema.

use super::server::ServerConfig;
use crate::domain::{ClientId, EnvironmentName, Issuer, IssuerAlias, RoleName, ServerName};
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything Guardian is told. Paths are relative to the folder of the file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which environment's users, grants and audit rows this instance works with.
    #[serde(default = "default_environment")]
    pub environment: EnvironmentName,
    /// Where the journal, generated keys and the embedded database live. One instance a folder.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    pub listen: Listen,
    /// Metrics and health.
    #[serde(default)]
    pub admin: AdminListen,
    #[serde(default)]
    pub store: StoreConfig,
    #[serde(default)]
    pub issuers: Vec<IssuerConfig>,
    #[serde(default)]
    pub keys: KeysConfig,
    #[serde(default)]
    pub members: MembersConfig,
    #[serde(default)]
    pub servers: Vec<ServerConfig>,
    #[serde(default)]
    pub policies: PoliciesConfig,
    #[serde(default)]
    pub grants: GrantsConfig,
    #[serde(default)]
    pub limits: LimitsConfig,
    #[serde(default)]
    pub journal: JournalConfig,
    #[serde(default)]
    pub audit: AuditConfig,
    #[serde(default)]
    pub sessions: SessionsConfig,
    #[serde(default)]
    pub log: LogConfig,
}

/// A length of time written `250ms`, `5s`, `10m`, `24h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

/// A secret: written `${VAR}` in the file, or read from the file that the sibling key `…_file` names. Never printed.
pub type Secret = SecretString;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Address of the data listener.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// How clients reach it, without a path: `https://mcp.example.com`. Resource identifiers and challenges are made of it.
    pub public_url: String,
    /// Further values of `Host` that are this instance; the one of `public_url` always is.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Values of `Origin` that browsers may send: pages of these origins may call and read the answers (CORS). None by default.
    #[serde(default)]
    pub origins: Vec<String>,
    pub tls: TlsConfig,
    #[serde(default)]
    pub limits: ConnectionLimits,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate chain, PEM, leaf first.
    pub certificate_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// Client certificates are verified against these CAs, PEM.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    #[serde(default)]
    pub client_certificates: ClientCertificates,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    #[default]
    Off,
    /// A certificate may be the credential; without one a token or key is.
    Optional,
    /// No connection without one.
    Required,
}

/// Every stage of a connection has a bound.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionLimits {
    pub max_connections: usize,
    /// From one address (IPv4) or /64 (IPv6).
    pub max_connections_per_address: usize,
    pub handshake_timeout: HumanDuration,
    /// For the head of a request; also how long a connection may stay idle before the next.
    pub header_timeout: HumanDuration,
    /// For the whole body of a request.
    pub body_timeout: HumanDuration,
    /// How long an h2 peer may leave a ping unanswered.
    pub idle_timeout: HumanDuration,
    /// The longest life of one answer, streams included.
    pub total_timeout: HumanDuration,
    /// How long a stream may be silent before it gets a comment, which keeps those between from closing it.
    pub keep_alive: HumanDuration,
    /// How long running calls may take to finish after SIGTERM.
    pub drain_timeout: HumanDuration,
    pub max_header_bytes: usize,
    pub max_body_bytes: usize,
    /// h2 streams at once on one connection.
    pub max_streams: u32,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminListen {
    /// `/livez`, `/readyz`, `/health`, `/metrics`, in clear text: keep it on loopback or a private network.
    #[schemars(extend("format" = "socket-address"))]
    pub metrics_address: SocketAddr,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    #[default]
    Sqlite,
    Postgres,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    pub kind: StoreKind,
    /// SQLite: the database file, `guardian.db` in the data folder by default.
    pub file: Option<PathBuf>,
    /// Postgres: URL of the proxy's own least-privileged login, on the direct (not pooled) endpoint.
    #[schemars(with = "Option<String>")]
    pub url: Option<Secret>,
    pub url_file: Option<PathBuf>,
    /// Postgres: URL of a login that may administer (`grant`, `key`, `user`, `server`) and read the audit. Used by commands, never by `serve`.
    #[schemars(with = "Option<String>")]
    pub admin_url: Option<Secret>,
    pub admin_url_file: Option<PathBuf>,
    /// PEM file of the CA that signed the database's certificate, if it is not a public one.
    pub ca_file: Option<PathBuf>,
    pub max_connections: u32,
    pub connect_timeout: HumanDuration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IssuerKind {
    Oidc,
    Supabase,
    CloudflareAccess,
}

/// JWS algorithms; one issuer uses one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SigningAlgorithm {
    ES256,
    ES384,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    EdDSA,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Short name; policies write users as `Guardian::User::"<alias>|<subject>"`.
    pub alias: IssuerAlias,
    pub kind: IssuerKind,
    /// The exact `iss`. `user_identities` holds this one.
    pub issuer: Issuer,
    /// Further values of `iss` that mean the same issuer (a custom domain).
    #[serde(default)]
    pub also_accept: Vec<Issuer>,
    /// Where its public keys are; by default `<issuer>/.well-known/jwks.json` (Supabase) or `<issuer>/cdn-cgi/access/certs`
    /// (Cloudflare Access). `oidc` names one, or a file.
    #[serde(default)]
    pub jwks_url: Option<String>,
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// CA of the JWKS URL, if it is not a public one.
    #[serde(default)]
    pub jwks_ca_file: Option<PathBuf>,
    /// Allowed algorithms; never taken from the token. By default ES256 and RS256 (RS256 alone for Cloudflare Access).
    #[serde(default)]
    pub algorithms: Vec<SigningAlgorithm>,
    /// Values of `aud` of which the token must hold one. By default Guardian's resource URL of the server called;
    /// `authenticated` for Supabase.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// If given, `client_id` (or `azp`) must be one of these.
    #[serde(default)]
    pub client_ids: Vec<ClientId>,
    /// If given, the claim that names environments (dotted: `app_metadata.environments`) must hold this instance's.
    #[serde(default)]
    pub environment_claim: Option<String>,
    /// A claim (dotted) whose strings become roles beside `users.roles`. Never one the user can write, such as `user_metadata`.
    #[serde(default)]
    pub roles_claim: Option<String>,
    /// A claim (dotted) whose scopes, in a list or between spaces, narrow the grants of whoever shows the token; one without it
    /// may call nothing. By default the grants alone say what may be called.
    #[serde(default)]
    pub scopes_claim: Option<String>,
    /// The scopes that clients are told to ask for, where there is a `scopes_claim`; strangers read them. By default those in
    /// `servers.tool_scopes`, never the names of tools.
    #[serde(default)]
    pub scopes_supported: Vec<String>,
    /// A claim (dotted) that becomes `principal.tenant`.
    #[serde(default)]
    pub tenant_claim: Option<String>,
    /// How tokens that are no JWTs are checked (RFC 7662). Claims are then members of the answer.
    #[serde(default)]
    pub introspection: Option<IntrospectionConfig>,
    /// Accept Supabase anonymous sign-ins.
    #[serde(default)]
    pub allow_anonymous: bool,
    /// Clock difference tolerated in `exp`, `nbf` and `iat`.
    #[serde(default = "seconds::<30>")]
    pub skew: HumanDuration,
    /// The longest life of a token, from `iat` to `exp`, or from now where it has no `iat`: one that lives longer is refused.
    #[serde(default = "seconds::<86_400>")]
    pub max_lifetime: HumanDuration,
    /// How long a fetched key set is used before it is fetched again.
    #[serde(default = "seconds::<600>")]
    pub jwks_refresh: HumanDuration,
    /// How long the last good key set serves when the URL cannot be reached.
    #[serde(default = "seconds::<3_600>")]
    pub jwks_keep: HumanDuration,
    /// The least time between two fetches caused by an unknown key id.
    #[serde(default = "seconds::<30>")]
    pub jwks_refetch: HumanDuration,
}

/// Opaque tokens: the issuer is asked whether one is active, and whose it is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IntrospectionConfig {
    /// The issuer's introspection endpoint.
    pub url: String,
    /// Its CA, PEM, if it is not a public one.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Guardian's own client at the issuer, which may introspect (HTTP Basic).
    pub client_id: String,
    /// The secret of that client.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub client_secret: Option<Secret>,
    /// A file that holds it.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// What all its tokens begin with. Where several issuers introspect, each needs one: a token is shown to one issuer alone.
    #[serde(default)]
    pub token_prefix: Option<String>,
    /// How long an answer is used, at most 30s: so long a token works after its issuer has revoked it.
    #[serde(default = "seconds::<30>")]
    pub cache: HumanDuration,
    /// Accept tokens whose answer has no `aud`: then every token of this issuer opens Guardian, whatever it was made for.
    #[serde(default)]
    pub allow_missing_aud: bool,
    /// The longest life of a token whose answer has no `exp`, from its `iat` or else from the answer. By default it is refused.
    #[serde(default)]
    pub lifetime_without_exp: Option<HumanDuration>,
}

/// Guardian API keys.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// File with one pepper a line, `version:base64` of 32 bytes; the highest version makes new keys. By default `pepper` in the data folder.
    pub pepper_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MembersConfig {
    /// Enrol whoever an issuer proves on the first call. They still need a grant. Off: only enrolled people exist.
    pub just_in_time: bool,
    /// Roles of somebody enrolled that way.
    pub just_in_time_roles: Vec<RoleName>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoliciesConfig {
    /// Folder of `.cedar` files.
    pub dir: PathBuf,
    /// Use no policies that `guardian policy pin` has not pinned. Off: the manifest that it writes is heeded if it is there.
    pub require_manifest: bool,
    /// Start although no policy permits anything.
    pub deny_all: bool,
    /// IANA-free fixed offset of the working day, such as `+01:00`, for `context.hour` and `context.weekday`.
    pub utc_offset: String,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrantsConfig {
    /// No call is decided on knowledge older than this.
    pub max_staleness: HumanDuration,
    /// From this age on the knowledge is confirmed in the background.
    pub confirm_after: HumanDuration,
    /// How long a call may wait for a confirmation.
    pub confirm_timeout: HumanDuration,
    /// Members held in memory. Of more, those enrolled last are refused until this is raised.
    pub max_members: usize,
}

/// `rate` calls every `per`, at most `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub rate: u32,
    pub per: HumanDuration,
    /// By default the rate.
    #[serde(default)]
    pub burst: Option<u32>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// For each principal.
    pub per_principal: Option<Rate>,
    /// For each principal on each tool.
    pub per_tool: Option<Rate>,
    /// For each server, over all callers.
    pub per_server: Option<Rate>,
    /// Single tools, `"<server>/<tool>"`, over `per_tool`.
    pub tools: BTreeMap<String, Rate>,
    /// Single servers, over `per_server`.
    #[schemars(extend("propertyNames" = { "format": "ServerName" }))]
    pub servers: BTreeMap<ServerName, Rate>,
    /// Calls of one principal at once.
    pub max_concurrency_per_principal: usize,
    /// Counters held; a new key past this is refused.
    pub max_keys: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Inputs {
    /// Only a digest, under a key of the caller's own.
    #[default]
    Digest,
    /// With the values of `redact` replaced.
    Redacted,
    /// Encrypted with a key of the caller's own; decisions can be made again from the record with that key.
    Sealed,
    /// As they were sent; decisions can be made again from the record.
    Plain,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// What records keep of the arguments of calls.
    pub inputs: Inputs,
    /// Argument names, at any depth, whose values never reach a record.
    pub redact: Vec<String>,
    /// File with one secret a line, `version:base64` of 32 bytes, that everybody's keys are derived from; replicas share it. By default `audit.keys` in the data folder.
    pub key_file: Option<PathBuf>,
    /// Refuse calls, until a restart, once the audit trail holds a row that Guardian did not write under the number of one of its
    /// records. Off: an alarm only, since whoever holds the proxy's login could otherwise stop Guardian.
    pub seal_on_conflict: bool,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// `journal` in the data folder by default.
    pub dir: Option<PathBuf>,
    /// Unshipped records may take this much; calls are refused from 95 % on.
    pub max_bytes: u64,
    pub segment_bytes: u64,
    /// A disk that takes longer for one sync is treated as broken.
    pub sync_timeout: HumanDuration,
    /// Records stay on disk this long after the database took them, and are shipped again should it lose them (a standby that
    /// lagged behind is promoted, an older copy is restored). At most half of `max_bytes`, and the first to go where room is needed.
    pub keep_shipped: HumanDuration,
    /// Allow a folder that does not survive a restart of the machine (tmpfs, overlay).
    pub allow_volatile: bool,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// File with one key a line, `version:base64` of 32 bytes, that seals session ids; replicas share it. By default `session.keys` in the data folder.
    pub key_file: Option<PathBuf>,
    /// How long a session may live.
    pub lifetime: HumanDuration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,neural_guardian::gate=debug`.
    pub level: String,
    pub format: LogFormat,
}

macro_rules! defaults {
    ($($type:ident { $($field:ident: $value:expr,)* })*) => {$(
        impl Default for $type {
            fn default() -> Self {
                Self { $($field: $value,)* }
            }
        }
    )*};
}

defaults! {
    ConnectionLimits {
        max_connections: 10_000,
        max_connections_per_address: 512,
        handshake_timeout: secs(10),
        header_timeout: secs(30),
        body_timeout: secs(30),
        idle_timeout: secs(60),
        total_timeout: secs(3_600),
        keep_alive: secs(15),
        drain_timeout: secs(30),
        max_header_bytes: 32 * 1024,
        max_body_bytes: 4 * 1024 * 1024,
        max_streams: 128,
    }
    AdminListen { metrics_address: SocketAddr::from(([127, 0, 0, 1], 9090)), }
    StoreConfig {
        kind: StoreKind::Sqlite,
        file: None,
        url: None,
        url_file: None,
        admin_url: None,
        admin_url_file: None,
        ca_file: None,
        max_connections: 5,
        connect_timeout: secs(10),
    }
    KeysConfig { pepper_file: None, }
    AuditConfig { inputs: Inputs::Digest, redact: Vec::new(), key_file: None, seal_on_conflict: false, }
    PoliciesConfig { dir: PathBuf::from("policies"), require_manifest: false, deny_all: false, utc_offset: "+00:00".to_owned(), }
    GrantsConfig {
        max_staleness: secs(5),
        confirm_after: secs(1),
        confirm_timeout: HumanDuration(Duration::from_millis(800)),
        max_members: 1_000_000,
    }
    LimitsConfig {
        per_principal: Some(Rate { rate: 1_200, per: secs(60), burst: Some(200) }),
        per_tool: None,
        per_server: None,
        tools: BTreeMap::new(),
        servers: BTreeMap::new(),
        max_concurrency_per_principal: 64,
        max_keys: 100_000,
    }
    JournalConfig {
        dir: None,
        max_bytes: 10 * 1024 * 1024 * 1024,
        segment_bytes: 64 * 1024 * 1024,
        sync_timeout: secs(2),
        keep_shipped: secs(24 * 3_600),
        allow_volatile: false,
    }
    SessionsConfig { key_file: None, lifetime: secs(24 * 3_600), }
    LogConfig { level: "info".to_owned(), format: LogFormat::Auto, }
}

const fn secs(secs: u64) -> HumanDuration {
    HumanDuration(Duration::from_secs(secs))
}

/// A default of that many seconds.
pub(super) const fn seconds<const SECS: u64>() -> HumanDuration {
    secs(SECS)
}

fn default_environment() -> EnvironmentName {
    EnvironmentName::parse("default").expect("a literal that is an environment name")
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("data")
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a length of time such as `250ms`, `5s`, `10m`, `24h` or `7d`"
            ))
        })
    }
}

/// Prints the largest unit that loses nothing: `90s`, `2m`.
impl std::fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None => write!(f, "{millis}ms"),
        }
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl HumanDuration {
    /// Parses digits followed by `ms`, `s`, `m`, `h` or `d`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().ok()?;
        let millis = match &text[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        number.checked_mul(millis).map(|millis| Self(Duration::from_millis(millis)))
    }
}

impl PoliciesConfig {
    /// `utc_offset` in minutes; `None` if it is not an offset.
    pub fn utc_offset_minutes(&self) -> Option<i32> {
        let (sign, rest) = match self.utc_offset.split_at_checked(1)? {
            ("+", rest) => (1, rest),
            ("-", rest) => (-1, rest),
            _ => return None,
        };
        let (hours, minutes) = rest.split_once(':')?;
        let number = |text: &str, most: i32| {
            let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|number: &i32| digits && *number <= most)
        };
        Some(sign * (number(hours, 14)? * 60 + number(minutes, 59)?))
    }
}

impl StoreConfig {
    /// Postgres: the URL that administrative commands use; without `admin_url` it is the proxy's own.
    pub fn administration_url(&self) -> Option<&Secret> {
        self.admin_url.as_ref().or(self.url.as_ref())
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$", "description": "A length of time: 250ms, 5s, 10m, 24h, 7d." })
    }
}
