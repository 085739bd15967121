//! Filters lists and notifications down to what one caller may see. It uses the policies, grants and member at the time when
//! the server answers, because a list may come late and a stream stays open for hours.
//! This is presentation only: whether a call may be made is decided when it is made.

use super::authz::{AuthzSources, CallerView};
use crate::decide::{DecisionInput, Listing, could_permit};
use crate::domain::{Call, Era, Method, PromptName, ResourceUri, ServerName};
use crate::mcp::{Edits, ListKind, ListVisibility, Malformed, Namespace, ServerMessage, ServerNotification, VisibilityFn};
use std::sync::Arc;

/// Filters everything that answers one call.
pub(super) struct ResponseFilter {
    caller: CallerView,
    sources: Arc<AuthzSources>,
    server: ServerName,
    era: Era,
    method: Method,
}

impl ResponseFilter {
    pub fn of(call: &Call, caller: CallerView, sources: Arc<AuthzSources>) -> Self {
        Self {
            caller,
            sources,
            server: call.server.clone(),
            era: call.era,
            method: call.method,
        }
    }

    /// Filters the answer to the call itself, and renames what stays in its lists. Returns whether there were lists.
    pub fn answer(
        &self,
        body: &[u8],
        message: &ServerMessage,
        namespace: Option<&Namespace>,
        edits: &mut Edits,
    ) -> Result<bool, Malformed> {
        match (list_kind(self.method), self.method, self.era) {
            (Some(of), _, _) => self.filter(|keep| message.filter_lists(body, Some(of), keep, namespace, self.era, edits)),
            (None, Method::ReadResource, Era::Modern) => message.mark_private(body, self.era, edits).map(|()| false),
            (None, _, _) => Ok(false),
        }
    }

    /// The same for an answer to an earlier call on a resumed stream.
    pub fn replayed(
        &self,
        body: &[u8],
        message: &ServerMessage,
        namespace: Option<&Namespace>,
        edits: &mut Edits,
    ) -> Result<bool, Malformed> {
        self.filter(|keep| message.filter_lists(body, None, keep, namespace, self.era, edits))
    }

    /// Whether the caller may receive this notification. `notifications/resources/updated` requires that the caller may read
    /// the resource now.
    pub fn may_receive(&self, notification: &[u8], message: &ServerMessage) -> bool {
        match message.notification(notification) {
            Some(ServerNotification::Other) => true,
            Some(ServerNotification::ResourceUpdated(uri)) => {
                self.with_current_input(|input| is_readable(&Listing::new(&self.server, input), &uri))
            }
            None => false,
        }
    }

    fn filter<T>(&self, filter: impl FnOnce(VisibilityFn<'_>) -> T) -> T {
        self.with_current_input(|input| {
            let listing = Listing::new(&self.server, input);
            filter(&mut |of, name| self.visibility(of, name, &listing, input))
        })
    }

    fn visibility(&self, of: ListKind, name: &str, listing: &Listing<'_>, input: &DecisionInput<'_>) -> ListVisibility {
        let shown = match of {
            ListKind::Tools => return self.tool_visibility(name, input),
            ListKind::Resources => is_readable(listing, name),
            ListKind::Templates => ResourceUri::parse_template(name).is_ok() && listing.template(),
            ListKind::Prompts => PromptName::parse(name).is_ok_and(|name| listing.prompt(&name)),
        };
        if shown {
            ListVisibility::Unchanged
        } else {
            ListVisibility::Hidden
        }
    }

    /// A visible tool is shown with its pinned definition, not the server's current one.
    fn tool_visibility(&self, name: &str, input: &DecisionInput<'_>) -> ListVisibility {
        match input.snapshot.tool(&self.server, name) {
            Some(tool) if self.era == Era::Modern && tool.param_headers().is_err() => ListVisibility::Hidden,
            Some(tool) if could_permit(&self.server, tool, input) => ListVisibility::Replaced(tool.entry().definition.clone()),
            _ => ListVisibility::Hidden,
        }
    }

    /// Calls `look` with what holds now.
    fn with_current_input<T>(&self, look: impl FnOnce(&DecisionInput<'_>) -> T) -> T {
        look(&self.caller.now(&self.sources).decision_input())
    }
}

fn is_readable(listing: &Listing<'_>, uri: &str) -> bool {
    ResourceUri::parse(uri).is_ok_and(|uri| listing.resource(&uri))
}

fn list_kind(method: Method) -> Option<ListKind> {
    match method {
        Method::ToolsList => Some(ListKind::Tools),
        Method::ResourcesList => Some(ListKind::Resources),
        Method::TemplatesList => Some(ListKind::Templates),
        Method::PromptsList => Some(ListKind::Prompts),
        _ => None,
    }
}
