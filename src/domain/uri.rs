//! The URI of a resource, in the one spelling that policies use.
//!
//! Policies compare bytes, servers may not. Where a server could take two spellings for the same resource, only the one
//! normalised by RFC 3986 is accepted. Nothing is rewritten: other spellings are refused.

use std::fmt;
use std::sync::Arc;

/// An absolute URI exactly as it was sent, or a URI template where that is allowed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceUri(Arc<str>);

/// Why a text is not a resource URI. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the URI {0}")]
pub struct BadUri(pub &'static str);

const MAX_BYTES: usize = 2_048;

/// Schemes whose host is compared without regard to case.
const FOLDING: [&str; 6] = ["http", "https", "ws", "wss", "ftp", "file"];

impl ResourceUri {
    /// Parses the URI of a resource.
    pub fn parse(text: &str) -> Result<Self, BadUri> {
        Self::checked(text, false)
    }

    /// The same, with RFC 6570 expressions allowed: `file:///{path}`.
    pub fn parse_template(text: &str) -> Result<Self, BadUri> {
        Self::checked(text, true)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn checked(text: &str, template: bool) -> Result<Self, BadUri> {
        if text.len() > MAX_BYTES {
            return Err(BadUri("is longer than 2048 bytes"));
        }
        let (scheme, rest) = text.split_once(':').ok_or(BadUri("has no scheme"))?;
        if !is_scheme(scheme) {
            return Err(BadUri("does not begin with a scheme in lower case"));
        }
        check_characters(rest, template)?;
        let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
        check_escapes(rest, path.len())?;
        check_path(scheme, path)?;
        Ok(Self(text.into()))
    }
}

fn is_scheme(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_lowercase())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Refuses characters that RFC 3986 does not have. Parsers disagree on a space, a `\` or a letter beyond ASCII.
fn check_characters(text: &str, template: bool) -> Result<(), BadUri> {
    let mut inside = false;
    for char in text.chars() {
        match char {
            '{' if template && !inside => inside = true,
            '}' if inside => inside = false,
            '|' | '^' if inside => (),
            'a'..='z' | 'A'..='Z' | '0'..='9' => (),
            '-' | '.' | '_' | '~' | ':' | '/' | '?' | '#' | '[' | ']' | '@' | '%' => (),
            '!' | '$' | '&' | '\'' | '(' | ')' | '*' | '+' | ',' | ';' | '=' => (),
            _ if char.is_ascii_graphic() => return Err(BadUri("holds a character that must be percent-encoded")),
            _ if char.is_ascii() => return Err(BadUri("holds a space or control character")),
            _ => return Err(BadUri("holds characters beyond ASCII that must be percent-encoded")),
        }
    }
    if inside {
        Err(BadUri("has a template expression without an end"))
    } else {
        Ok(())
    }
}

/// Refuses percent-encodings that give a URI a second spelling: of unreserved characters, or of separators in the path.
fn check_escapes(text: &str, path: usize) -> Result<(), BadUri> {
    for (at, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(at + 1..at + 3).unwrap_or_default();
        let upper = |digit: &u8| digit.is_ascii_digit() || matches!(digit, b'A'..=b'F');
        if digits.len() != 2 || !digits.iter().all(upper) {
            return Err(BadUri("has a `%` that is not followed by two upper-case hexadecimal digits"));
        }
        let value = |digit: u8| (digit as char).to_digit(16).unwrap_or_default() as u8;
        match value(digits[0]) << 4 | value(digits[1]) {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                return Err(BadUri("percent-encodes a letter, digit or `-._~`"));
            }
            0..=0x1f | 0x7f => return Err(BadUri("holds an encoded control character")),
            b'/' | b'\\' if at < path => return Err(BadUri("percent-encodes a separator in its path")),
            _ => (),
        }
    }
    Ok(())
}

/// Refuses path segments and hosts with a second spelling: some readers resolve `.` and `..` and others look them up, a
/// file system takes `//` for `/`, and some schemes fold the host's case.
fn check_path(scheme: &str, path: &str) -> Result<(), BadUri> {
    let (authority, path) = match path.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None if FOLDING.contains(&scheme) => return Err(BadUri("has no `//` behind its scheme")),
        None => ("", path),
    };
    if FOLDING.contains(&scheme) && authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(BadUri("has a host that is not in lower case"));
    }
    // Some readers take what follows a `;` off a segment before they resolve it: `..;v=1` is `..` to them.
    let is_dots = |part: &str| {
        let end = part.find(';').into_iter().chain(part.find("%3B")).min();
        matches!(&part[..end.unwrap_or(part.len())], "." | "..")
    };
    if path.split('/').chain([authority]).any(is_dots) {
        return Err(BadUri("has a `.` or `..` in its path"));
    }
    if scheme == "file" && path.contains("//") {
        return Err(BadUri("has an empty part in its path"));
    }
    if FOLDING.contains(&scheme) {
        check_authority(scheme, authority)?;
    }
    Ok(())
}

/// Refuses the other ways in which the schemes of the web write one address: readers turn `file:/a` and `file://localhost/a`
/// into `file:///a`, `https:/h/a` and `https://u@h:443/a` into `https://h/a`.
fn check_authority(scheme: &str, authority: &str) -> Result<(), BadUri> {
    let standard_port = match scheme {
        "http" | "ws" => ":80",
        "https" | "wss" => ":443",
        "ftp" => ":21",
        _ => ":",
    };
    if scheme == "file" {
        return match authority {
            "" => Ok(()),
            _ => Err(BadUri("names a host, and a file has none: `file:///…`")),
        };
    }
    if authority.is_empty() {
        Err(BadUri("has no host behind `//`"))
    } else if authority.contains('@') {
        Err(BadUri("holds a user before its host"))
    } else if authority.ends_with(':') || authority.ends_with(standard_port) {
        Err(BadUri("writes out the port that its scheme has anyway"))
    } else {
        Ok(())
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl std::str::FromStr for ResourceUri {
    type Err = BadUri;
    fn from_str(text: &str) -> Result<Self, BadUri> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_uris_are_kept_byte_for_byte() {
        for uri in [
            "file:///project/src/main.rs",
            "file:///a%20b/%C3%A4.txt",
            "https://example.com/a?q=a%2Fb&up=..#part",
            "demo://Resource/static/1",
            "urn:isbn:0451450523",
            "postgres://host/db/customers/schema",
            "test://static-text",
            "note+v2:a(b)*",
            "data:text/plain,hello",
            "x://a//b",
            "https://h/a;v=1/...;/..a;b%3B",
            "https://h:8443/a",
            "https://[::1]:8443/a",
            "http://h:443/a",
        ] {
            assert_eq!(ResourceUri::parse(uri).map(|uri| uri.to_string()), Ok(uri.to_owned()));
            assert!(ResourceUri::parse_template(uri).is_ok());
        }
    }

    #[test]
    fn a_second_spelling_is_no_uri() {
        let long = format!("x:{}", "a".repeat(MAX_BYTES));
        for (uri, why) in [
            ("", "scheme"),
            ("/etc/passwd", "scheme"),
            (":a", "scheme"),
            ("FILE:///a", "scheme"),
            ("1a:b", "scheme"),
            ("file:///a b", "space"),
            ("file:///a\n", "control"),
            ("file:///a\0", "control"),
            ("file:///\u{e4}", "beyond ASCII"),
            ("file:///\u{202e}", "beyond ASCII"),
            ("file:///a\\b", "must be percent-encoded"),
            ("file:///{path}", "must be percent-encoded"),
            ("file:///a/../b", "`..`"),
            ("file:///a/./b", "`.`"),
            ("file:///a/..;/b", "`..`"),
            ("https://h/a/..;v=1/b", "`..`"),
            ("https://h/a/.;/b", "`.`"),
            ("https://h/a/..%3Bv/b", "`..`"),
            ("x:..;/b", "`..`"),
            ("file:///..", "`..`"),
            ("x://../b", "`..`"),
            ("x:../b", "`..`"),
            ("file:///a/%2e%2e/b", "upper-case"),
            ("file:///a/%2E%2E/b", "`-._~`"),
            ("file:///%61", "`-._~`"),
            ("file:///a%2Fb", "separator"),
            ("file:///a%5Cb", "separator"),
            ("file:///a%00", "control"),
            ("file:///a%", "`%`"),
            ("file:///a%zz", "`%`"),
            ("file:///%c3%a4", "upper-case"),
            ("https://EXAMPLE.com/", "lower case"),
            ("file:///a//b", "empty"),
            ("file:/srv/a", "`//`"),
            ("file:a", "`//`"),
            ("https:/h/a", "`//`"),
            ("https:h/a", "`//`"),
            ("file://localhost/srv/a", "a file has none"),
            ("file://h", "a file has none"),
            ("https:///a", "no host"),
            ("https://u@h/a", "a user"),
            ("https://u:p@h/a", "a user"),
            ("https://h:443/a", "port"),
            ("http://h:80", "port"),
            ("https://h:/a", "port"),
            (&long, "longer"),
        ] {
            let refused = ResourceUri::parse(uri).expect_err(uri).to_string();
            assert!(refused.contains(why), "{uri}: {refused}");
        }
    }

    #[test]
    fn a_template_may_hold_expressions_and_nothing_more() {
        for template in ["file:///{path}", "test://template/{id}/data", "x://{+a,b*}{?q}{#f:3}"] {
            assert!(ResourceUri::parse_template(template).is_ok(), "{template}");
        }
        for broken in [
            "file:///{path",
            "file:///a}",
            "file:///{a{b}}",
            "file:///../{a}",
            "file:///{a b}",
        ] {
            assert!(ResourceUri::parse_template(broken).is_err(), "{broken}");
        }
    }
}
