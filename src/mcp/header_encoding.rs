//! The encoding `=?base64?…?=`: how a mirrored header carries a value that is no plain header value (MCP 2026-07-28).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;

const OPEN: &str = "=?base64?";
const CLOSE: &str = "?=";

/// Decodes a header value; `None` if it is marked as encoded but is not canonical base64 of UTF-8. The markers are lower
/// case, and a value is decoded only once.
pub fn decode_header_value(value: &str) -> Option<Cow<'_, str>> {
    let Some(inner) = value.strip_prefix(OPEN).and_then(|rest| rest.strip_suffix(CLOSE)) else {
        return Some(Cow::Borrowed(value));
    };
    let bytes = STANDARD.decode(inner).ok()?;
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Encodes `text`, if necessary, so that `decode_header_value` returns it.
pub fn encode_header_value(text: &str) -> Cow<'_, str> {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let trimmed = !text.starts_with(' ') && !text.ends_with(' ') && !text.is_empty();
    if printable && trimmed && !text.starts_with(OPEN) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("{OPEN}{}{CLOSE}", STANDARD.encode(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in ["echo", "", " a", "a ", "a b", "ä", "a\n", "=?base64?YQ==?=", "=?base64?"] {
            let written = encode_header_value(text);
            assert!(http::HeaderValue::from_str(&written).is_ok(), "{written}");
            assert_eq!(decode_header_value(&written).as_deref(), Some(text));
        }
    }

    #[test]
    fn only_the_exact_form_is_a_sentinel() {
        assert_eq!(decode_header_value("=?base64?ZWNobw==?=").as_deref(), Some("echo"));
        for plain in ["=?BASE64?ZWNobw==?=", "=?base64?ZWNobw==", "=?utf-8?B?ZWNobw==?="] {
            assert_eq!(decode_header_value(plain).as_deref(), Some(plain));
        }
        for broken in [
            "=?base64?ZWNobw?=",
            "=?base64?ZWNobx==?=",
            "=?base64?ZWNo_w==?=",
            "=?base64?ZWNo bw==?=",
            "=?base64?/w==?=",
        ] {
            assert_eq!(decode_header_value(broken), None, "{broken}");
        }
        assert_eq!(
            decode_header_value("=?base64?PT9iYXNlNjQ/WVE9PT89?=").as_deref(),
            Some("=?base64?YQ==?="),
            "decoded once"
        );
    }
}
