//! `guardian policy explain`: what `decide` says to a call now, without making the call. `serve` decides with the same
//! function; here the facts are made up: the caller counts as authenticated, and the grants, just read from the store, as
//! fresh. Rate limits are not checked.

use super::context::{AdminContext, ConfigFile, now};
use super::failure::Failure;
use super::output::{Format, clean, comma, json, line};
use super::policy;
use crate::app::policy_loader::settings;
use crate::config::Config;
use crate::decide::Snapshot;
use crate::decide::{Basis, CedarPrincipal, DecisionInput, Enrolment, GrantFreshness, Verdict, decide};
use crate::domain::{
    AuthMethod, Call, ClientId, Digest, Era, Fingerprint, Issuer, IssuerAlias, KEY_ISSUER, Member, MemberStatus, Method,
    Principal, PromptName, ProtocolVersion, Refusal, RequestId, ResourceUri, ServerName, Subject as SubjectName, Target,
    ToolClass, ToolName,
};
use bytes::Bytes;
use serde_json::json as value;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use uuid::Uuid;

/// Say how a call would be judged now, and by which policies, without making it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  guardian policy explain --user alice@example.com --server demo --tool write_file \\\n    --args '{\"path\":\"/etc/hosts\"}'\n  guardian policy explain --user alice@example.com --server demo --tool write_file \\\n    --policies drafts/\n  guardian policy explain --user alice@example.com --server demo --resource file:///notes.txt"
)]
pub struct ExplainCommand {
    /// Who would call, by id or e-mail.
    #[arg(long)]
    user: String,
    /// Which server would be called.
    #[arg(long)]
    server: ServerName,
    #[command(flatten)]
    what: ExplainTarget,
    /// The arguments of a tool or prompt, as JSON.
    #[arg(long, default_value = "{}", value_parser = arguments, value_name = "JSON")]
    args: Bytes,
    /// As a token issued to this OAuth client.
    #[arg(long, value_name = "ID")]
    client: Option<ClientId>,
    /// Where the call would come from.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    ip: IpAddr,
    /// Other policies than those of the configuration.
    #[arg(long, value_name = "FOLDER")]
    policies: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

/// What would be asked for.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct ExplainTarget {
    /// Which of its tools would be called.
    #[arg(long)]
    tool: Option<ToolName>,
    /// Which of its resources would be read.
    #[arg(long, value_name = "URI")]
    resource: Option<ResourceUri>,
    /// Which of its prompts would be asked for.
    #[arg(long, value_name = "NAME")]
    prompt: Option<PromptName>,
}

impl ExplainCommand {
    pub async fn run(&self, file: &ConfigFile) -> Result<(), Failure> {
        let admin = AdminContext::open(file).await?;
        let (config, store) = (&admin.config, &admin.store);
        let id = admin.user_id(&self.user).await?;
        admin.server(&self.server).await?;
        let directory = store.directory(&config.environment).await?;
        let member = directory.members.into_iter().find(|member| member.id == id);
        let member = member.ok_or_else(|| Failure::failed(format_args!("`{}` is gone", clean(&self.user))))?;
        let sources = policy::sources(self.policies.as_ref().unwrap_or(&config.policies.dir))?;
        let catalogue = policy::catalogue_of(store, config).await?;
        let snapshot = match Snapshot::compile(&sources, &catalogue, &settings(config)) {
            Ok(snapshot) => snapshot,
            Err(problems) => return policy::refuse(&problems, &sources),
        };
        let principal = explained_principal(&member, self.client.clone(), config)?;
        let input = DecisionInput {
            now: now(),
            source_ip: self.ip,
            principal: &principal,
            cedar_principal: &CedarPrincipal::new(&principal, Some(&member), &config.environment),
            enrolment: match member.status {
                MemberStatus::Active => Enrolment::Active(&member),
                MemberStatus::Disabled => Enrolment::Disabled,
            },
            grant_freshness: GrantFreshness {
                seq: directory.anchor.seq,
                age_ms: 0,
                stale: None,
            },
            snapshot: &snapshot,
            session: None,
        };
        let tool = self.what.tool.as_ref();
        let class = tool.and_then(|tool| Some(snapshot.tool(&self.server, tool.as_str())?.entry().class));
        match decide(self.call(), &input) {
            Verdict::Permit(permit) => self.say(&principal, None, permit.basis(), class),
            Verdict::Refuse(refused) => self.say(&principal, Some(&refused.refusal), &refused.basis, class),
        }
    }

    /// The call that is decided; its body is empty, because `decide` reads only the arguments.
    fn call(&self) -> Call {
        let (method, target) = self.what.target();
        Call {
            request: RequestId(Uuid::new_v4()),
            server: self.server.clone(),
            era: Era::Modern,
            version: Some(ProtocolVersion::V20260728),
            method,
            target,
            id: None,
            body: Bytes::new(),
            arguments: Some(self.args.clone()),
        }
    }

    /// Prints the decision and its reasons.
    fn say(
        &self,
        principal: &Principal,
        refusal: Option<&Refusal>,
        basis: &Basis,
        class: Option<ToolClass>,
    ) -> Result<(), Failure> {
        let who = format!("{}|{}", principal.alias, principal.subject);
        let reason = refusal.map_or("permitted", |refusal| refusal.reason.code());
        let policies = refusal.map_or(&basis.policies, |refusal| &refusal.policies);
        if self.format.json {
            return json(&value!({
                "decision": if refusal.is_none() { "allow" } else { "deny" },
                "reason": reason,
                "detail": refusal.and_then(|refusal| refusal.detail.clone()),
                "principal": who,
                "method": principal.method,
                "policies": policies,
                "said": refusal.and_then(|refusal| refusal.policy_message.clone()),
                "remedy": refusal.and_then(|refusal| refusal.remedy.clone()),
                "errors": refusal.map(|refusal| refusal.errors.clone()).unwrap_or_default(),
                "scopes_held": basis.scopes,
                "scopes_needed": refusal.map(|refusal| refusal.scopes.clone()).unwrap_or_default(),
                "shadow": basis.shadow,
                "class": class,
                "policy_set": basis.policy_set,
                "catalogue": basis.catalogue,
            }));
        }
        line(format_args!("{}: {reason}", if refusal.is_none() { "allow" } else { "deny" }))?;
        let of_refusal = |part: fn(&Refusal) -> Option<String>| refusal.and_then(part).unwrap_or_default();
        let facts = [
            ("caller", who),
            ("because", of_refusal(|refusal| refusal.detail.clone())),
            ("policies", comma(policies)),
            ("told", of_refusal(|refusal| refusal.policy_message.clone())),
            ("remedy", of_refusal(|refusal| refusal.remedy.clone())),
            ("errors", of_refusal(|refusal| Some(refusal.errors.join("; ")))),
            ("needs", of_refusal(|refusal| Some(comma(&refusal.scopes)))),
            ("holds", comma(&basis.scopes)),
            ("in shadow", comma(&basis.shadow)),
            ("tool", class.map(ToolClass::sentence).unwrap_or_default().to_owned()),
        ];
        let mut said = facts.iter().filter(|(_, text)| !text.is_empty());
        said.try_for_each(|(name, text)| line(format_args!("  {name:<10}{}", clean(text))))
    }
}

impl ExplainTarget {
    fn target(&self) -> (Method, Target) {
        match (&self.tool, &self.resource, &self.prompt) {
            (Some(tool), _, _) => (Method::ToolsCall, Target::Tool(tool.clone())),
            (None, Some(uri), _) => (Method::ReadResource, Target::Resource(uri.clone())),
            (None, None, Some(prompt)) => (Method::GetPrompt, Target::Prompt(prompt.clone())),
            (None, None, None) => (Method::ToolsCall, Target::Server), // cannot occur: clap requires one of the three
        }
    }
}

/// The principal the user would be: their first identity of a configured issuer, else their API key.
fn explained_principal(member: &Member, client: Option<ClientId>, config: &Config) -> Result<Principal, Failure> {
    let configured = |(issuer, subject): &(Issuer, SubjectName)| {
        let of = config.issuers.iter().find(|of| of.issuer == *issuer)?;
        Some((issuer.clone(), of.alias.clone(), subject.clone(), AuthMethod::Jwt))
    };
    let by_key = || -> Result<_, crate::domain::BadName> {
        let subject = SubjectName::parse(member.id.as_str())?;
        Ok((
            Issuer::parse(KEY_ISSUER)?,
            IssuerAlias::parse(KEY_ISSUER)?,
            subject,
            AuthMethod::Key,
        ))
    };
    let (issuer, alias, subject, method) = match member.identities.iter().find_map(configured) {
        Some(identity) => identity,
        None => by_key().map_err(Failure::failed)?,
    };
    Ok(Principal {
        client,
        email: member.email.as_deref().map(Into::into),
        ..Principal::new(member.kind, issuer, alias, subject, method, Fingerprint::of(&Digest::ZERO))
    })
}

/// Parses `--args`: the text is kept as it is if it is a JSON object.
fn arguments(text: &str) -> Result<Bytes, String> {
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(value) if value.is_object() => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Ok(_) => Err("arguments are a JSON object, such as `{\"path\":\"notes.txt\"}`".to_owned()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}
