//! The tools that servers offer, and their pinned definitions.

use super::world::{World, env, on_both, parse};
use neural_guardian::domain::{Digest, ServerName, ToolName};
use neural_guardian::store::{CatchUp, Observed, StoreError, StoredTool};

on_both! {
    async fn at_first_use_a_tool_is_pinned_and_a_later_change_is_not(world) {
        let seen = offer(world, &[("read", "1"), ("write", "1")], true).await;
        assert_eq!(seen, Observed { added: names(&["read", "write"]), ..Observed::default() });
        assert_eq!(standing(world).await, [("read", "1", "1"), ("write", "1", "1")].map(owned));

        let seen = offer(world, &[("read", "2"), ("list", "1")], true).await;
        assert_eq!(seen, Observed { added: names(&["list"]), changed: names(&["read"]), gone: names(&["write"]), ..Observed::default() });
        assert_eq!(standing(world).await, [("list", "1", "1"), ("read", "2", "1"), ("write", "", "1")].map(owned));

        let by = world.admin.catalogue(&env()).await.unwrap();
        assert!(by.iter().all(|tool| tool.pinned_by.as_deref() == Some("first use") && tool.pinned_at.is_some()));
    }

    async fn in_strict_mode_nothing_is_pinned_until_somebody_does(world) {
        offer(world, &[("read", "1"), ("write", "1")], false).await;
        assert_eq!(standing(world).await, [("read", "1", ""), ("write", "1", "")].map(owned));

        let pinned = world.admin.pin_tool(&env(), &files(), Some(&parse("read")), Some(Digest::of(b"1")), "ann").await.unwrap();
        assert_eq!(pinned, names(&["read"]));
        offer(world, &[("read", "2"), ("write", "1")], false).await;
        assert_eq!(standing(world).await, [("read", "2", "1"), ("write", "1", "")].map(owned));

        assert_eq!(world.admin.pin_tool(&env(), &files(), None, None, "ann").await.unwrap(), names(&["read", "write"]));
        assert_eq!(world.admin.pin_tool(&env(), &files(), None, None, "ann").await.unwrap(), names(&[]));
        assert_eq!(standing(world).await, [("read", "2", "2"), ("write", "1", "1")].map(owned));
        assert_eq!(world.admin.catalogue(&env()).await.unwrap()[0].pinned_by.as_deref(), Some("ann"));
    }

    async fn what_was_never_pinned_is_pinned_when_first_use_is_turned_on(world) {
        offer(world, &[("read", "1")], false).await;
        assert_eq!(offer(world, &[("read", "1")], true).await, Observed::default());
        assert_eq!(standing(world).await, [("read", "1", "1")].map(owned));
    }

    async fn an_offer_that_did_not_change_writes_nothing(world) {
        offer(world, &[("read", "1"), ("write", "1")], true).await;
        offer(world, &[("read", "1")], true).await;
        let before = world.proxy.directory(&env()).await.unwrap().anchor;
        assert_eq!(offer(world, &[("read", "1")], true).await, Observed::default());
        assert_eq!(world.proxy.directory(&env()).await.unwrap().anchor, before);

        assert_eq!(offer(world, &[("read", "1"), ("write", "1")], true).await.changed, names(&["write"]));
        let CatchUp::Since(delta) = world.proxy.catch_up(&env(), &before).await.unwrap() else { panic!("no reload") };
        assert!(delta.catalogue_changed);
    }

    async fn pinning_something_else_than_what_is_offered_is_refused(world) {
        offer(world, &[("read", "2")], false).await;
        let read = parse("read");
        let asked = Digest::of(b"1");
        let error = world.admin.pin_tool(&env(), &files(), Some(&read), Some(asked), "ann").await.unwrap_err();
        let text = format!("server `files` now offers `read` as {}, not as {}", Digest::of(b"2").short(), asked.short());
        assert_eq!((error.to_string(), matches!(error, StoreError::Conflict(_))), (text, true));
        let error = world.admin.pin_tool(&env(), &files(), Some(&parse("rm")), None, "ann").await.unwrap_err();
        assert_eq!(error.to_string(), "no tool `rm` that server `files` offers");
        let error = world.admin.pin_tool(&env(), &parse("mail"), None, None, "ann").await.unwrap_err();
        assert_eq!(error.to_string(), "no tools that server `mail` offers");
        assert_eq!(standing(world).await, [("read", "2", "")].map(owned));
    }

    async fn why_a_server_fails_is_kept_while_it_does(world) {
        let note = async |why: Option<&str>| world.proxy.note_server_failure(&env(), &files(), why).await.unwrap();
        note(None).await;
        note(Some("exited with code 1\0")).await;
        let first = world.admin.server_failures(&env()).await.unwrap();
        assert_eq!((first.len(), first[0].failure.as_str(), &first[0].server), (1, "exited with code 1", &files()));
        note(Some(&"é".repeat(10_000))).await;
        let second = world.proxy.server_failures(&env()).await.unwrap();
        assert_eq!((second.len(), second[0].failure.chars().count(), second[0].since), (1, 8_000, first[0].since));
        assert!(second[0].seen_at >= first[0].seen_at);
        assert!(world.admin.server_failures(&parse("other")).await.unwrap().is_empty());
        note(None).await;
        assert!(world.admin.server_failures(&env()).await.unwrap().is_empty());
    }

    async fn servers_do_not_mix(world) {
        offer(world, &[("search", "1")], true).await;
        let other = [(parse("search"), Digest::of(b"9"), "9".to_owned())];
        let seen = world.proxy.observe_tools(&env(), &parse("mail"), &other, true).await.unwrap();
        assert_eq!(seen.added, names(&["search"]));
        assert_eq!(offer(world, &[], true).await.gone, names(&["search"]));
        let tools = world.proxy.catalogue(&env()).await.unwrap();
        assert_eq!(tools.iter().map(|tool| (tool.server.as_str(), tool.offered.is_some())).collect::<Vec<_>>(),
            [("files", false), ("mail", true)]);
    }
}

fn files() -> ServerName {
    parse("files")
}

/// Offers tools; each digest stands for a definition.
async fn offer(world: &World, tools: &[(&str, &str)], pin_new: bool) -> Observed {
    let tools: Vec<_> = tools
        .iter()
        .map(|(tool, text)| (parse(tool), Digest::of(text.as_bytes()), text.to_string()))
        .collect();
    let observed = world.proxy.observe_tools(&env(), &files(), &tools, pin_new).await.unwrap();
    // what the instance records of it is looked at elsewhere
    Observed {
        changes: Vec::new(),
        ..observed
    }
}

/// For each tool: its name, the offered and the pinned definition.
async fn standing(world: &World) -> Vec<(String, String, String)> {
    let text = |side: &Option<(Digest, String)>| {
        let (digest, text) = side.clone().unwrap_or((Digest::of(b""), String::new()));
        assert_eq!(digest, Digest::of(text.as_bytes()));
        text
    };
    let of = |tool: &StoredTool| (tool.tool.to_string(), text(&tool.offered), text(&tool.pinned));
    world.proxy.catalogue(&env()).await.unwrap().iter().map(of).collect()
}

fn owned(row: (&str, &str, &str)) -> (String, String, String) {
    (row.0.to_owned(), row.1.to_owned(), row.2.to_owned())
}

fn names(names: &[&str]) -> Vec<ToolName> {
    names.iter().map(|name| parse(name)).collect()
}
