//! Foreign text made safe to stand in a message, a record or a table: it cannot move a cursor, forge a line, or hide or reorder
//! what stands around it, and it is no longer than its place allows. Quotes and backslashes stay, because messages of other
//! libraries are full of them: quoting is the caller's.

use std::fmt::{self, Write};

/// Displays the text: control and invisible characters are escaped, and what exceeds `longest` bytes becomes `…`.
#[derive(Debug, Clone, Copy)]
pub struct SafeText<'a> {
    text: &'a str,
    longest: usize,
}

impl<'a> SafeText<'a> {
    pub const fn new(text: &'a str, longest: usize) -> Self {
        Self { text, longest }
    }

    /// For places that have room for any text.
    pub const fn uncut(text: &'a str) -> Self {
        Self::new(text, usize::MAX)
    }
}

impl fmt::Display for SafeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = self.longest;
        for char in self.text.chars() {
            let escaped = (char.is_control() || is_invisible(char)).then(|| char.escape_default());
            let length = escaped.as_ref().map_or(char.len_utf8(), ExactSizeIterator::len);
            let Some(left) = room.checked_sub(length) else {
                return f.write_char('…');
            };
            room = left;
            match escaped {
                Some(escaped) => write!(f, "{escaped}")?,
                None => f.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// Foreign text in backticks, as messages hold it.
pub fn quoted(text: &str) -> String {
    format!("`{}`", SafeText::new(text, 80))
}

/// The characters of Unicode's Default_Ignorable_Code_Point (zero width, bidirectional controls, variation selectors, tags),
/// the separators of lines and paragraphs, and the marks of annotations.
fn is_invisible(char: char) -> bool {
    matches!(
        char,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped_and_what_prints_stays() {
        for (text, shown) in [
            ("a\u{1b}[1m\u{202e}", r"a\u{1b}[1m\u{202e}"),
            ("a\nb\r\tc\0\u{9b}", r"a\nb\r\tc\u{0}\u{9b}"),
            ("a\u{200b}b\u{feff}\u{2029}\u{e0041}", r"a\u{200b}b\u{feff}\u{2029}\u{e0041}"),
            (r#"it's "C:\x" `y`"#, r#"it's "C:\x" `y`"#),
            ("Zoë, ज़ु, 李, 😀", "Zoë, ज़ु, 李, 😀"),
        ] {
            assert_eq!(SafeText::uncut(text).to_string(), shown);
            let again = SafeText::uncut(shown).to_string();
            assert_eq!(again, shown, "safe text is safe already");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_escapes() {
        let shown = |text, longest| SafeText::new(text, longest).to_string();
        assert_eq!(shown("abcde", 5), "abcde");
        assert_eq!(shown("abcdef", 5), "abcde…");
        assert_eq!(shown("abcdë", 5), "abcd…");
        assert_eq!(shown("ab\u{1b}", 5), "ab…");
        assert_eq!(shown("a\nb", 3), r"a\n…");
        assert_eq!((shown("", 0).as_str(), shown("a", 0).as_str()), ("", "…"));
    }
}
