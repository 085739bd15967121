//! Decides which resources and prompts a caller sees in the lists of a server, as if each were requested now.
//!
//! In doubt it shows an item, so that nothing usable is hidden. Listing permits nothing: each call is decided anew.

use super::evaluate::Evaluation;
use super::input::DecisionInput;
use super::preconditions::{self, ActiveGrant};
use super::unlisted::UnlistedPrimitives;
use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::domain::{PromptName, ResourceUri, ServerName};
use std::cell::OnceCell;

/// The lists of one server for one caller at one moment.
pub struct Listing<'a> {
    /// `None`: the caller has no usable grant for the server, or their scopes do not cover resources.
    resources: Option<ListDecision<'a>>,
    prompts: Option<ListDecision<'a>>,
}

/// What is needed to decide about the items of one list.
struct ListDecision<'a> {
    input: &'a DecisionInput<'a>,
    unlisted: &'a UnlistedPrimitives,
    active_grant: ActiveGrant<'a>,
    /// The outcome shared by all items that no policy names. `None` inside: policies treat such items differently, so
    /// each is evaluated.
    same: OnceCell<Option<bool>>,
}

impl<'a> Listing<'a> {
    /// Looks up the grant and the scopes once for all items.
    pub fn new(server: &ServerName, input: &'a DecisionInput<'a>) -> Self {
        let list = |kind| {
            let active_grant = preconditions::active_grant(server, input).ok()?;
            let unlisted = input.snapshot.unlisted(server, kind)?;
            preconditions::check_scopes(&unlisted.needs, &active_grant).ok()?;
            Some(ListDecision {
                input,
                unlisted,
                active_grant,
                same: OnceCell::new(),
            })
        };
        Self {
            resources: list(PrimitiveKind::Resource),
            prompts: list(PrimitiveKind::Prompt),
        }
    }

    /// Whether this resource may be read. This is the full decision, because a resource has no arguments.
    pub fn resource(&self, uri: &ResourceUri) -> bool {
        self.resources.as_ref().is_some_and(|list| list.shows(uri.as_str()))
    }

    /// Whether some resource of the server might be read. Which resources a template produces is not known here.
    pub fn template(&self) -> bool {
        let resources = self.resources.as_ref();
        resources.is_some_and(|list| list.evaluation(None).could_be_permitted_for_some_resource())
    }

    /// Whether this prompt might be permitted with some arguments.
    pub fn prompt(&self, name: &PromptName) -> bool {
        self.prompts.as_ref().is_some_and(|list| list.shows(name.as_str()))
    }
}

impl ListDecision<'_> {
    fn evaluation(&self, name: Option<&str>) -> Evaluation<'_> {
        Evaluation::of_unlisted(self.unlisted, name, None, &self.active_grant, self.input)
    }

    fn shows(&self, name: &str) -> bool {
        let judge = || self.evaluation(Some(name)).could_be_permitted();
        if self.unlisted.is_named_by_policy(name) {
            return judge();
        }
        let same = || self.evaluation(Some("")).is_same_for_all_unnamed().then(judge);
        self.same.get_or_init(same).unwrap_or_else(judge)
    }
}
