//! The servers, tools, actions and groups that exist, so that policies may name them.

use super::problem::nearest;
use super::schema;
use super::snapshot::Draft;
use super::sort::Sort;
use crate::domain::{Catalogue, PromptName, ResourceUri, ServerName};
use std::collections::{BTreeMap, HashMap};

/// The names that policies may use.
pub(super) struct Known<'a> {
    pub drafts: &'a [Draft],
    by_id: HashMap<&'a str, &'a Draft>,
    /// Each server, and whether any of its tools is known.
    servers: BTreeMap<&'a str, bool>,
}

impl<'a> Known<'a> {
    pub fn new(catalogue: &'a Catalogue, drafts: &'a [Draft]) -> Self {
        let servers = catalogue.servers.iter();
        Self {
            drafts,
            by_id: drafts.iter().map(|draft| (draft.place.id.as_str(), draft)).collect(),
            servers: servers
                .map(|(name, entry)| (ServerName::as_str(name), !entry.tools.is_empty()))
                .collect(),
        }
    }

    pub fn is_group(&self, id: &str) -> bool {
        schema::GROUPS.contains(&id) || self.servers.contains_key(id)
    }

    /// Looks up the entity `kind::"id"`. Other entity types than those of the catalogue, such as users and roles, are not
    /// checked.
    pub fn look_up(&self, kind: &str, id: &str) -> Found {
        match kind {
            "Action" if self.is_group(id) || Sort::is_action(id) => Found::Known,
            "Action" => {
                let shared = Sort::WARES.iter().filter_map(|sort| sort.action());
                self.tool(
                    "action",
                    id,
                    schema::GROUPS.into_iter().chain(shared).chain(self.servers.keys().copied()),
                )
            }
            "Tool" => self.tool("tool", id, []),
            "Server" => self.server(id),
            "Resource" => self.ware(id, |uri| Some(ResourceUri::parse_template(uri).err()?.to_string())),
            "Prompt" => self.ware(id, |name| Some(PromptName::parse(name).err()?.to_string())),
            _ => Found::Known,
        }
    }

    fn server(&self, id: &str) -> Found {
        if self.servers.contains_key(id) {
            Found::Known
        } else {
            Found::Unknown {
                kind: "server",
                near: nearest(id, self.servers.keys().copied()).map(str::to_owned),
            }
        }
    }

    /// A resource or prompt, `<server>/<URI or prompt name>`: the server exists, and the rest has the form of such a
    /// name. Whether the server has it is not known.
    fn ware(&self, id: &str, wrong: impl Fn(&str) -> Option<String>) -> Found {
        let (server, name) = id.split_once('/').unwrap_or((id, ""));
        match (self.server(server), wrong(name)) {
            (Found::Known, Some(why)) => Found::Never(why),
            (found, _) => found,
        }
    }

    pub fn draft(&self, id: &str) -> Option<&'a Draft> {
        self.by_id.get(id).copied()
    }

    fn tool<'b>(&'b self, kind: &'static str, id: &str, others: impl IntoIterator<Item = &'b str>) -> Found {
        if self.by_id.contains_key(id) {
            return Found::Known;
        }
        let parts = id.split_once('/');
        if let Some((server, _)) = parts
            && self.servers.get(server) == Some(&false)
        {
            return Found::Unchecked(server.to_owned());
        }
        let tools = || self.drafts.iter().map(|draft| draft.place.id.as_str());
        let near = nearest(id, tools().chain(others)).map(str::to_owned);
        let on_server = || {
            let (server, tool) = parts?;
            let names = tools().filter_map(|id| id.strip_prefix(server)?.strip_prefix('/'));
            nearest(tool, names).map(|tool| format!("{server}/{tool}"))
        };
        Found::Unknown {
            kind,
            near: near.or_else(on_server),
        }
    }
}

/// The result of a look-up.
pub(super) enum Found {
    Known,
    /// No resource or prompt can have this name, and why.
    Never(String),
    /// A tool of this server, none of whose tools is known yet.
    Unchecked(String),
    Unknown {
        kind: &'static str,
        near: Option<String>,
    },
}
