//! One tool of the catalogue, ready for decisions.

use super::slice::PolicyIndex;
use crate::decide::tool::param_headers::ParamHeader;
use crate::decide::tool::target::ToolDefinition;
use crate::domain::ToolEntry;

/// A tool with the policies that can apply to it.
pub struct CompiledTool {
    pub(in crate::decide) definition: ToolDefinition,
    pub(super) index: PolicyIndex,
}

impl CompiledTool {
    /// The catalogue entry.
    pub fn entry(&self) -> &ToolEntry {
        &self.definition.entry
    }

    /// The arguments that clients of the modern era repeat in `Mcp-Param-*` headers, or why these clients cannot use the
    /// tool.
    pub fn param_headers(&self) -> Result<&[ParamHeader], &str> {
        self.definition.param_headers.as_deref().map_err(String::as_str)
    }
}
