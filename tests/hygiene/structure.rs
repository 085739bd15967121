//! The shape of the code: bounds on circles of files in a room, on the length of functions on the request path, and on
//! growth that nobody noticed.

use crate::source::{Source, words};
use crate::{hold, sources};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The largest circle of files that a room has; 1: none.
const LARGEST_CIRCLE: &[(&str, usize)] = &[("decide", 1), ("upstream", 3)];

/// The sub-rooms of a room, lowest first: a file may use those of its own sub-room and of lower ones.
const SUB_ROOMS: &[(&str, &[&str])] = &[("decide", &["tool", "policy", "engine"])];

/// The rooms that a call passes.
const PATH: &[&str] = &[
    "gate",
    "combined",
    "sessions",
    "decide",
    "mcp",
    "limits",
    "grants",
    "identity",
    "journal",
    "upstream",
    "transport",
];
const LONGEST_FUNCTION: usize = 60;
/// Longer functions: flat tables alone.
const LONGER: &[(&str, &str)] = &[
    ("src/gate/refusal_text.rs", "refusal_text"), // one row a reason
];

/// The most lines of code in `src`, without comments, blank lines and tests. It may only shrink, or be raised in a commit that
/// says what for.
const MOST_LINES: usize = 47_000;

#[test]
fn files_of_a_room_do_not_use_each_other_in_circles() {
    let sources = sources();
    let mut findings = Vec::new();
    for (room, most) in LARGEST_CIRCLE {
        let uses = uses_within(&sources, room);
        for circle in circles(&uses).into_iter().filter(|circle| circle.len() > *most) {
            let first = sources
                .iter()
                .find(|source| source.file == circle[0])
                .expect("a file of the room");
            findings.push(first.finding(
                1,
                format!("{} files use each other in a circle: {}", circle.len(), circle.join(", ")),
            ));
        }
    }
    hold("Move what both sides need to a file that uses neither.", findings);
}

#[test]
fn sub_rooms_use_only_lower_ones() {
    let sources = sources();
    let mut findings = Vec::new();
    for (room, order) in SUB_ROOMS {
        let uses = uses_within(&sources, room);
        for source in sources.iter().filter(|source| uses.contains_key(&source.file)) {
            for used in uses[&source.file]
                .iter()
                .filter(|used| is_upward(&source.file, used, room, order))
            {
                findings.push(source.finding(1, format!("uses {used}")));
            }
        }
        for sub_room in *order {
            let prefix = format!("src/{room}/{sub_room}/");
            assert!(uses.keys().any(|file| file.starts_with(&prefix)), "{prefix} has no file");
        }
    }
    hold(
        "Move what both need to the lower sub-room, or hand it over as a value.",
        findings,
    );
}

/// Whether `file` is in a lower sub-room than the file that it uses. The files beside the sub-rooms are above them all.
fn is_upward(file: &str, used: &str, room: &str, order: &[&str]) -> bool {
    let floor = |file: &str| {
        let inner = file.strip_prefix(&format!("src/{room}/")).unwrap_or(file);
        let sub_room = inner.split_once('/').map_or("", |(sub_room, _)| sub_room);
        order.iter().position(|name| *name == sub_room).unwrap_or(order.len())
    };
    floor(file) < floor(used)
}

#[test]
fn functions_of_the_path_fit_a_screen() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| PATH.contains(&source.room())) {
        for (name, line, length) in functions(source) {
            let is_longer = LONGER.contains(&(source.file.as_str(), name.as_str()));
            if length > LONGEST_FUNCTION && !is_longer {
                findings.push(source.finding(line, format!("`{name}` has {length} lines, at most {LONGEST_FUNCTION}")));
            }
        }
    }
    hold("Cut the function where its steps part.", findings);
}

#[test]
fn the_code_does_not_grow_unnoticed() {
    let is_code = |(_, line): &(usize, &str)| !line.trim().is_empty();
    let lines: usize = sources().iter().map(|source| source.shipped().filter(is_code).count()).sum();
    println!("src: {lines} lines of code without comments, blank lines and tests (at most {MOST_LINES})");
    assert!(lines <= MOST_LINES, "src has {lines} lines of code, at most {MOST_LINES}");
}

/// For each file of a room, the other files of the room whose names it uses.
fn uses_within(sources: &[Source], room: &str) -> BTreeMap<String, BTreeSet<String>> {
    let files: BTreeSet<&str> = sources
        .iter()
        .filter(|source| source.room() == room)
        .map(|source| source.file.as_str())
        .collect();
    let reexports = sources
        .iter()
        .filter(|source| source.room() == room)
        .map(|source| (source.file.as_str(), reexports(source, &files)))
        .collect::<BTreeMap<_, _>>();
    let of = |source: &Source| {
        let text = source.shipped_text();
        let mut used = BTreeSet::new();
        for path in use_paths(&text).into_iter().filter(|path| !path.is_reexport) {
            used.extend(resolve(&source.file, &path.segments, &files, &reexports));
        }
        used.remove(&source.file);
        (source.file.clone(), used)
    };
    sources.iter().filter(|source| source.room() == room).map(of).collect()
}

/// One leaf of a `use` item: `use a::{b::C, d}` has two.
struct UsePath {
    segments: Vec<String>,
    is_reexport: bool,
}

fn use_paths(text: &str) -> Vec<UsePath> {
    let mut found = Vec::new();
    for (at, _) in words(text).filter(|(_, word)| *word == "use") {
        let before = text[..at].rsplit(['\n', ';', '}', '{']).next().unwrap_or_default().trim();
        let item = text[at + 3..].split(';').next().unwrap_or_default();
        leaves(item.trim(), &mut Vec::new(), before.starts_with("pub"), &mut found);
    }
    found
}

fn leaves(tree: &str, prefix: &mut Vec<String>, is_reexport: bool, found: &mut Vec<UsePath>) {
    let depth = prefix.len();
    let mut rest = tree.trim();
    while let Some((head, tail)) = rest.split_once("::").filter(|(head, _)| !head.contains(['{', ','])) {
        prefix.push(head.trim().to_owned());
        rest = tail.trim();
    }
    match rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(group) => split_group(group)
            .into_iter()
            .for_each(|part| leaves(part, prefix, is_reexport, found)),
        None => {
            let name = rest.split(" as ").next().unwrap_or(rest).trim();
            let mut segments = prefix.clone();
            if name != "self" {
                segments.push(name.to_owned());
            }
            found.push(UsePath { segments, is_reexport });
        }
    }
    prefix.truncate(depth);
}

/// The parts of `a, b::{c, d}` at the top level.
fn split_group(group: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

/// Names that a module gives on from its children, with the file each comes from.
fn reexports(source: &Source, files: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let text = source.shipped_text();
    let child = |path: &UsePath| {
        let mut folder = module_folder(&source.file);
        let mut file = None;
        for segment in &path.segments {
            match file_of(&folder, segment, files) {
                Some(found) => {
                    folder = module_folder(&found);
                    file = Some(found);
                }
                None => break,
            }
        }
        Some((path.segments.last()?.clone(), file?))
    };
    use_paths(&text).iter().filter_map(child).collect()
}

/// The file of a room that a path leads to, seen from `file`.
fn resolve(
    file: &str,
    segments: &[String],
    files: &BTreeSet<&str>,
    reexports: &BTreeMap<&str, BTreeMap<String, String>>,
) -> Option<String> {
    let (mut here, mut rest) = (file.to_owned(), segments);
    match segments.first()?.as_str() {
        "crate" => {
            here = "src/lib.rs".to_owned();
            rest = &rest[1..];
        }
        "super" => {
            while rest.first().is_some_and(|segment| segment == "super") {
                here = parent(&here, files)?;
                rest = &rest[1..];
            }
        }
        "self" => rest = &rest[1..],
        _ => {}
    }
    for segment in rest {
        if let Some(next) = file_of(&module_folder(&here), segment, files) {
            here = next;
        } else if let Some(next) = reexports.get(here.as_str()).and_then(|names| names.get(segment)) {
            return Some(next.clone());
        } else {
            break;
        }
    }
    files.contains(here.as_str()).then_some(here)
}

/// The folder that holds the children of a module: `src/decide/` for `src/decide/mod.rs`, `src/decide/check/` for
/// `src/decide/check.rs`.
fn module_folder(file: &str) -> String {
    let stem = file.trim_end_matches(".rs");
    match stem.strip_suffix("/mod").or_else(|| stem.strip_suffix("/lib")) {
        Some(folder) => format!("{folder}/"),
        None => format!("{stem}/"),
    }
}

fn file_of(folder: &str, module: &str, files: &BTreeSet<&str>) -> Option<String> {
    [format!("{folder}{module}.rs"), format!("{folder}{module}/mod.rs")]
        .into_iter()
        .find(|file| files.contains(file.as_str()))
}

/// The file of the module that declares the module of `file`.
fn parent(file: &str, files: &BTreeSet<&str>) -> Option<String> {
    let folder = Path::new(file.strip_suffix("/mod.rs").unwrap_or(file))
        .parent()?
        .to_str()?
        .to_owned();
    let candidates = [format!("{folder}/mod.rs"), format!("{folder}.rs"), "src/lib.rs".to_owned()];
    candidates
        .into_iter()
        .find(|candidate| files.contains(candidate.as_str()) || candidate == "src/lib.rs")
}

/// The strongly connected sets of more than one file.
fn circles(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reaches = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            for used in uses.get(file).into_iter().flatten() {
                if seen.insert(used) {
                    next.push(used);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> = uses.keys().map(|file| (file, reaches(file))).collect();
    let mut done = BTreeSet::new();
    let mut found = Vec::new();
    for file in uses.keys() {
        let circle: Vec<String> = uses
            .keys()
            .filter(|other| reached[file].contains(other) && reached[*other].contains(file))
            .cloned()
            .collect();
        if circle.len() > 1 && done.insert(circle.clone()) {
            found.push(circle);
        }
    }
    found
}

/// Functions that ship: name, line and number of lines from `fn` to the closing brace.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let text = source.shipped_text();
    let line_of = |at: usize| text[..at].matches('\n').count() + 1;
    let mut found = Vec::new();
    for (at, _) in words(&text).filter(|(_, word)| *word == "fn") {
        let Some((_, name)) = words(&text[at + 2..]).next().filter(|_| text[at + 2..].starts_with(' ')) else {
            continue;
        };
        let mut depth = 0;
        let ends = |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && (c == '}' || c == ';')
        };
        let length = text[at..].find(ends).unwrap_or(text.len() - at);
        found.push((name.to_owned(), line_of(at), line_of(at + length) - line_of(at) + 1));
    }
    found
}

#[test]
fn a_circle_is_seen_through_what_a_module_gives_on() {
    let file = |name: &str, text: &str| Source::new(format!("src/decide/{name}.rs"), text.to_owned());
    let sources = [
        file("mod", "mod a;\nmod b;\nmod c;\npub use a::{A, inner::D};\npub use b::B;\n"),
        file("a", "use super::B;\npub struct A;\n"),
        file("b", "use crate::decide::{A, c::C};\npub struct B;\n"),
        file("c", "use std::fmt;\npub struct C;\n"),
    ];
    let uses = uses_within(&sources, "decide");
    assert_eq!(circles(&uses), [["src/decide/a.rs", "src/decide/b.rs"]]);
    assert!(uses["src/decide/c.rs"].is_empty());
}

#[test]
fn a_sub_room_is_seen_to_use_a_higher_one() {
    let file = |name: &str, text: &str| Source::new(format!("src/decide/{name}.rs"), text.to_owned());
    let sources = [
        file("mod", "mod engine;\nmod tool;\npub use engine::e::E;\n"),
        file("engine/mod", "pub(super) mod e;\n"),
        file("engine/e", "use crate::decide::tool::t::T;\npub struct E;\n"),
        file("tool/mod", "pub(super) mod t;\n"),
        file("tool/t", "use crate::decide::E;\npub struct T;\n"),
    ];
    let uses = uses_within(&sources, "decide");
    let is_upward = |file: &str, used: &str| {
        assert!(uses[file].contains(used), "{uses:?}");
        is_upward(file, used, "decide", &["tool", "engine"])
    };
    assert!(is_upward("src/decide/tool/t.rs", "src/decide/engine/e.rs"));
    assert!(!is_upward("src/decide/engine/e.rs", "src/decide/tool/t.rs"));
}

#[test]
fn a_function_is_measured_to_its_closing_brace() {
    let source = Source::new(
        "src/gate/mod.rs".into(),
        "fn a(b: fn(u8)) -> u8 {\n  if c {\n  }\n}\nfn d();\n".into(),
    );
    assert_eq!(functions(&source), [("a".to_owned(), 1, 4), ("d".to_owned(), 5, 1)]);
}
