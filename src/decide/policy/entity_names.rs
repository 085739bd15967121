//! The servers, tools, actions and groups that exist, so that policies may name them.

use crate::decide::tool::primitive_kind::PrimitiveKind;
use crate::decide::tool::schema;
use crate::decide::tool::target::ToolDefinition;
use crate::domain::{Catalogue, PromptName, ResourceUri, ServerName, nearest};
use std::collections::{BTreeMap, HashMap};

/// The names that policies may use.
pub(in crate::decide) struct EntityNames<'a> {
    pub tools: &'a [ToolDefinition],
    by_id: HashMap<&'a str, &'a ToolDefinition>,
    /// Each server, and whether any of its tools is known.
    servers: BTreeMap<&'a str, bool>,
}

impl<'a> EntityNames<'a> {
    pub fn new(catalogue: &'a Catalogue, tools: &'a [ToolDefinition]) -> Self {
        let servers = catalogue.servers.iter();
        Self {
            tools,
            by_id: tools.iter().map(|tool| (tool.target.id.as_str(), tool)).collect(),
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
    pub fn look_up(&self, kind: &str, id: &str) -> Lookup {
        match kind {
            "Action" if self.is_group(id) || PrimitiveKind::is_action(id) => Lookup::Exists,
            "Action" => {
                let shared = PrimitiveKind::UNLISTED.iter().filter_map(|kind| kind.action());
                self.tool(
                    "action",
                    id,
                    schema::GROUPS.into_iter().chain(shared).chain(self.servers.keys().copied()),
                )
            }
            "Tool" => self.tool("tool", id, []),
            "Server" => self.server(id),
            "Resource" => self.unlisted(id, |uri| Some(ResourceUri::parse_template(uri).err()?.to_string())),
            "Prompt" => self.unlisted(id, |name| Some(PromptName::parse(name).err()?.to_string())),
            _ => Lookup::Exists,
        }
    }

    fn server(&self, id: &str) -> Lookup {
        if self.servers.contains_key(id) {
            return Lookup::Exists;
        }
        let near = nearest(id, self.servers.keys().copied()).map(str::to_owned);
        Lookup::Unknown { kind: "server", near }
    }

    /// A resource or prompt, `<server>/<URI or prompt name>`: the server exists, and the rest has the form of such a
    /// name. Whether the server has it is not known.
    fn unlisted(&self, id: &str, wrong: impl Fn(&str) -> Option<String>) -> Lookup {
        let (server, name) = id.split_once('/').unwrap_or((id, ""));
        match (self.server(server), wrong(name)) {
            (Lookup::Exists, Some(why)) => Lookup::Impossible(why),
            (found, _) => found,
        }
    }

    pub fn tool_by_id(&self, id: &str) -> Option<&'a ToolDefinition> {
        self.by_id.get(id).copied()
    }

    fn tool<'b>(&'b self, kind: &'static str, id: &str, others: impl IntoIterator<Item = &'b str>) -> Lookup {
        if self.by_id.contains_key(id) {
            return Lookup::Exists;
        }
        let parts = id.split_once('/');
        if let Some((server, _)) = parts
            && self.servers.get(server) == Some(&false)
        {
            return Lookup::Unchecked(server.to_owned());
        }
        let tools = || self.tools.iter().map(|tool| tool.target.id.as_str());
        let near = nearest(id, tools().chain(others)).map(str::to_owned);
        let on_server = || {
            let (server, tool) = parts?;
            let names = tools().filter_map(|id| id.strip_prefix(server)?.strip_prefix('/'));
            nearest(tool, names).map(|tool| format!("{server}/{tool}"))
        };
        Lookup::Unknown {
            kind,
            near: near.or_else(on_server),
        }
    }
}

/// The result of a look-up.
pub(in crate::decide) enum Lookup {
    Exists,
    /// No resource or prompt can have this name, and why.
    Impossible(String),
    /// A tool of this server, none of whose tools is known yet.
    Unchecked(String),
    Unknown {
        kind: &'static str,
        near: Option<String>,
    },
}
