//! `context.scope_named`: whether the grant names what the call needs, or `*` covers it.

use super::world::*;
use neural_guardian::decide::{Listing, Snapshot, could_permit};
use neural_guardian::domain::{Method, PromptName, ResourceUri, Scope};
use serde_json::json;

const NAMED: &str = "@id(\"named\") permit(principal, action, resource) when { context.scope_named };";

/// A server whose tool `t` needs these scopes.
fn snapshot(needs: &[&str]) -> Snapshot {
    let mut tool = unannotated(tool("t", json!({ "type": "object" })));
    tool.scopes = needs.iter().map(|scope| Scope::parse(scope).unwrap()).collect();
    compile(NAMED, &catalogue([("demo", vec![tool])])).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn a_tool_is_named_if_the_grant_itself_names_every_scope_it_needs() {
    let (named, by_star, missing) = ("permit named", "no_policy_permits", "missing_scope");
    for (needs, granted, narrowed_to, expected) in [
        (&["t"][..], &["t"][..], None, named),
        (&["t"], &["*"], None, by_star),
        (&["t"], &["*", "t"], None, named),
        (&["t"], &["other"], None, missing),
        // A tool that is mapped to other scopes.
        (&["read", "write"], &["read", "write"], None, named),
        (&["read", "write"], &["*", "read"], None, by_star),
        (&["read", "write"], &["*", "t"], None, by_star),
        (&["read", "write"], &["read"], None, missing),
        // `*` names nothing, even if it is what a tool is mapped to.
        (&["*"], &["*"], None, by_star),
        // A credential that narrows the grant neither names a scope nor makes a named one nameless.
        (&["t"], &["*"], Some(&["t"][..]), by_star),
        (&["t"], &["t"], Some(&["*"]), named),
        (&["t"], &["*", "t"], Some(&["t"]), named),
        (&["t"], &["t"], Some(&["other"]), "credential_lacks_scope"),
    ] {
        let snapshot = snapshot(needs);
        let mut world = World::new(&[]);
        world.member.grants[0].scopes = scopes(granted.iter().copied());
        world.principal.narrowed_to = narrowed_to.map(|names| scopes(names.iter().copied()));
        let case = format!("{needs:?} {granted:?} {narrowed_to:?}");
        assert_eq!(world.verdict(&snapshot, "t", json!({})), expected, "{case}");
        let listed = world.with(&snapshot, |input| {
            could_permit(&server("demo"), snapshot.tool(&server("demo"), "t").unwrap(), input)
        });
        assert_eq!(listed, expected == named, "{case}: a list shows what can be called");
    }
}

#[test]
fn resources_and_prompts_are_named_by_their_scopes() {
    let snapshot = snapshot(&["t"]);
    for (granted, expected) in [
        ("*", "no_policy_permits"),
        ("resources", "permit named"),
        ("prompts", "missing_scope"),
    ] {
        let mut world = World::new(&[]);
        world.member.grants = vec![grant("demo", [granted])];
        let read = world.decide(&snapshot, about("demo", Method::ReadResource, "notes://a"));
        assert_eq!(shown(&read), expected, "{granted}");
        let (resource, prompt) = world.with(&snapshot, |input| {
            let listing = Listing::new(&server("demo"), input);
            let uri = ResourceUri::parse("notes://a").unwrap();
            (listing.resource(&uri), listing.prompt(&PromptName::parse("p").unwrap()))
        });
        assert_eq!(
            (resource, prompt),
            (granted == "resources", granted == "prompts"),
            "{granted}"
        );
    }
}
