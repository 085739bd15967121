//! `guardian token`: revokes tokens of issuers before they expire. API keys are the business of `guardian key`.

use super::context::{AdminContext, ConfigFile, moment_ahead, moment_past, now};
use super::failure::Failure;
use super::output::{Format, at, clean};
use super::user::exact;
use crate::config::{Config, HumanDuration, IssuerConfig};
use crate::domain::{Issuer, Revocation, RevocationKind, Timestamp};
use serde_json::json;
use std::time::Duration;

/// The least default of `--until`.
const LONG: HumanDuration = HumanDuration(Duration::from_secs(30 * 24 * 3_600));

/// Refuse tokens before they expire.
#[derive(Debug, clap::Subcommand)]
pub enum TokenCommand {
    /// Refuse every token issued up to now: of a user, or of what an issuer names in its tokens.
    ///
    /// An issuer's clock may be ahead: tokens dated up to its `skew` from now are refused too. Tokens issued later are taken again, so whoever is to stay out is disabled as well. Keys are revoked by `key revoke`.
    #[command(
        after_help = "Examples:\n  guardian token revoke --user alice@example.com\n  guardian token revoke --issuer company --session 7d1f0c --reason \"lost laptop\""
    )]
    Revoke {
        #[command(flatten)]
        of: TokenSelector,
        /// Those issued before this: a length of time ago, or a moment (RFC 3339); now, if nothing is said.
        #[arg(long, value_parser = moment_past, value_name = "WHEN")]
        before: Option<Timestamp>,
        /// How long they are refused: until the last of them has expired. If nothing is said, thirty days, or longer where tokens
        /// may live longer.
        #[arg(long, value_parser = moment_ahead, value_name = "WHEN")]
        until: Option<Timestamp>,
        /// For the record.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct TokenSelector {
    /// By id or e-mail: every identity that is linked to them.
    #[arg(long, conflicts_with_all = ["issuer", "subject", "session", "client", "jti"])]
    user: Option<String>,
    /// The alias of a configured issuer, or an exact `iss`.
    #[arg(long, value_name = "ALIAS|ISS")]
    issuer: Option<Issuer>,
    /// The exact `sub`.
    #[arg(long, value_name = "SUB", requires = "issuer", group = "what")]
    subject: Option<String>,
    /// The `session_id` or `sid`.
    #[arg(long, value_name = "SID", requires = "issuer", group = "what")]
    session: Option<String>,
    /// The OAuth client: `azp` or `client_id`.
    #[arg(long, value_name = "ID", requires = "issuer", group = "what")]
    client: Option<String>,
    /// One token, by its `jti`.
    #[arg(long, value_name = "JTI", requires = "issuer", group = "what")]
    jti: Option<String>,
}

impl TokenCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let TokenCommand::Revoke {
            of,
            before,
            until,
            reason,
            format,
        } = self;
        let admin = AdminContext::open(file).await?;
        let named = of.named(&admin).await?;
        let limits = TokenLimits::of(&admin.config, &named);
        let before = before.unwrap_or_else(|| now().plus(limits.skew));
        let until = until.unwrap_or_else(|| before.plus(limits.lives.max(LONG.0)));
        if until < before.plus(limits.lives) {
            return Err(Failure::usage(format_args!(
                "`--until {}` is too early: a token issued before {} may live until {}",
                at(until),
                at(before),
                at(before.plus(limits.lives))
            )));
        }
        let revocations: Vec<Revocation> = named
            .iter()
            .map(|(issuer, kind, value)| Revocation {
                issuer: issuer.clone(),
                kind: *kind,
                value: value.clone(),
                issued_before: before,
                expires_at: until,
            })
            .collect();
        admin
            .store
            .add_revocations(&admin.config.environment, &revocations, reason.as_deref())
            .await?;
        let values: Vec<String> = named
            .iter()
            .map(|(issuer, _, value)| format!("`{}` of `{issuer}`", clean(value)))
            .collect();
        format.done(
            &json!({
                "revoked": named.iter().map(|(issuer, _, value)| json!({ "issuer": issuer, "value": value })).collect::<Vec<_>>(),
                "issued_before": at(before),
                "expires_at": at(until),
            }),
            format_args!(
                "tokens of {} issued before {} are refused until {}",
                values.join(", "),
                at(before),
                at(until)
            ),
        )
    }
}

/// What the tokens to be revoked may look like at most.
struct TokenLimits {
    /// How far ahead of now they may be dated.
    skew: Duration,
    /// From being issued to the last moment at which they are accepted.
    lives: Duration,
}

impl TokenLimits {
    /// Of the named issuers that are configured; of all issuers for one that is not, since it may be configured elsewhere.
    fn of(config: &Config, named: &[(Issuer, RevocationKind, String)]) -> Self {
        let of = |name: &Issuer, issuer: &IssuerConfig| issuer.issuer == *name || issuer.also_accept.contains(name);
        let is_known = |name: &Issuer| config.issuers.iter().any(|issuer| of(name, issuer));
        let all_known = named.iter().all(|(name, ..)| is_known(name));
        let is_named = |issuer: &&IssuerConfig| !all_known || named.iter().any(|(name, ..)| of(name, issuer));
        let issuers = config.issuers.iter().filter(is_named);
        issuers.fold(
            Self {
                skew: Duration::ZERO,
                lives: Duration::ZERO,
            },
            |most, issuer| Self {
                skew: most.skew.max(issuer.skew.0),
                lives: most.lives.max(issuer.max_lifetime.0 + issuer.skew.0),
            },
        )
    }
}

impl TokenSelector {
    /// The issuers and values to revoke: all linked identities of `--user`, or the one value given with `--issuer`.
    async fn named(&self, admin: &AdminContext) -> Result<Vec<(Issuer, RevocationKind, String)>, Failure> {
        if let Some(user) = &self.user {
            let row = admin.user(user).await?;
            if row.identities.is_empty() {
                return Err(Failure::failed(format_args!(
                    "`{}` is linked to no identity of an issuer; `guardian key list` shows their keys",
                    clean(user)
                )));
            }
            let subjects = row.identities.into_iter();
            return Ok(subjects
                .map(|(issuer, subject)| (issuer, RevocationKind::Subject, subject.to_string()))
                .collect());
        }
        let given = [
            (RevocationKind::Subject, &self.subject),
            (RevocationKind::Session, &self.session),
            (RevocationKind::Client, &self.client),
            (RevocationKind::Jti, &self.jti),
        ];
        let what = given.into_iter().find_map(|(kind, value)| Some((kind, value.clone()?)));
        match (&self.issuer, what) {
            (Some(issuer), Some((kind, value))) => Ok(vec![(exact(&admin.config, issuer), kind, value)]),
            _ => Err(Failure::usage(
                "name a `--user`, or with `--issuer` a `--subject`, `--session`, `--client` or `--jti`",
            )),
        }
    }
}
