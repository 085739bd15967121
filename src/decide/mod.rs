//! Decides one call: the only room that names Cedar. [`decide`] is a pure function of the call and its [`DecisionInput`].
//!
//! It reads no clock, file or socket and logs nothing. It returns a [`Permit`], which only [`decide`] can make, or a
//! refusal with its reasons. The slow work (parsing and validating policies) is done once, in [`Snapshot::compile`].
//!
//! | folder | what it holds | to begin with |
//! |---|---|---|
//! | `tool` | a tool's definition as policies see it: argument types and validation, Cedar entities, the Cedar schema | `arg_types`, `target` |
//! | `policy` | policy files: bounded, read into rules, checked against the catalogue | `rule`, `check` |
//! | `engine` | both compiled into a snapshot; the policies of one call selected and evaluated | `snapshot`, `evaluate` |
//!
//! A folder uses only those above it in this table; `tests/hygiene/structure.rs` holds that.

mod engine;
mod policy;
mod tool;

pub use engine::again::{RecordedArguments, Undecidable, differences};
pub use engine::cedar_principal::CedarPrincipal;
pub use engine::compiled_tool::CompiledTool;
pub use engine::input::{DecisionInput, Enrolment, GrantFreshness};
pub use engine::listing::Listing;
pub use engine::snapshot::{PolicySettings, Snapshot, snapshot_of, why_unusable};
pub use engine::unread::UnreadArgument;
pub use engine::verdict::{Basis, Permit, Refused, Verdict};
pub use policy::missing::{forbid_names, missing_forbids};
pub use policy::rule::{PolicySource, forbids};
pub use tool::param_headers::{ParamHeader, ParamHeaderKind};

use crate::domain::{Call, Decision, Method, Reason, Refusal, ResourceUri, ServerName, Target, ToolName};
use engine::again::Again;
use engine::evaluate::Evaluation;
use engine::preconditions::{self, ActiveGrant};
use serde_json::{Map, Value};
use tool::primitive_kind::PrimitiveKind;

/// Decides a call. Checks the preconditions (enrolment, server, grant), the pin status, the scopes, the arguments and the
/// policies in this order; the first refusal wins.
pub fn decide(call: Call, input: &DecisionInput<'_>) -> Verdict {
    let (mut basis, mut arguments) = (Basis::new(input.snapshot), None);
    match check_call(&call, input, &mut basis, &mut arguments) {
        Ok(()) => Verdict::Permit(Permit::new(call, arguments, basis)),
        Err(refusal) => Verdict::Refuse(Box::new(Refused {
            call,
            arguments,
            refusal: *refusal,
            basis,
        })),
    }
}

/// Decides a recorded call once more, from its record and these arguments alone. `snapshot` is that of its time
/// ([`snapshot_of`] compiles it from what the audit trail keeps) or another one, to see what that would have said.
pub fn decide_again(record: &Decision, arguments: RecordedArguments, snapshot: &Snapshot) -> Result<Verdict, Undecidable> {
    let again = Again::of(record, arguments)?;
    again.holds(decide(again.call.clone(), &again.input(snapshot)))
}

/// Refuses a caller who is not an active member, or whose grants are not known freshly enough. It asks for no particular
/// grant.
pub fn is_admitted(input: &DecisionInput<'_>) -> Result<(), Refusal> {
    preconditions::active_member(input).map_err(|refusal| *refusal)?;
    match input.grant_freshness.stale {
        None => Ok(()),
        Some(reason) => Err(reason.into()),
    }
}

/// Whether this caller has a usable grant for this server.
pub fn admits(server: &ServerName, input: &DecisionInput<'_>) -> bool {
    refuses(server, input).is_none()
}

/// Why this caller has no usable grant for this server; `None` if they have one.
pub fn refuses(server: &ServerName, input: &DecisionInput<'_>) -> Option<Reason> {
    preconditions::active_grant(server, input).err().map(|refusal| refusal.reason)
}

/// Whether some call of this tool by this caller could be permitted now. In doubt it says yes, so that no callable tool
/// is hidden.
pub fn could_permit(server: &ServerName, tool: &CompiledTool, input: &DecisionInput<'_>) -> bool {
    let active_grant = preconditions::active_grant(server, input);
    active_grant.is_ok_and(|active_grant| check_some_call(tool, &active_grant, input).is_ok())
}

/// Refuses if no call of this tool could be permitted now.
fn check_some_call(tool: &CompiledTool, active_grant: &ActiveGrant<'_>, input: &DecisionInput<'_>) -> Result<(), Box<Refusal>> {
    preconditions::check_tool(tool, active_grant)?;
    if tool.definition.arguments.why_unusable().is_none()
        && Evaluation::of_tool(tool, None, active_grant, input).could_be_permitted()
    {
        Ok(())
    } else {
        Err(Reason::NoPolicyPermits.into())
    }
}

/// Checks a call; leaves what the verdict rests on in `basis` and the parsed arguments in `parsed`.
fn check_call(
    call: &Call,
    input: &DecisionInput<'_>,
    basis: &mut Basis,
    parsed: &mut Option<Map<String, Value>>,
) -> Result<(), Box<Refusal>> {
    let grant = preconditions::selected_grant(&call.server, input)?;
    let active_grant = preconditions::usable(grant, input).inspect_err(|_| basis.set_unusable_grant(grant, input))?;
    basis.set_grant(&active_grant, input);
    let mut unlisted = |kind, name: &str| {
        let unlisted = input.snapshot.unlisted(&call.server, kind).ok_or(Reason::UnknownServer)?;
        preconditions::check_scopes(&unlisted.needs, &active_grant)?;
        let arguments = match kind {
            PrimitiveKind::Prompt => Some(&*parsed.insert(unlisted.read_arguments(call.arguments.as_deref())?)),
            PrimitiveKind::Tool | PrimitiveKind::Resource => None,
        };
        Evaluation::of_unlisted(unlisted, Some(name), arguments, &active_grant, input).decide(basis)
    };
    let mut resource = |uri: &ResourceUri| unlisted(PrimitiveKind::Resource, uri.as_str());
    // The caller must be able to make some call of the task's tool now. The arguments of the original call are not known
    // any more, so they are not judged again.
    let task = |tool: &ToolName| {
        let tool = input.snapshot.tool(&call.server, tool.as_str()).ok_or(Reason::UnknownTask)?;
        check_some_call(tool, &active_grant, input)
    };
    match (call.method, &call.target) {
        (Method::ToolsCall, target) => {
            let Target::Tool(name) = target else {
                return Err(Reason::UnknownTool.into());
            };
            let tool = input.snapshot.tool(&call.server, name.as_str()).ok_or(Reason::UnknownTool)?;
            basis.class = Some(tool.definition.entry.class);
            preconditions::check_tool(tool, &active_grant)?;
            let arguments = parsed.insert(tool.definition.arguments.read(name.as_str(), call.arguments.as_deref())?);
            Evaluation::of_tool(tool, Some(arguments), &active_grant, input).decide(basis)
        }
        (Method::ReadResource | Method::Subscribe | Method::Complete, Target::Resource(uri)) => resource(uri),
        (Method::GetPrompt | Method::Complete, Target::Prompt(name)) => unlisted(PrimitiveKind::Prompt, name.as_str()),
        (Method::Listen, Target::Resources(uris)) => uris.iter().try_for_each(resource),
        (Method::Listen, Target::Subscription(uris, tools)) => {
            uris.iter().try_for_each(resource)?;
            tools.iter().try_for_each(task)
        }
        (Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel, Target::Task(tool, _)) => task(tool),
        (Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel, _) => {
            Err(Reason::UnknownTask.into())
        }
        (Method::ReadResource | Method::Subscribe | Method::GetPrompt | Method::Complete | Method::Listen, _) => {
            Err(Reason::InvalidParams.into())
        }
        // Unsubscribing needs the session and nothing more. The other methods answer with lists, which are filtered on
        // the way back.
        (Method::Unsubscribe | Method::ResourcesList | Method::TemplatesList | Method::PromptsList | Method::ToolsList, _) => {
            Ok(())
        }
        (Method::Initialize | Method::Ping | Method::Discover | Method::SetLevel, _) => Ok(()),
        (Method::Notification | Method::OpenStream | Method::EndSession | Method::Answer, _) => Ok(()),
    }
}
