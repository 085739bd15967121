//! Decides which resources and prompts a caller sees in the lists of a server, as if each were requested now.
//!
//! In doubt it shows an item, so that nothing usable is hidden. Listing permits nothing: each call is decided anew.

use super::sort::Sort;
use super::standing::{self, Held};
use super::ware::Wares;
use super::{Facts, judge};
use crate::domain::{PromptName, ResourceUri, ServerName};
use std::cell::OnceCell;

/// The lists of one server for one caller at one moment.
pub struct Listing<'a> {
    facts: &'a Facts<'a>,
    /// `None`: the caller has no usable grant for the server, or their scopes do not cover resources.
    resources: Option<Shelf<'a>>,
    prompts: Option<Shelf<'a>>,
}

/// What is needed to decide about the items of one list.
struct Shelf<'a> {
    wares: &'a Wares,
    held: Held<'a>,
    /// The outcome shared by all items that no policy names. `None` inside: policies treat such items differently, so
    /// each is evaluated.
    same: OnceCell<Option<bool>>,
}

impl<'a> Listing<'a> {
    /// Looks up the grant and the scopes once for all items.
    pub fn new(server: &ServerName, facts: &'a Facts<'a>) -> Self {
        let shelf = |sort| {
            let held = standing::held(server, facts).ok()?;
            let wares = facts.snapshot.wares(server, sort)?;
            standing::covered(wares.needs(), &held).ok()?;
            Some(Shelf {
                wares,
                held,
                same: OnceCell::new(),
            })
        };
        Self {
            facts,
            resources: shelf(Sort::Resource),
            prompts: shelf(Sort::Prompt),
        }
    }

    /// Whether this resource may be read. This is the full decision, because a resource has no arguments.
    pub fn resource(&self, uri: &ResourceUri) -> bool {
        self.resources
            .as_ref()
            .is_some_and(|shelf| shelf.shows(uri.as_str(), self.facts))
    }

    /// Whether some resource of the server might be read. Which resources a template produces is not known here.
    pub fn template(&self) -> bool {
        let some = |shelf: &Shelf<'_>| judge::could_permit_some(shelf.wares, &shelf.held, self.facts);
        self.resources.as_ref().is_some_and(some)
    }

    /// Whether this prompt might be permitted with some arguments.
    pub fn prompt(&self, name: &PromptName) -> bool {
        self.prompts
            .as_ref()
            .is_some_and(|shelf| shelf.shows(name.as_str(), self.facts))
    }
}

impl Shelf<'_> {
    fn shows(&self, name: &str, facts: &Facts<'_>) -> bool {
        let judge = || judge::could_permit_ware(self.wares, name, &self.held, facts);
        if self.wares.is_named(name) {
            return judge();
        }
        let same = *self
            .same
            .get_or_init(|| judge::is_same_for_all(self.wares, &self.held, facts).then(judge));
        same.unwrap_or_else(judge)
    }
}
