//! Decides one call: the only room that names Cedar. [`decide`] is a pure function of the call and its [`Facts`].
//!
//! It reads no clock, file or socket and logs nothing. It returns a [`Permit`], which only [`decide`] can make, or a
//! refusal with its reasons. The slow work (parsing and validating policies) is done once, in [`Snapshot::compile`].

mod arguments;
mod check;
mod effort;
mod facts;
mod judge;
mod known;
mod listing;
mod mirror;
mod missing;
mod problem;
mod reads;
mod rule;
mod schema;
mod seat;
mod shape;
mod sight;
mod slice;
mod snapshot;
mod sort;
mod standing;
mod subject;
mod suppose;
mod text;
mod tool;
mod typing;
mod verdict;
mod ware;
mod when;

pub use facts::{Enrolment, Facts, View};
pub use listing::Listing;
pub use mirror::{Mirrored, MirroredKind};
pub use missing::{forbid_names, missing_forbids};
pub use problem::Problem;
pub use snapshot::{PolicySource, Settings, Snapshot, forbids, obstacle};
pub use subject::Subject;
pub use tool::CompiledTool;
pub use verdict::{Basis, Permit, Refused, Verdict};

use crate::domain::{Call, Method, Reason, Refusal, ServerName, Target, ToolName};
use serde_json::Map;
use sort::Sort;
use standing::Held;

/// Decides a call. Checks the preconditions (enrolment, server, grant), the pin status, the scopes, the arguments and the
/// policies in this order; the first refusal wins.
pub fn decide(call: Call, facts: &Facts<'_>) -> Verdict {
    let mut basis = Basis::new(facts.snapshot);
    match judged(&call, facts, &mut basis) {
        Ok(()) => Verdict::Permit(Permit::new(call, basis)),
        Err(refusal) => Verdict::Refuse(Box::new(Refused {
            call,
            refusal: *refusal,
            basis,
        })),
    }
}

/// Refuses a caller who is not an active member, or whose grants are not known freshly enough. It asks for no particular
/// grant.
pub fn is_admitted(facts: &Facts<'_>) -> Result<(), Refusal> {
    standing::member(facts).map_err(|refusal| *refusal)?;
    match facts.view.stale {
        None => Ok(()),
        Some(reason) => Err(reason.into()),
    }
}

/// Whether this caller has a usable grant for this server.
pub fn admits(server: &ServerName, facts: &Facts<'_>) -> bool {
    refuses(server, facts).is_none()
}

/// Why this caller has no usable grant for this server; `None` if they have one.
pub fn refuses(server: &ServerName, facts: &Facts<'_>) -> Option<Reason> {
    standing::held(server, facts).err().map(|refusal| refusal.reason)
}

/// Whether some call of this tool by this caller could be permitted now. In doubt it says yes, so that no callable tool
/// is hidden.
pub fn could_permit(server: &ServerName, tool: &CompiledTool, facts: &Facts<'_>) -> bool {
    let Ok(held) = standing::held(server, facts) else {
        return false;
    };
    standing::tool_may_be_called(tool, &held).is_ok() && judge::could_permit(tool, &held, facts)
}

/// Decides a message about a task by the tool that created it: the caller must be able to make some call of that tool
/// now. The arguments of the original call are not known any more, so they are not judged again.
fn task_may_go_on(call: &Call, tool: &ToolName, held: &Held<'_>, facts: &Facts<'_>) -> Result<(), Box<Refusal>> {
    let tool = facts.snapshot.tool(&call.server, tool.as_str()).ok_or(Reason::UnknownTask)?;
    standing::tool_may_be_called(tool, held)?;
    if judge::could_permit(tool, held, facts) {
        Ok(())
    } else {
        Err(Reason::NoPolicyPermits.into())
    }
}

fn judged(call: &Call, facts: &Facts<'_>, basis: &mut Basis) -> Result<(), Box<Refusal>> {
    let held = standing::held(&call.server, facts)?;
    basis.hold(&held, facts);
    let mut one = |sort, name: &str| ware(call, sort, name, &held, facts, basis);
    match (call.method, &call.target) {
        (Method::ToolsCall, target) => {
            let Target::Tool(name) = target else {
                return Err(Reason::UnknownTool.into());
            };
            let tool = facts.snapshot.tool(&call.server, name.as_str()).ok_or(Reason::UnknownTool)?;
            standing::tool_may_be_called(tool, &held)?;
            let arguments = tool.read(call.arguments.as_deref())?;
            judge::judge(tool, &arguments, &held, facts, basis)
        }
        (Method::ReadResource | Method::Subscribe | Method::Complete, Target::Resource(uri)) => one(Sort::Resource, uri.as_str()),
        (Method::GetPrompt | Method::Complete, Target::Prompt(name)) => one(Sort::Prompt, name.as_str()),
        (Method::Listen, Target::Resources(uris)) => uris.iter().try_for_each(|uri| one(Sort::Resource, uri.as_str())),
        (Method::Listen, Target::Subscription(uris, tools)) => {
            uris.iter().try_for_each(|uri| one(Sort::Resource, uri.as_str()))?;
            tools.iter().try_for_each(|tool| task_may_go_on(call, tool, &held, facts))
        }
        (Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel, Target::Task(tool, _)) => {
            task_may_go_on(call, tool, &held, facts)
        }
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

fn ware(call: &Call, sort: Sort, name: &str, held: &Held<'_>, facts: &Facts<'_>, basis: &mut Basis) -> Result<(), Box<Refusal>> {
    let wares = facts.snapshot.wares(&call.server, sort).ok_or(Reason::UnknownServer)?;
    standing::covered(wares.needs(), held)?;
    let arguments = match sort {
        Sort::Prompt => wares.read(call.arguments.as_deref())?,
        Sort::Tool | Sort::Resource => Map::new(),
    };
    judge::judge_ware(wares, name, &arguments, held, facts, basis)
}
