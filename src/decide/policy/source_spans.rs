//! Splits a policy file into tokens as Cedar does, and locates statements and words in it for error positions. It does
//! not interpret policies.

use std::ops::Range;

/// The spans of the statements of a file, in order, annotations included.
pub(super) fn statements(text: &str) -> Vec<Range<usize>> {
    let mut statements = Vec::new();
    let mut start = None;
    for word in words(text) {
        let begun = *start.get_or_insert(word.start);
        if &text[word.clone()] == ";" {
            statements.push(begun..word.end);
            start = None;
        }
    }
    statements
}

/// The offset at which `name` is first written as an attribute (`.name`, `has name`, `["name"]`) within `span`.
pub(super) fn attribute(text: &str, span: &Range<usize>, name: &str) -> Option<usize> {
    let is_it = |before: &str, word: &str| matches!(before, "." | "has" | "[") && (word == name || unquoted(word) == Some(name));
    Some(find(text, span, is_it)?.1)
}

/// The offset at which the entity id `id` is first written within `span`.
pub(super) fn entity(text: &str, span: &Range<usize>, id: &str) -> Option<usize> {
    Some(find(text, span, |_, word| unquoted(word) == Some(id))?.1)
}

/// The offset of the annotation `@name` within `span`.
pub(super) fn annotation(text: &str, span: &Range<usize>, name: &str) -> Option<usize> {
    Some(find(text, span, |before, word| before == "@" && word == name)?.0)
}

/// The first word within `span` that is the wanted one, as the word before it and it tell: the offsets of both.
fn find(text: &str, span: &Range<usize>, is_it: impl Fn(&str, &str) -> bool) -> Option<(usize, usize)> {
    let body = text.get(span.clone())?;
    let mut before = 0..0;
    for word in words(body) {
        if is_it(&body[before.clone()], &body[word.clone()]) {
            return Some((span.start + before.start, span.start + word.start));
        }
        before = word;
    }
    None
}

fn unquoted(word: &str) -> Option<&str> {
    word.strip_prefix('"')?.strip_suffix('"')
}

/// Splits text into tokens: identifiers and numbers, strings with their quotes, and single other characters. White space
/// and comments are skipped.
pub(super) fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        at = skip_blank(text, at);
        let rest = &text[at..];
        let first = rest.chars().next()?;
        let length = match first {
            '"' => string(rest),
            _ if first.is_ascii_digit() => rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len()),
            _ if is_word(first) => rest.find(|char| !is_word(char)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let word = at..at + length;
        at = word.end;
        Some(word)
    })
}

pub(super) fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

fn skip_blank(text: &str, mut at: usize) -> usize {
    loop {
        let rest = &text[at..];
        let blank = rest.len() - rest.trim_start().len();
        at += blank;
        if !text[at..].starts_with("//") {
            return at;
        }
        let comment = &text[at..];
        at += comment.find(['\n', '\r']).unwrap_or(comment.len());
    }
}

/// The length of the string literal at the start of `text`.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (index, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"// permit nothing;
@id("a;b") // "
permit(principal, action, resource) when { context.input has path && context.input["the key"] == "path;\"" };

@id("c") forbid(principal, action == Action::"x/y", resource);
"#;

    #[test]
    fn statements_end_at_their_own_semicolon() {
        let found: Vec<&str> = statements(TEXT).iter().map(|span| &TEXT[span.clone()]).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("@id(\"a;b\")") && found[0].ends_with("};"));
        assert!(found[1].starts_with("@id(\"c\")") && found[1].ends_with("resource);"));
    }

    #[test]
    fn words_are_found_where_they_mean_something() {
        let statements = statements(TEXT);
        let first = &statements[0];
        assert_eq!(attribute(TEXT, first, "path"), TEXT.find("path"));
        assert_eq!(attribute(TEXT, first, "the key"), TEXT.find("\"the key\""));
        assert_eq!(attribute(TEXT, first, "principal"), None);
        assert_eq!(annotation(TEXT, first, "id"), TEXT.find("@id"));
        assert_eq!(entity(TEXT, &statements[1], "x/y"), TEXT.find("\"x/y\""));
    }
}
