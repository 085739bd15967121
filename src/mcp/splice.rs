//! Replaces values in a message and keeps everything around them byte for byte. The positions come from a strict parse of
//! the same bytes; nothing is searched here.

use super::json::{JsonSpan, Malformed};
use crate::domain::Reason;
use bytes::Bytes;
use std::ops::Range;

/// Edits of one message. They are applied together, in one splice.
#[derive(Debug, Clone, Default)]
pub struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    /// Replaces a value by JSON text.
    pub fn replace(&mut self, span: impl Into<JsonSpan>, text: String) {
        self.0.push((span.into().range(), text));
    }

    /// Inserts text at a position.
    pub(super) fn insert(&mut self, at: usize, text: String) {
        self.0.push((at..at, text));
    }

    /// The message with all edits. Without edits it is the same bytes, not a copy. Edits that overlap are refused: they come
    /// from different parses, or mean two things.
    pub fn apply(mut self, message: &Bytes) -> Result<Bytes, Malformed> {
        if self.0.is_empty() {
            return Ok(message.clone());
        }
        self.0.sort_by_key(|(range, _)| range.start);
        let added: usize = self.0.iter().map(|(_, text)| text.len()).sum();
        let mut spliced = Vec::with_capacity(message.len() + added);
        let mut at = 0;
        for (range, text) in self.0 {
            let Some(kept) = message.get(at..range.start) else {
                return Err(Malformed::new(Reason::Internal, "two edits of one message overlap"));
            };
            spliced.extend_from_slice(kept);
            spliced.extend_from_slice(text.as_bytes());
            at = range.end;
        }
        let Some(rest) = message.get(at..) else {
            return Err(Malformed::new(Reason::Internal, "an edit lies outside of its message"));
        };
        spliced.extend_from_slice(rest);
        Ok(spliced.into())
    }
}

/// Replaces one value.
pub fn replace_value(message: &Bytes, span: JsonSpan, text: String) -> Bytes {
    let mut edits = Edits::default();
    edits.replace(span, text);
    edits.apply(message).expect("a span lies in the message it was read from")
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
        let mut edits = Edits::default();
        edits.replace(place(21, 27), "null".into());
        edits.replace(place(9, 15), "7".into());
        assert_eq!(edits.apply(&message).unwrap(), r#"{ "id" : 7, "x":null }"#);
        assert_eq!(
            replace_value(&message, place(9, 15), "7".into()),
            r#"{ "id" : 7, "x":[1,2 ] }"#
        );
        let same = Edits::default().apply(&message).unwrap();
        assert_eq!(same.as_ptr(), message.as_ptr(), "nothing is copied");
    }

    #[test]
    fn edits_that_overlap_are_refused() {
        let message = Bytes::from_static(b"{\"a\":[1,2]}");
        let applied = |spans: &[(usize, usize)]| {
            let mut edits = Edits::default();
            spans
                .iter()
                .for_each(|(start, end)| edits.replace(place(*start, *end), "0".into()));
            edits
                .apply(&message)
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
                .ok()
        };
        assert_eq!(applied(&[(8, 9), (6, 7)]).as_deref(), Some("{\"a\":[0,0]}"));
        assert_eq!(applied(&[(5, 10), (6, 7)]), None);
        assert_eq!(applied(&[(6, 7), (6, 7)]), None);
        assert_eq!(applied(&[(6, 20)]), None);
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
            let mut all = Edits::default();
            edits.into_iter().for_each(|(span, new)| all.replace(span, new));
            prop_assert_eq!(all.apply(&Bytes::from(text)).unwrap(), wanted);
        }
    }
}
