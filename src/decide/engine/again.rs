//! The call and the input of a decision as its record has them, to decide it once more: by the policies that were in force
//! then, or by others. What a record does not have is said, and never guessed.

use super::cedar_principal::CedarPrincipal;
use super::input::{DecisionInput, Enrolment, GrantFreshness};
use super::snapshot::Snapshot;
use super::verdict::Verdict;
use crate::domain::{
    Call, Decision, DecisionKind, Digest, Era, Fingerprint, Grant, InputsKept, Member, MemberStatus, Method, Principal,
    PromptName, Reason, RecordedPrincipal, ResourceUri, Target, TargetKind, Timestamp, ToolName,
};
use bytes::Bytes;
use std::net::IpAddr;

/// Why a decision cannot be made again from its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undecidable {
    #[error("the record is of an older version, which does not say what the decision was made from")]
    Old,
    #[error("the message was refused before anything was decided")]
    NotDecided,
    #[error("the record was cut: not everything that the decision was made from fitted into it")]
    Cut,
    #[error("the verdict depends on the arguments, and the record does not hold them as they were sent")]
    Arguments,
    #[error("the verdict depends on the arguments, and they are sealed with a key that is not here")]
    Sealed,
    #[error("the record's {0} cannot be read")]
    Unreadable(&'static str),
}

/// The arguments of a recorded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedArguments {
    None,
    Known(Bytes),
    Unknown(Undecidable),
}

impl RecordedArguments {
    /// The arguments in this record; `open` opens sealed ones, with the version of the secret that sealed them.
    pub fn of(record: &Decision, open: impl FnOnce(u32, &str) -> Option<Vec<u8>>) -> Self {
        match (record.inputs, &record.args) {
            (None, None) if record.args_digest.is_none() => Self::None,
            (Some(InputsKept::Plain), Some(text)) => Self::Known(Bytes::copy_from_slice(text.as_bytes())),
            (Some(InputsKept::Sealed), Some(text)) => match open(record.inputs_key.unwrap_or_default(), text) {
                Some(bytes) => Self::Known(bytes.into()),
                None => Self::Unknown(Undecidable::Sealed),
            },
            _ => Self::Unknown(Undecidable::Arguments),
        }
    }
}

/// A recorded decision, taken apart.
pub(in crate::decide) struct Again {
    pub call: Call,
    principal: Principal,
    member: Option<Member>,
    now: Timestamp,
    source_ip: IpAddr,
    session: Option<String>,
    grant_freshness: GrantFreshness,
    cedar_principal: CedarPrincipal,
    /// Why the arguments are not known, if so.
    unknown: Option<Undecidable>,
}

impl Again {
    pub fn of(record: &Decision, arguments: RecordedArguments) -> Result<Self, Undecidable> {
        let caller = record.principal.as_deref().ok_or(Undecidable::NotDecided)?;
        let principal = principal_of(caller)?;
        let (seq, age_ms, stale) = match (&record.grant, &record.known) {
            (Some(grant), _) => (grant.seq, grant.age_ms, None),
            (None, Some(known)) => (known.seq, known.age_ms, known.stale.as_deref()),
            (None, None) => return Err(Undecidable::NotDecided),
        };
        if record.decided.as_deref() == Some("not_asked") {
            return Err(Undecidable::NotDecided);
        }
        if record.cut {
            return Err(Undecidable::Cut);
        }
        let stale = stale.map(|code| Reason::parse(code).ok_or(Undecidable::Unreadable("reason")));
        let member = member_of(record, caller);
        Ok(Self {
            cedar_principal: CedarPrincipal::new(&principal, member.as_ref(), &record.environment),
            call: call_of(record, &arguments)?,
            principal,
            member,
            now: record.now.unwrap_or(record.at),
            source_ip: record.source_ip.parse().map_err(|_| Undecidable::Unreadable("address"))?,
            session: match &record.judged_session {
                Some(session) => Some(session.clone()).filter(|session| !session.is_empty()),
                None => record.session.clone(),
            },
            grant_freshness: GrantFreshness {
                seq,
                age_ms,
                stale: stale.transpose()?,
            },
            unknown: match arguments {
                RecordedArguments::Unknown(why) => Some(why),
                RecordedArguments::None | RecordedArguments::Known(_) => None,
            },
        })
    }

    pub fn input<'a>(&'a self, snapshot: &'a Snapshot) -> DecisionInput<'a> {
        DecisionInput {
            now: self.now,
            source_ip: self.source_ip,
            principal: &self.principal,
            cedar_principal: &self.cedar_principal,
            enrolment: match &self.member {
                None => Enrolment::Absent,
                Some(member) if member.status == MemberStatus::Disabled => Enrolment::Disabled,
                Some(member) => Enrolment::Active(member),
            },
            grant_freshness: self.grant_freshness,
            snapshot,
            session: self.session.as_deref(),
        }
    }

    /// Whether a verdict that was found without the arguments holds whatever they are: it is a refusal made before they were
    /// looked at, or nothing looks at them.
    pub fn holds(&self, verdict: Verdict) -> Result<Verdict, Undecidable> {
        let Some(why) = self.unknown.filter(|_| reads_arguments(&self.call)) else {
            return Ok(verdict);
        };
        match &verdict {
            Verdict::Refuse(refused) if refused.arguments.is_none() && refused.refusal.reason != Reason::InvalidArguments => {
                Ok(verdict)
            }
            Verdict::Refuse(_) | Verdict::Permit(_) => Err(why),
        }
    }
}

/// In what a verdict differs from the one on record, in the words of the record; empty if it is the same verdict, made by the
/// same policies for the same reason.
pub fn differences(record: &Decision, verdict: &Verdict) -> Vec<String> {
    let recorded = record.decided.as_deref().unwrap_or(&record.reason);
    let (reason, policies, detail) = match verdict {
        Verdict::Permit(permit) => ("permitted", &permit.basis().policies, &None),
        Verdict::Refuse(refused) => (
            refused.refusal.reason.code(),
            &refused.refusal.policies,
            &refused.refusal.detail,
        ),
    };
    let (held, needed) = match verdict {
        Verdict::Permit(permit) => (&permit.basis().scopes, &[][..]),
        Verdict::Refuse(refused) => (&refused.basis.scopes, &refused.refusal.scopes[..]),
    };
    let mut found = Vec::new();
    let mut compare = |what: &str, was: String, is: String| {
        if was != is {
            found.push(format!("{what} was {was} and is {is}"));
        }
    };
    compare("reason", recorded.to_owned(), reason.to_owned());
    compare("scopes_held", format!("{:?}", record.scopes_held), format!("{held:?}"));
    // What a later stage refused says nothing of its own about these.
    if record.decided.is_none() {
        compare("policies", format!("{:?}", record.policies), format!("{policies:?}"));
        compare("detail", format!("{:?}", record.detail), format!("{detail:?}"));
        compare("scopes_needed", format!("{:?}", record.scopes_needed), format!("{needed:?}"));
        let permitted = matches!(verdict, Verdict::Permit(_));
        compare(
            "decision",
            record.decision.as_str().to_owned(),
            if permitted { DecisionKind::Allow } else { DecisionKind::Deny }
                .as_str()
                .to_owned(),
        );
    }
    found
}

/// Whether a decision looks at the arguments of such a call.
const fn reads_arguments(call: &Call) -> bool {
    matches!(
        (call.method, &call.target),
        (Method::ToolsCall | Method::GetPrompt, _) | (Method::Complete, Target::Prompt(_))
    )
}

fn principal_of(caller: &RecordedPrincipal) -> Result<Principal, Undecidable> {
    let RecordedPrincipal {
        issuer,
        alias,
        subject,
        kind,
        user: _, // the member's
        disabled: _,
        method,
        fingerprint: _, // nothing is decided by it
        client,
        key,
        email,
        tenant,
        assurance,
        roles: _,
        token_roles,
        narrowed_to,
    } = caller;
    let alias = alias.clone().ok_or(Undecidable::Old)?;
    let fingerprint = Fingerprint::of(&Digest::ZERO);
    let known = Principal::new(*kind, issuer.clone(), alias, subject.clone(), *method, fingerprint);
    Ok(Principal {
        client: client.clone(),
        key: key.clone(),
        email: email.as_deref().map(Into::into),
        tenant: tenant.as_deref().map(Into::into),
        assurance: assurance.as_deref().map(Into::into),
        roles: token_roles.clone(),
        narrowed_to: narrowed_to.clone(),
        ..known
    })
}

/// The member with the one grant that counted.
fn member_of(record: &Decision, caller: &RecordedPrincipal) -> Option<Member> {
    let grant = record.grant.as_ref().zip(record.server.as_ref());
    let grant = grant.map(|(used, server)| Grant {
        id: used.id.clone(),
        server: server.clone(),
        client: used.client.clone(),
        status: used.status,
        scopes: used
            .scopes
            .clone()
            .unwrap_or_else(|| record.scopes_held.iter().cloned().collect()),
        expires_at: used.expires_at,
        version: used.version,
    });
    Some(Member {
        email: caller.email.clone(),
        roles: caller.roles.clone(),
        status: if caller.disabled {
            MemberStatus::Disabled
        } else {
            MemberStatus::Active
        },
        grants: grant.into_iter().collect(),
        ..Member::new(caller.user.clone()?, caller.kind)
    })
}

fn call_of(record: &Decision, arguments: &RecordedArguments) -> Result<Call, Undecidable> {
    let method = Method::of_record(&record.method).ok_or(Undecidable::NotDecided)?;
    Ok(Call {
        request: record.request,
        server: record.server.clone().ok_or(Undecidable::NotDecided)?,
        era: record.era.unwrap_or(Era::Legacy),
        version: None,
        method,
        target: target_of(record, method)?,
        id: None,
        body: Bytes::new(),
        arguments: match arguments {
            RecordedArguments::Known(bytes) => Some(bytes.clone()),
            RecordedArguments::None | RecordedArguments::Unknown(_) => None,
        },
    })
}

fn target_of(record: &Decision, method: Method) -> Result<Target, Undecidable> {
    let target = record.target.as_deref().unwrap_or_default();
    let unreadable = |_| Undecidable::Unreadable("target");
    let tool = || {
        let name = record.tool.as_deref().unwrap_or_default();
        ToolName::parse(name).map_err(|_| Undecidable::Unreadable("tool"))
    };
    let prompt = || {
        PromptName::parse(target)
            .map(Target::Prompt)
            .map_err(|_| Undecidable::Unreadable("target"))
    };
    Ok(match method.target_kind() {
        TargetKind::Server => Target::Server,
        TargetKind::Tool => Target::Tool(tool()?),
        TargetKind::Task => Target::Task(tool()?, target.to_owned()),
        TargetKind::Resource => Target::Resource(ResourceUri::parse(target).map_err(unreadable)?),
        TargetKind::Prompt => prompt()?,
        // Only the completion of a prompt has arguments.
        TargetKind::Reference if record.inputs.is_some() => prompt()?,
        TargetKind::Reference => Target::Resource(ResourceUri::parse_template(target).map_err(unreadable)?),
        TargetKind::Subscription => {
            // No URI holds a space.
            let uris = target.split(' ').filter(|uri| !uri.is_empty()).map(ResourceUri::parse);
            let uris = uris.collect::<Result<_, _>>().map_err(unreadable)?;
            match &record.task_tools[..] {
                [] => Target::Resources(uris),
                tools => Target::Subscription(uris, tools.to_vec()),
            }
        }
    })
}
