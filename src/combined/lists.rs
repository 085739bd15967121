//! `resources/list`, `resources/templates/list` and `prompts/list` at the combined endpoint: asks all of the caller's
//! servers at once, each in its own authorised and recorded call, and merges their pages.
//! A server that fails or takes too long is left out of the result.

use super::server_call::{ServerCallResult, collect_answer};
use super::{CombinedRequest, CombinedResult};
use crate::domain::{Method, Reason, ServerName};
use crate::gate::{AuthzContext, RefusedRequest};
use crate::mcp::{self, ListKind, OpaqueToken, Page};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
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

impl CombinedRequest {
    /// Answers a list request with one page that merges the pages of all servers.
    pub(super) async fn list(&mut self) -> CombinedResult {
        let authz = self.load_authz().await?;
        let of = list_kind(self.message.method);
        let asked = self.asked_servers(of, &authz)?;
        let is_split = !asked.is_empty();
        if !is_split {
            drop(self.admit()?);
        }
        let asking = asked.into_iter().map(|(server, cursor)| self.page(server, cursor, of));
        let (mut pages, mut next) = (Vec::new(), BTreeMap::new());
        for heard in join_all(asking).await {
            match heard {
                PageResult::Page(server, mut page) => {
                    next.extend(page.next_cursor.take().map(|cursor| (server, cursor)));
                    pages.push(page);
                }
                PageResult::UnknownCursor(result) => return Err(result.into_combined_refusal(self.context.clone(), None)),
                PageResult::Nothing => (),
            }
        }
        let cursor = (!next.is_empty()).then(|| encode_cursor(&next));
        let page = mcp::merge_pages(&self.id(), of, &pages, cursor.as_deref(), self.message.era);
        let mut answered = self.local(page);
        answered.is_split = is_split;
        Ok(answered)
    }

    /// The servers to ask, each with its own cursor if the client is past the first page.
    fn asked_servers(
        &self,
        of: ListKind,
        authz: &AuthzContext,
    ) -> Result<Vec<(ServerName, Option<String>)>, Box<RefusedRequest>> {
        let servers = self.caller.combined.servers(authz, self.message.era);
        let Some(cursor) = self.params().and_then(|params| params.cursor.as_ref()) else {
            let some = servers.filter(|(_, server)| !server.server_info().is_known_to_lack(capability(of)));
            return Ok(some.map(|(name, _)| (name.clone(), None)).collect());
        };
        let known: BTreeSet<&ServerName> = servers.map(|(name, _)| name).collect();
        match decode_cursor(&cursor.text) {
            Some(cursors) if cursors.keys().all(|server| known.contains(server)) => {
                Ok(cursors.into_iter().map(|(server, cursor)| (server, Some(cursor))).collect())
            }
            _ => Err(self.refuse(Reason::UnknownCursor)),
        }
    }

    async fn page(&self, server: ServerName, cursor: Option<String>, of: ListKind) -> PageResult {
        let mut message = self.message.clone();
        if let (Some(text), Some(params)) = (cursor, message.params_mut()) {
            params.cursor = params.cursor.take().map(|cursor| OpaqueToken { text, ..cursor });
        }
        let asking = async {
            let result = self.ask(server.clone(), message).await;
            match (result.reason(), result.answered) {
                (None, Ok(answered)) => {
                    let answer = collect_answer(answered.response, &self.id()).await;
                    match answer.and_then(|answer| Page::read(&answer, of)) {
                        Some(page) => PageResult::Page(server.clone(), page),
                        None => PageResult::Nothing,
                    }
                }
                (Some(Reason::UnknownCursor), answered) => PageResult::UnknownCursor(Box::new(ServerCallResult {
                    answered,
                    recorded: result.recorded,
                })),
                _ => PageResult::Nothing,
            }
        };
        let heard = tokio::time::timeout(PATIENCE, asking).await;
        if heard.is_err() {
            tracing::warn!(%server, method = self.message.method.as_str(), "left out of a list: it takes too long");
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
