//! The third stage: turns a message for one server into a call. The caller's handles become the server's own tokens, and the
//! target and arguments are resolved once: the decision, the audit record and the forwarded headers all use the result.

use super::Gate;
use super::context::{MessageSummary, RefusedRequest, RequestContext};
use super::handles::{AnswerClaim, HandleTranslator, OutboundHandles, TaskRef};
use super::message::{NegotiatedMessage, reject_malformed, safe_text};
use crate::domain::{
    BadUri, Call, Method, PromptName, Reason, Refusal, RequestId, ResourceUri, ServerName, Target, TargetKind, ToolName,
};
use crate::mcp::{self, Message, Params, Reference};
use crate::sessions::Session;
use crate::upstream::Upstream;
use bytes::Bytes;

/// A parsed call: what is decided on and what is sent.
pub(super) struct ParsedCall {
    pub context: Box<RequestContext>,
    pub call: Call,
    /// Encodes the server's tokens in what comes back.
    pub handles: OutboundHandles,
    /// For an answer to a server's request: the claim on answering it.
    pub claim: Option<AnswerClaim>,
}

/// Most resources and tasks of one `subscriptions/listen`: each of them is decided on before the stream is opened.
const MOST_LISTENED: usize = 256;

impl Gate {
    /// Makes the call of a message for the server that `context` names, in `session` of that server.
    pub(super) fn parse_call(
        &self,
        mut context: Box<RequestContext>,
        message: NegotiatedMessage,
        session: Option<&Session>,
    ) -> Result<ParsedCall, Box<RefusedRequest>> {
        let (Some(principal), Some(server)) = (context.principal.clone(), context.server.clone()) else {
            return Err(context.refuse(Reason::Internal));
        };
        if session.is_some_and(|session| session.expires_at <= context.at) {
            return Err(context.refuse(Reason::UnknownSession));
        }
        let allowed_requests = self.parts.upstreams.get(&server).map(Upstream::allowed_requests);
        let label = session.map(Session::label);
        let translator = HandleTranslator::new(
            &self.handle_cache,
            principal,
            &server,
            label,
            allowed_requests.unwrap_or_default(),
        );
        match resolve(message, context.request, server, &translator, &mut context.message) {
            Ok((call, tasks, claim)) => Ok(ParsedCall {
                context,
                handles: OutboundHandles::of(translator, &call, tasks),
                call,
                claim,
            }),
            Err(refusal) => Err(context.refuse(refusal)),
        }
    }
}

type Resolved = (Call, Vec<TaskRef>, Option<AnswerClaim>);

fn resolve(
    message: NegotiatedMessage,
    request: RequestId,
    server: ServerName,
    translator: &HandleTranslator,
    summary: &mut MessageSummary,
) -> Result<Resolved, Refusal> {
    let NegotiatedMessage {
        era,
        version,
        method,
        message,
        edits,
    } = message;
    let mut call = Call {
        request,
        server,
        era,
        version,
        method,
        target: Target::Server,
        id: None,
        body: Bytes::new(),
        arguments: None,
    };
    match message {
        Some(Message::Request(request)) => {
            let decoded = translator.decode_inbound(&request.body, request.params.as_ref(), method, era, edits)?;
            (call.id, call.body) = (Some(request.id), decoded.body);
            (call.target, call.arguments) = target(method, request.params.unwrap_or_default(), &decoded.tasks, summary)?;
            note_target(&call, summary);
            Ok((call, decoded.tasks, None))
        }
        Some(Message::Notification(notification)) => {
            let decoded = translator.decode_inbound(&notification.body, notification.params.as_ref(), method, era, edits)?;
            call.body = decoded.body;
            Ok((call, decoded.tasks, None))
        }
        Some(Message::Response(response)) => {
            let (body, claim, requested) = translator.answer(&response)?;
            call.body = body;
            summary.target = requested;
            Ok((call, Vec::new(), Some(claim)))
        }
        None => Ok((call, Vec::new(), None)),
    }
}

/// What the call acts on, and its arguments.
fn target(
    method: Method,
    params: Params,
    tasks: &[TaskRef],
    summary: &mut MessageSummary,
) -> Result<(Target, Option<Bytes>), Refusal> {
    let named = params.name.as_deref().or(params.uri.as_deref());
    match method.target_kind() {
        TargetKind::Server => Ok((Target::Server, None)),
        TargetKind::Tool => {
            let named = named.ok_or_else(missing)?;
            summary.tool = Some(safe_text(named));
            let name = ToolName::parse(named).map_err(|_| Refusal::new(Reason::UnknownTool))?;
            Ok((Target::Tool(name), params.arguments))
        }
        TargetKind::Resource => {
            summary.target = named.map(safe_text);
            Ok((Target::Resource(uri(named.ok_or_else(missing)?)?), None))
        }
        TargetKind::Prompt => Ok((Target::Prompt(prompt(named.ok_or_else(missing)?)?), params.arguments)),
        TargetKind::Reference => completion_target(&params, summary),
        TargetKind::Subscription => subscription_target(params, tasks, summary),
        TargetKind::Task => {
            let task = tasks.first().ok_or_else(missing)?;
            summary.tool = Some(task.tool.to_string());
            Ok((Target::Task(task.tool.clone(), task.id.clone()), None))
        }
    }
}

/// The target of a completion is the prompt or resource template that it completes: its answer reveals which arguments those
/// accept.
fn completion_target(params: &Params, summary: &mut MessageSummary) -> Result<(Target, Option<Bytes>), Refusal> {
    let completion = mcp::completion(params).map_err(|malformed| reject_malformed(malformed, summary))?;
    match completion.of {
        Reference::Resource(text) => {
            summary.target = Some(safe_text(&text));
            let template = ResourceUri::parse_template(&text).map_err(bad_uri)?;
            Ok((Target::Resource(template), None))
        }
        Reference::Prompt(name) => {
            let arguments = serde_json::to_vec(&completion.arguments).map_err(|_| Refusal::new(Reason::Internal))?;
            Ok((Target::Prompt(prompt(&name)?), Some(arguments.into())))
        }
    }
}

/// The resources and tasks that a `subscriptions/listen` names. Its filter is recorded as the arguments.
fn subscription_target(
    params: Params,
    tasks: &[TaskRef],
    summary: &mut MessageSummary,
) -> Result<(Target, Option<Bytes>), Refusal> {
    let listened = mcp::subscribed_uris(&params).map_err(|malformed| reject_malformed(malformed, summary))?;
    if listened.len() + tasks.len() > MOST_LISTENED {
        let detail = format!("more than {MOST_LISTENED} resources and tasks are listened to");
        return Err(Refusal::with_detail(Reason::InvalidParams, detail));
    }
    let uris = listened.iter().map(|text| uri(text)).collect::<Result<_, _>>()?;
    let target = match tasks {
        [] => Target::Resources(uris),
        tasks => Target::Subscription(uris, tasks.iter().map(|task| task.tool.clone()).collect()),
    };
    Ok((target, params.notifications))
}

fn note_target(call: &Call, summary: &mut MessageSummary) {
    match &call.target {
        Target::Tool(name) => summary.tool = Some(name.to_string()),
        Target::Server => (),
        other => summary.target = Some(other.to_string()).filter(|target| !target.is_empty()),
    }
    if let Target::Subscription(_, tools) = &call.target {
        summary.task_tools.clone_from(tools);
    }
    summary.arguments.clone_from(&call.arguments);
}

fn uri(text: &str) -> Result<ResourceUri, Refusal> {
    ResourceUri::parse(text).map_err(bad_uri)
}

fn bad_uri(why: BadUri) -> Refusal {
    Refusal::with_detail(Reason::UnfitUri, why.to_string())
}

fn prompt(name: &str) -> Result<PromptName, Refusal> {
    PromptName::parse(name).map_err(|_| Refusal::with_detail(Reason::InvalidParams, "`name` is not a prompt name"))
}

fn missing() -> Refusal {
    Refusal::with_detail(Reason::InvalidParams, "what is asked for is not named")
}
