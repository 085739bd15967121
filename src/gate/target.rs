//! Resolves what a call acts on, and its arguments, from the parameters. This is done once: the decision, the audit record
//! and the forwarded headers all use the result.

use super::context::RequestContext;
use super::handles::TaskRef;
use super::message::{reject_malformed, safe_text};
use crate::domain::{Call, Method, PromptName, Reason, Refusal, ResourceUri, Target, ToolName};
use crate::mcp::{self, Params, Reference};
use bytes::Bytes;

/// Most resources and tasks of one `subscriptions/listen`: each of them is decided on before the stream is opened.
const MOST_LISTENED: usize = 256;

/// Sets the target and the arguments of a call whose method is known.
pub(super) fn resolve_target(
    call: Call,
    params: Option<Params>,
    tasks: &[TaskRef],
    context: &mut RequestContext,
) -> Result<Call, Refusal> {
    let params = params.unwrap_or_default();
    let said = params.name.as_deref().or(params.uri.as_deref());
    let arguments = params.arguments.clone();
    let (target, arguments) = match call.method {
        Method::ToolsCall => {
            let name = ToolName::parse(said.ok_or_else(missing)?).map_err(|_| Refusal::new(Reason::UnknownTool))?;
            (Target::Tool(name), arguments)
        }
        Method::ReadResource | Method::Subscribe | Method::Unsubscribe => {
            context.target = said.map(safe_text);
            (Target::Resource(uri(said.ok_or_else(missing)?)?), None)
        }
        Method::GetPrompt => (Target::Prompt(prompt(said.ok_or_else(missing)?)?), arguments),
        Method::Complete => completion_target(&params, context)?,
        Method::Listen => {
            let listened = mcp::subscribed_uris(&params).map_err(|malformed| reject_malformed(malformed, context))?;
            if listened.len() + tasks.len() > MOST_LISTENED {
                let detail = format!("more than {MOST_LISTENED} resources and tasks are listened to");
                return Err(Refusal::with_detail(Reason::InvalidParams, detail));
            }
            let uris = listened.iter().map(|text| uri(text)).collect::<Result<_, _>>()?;
            let target = match tasks {
                [] => Target::Resources(uris),
                tasks => Target::Subscription(uris, tasks.iter().map(|task| task.tool.clone()).collect()),
            };
            (target, params.notifications.clone())
        }
        Method::TasksGet | Method::TasksResult | Method::TasksUpdate | Method::TasksCancel => {
            let task = tasks.first().ok_or_else(missing)?;
            context.tool = Some(task.tool.to_string());
            (Target::Task(task.tool.clone(), task.id.clone()), None)
        }
        Method::Initialize
        | Method::Ping
        | Method::Discover
        | Method::ToolsList
        | Method::ResourcesList
        | Method::TemplatesList
        | Method::PromptsList
        | Method::SetLevel
        | Method::Notification
        | Method::Answer
        | Method::OpenStream
        | Method::EndSession => (Target::Server, None),
    };
    match &target {
        Target::Tool(name) => context.tool = Some(name.to_string()),
        Target::Server => (),
        other => context.target = Some(other.to_string()).filter(|target| !target.is_empty()),
    }
    context.arguments.clone_from(&arguments);
    Ok(Call {
        target,
        arguments,
        ..call
    })
}

/// The target of a completion is the prompt or resource template that it completes: its answer reveals which arguments those
/// accept.
fn completion_target(params: &Params, context: &mut RequestContext) -> Result<(Target, Option<Bytes>), Refusal> {
    let completion = mcp::completion(params).map_err(|malformed| reject_malformed(malformed, context))?;
    match completion.of {
        Reference::Resource(text) => {
            context.target = Some(safe_text(&text));
            let template = ResourceUri::parse_template(&text).map_err(bad_uri)?;
            Ok((Target::Resource(template), None))
        }
        Reference::Prompt(name) => {
            let arguments = serde_json::to_vec(&completion.arguments).map_err(|_| Refusal::new(Reason::Internal))?;
            Ok((Target::Prompt(prompt(&name)?), Some(arguments.into())))
        }
    }
}

fn uri(text: &str) -> Result<ResourceUri, Refusal> {
    ResourceUri::parse(text).map_err(bad_uri)
}

fn bad_uri(why: crate::domain::BadUri) -> Refusal {
    Refusal::with_detail(Reason::UnfitUri, why.to_string())
}

fn prompt(name: &str) -> Result<PromptName, Refusal> {
    PromptName::parse(name).map_err(|_| Refusal::with_detail(Reason::InvalidParams, "`name` is not a prompt name"))
}

fn missing() -> Refusal {
    Refusal::with_detail(Reason::InvalidParams, "what is asked for is not named")
}
