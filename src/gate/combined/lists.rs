//! `resources/list`, `resources/templates/list` and `prompts/list` at the combined endpoint: asks all of the caller's
//! servers at once, each in its own authorised and recorded call, and merges their pages.
//! A server that fails or takes too long is left out of the result.

use super::server_call::{ServerCallResult, collect_answer, join_all};
use super::{CombinedCaller, CombinedRequest, local_response};
use crate::domain::{MessageId, Method, Reason, Refusal, ServerName};
use crate::gate::context::RequestContext;
use crate::mcp::{self, ListKind, Page, splice};
use crate::transport::Body;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::Duration;

/// Time limit for one server's page, because the client waits for the slowest server.
const PATIENCE: Duration = Duration::from_secs(2);
/// Prefix of a combined cursor: base64url JSON that maps each server to its own cursor. The combined cursor carries no
/// signature; each cursor in it is a handle with its own HMAC.
const PREFIX: &str = "gc1.";

/// The result of asking one server for a page.
enum PageResult {
    Page(ServerName, Page),
    /// The server's cursor was not one that Guardian issued to this caller.
    UnknownCursor(Box<ServerCallResult>),
    /// The server failed, refused or timed out, and is left out.
    Nothing,
}

impl CombinedCaller {
    /// Answers a list request with one page that merges the pages of all servers.
    pub(super) async fn list(
        &self,
        request: &CombinedRequest<'_>,
        id: &MessageId,
        context: &mut RequestContext,
    ) -> Result<Response<Body>, Refusal> {
        let authz = self.load_authz(context).await?;
        let of = list_kind(request.method);
        let gone_on = match &request.params.cursor {
            Some(cursor) => Some(decode_cursor(&cursor.text).ok_or(Reason::UnknownCursor)?),
            None => None,
        };
        let asked: Vec<(ServerName, Option<String>)> = match gone_on {
            Some(cursors) => {
                let known: BTreeSet<&ServerName> = self
                    .gate
                    .servers(&authz, request.era, context)
                    .map(|(name, _)| name)
                    .collect();
                if !cursors.keys().all(|server| known.contains(server)) {
                    return Err(Reason::UnknownCursor.into());
                }
                cursors.into_iter().map(|(server, cursor)| (server, Some(cursor))).collect()
            }
            None => {
                let servers = self.gate.servers(&authz, request.era, context);
                let some = servers.filter(|(_, server)| !server.server_info().is_known_to_lack(capability(of)));
                some.map(|(name, _)| (name.clone(), None)).collect()
            }
        };
        if asked.is_empty() {
            drop(self.admit()?);
        }
        context.delegated = true;
        let questions = asked.into_iter().map(|(server, cursor)| {
            let question = self.page(request, server, cursor, of, id);
            Box::pin(question) as Pin<Box<dyn Future<Output = PageResult> + Send>>
        });
        let (mut pages, mut next) = (Vec::new(), BTreeMap::new());
        for heard in join_all(questions.collect()).await {
            match heard {
                PageResult::Page(server, mut page) => {
                    next.extend(page.next_cursor.take().map(|cursor| (server, cursor)));
                    pages.push(page);
                }
                PageResult::UnknownCursor(result) => return Err(result.into_combined_refusal(context, Reason::UnknownCursor)),
                PageResult::Nothing => (),
            }
        }
        let cursor = (!next.is_empty()).then(|| encode_cursor(&next));
        Ok(local_response(mcp::merge_pages(
            id,
            of,
            &pages,
            cursor.as_deref(),
            request.era,
        )))
    }

    async fn page(
        &self,
        request: &CombinedRequest<'_>,
        server: ServerName,
        cursor: Option<String>,
        of: ListKind,
        id: &MessageId,
    ) -> PageResult {
        let body = match (&cursor, &request.params.cursor) {
            (Some(cursor), Some(token)) => splice(&request.body, vec![(token.at, Value::from(cursor.as_str()).to_string())]),
            _ => request.body.clone(),
        };
        let asking = async {
            let result = request.ask(server.clone(), request.headers, body).await;
            match result.answered {
                Ok(response) => match collect_answer(response, id).await.and_then(|answer| Page::read(&answer, of)) {
                    Some(page) => PageResult::Page(server.clone(), page),
                    None => PageResult::Nothing,
                },
                Err(ref refusal) if refusal.reason == Reason::UnknownCursor => PageResult::UnknownCursor(Box::new(result)),
                Err(_) => PageResult::Nothing,
            }
        };
        let heard = tokio::time::timeout(PATIENCE, asking).await;
        if heard.is_err() {
            tracing::warn!(%server, method = request.method.as_str(), "left out of a list: it takes too long");
        }
        heard.unwrap_or(PageResult::Nothing)
    }
}

const fn list_kind(method: Method) -> ListKind {
    match method {
        Method::ResourcesList => ListKind::Resources,
        Method::TemplatesList => ListKind::Templates,
        Method::PromptsList => ListKind::Prompts,
        _ => ListKind::Tools,
    }
}

const fn capability(of: ListKind) -> &'static str {
    match of {
        ListKind::Resources | ListKind::Templates => "resources",
        ListKind::Prompts => "prompts",
        ListKind::Tools => "tools",
    }
}

fn encode_cursor(cursors: &BTreeMap<ServerName, String>) -> String {
    let text = serde_json::to_vec(cursors).unwrap_or_default();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(text))
}

fn decode_cursor(cursor: &str) -> Option<BTreeMap<ServerName, String>> {
    let text = URL_SAFE_NO_PAD.decode(cursor.strip_prefix(PREFIX)?).ok()?;
    let cursors: BTreeMap<ServerName, String> = serde_json::from_slice(&text).ok()?;
    (!cursors.is_empty()).then_some(cursors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_one_text_for_all_servers_that_have_more() {
        let name = |name| ServerName::parse(name).unwrap();
        let cursors = BTreeMap::from([(name("a"), "gh1.x.y".to_owned()), (name("b_c"), "é\"".to_owned())]);
        assert_eq!(decode_cursor(&encode_cursor(&cursors)), Some(cursors));
        for none in ["", "gc1.", "gh1.x.y", "gc1.e30", "gc1.%%", &encode_cursor(&BTreeMap::new())] {
            assert_eq!(decode_cursor(none), None, "{none}");
        }
    }
}
