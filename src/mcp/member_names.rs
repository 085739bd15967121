//! The member names of all objects that are open during a scan, and the check for duplicates in one object. One stack
//! serves the whole text; names without escapes are not copied.

use super::json::DuplicateNames;
use std::borrow::Cow;
use std::cmp::Ordering;

/// A member name: a slice of the text, or of the arena if it contained escapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemberName {
    start: u32,
    end: u32,
    copied: bool,
    hash: u64,
}

/// The stack of member names of the open objects.
pub(super) struct MemberNames<'a> {
    text: &'a str,
    arena: String,
    duplicates: DuplicateNames,
    open: Vec<MemberName>,
}

/// Up to this many names are compared pairwise. More are sorted, so that hostile names cost at most n log n.
const PAIRWISE: usize = 8;

impl<'a> MemberNames<'a> {
    pub fn new(text: &'a str, duplicates: DuplicateNames) -> Self {
        Self {
            text,
            arena: String::new(),
            duplicates,
            open: Vec::with_capacity(32),
        }
    }

    /// Begins an object; returns its frame on the stack.
    pub fn begin_object(&self) -> usize {
        self.open.len()
    }

    /// Adds a member name. `start` is its position in the text, used if `decoded` is borrowed from the text.
    pub fn push(&mut self, decoded: Cow<'_, str>, start: usize) -> MemberName {
        let hash = self.hash(&decoded);
        let length = decoded.len();
        let (start, copied) = match decoded {
            Cow::Borrowed(_) => (start, false),
            Cow::Owned(text) => {
                self.arena.push_str(&text);
                (self.arena.len() - length, true)
            }
        };
        // The tokenizer refuses texts longer than u32::MAX bytes, and the arena is no longer than the text.
        let name = MemberName {
            start: start as u32,
            end: (start + length) as u32,
            copied,
            hash,
        };
        self.open.push(name);
        name
    }

    /// Ends the object that began at `frame`; returns two names that are duplicates.
    pub fn end_object(&mut self, frame: usize) -> Option<(String, String)> {
        let twins = match self.open.len() - frame {
            0 | 1 => None,
            2..=PAIRWISE => self.pairwise(frame),
            _ => self.sorted(frame),
        };
        self.open.truncate(frame);
        twins
    }

    pub fn text(&self, name: &MemberName) -> &str {
        text_of(self.text, &self.arena, name)
    }

    fn pairwise(&self, frame: usize) -> Option<(String, String)> {
        let names = &self.open[frame..];
        for (index, one) in names.iter().enumerate() {
            for other in &names[..index] {
                if one.hash == other.hash && self.order(other, one).is_eq() {
                    return Some((self.text(other).to_owned(), self.text(one).to_owned()));
                }
            }
        }
        None
    }

    fn sorted(&mut self, frame: usize) -> Option<(String, String)> {
        let mut names = self.open.split_off(frame);
        names.sort_unstable_by(|one, other| one.hash.cmp(&other.hash).then_with(|| self.order(one, other)));
        let twins = names
            .windows(2)
            .find(|pair| pair[0].hash == pair[1].hash && self.order(&pair[0], &pair[1]).is_eq());
        twins.map(|pair| (self.text(&pair[0]).to_owned(), self.text(&pair[1]).to_owned()))
    }

    fn order(&self, one: &MemberName, other: &MemberName) -> Ordering {
        match self.duplicates {
            DuplicateNames::Exact => self.text(one).cmp(self.text(other)),
            DuplicateNames::Folded => fold_order(self.text(one), self.text(other)),
        }
    }

    fn hash(&self, name: &str) -> u64 {
        if self.duplicates == DuplicateNames::Folded && !name.is_ascii() {
            hash(fold(name).as_bytes())
        } else {
            hash(name.as_bytes())
        }
    }
}

/// Whether a parser that ignores case would take one name for the other.
pub(super) fn fold_equal(one: &str, other: &str) -> bool {
    if one.is_ascii() && other.is_ascii() {
        one.eq_ignore_ascii_case(other)
    } else {
        fold(one) == fold(other)
    }
}

fn fold_order(one: &str, other: &str) -> Ordering {
    if one.is_ascii() && other.is_ascii() {
        let lower = |byte: &u8| byte.to_ascii_lowercase();
        one.as_bytes().iter().map(lower).cmp(other.as_bytes().iter().map(lower))
    } else {
        fold(one).cmp(&fold(other))
    }
}

/// Unicode simple case folding, slightly wider: to upper case and back, where each mapping is one character. `ſ` becomes
/// `s`, the Kelvin sign `k`, `ς` becomes `σ`.
fn fold(name: &str) -> String {
    fn single(mut mapped: impl Iterator<Item = char>, otherwise: char) -> char {
        match (mapped.next(), mapped.next()) {
            (Some(one), None) => one,
            _ => otherwise,
        }
    }
    name.chars()
        .map(|char| single(char.to_uppercase(), char))
        .map(|char| single(char.to_lowercase(), char))
        .collect()
}

/// Names that are equal after ASCII case folding have equal hashes. Names with equal hashes are then compared.
fn hash(name: &[u8]) -> u64 {
    const CASE: u64 = 0x2020_2020_2020_2020;
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ (word | CASE)).wrapping_mul(SPREAD);
    let length = name.len();
    if length < 8 {
        let half = |at: usize| {
            name.get(at..at + 4)
                .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let word = match (half(0), half(length.saturating_sub(4))) {
            (Some(head), Some(tail)) => u64::from(head) | u64::from(tail) << 32,
            _ => name.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        return mix(length as u64, word);
    }
    let word = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_or(0, u64::from_le_bytes);
    let state = name
        .chunks_exact(8)
        .fold(length as u64, |state, chunk| mix(state, word(chunk)));
    mix(state, word(&name[length - 8..]))
}

fn text_of<'t>(text: &'t str, arena: &'t str, name: &MemberName) -> &'t str {
    let range = name.start as usize..name.end as usize;
    if name.copied { &arena[range] } else { &text[range] }
}
