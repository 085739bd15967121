//! Replaces values in a message and keeps everything around them byte for byte. The positions come from a strict parse of
//! the same bytes; nothing is searched here.

use super::json::Span;
use bytes::Bytes;
use std::ops::Range;

/// The position of a value in the message it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonSpan {
    start: u32,
    end: u32,
}

impl JsonSpan {
    /// The byte range.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The bytes at this position.
    pub fn of(self, message: &Bytes) -> Bytes {
        message.slice(self.range())
    }

    /// The text at this position.
    pub fn text(self, message: &[u8]) -> &str {
        message
            .get(self.range())
            .and_then(|text| std::str::from_utf8(text).ok())
            .unwrap_or_default()
    }
}

impl From<Span> for JsonSpan {
    fn from(span: Span) -> Self {
        let range = span.range();
        // The tokenizer refuses texts longer than u32::MAX bytes.
        Self {
            start: range.start as u32,
            end: range.end as u32,
        }
    }
}

/// Replaces the values at these positions, which do not overlap. Without edits it returns the same bytes, not a copy.
pub fn splice(message: &Bytes, edits: Vec<(JsonSpan, String)>) -> Bytes {
    if edits.is_empty() {
        message.clone()
    } else {
        spliced(message, edits.into_iter().map(|(span, new)| (span.range(), new)).collect())
    }
}

pub(super) fn spliced(text: &[u8], mut edits: Vec<(Range<usize>, String)>) -> Bytes {
    edits.sort_by_key(|(range, _)| range.start);
    let mut spliced = Vec::with_capacity(text.len() + edits.iter().map(|(_, new)| new.len()).sum::<usize>());
    let mut at = 0;
    for (range, new) in edits {
        spliced.extend_from_slice(&text[at..range.start]);
        spliced.extend_from_slice(new.as_bytes());
        at = range.end;
    }
    spliced.extend_from_slice(&text[at..]);
    spliced.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(start: usize, end: usize) -> JsonSpan {
        JsonSpan {
            start: start as u32,
            end: end as u32,
        }
    }

    #[test]
    fn only_what_stands_at_the_places_is_replaced() {
        let message = Bytes::from_static(br#"{ "id" : "a\/1", "x":[1,2 ] }"#);
        let changed = splice(&message, vec![(place(21, 27), "null".into()), (place(9, 15), "7".into())]);
        assert_eq!(changed, r#"{ "id" : 7, "x":null }"#);
        let same = splice(&message, Vec::new());
        assert_eq!(same.as_ptr(), message.as_ptr(), "nothing is copied");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_between_the_places_stays(pieces in proptest::collection::vec(("[a-z]{0,4}", "[0-9]{0,4}", "[A-Z]{0,6}"), 0..6)) {
            let (mut text, mut wanted, mut edits) = (String::new(), String::new(), Vec::new());
            for (kept, old, new) in pieces {
                text.push_str(&kept);
                wanted.push_str(&kept);
                let start = text.len();
                text.push_str(&old);
                edits.push((place(start, text.len()), new.clone()));
                wanted.push_str(&new);
            }
            edits.reverse();
            // The order of two edits at the same empty place is unspecified; real messages have no empty places.
            let mut starts: Vec<_> = edits.iter().map(|(span, _)| span.start).collect();
            starts.dedup();
            prop_assume!(starts.len() == edits.len());
            prop_assert_eq!(splice(&Bytes::from(text), edits), wanted);
        }
    }
}
