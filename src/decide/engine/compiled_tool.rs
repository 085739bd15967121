//! One tool with everything derived from its definition once: the argument validator, the Cedar entities, the applicable
//! policies.

use super::slice::PolicyIndex;
use crate::decide::tool::arguments::Arguments;
use crate::decide::tool::param_headers::{self, ParamHeader};
use crate::decide::tool::target::CedarTarget;
use crate::domain::{Refusal, Scope, ToolEntry};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A tool of the catalogue, ready for decisions.
pub struct CompiledTool {
    entry: ToolEntry,
    needs: Vec<Scope>,
    arguments: Arguments,
    param_headers: Result<Vec<ParamHeader>, String>,
    target: Arc<CedarTarget>,
    index: PolicyIndex,
}

impl CompiledTool {
    /// The catalogue entry.
    pub fn entry(&self) -> &ToolEntry {
        &self.entry
    }

    pub(in crate::decide) fn new(entry: ToolEntry, arguments: Arguments, target: Arc<CedarTarget>, index: PolicyIndex) -> Self {
        let own = || Scope::parse(entry.name.as_str()).into_iter().collect();
        Self {
            needs: if entry.scopes.is_empty() {
                own()
            } else {
                entry.scopes.clone()
            },
            param_headers: param_headers::param_headers(&entry.input_schema),
            entry,
            arguments,
            target,
            index,
        }
    }

    /// The arguments that clients of the modern era repeat in `Mcp-Param-*` headers, or why these clients cannot use the
    /// tool.
    pub fn param_headers(&self) -> Result<&[ParamHeader], &str> {
        self.param_headers.as_deref().map_err(String::as_str)
    }

    /// All scopes that a call needs; by default the scope of the tool's own name.
    pub(in crate::decide) fn needs(&self) -> &[Scope] {
        &self.needs
    }

    pub(in crate::decide) fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    pub(in crate::decide) fn read_arguments(&self, arguments: Option<&[u8]>) -> Result<Map<String, Value>, Box<Refusal>> {
        self.arguments.read(arguments)
    }

    pub(in crate::decide) fn target(&self) -> &Arc<CedarTarget> {
        &self.target
    }

    pub(in crate::decide) fn index(&self) -> &PolicyIndex {
        &self.index
    }
}
