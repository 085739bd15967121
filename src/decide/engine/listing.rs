//! Decides which resources and prompts a caller sees in the lists of a server, as if each were requested now.
//!
//! In doubt it shows an item, so that nothing usable is hidden. Listing permits nothing: each call is decided anew.

use super::evaluate;
use super::input::DecisionInput;
use super::preconditions::{self, ActiveGrant};
use super::unlisted::UnlistedPrimitives;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::{PromptName, ResourceUri, ServerName};
use std::cell::OnceCell;

/// The lists of one server for one caller at one moment.
pub struct Listing<'a> {
    input: &'a DecisionInput<'a>,
    /// `None`: the caller has no usable grant for the server, or their scopes do not cover resources.
    resources: Option<ListDecision<'a>>,
    prompts: Option<ListDecision<'a>>,
}

/// What is needed to decide about the items of one list.
struct ListDecision<'a> {
    unlisted: &'a UnlistedPrimitives,
    active_grant: ActiveGrant<'a>,
    /// The outcome shared by all items that no policy names. `None` inside: policies treat such items differently, so
    /// each is evaluated.
    same: OnceCell<Option<bool>>,
}

impl<'a> Listing<'a> {
    /// Looks up the grant and the scopes once for all items.
    pub fn new(server: &ServerName, input: &'a DecisionInput<'a>) -> Self {
        let shelf = |kind| {
            let active_grant = preconditions::active_grant(server, input).ok()?;
            let unlisted = input.snapshot.unlisted(server, kind)?;
            preconditions::check_scopes(unlisted.needs(), &active_grant).ok()?;
            Some(ListDecision {
                unlisted,
                active_grant,
                same: OnceCell::new(),
            })
        };
        Self {
            input,
            resources: shelf(PrimitiveKind::Resource),
            prompts: shelf(PrimitiveKind::Prompt),
        }
    }

    /// Whether this resource may be read. This is the full decision, because a resource has no arguments.
    pub fn resource(&self, uri: &ResourceUri) -> bool {
        self.resources
            .as_ref()
            .is_some_and(|shelf| shelf.shows(uri.as_str(), self.input))
    }

    /// Whether some resource of the server might be read. Which resources a template produces is not known here.
    pub fn template(&self) -> bool {
        let some =
            |shelf: &ListDecision<'_>| evaluate::could_permit_any_resource(shelf.unlisted, &shelf.active_grant, self.input);
        self.resources.as_ref().is_some_and(some)
    }

    /// Whether this prompt might be permitted with some arguments.
    pub fn prompt(&self, name: &PromptName) -> bool {
        self.prompts
            .as_ref()
            .is_some_and(|shelf| shelf.shows(name.as_str(), self.input))
    }
}

impl ListDecision<'_> {
    fn shows(&self, name: &str, input: &DecisionInput<'_>) -> bool {
        let judge = || evaluate::could_permit_unlisted(self.unlisted, name, &self.active_grant, input);
        if self.unlisted.is_named_by_policy(name) {
            return judge();
        }
        let same = *self
            .same
            .get_or_init(|| evaluate::is_same_for_all_unnamed(self.unlisted, &self.active_grant, input).then(judge));
        same.unwrap_or_else(judge)
    }
}
