//! Tools that a server offers only to clients that answer some of its requests (sampling, elicitation, roots). Guardian
//! lists a server's tools as a client that answers all the requests that the server may make, and again with fewer; what
//! differs is held here. Asks no server.

use crate::domain::{ClientRequests, Digest, Sha256, ToolName};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What depends on the capabilities of the client, for one list of tools.
#[derive(Debug, Default)]
pub(super) struct ConditionalTools {
    /// The list for which this was found; `None`: nothing was found out yet.
    pub of: Option<Digest>,
    /// For each such tool, the sets of requests of which one suffices.
    pub needs: BTreeMap<String, Vec<ClientRequests>>,
    /// The tools that only a client without these capabilities is offered.
    pub hidden: Vec<Value>,
}

impl ConditionalTools {
    pub fn offers(&self, tool: &ToolName, declared: ClientRequests) -> bool {
        let needs = self.needs.get(tool.as_str());
        needs.is_none_or(|sets| sets.iter().any(|set| set.are_among(declared)))
    }
}

pub(super) fn tool_name(tool: &Value) -> &str {
    tool["name"].as_str().unwrap_or_default()
}

pub(super) fn tool_names(tools: &[Value]) -> BTreeSet<&str> {
    tools.iter().map(tool_name).collect()
}

pub(super) fn names_digest(tools: &[Value]) -> Digest {
    let names = tool_names(tools).into_iter();
    names
        .fold(Sha256::new(), |hash, name| hash.update(name.as_bytes()).update(b"\n"))
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ClientRequest as Of;

    #[test]
    fn a_tool_is_for_clients_with_one_of_the_sets_that_it_needs() {
        let set = |kinds: &[Of]| kinds.iter().copied().collect::<ClientRequests>();
        let tools = ConditionalTools {
            of: None,
            needs: BTreeMap::from([(
                "ask".to_owned(),
                vec![set(&[Of::Roots]), set(&[Of::Sampling, Of::Elicitation])],
            )]),
            hidden: Vec::new(),
        };
        let ask = ToolName::parse("ask").unwrap();
        let offers = |kinds: &[Of]| tools.offers(&ask, set(kinds));
        assert!(offers(&[Of::Roots]) && offers(&[Of::Sampling, Of::Elicitation]) && offers(&Of::ALL));
        assert!(!offers(&[]) && !offers(&[Of::Sampling]) && !offers(&[Of::ElicitationUrl]));
        assert!(tools.offers(&ToolName::parse("echo").unwrap(), set(&[])));
    }
}
