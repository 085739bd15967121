//! Dependencies between rooms: a room uses rooms of lower floors, never one beside or above it.

use crate::source::{Finding, Source, words};
use crate::{hold, sources};
use std::collections::BTreeMap;

/// The floors, lowest first. A new room gets its floor here; `lib.rs` only lists rooms and is exempt.
const FLOORS: &[&[&str]] = &[
    &["domain"],
    &["decide", "mcp", "config"],
    &["store", "transport", "telemetry", "key_ring"],
    &["identity", "grants", "sessions", "limits", "journal"],
    &["upstream"],
    &["gate", "console"],
    &["combined"],
    &["app"],
    &["cli"],
    &["main"],
];

#[test]
fn every_room_has_a_floor() {
    let rooms = floors();
    let homeless = |source: &&Source| source.room() != "lib" && !rooms.contains_key(source.room());
    let findings = sources()
        .iter()
        .filter(homeless)
        .map(|source| source.finding(1, format!("the room `{}` stands on no floor", source.room())))
        .collect();
    hold("Give the room a floor in FLOORS (tests/hygiene/floors.rs).", findings);
}

#[test]
fn a_room_uses_only_lower_floors() {
    let findings = sources().iter().flat_map(climbs).collect();
    hold(
        "`use` points to a lower floor: move the shared thing down, or pass it in as an argument.",
        findings,
    );
}

fn floors() -> BTreeMap<&'static str, usize> {
    let floor = |(number, rooms): (usize, &&'static [&'static str])| rooms.iter().map(move |room| (*room, number));
    FLOORS.iter().enumerate().flat_map(floor).collect()
}

fn climbs(source: &Source) -> Vec<Finding> {
    let floors = floors();
    let here = source.room();
    let Some(floor) = floors.get(here).copied() else {
        return Vec::new();
    };
    let wrong = |room: &&str| *room != here && floors.get(*room).is_some_and(|other| *other >= floor);
    let text = source.shipped_text();
    paths_from_the_root(source, &text)
        .into_iter()
        .filter(|(_, room)| wrong(room))
        .map(|(at, room)| source.finding(text[..at].matches('\n').count() + 1, format!("`{here}` uses `{room}`")))
        .collect()
}

/// The first segment of each path that starts at the crate's root, `use crate::{a::B, c}` included.
fn paths_from_the_root<'a>(source: &Source, text: &'a str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (at, word) in words(text) {
        let after = &text[at + word.len()..];
        let Some(path) = after.strip_prefix("::") else { continue };
        match word {
            "crate" | "neural_guardian" => found.extend(heads(path).into_iter().map(|head| (at, head))),
            // In `src/decide/mod.rs`, `super::store` is the room; in `src/decide/index.rs` it is a neighbour file.
            "super" => found.extend(
                heads(path)
                    .into_iter()
                    .filter(|head| !is_neighbour(source, head))
                    .map(|head| (at, head)),
            ),
            _ => {}
        }
    }
    found
}

/// `{a::B, c}` → a, c; `a::B` → a.
fn heads(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else {
        return words(path).next().map(|(_, word)| word).into_iter().collect();
    };
    let (mut heads, mut depth, mut expects) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects = true,
            c if expects && (c.is_alphanumeric() || c == '_') => {
                heads.extend(words(&group[at..]).next().map(|(_, word)| word));
                expects = false;
            }
            _ => {}
        }
    }
    heads
}

fn is_neighbour(source: &Source, name: &str) -> bool {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(source.room());
    folder.join(name).exists() || folder.join(format!("{name}.rs")).exists()
}

#[test]
fn a_climb_is_seen_in_every_spelling() {
    let found = |text: &str| -> Vec<String> {
        let source = Source::new("src/decide/mod.rs".into(), text.into());
        climbs(&source)
            .iter()
            .map(|finding| format!("{}:{}", finding.line, finding.what))
            .collect()
    };
    assert_eq!(found("use crate::store::Store;"), ["1:`decide` uses `store`"]);
    assert_eq!(
        found("\nuse crate::{\n  domain::{Call, Verdict},\n  mcp,\n};"),
        ["2:`decide` uses `mcp`"]
    );
    assert_eq!(found("fn a() -> crate::gate::Reply {}"), ["1:`decide` uses `gate`"]);
    assert_eq!(found("use super::limits::Limits;"), ["1:`decide` uses `limits`"]);
    assert_eq!(found("use neural_guardian::app;"), ["1:`decide` uses `app`"]);
    assert_eq!(
        found("use crate::domain::Call; use crate::decide::Snapshot; // crate::store"),
        [""; 0]
    );
    assert_eq!(found("#[cfg(test)]\nmod tests {\n use crate::store::Store;\n}"), [""; 0]);
}
