//! What a caller may see in the lists of a server: each thing judged as if it were asked for now.
//!
//! Says yes when in doubt, so that nothing is hidden that can be had. What is listed is not permitted by that: each call is
//! judged anew.

use super::sort::Sort;
use super::standing::{self, Held};
use super::ware::Wares;
use super::{Facts, judge};
use crate::domain::{PromptName, ResourceUri, ServerName};
use std::cell::OnceCell;

/// The lists of one server for one caller at one moment.
pub struct Listing<'a> {
    facts: &'a Facts<'a>,
    /// With the scope and the policies; `None`: nothing of the sort is shown.
    resources: Option<Shelf<'a>>,
    prompts: Option<Shelf<'a>>,
}

struct Shelf<'a> {
    wares: &'a Wares,
    held: Held<'a>,
    /// What holds for all that no policy tells from the others.
    same: OnceCell<Option<bool>>,
}

impl<'a> Listing<'a> {
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

    /// Whether this resource may be read: the very decision, for it has no arguments.
    pub fn resource(&self, uri: &ResourceUri) -> bool {
        self.resources
            .as_ref()
            .is_some_and(|shelf| shelf.shows(uri.as_str(), self.facts))
    }

    /// Whether some resource of the server might be read; which ones a template makes is the server's business.
    pub fn template(&self) -> bool {
        let some = |shelf: &Shelf<'_>| judge::could_permit_some(shelf.wares, &shelf.held, self.facts);
        self.resources.as_ref().is_some_and(some)
    }

    /// Whether this prompt might be had with some arguments.
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
