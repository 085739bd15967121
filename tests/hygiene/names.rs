//! One word, one meaning: a type is defined once, a free function's name says which function it is, and words that were given
//! up for standard terms do not come back.

use crate::source::{Finding, Source, words};
use crate::{hold, sources};
use std::collections::BTreeMap;

/// Type names that may be defined more than once, with the reason.
const SHARED_TYPES: &[(&str, &str)] = &[];

/// A free function's name may stand in this many files before a reader has to ask which one is meant.
const MOST_NAMESAKES: usize = 3;

/// Types that were renamed to standard terms. `Eras`, `Row`, `Span` and `Target` stay: each means what it means elsewhere.
#[rustfmt::skip]
const RETIRED_TYPES: &[&str] = &[
    "Absent", "Addressed", "Alive", "AnswerKind", "Arrived", "Arriving", "Ask", "Asked", "Asker", "Became", "Begun", "Bodies",
    "Brought", "BroughtTask", "Caller", "Callers", "Case", "Claim", "Closing", "Conversation", "Counts", "Decided", "Door",
    "Draft", "Ending", "Enrolled", "Errand", "Estimate", "Expected", "Fact", "Failed", "Feed", "Fields", "Filed", "Fit",
    "Flaw", "Flight", "Flights", "Flying", "Following", "Found", "Frames", "Full", "Glance", "Guest", "Handed", "Handing",
    "Heads", "Heard", "Held", "Hello", "Holder", "Inside", "Introduction", "JustInTime", "Keep", "Kept", "KeySource",
    "KeyText", "Keys", "Knowledge", "Known", "LastWords", "LeftOut", "Lens", "Library", "Life", "Line", "Lines", "Link",
    "Links", "Listed", "Listened", "Look", "Looks", "Mailbox", "Manner", "Mark", "Mention", "Merged", "Merging", "Names",
    "NoLine", "Noise", "Notice", "Offer", "Open", "Opening", "Origin", "Out", "Own", "OwnHeads", "Paced", "Parcel", "Part",
    "Past", "Patience", "Piece", "Place", "Plan", "Posts", "Presented", "Proved", "Reach", "Read", "Reading", "Reads",
    "Received", "Refusals", "Reply", "Report", "Rest", "Returned", "Round", "Rules", "Said", "Scan", "Screened", "Sealing",
    "Seat", "Seats", "Seen", "Shape", "Shelf", "Shown", "Site", "Slot", "Sort", "Speech", "Spot", "Standing", "Streams",
    "Taken", "Talk", "Talks", "Through", "Ticket", "Timed", "Times", "Token", "Told", "Tracked", "Trail", "Trial", "Twins",
    "Typing", "Typist", "Unread", "Unseen", "Unstalled", "Verb", "View", "Viewer", "Walk", "Wanted", "WareFit", "Wares",
    "Way", "Weight", "Who", "Wire", "Wish", "Wishes",
];

/// Files that were renamed with them, by room.
#[rustfmt::skip]
const RETIRED_FILES: &[(&str, &str)] = &[
    ("app", "rules"), ("cli", "embedded"), ("decide", "effort"), ("decide", "facts"), ("decide", "judge"),
    ("decide", "known"), ("decide", "mirror"), ("decide", "reads"), ("decide", "seat"), ("decide", "shape"),
    ("decide", "sight"), ("decide", "sort"), ("decide", "standing"), ("decide", "subject"), ("decide", "suppose"),
    ("decide", "text"), ("decide", "typing"), ("decide", "ware"), ("decide/check", "wares"), ("decide", "when"), ("domain", "asks"),
    ("gate", "alive"), ("gate", "bodies"), ("gate", "caller"), ("gate/combined", "flights"), ("gate", "lens"), ("gate", "mirror"),
    ("gate/combined", "names"), ("gate", "noise"), ("gate/combined", "notes"), ("gate/combined", "own"), ("gate", "site"), ("gate", "standing"),
    ("gate", "streams"), ("gate", "talk"), ("gate/combined", "through"), ("gate", "trail"), ("grants", "keeper"),
    ("grants", "left_out"), ("grants", "misses"), ("grants", "script"), ("grants", "source"), ("identity", "present"),
    ("identity", "settings"), ("identity", "source"), ("identity", "strict"), ("identity", "token"), ("journal", "fit"),
    ("journal", "rank"), ("journal", "text"), ("journal", "ticket"), ("journal", "walk"), ("limits", "keys"),
    ("mcp", "answer"), ("mcp", "heads"), ("mcp", "names"), ("mcp", "notices"), ("mcp", "pages"), ("mcp", "prune"),
    ("mcp", "read"), ("mcp", "said"), ("mcp", "sentinel"), ("mcp", "wire"), ("store", "people"), ("transport", "lines"),
    ("transport", "pace"), ("transport", "stop"), ("transport", "wire"), ("upstream", "asks"), ("upstream", "events"),
    ("upstream", "failed"), ("upstream", "hello"), ("upstream", "inbox"), ("upstream", "keys"), ("upstream", "lines"),
    ("upstream", "link"), ("upstream", "links"), ("upstream", "speak"),
];

#[test]
fn a_type_is_defined_once() {
    let mut places: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for source in &sources() {
        for item in items(source).into_iter().filter(|item| item.is_type()) {
            let finding = source.finding(item.line, format!("`{}` is defined here too", item.name));
            places.entry(item.name).or_default().push(finding);
        }
    }
    assert!(SHARED_TYPES.len() <= 5, "at most five type names may be shared");
    let is_shared = |name: &str| SHARED_TYPES.iter().any(|(shared, _)| *shared == name);
    let twice = places.into_iter().filter(|(name, found)| found.len() > 1 && !is_shared(name));
    hold(
        "Name one of them for what is special about it.",
        twice.flat_map(|(_, found)| found).collect(),
    );
}

#[test]
fn a_free_function_has_few_namesakes() {
    let mut places: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for source in &sources() {
        for item in items(source).into_iter().filter(|item| item.kind == "fn" && item.is_free) {
            let finding = source.finding(item.line, format!("`{}`", item.name));
            places.entry(item.name).or_default().push(finding);
        }
    }
    // `main` is the language's own name.
    let many = places
        .into_iter()
        .filter(|(name, found)| found.len() > MOST_NAMESAKES && name != "main");
    hold(
        "Name them for what they do: a name that stands in many files cannot be searched for.",
        many.flat_map(|(_, found)| found).collect(),
    );
}

#[test]
fn words_that_were_given_up_do_not_come_back() {
    let mut findings = Vec::new();
    for source in &sources() {
        let is_retired = |file: &&(&str, &str)| source.file == format!("src/{}/{}.rs", file.0, file.1);
        if let Some((_, file)) = RETIRED_FILES.iter().find(is_retired) {
            findings.push(source.finding(1, format!("a file of this room is no longer called `{file}.rs`")));
        }
        let retired = |item: &Item| item.is_type() && RETIRED_TYPES.contains(&item.name.as_str());
        findings.extend(
            items(source)
                .into_iter()
                .filter(retired)
                .map(|item| source.finding(item.line, format!("`{}` is a word that was given up", item.name))),
        );
    }
    hold(
        "Use the word of the MCP specification, the RFC, Cedar, hyper or SQL.",
        findings,
    );
}

/// An item as far as these rules need it.
struct Item {
    kind: &'static str,
    name: String,
    line: usize,
    /// Not inside an `impl`, a trait or a function.
    is_free: bool,
}

impl Item {
    fn is_type(&self) -> bool {
        self.kind != "fn" && self.is_free
    }
}

/// What encloses a place in the code.
#[derive(Clone, Copy, PartialEq)]
enum Block {
    Module,
    Other,
}

/// The types and functions that ship.
fn items(source: &Source) -> Vec<Item> {
    const KINDS: &[&str] = &["struct", "enum", "trait", "type", "fn"];
    let text = source.shipped_text();
    let (mut found, mut blocks, mut opens) = (Vec::new(), Vec::new(), Block::Other);
    let (mut line, mut kind, mut at) = (1, None, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => line += 1,
            b'{' => {
                blocks.push(opens);
                opens = Block::Other;
            }
            b'}' => drop(blocks.pop()),
            b';' => opens = Block::Other,
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                let (_, word) = words(&text[at..]).next().expect("a word begins here");
                match (kind.take(), word) {
                    (Some(kind), name) => found.push(Item {
                        kind,
                        name: name.to_owned(),
                        line,
                        is_free: blocks.iter().all(|block| *block == Block::Module),
                    }),
                    (None, "mod") => opens = Block::Module,
                    (None, word) => {
                        kind = KINDS.iter().find(|kind| **kind == word).copied();
                        // `fn(u8) -> u8` is a type and `impl Trait` a bound: no name follows.
                        kind = kind.filter(|_| text[at + word.len()..].starts_with(' '));
                    }
                }
                at += word.len();
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

#[test]
fn methods_and_inner_functions_are_not_free() {
    let text = "struct A;\nimpl A {\n fn b() { fn c() {} }\n}\nmod d {\n fn e(f: fn(u8)) {}\n enum G {}\n}\ntype H = u8;\n";
    let source = Source::new("src/gate/mod.rs".into(), text.into());
    let found: Vec<_> = items(&source)
        .into_iter()
        .map(|item| format!("{} {}:{} {}", item.kind, item.name, item.line, item.is_free))
        .collect();
    assert_eq!(
        found,
        [
            "struct A:1 true",
            "fn b:3 false",
            "fn c:3 false",
            "fn e:6 true",
            "enum G:7 true",
            "type H:9 true"
        ]
    );
}
