//! Names that only a successful parse can build. They are compared byte by byte, without case folding or trimming.

use super::safe_text::SafeText;
use std::fmt;
use std::sync::Arc;

/// Why a text is not a name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {kind}: {rule}")]
pub struct BadName {
    pub text: String,
    pub kind: &'static str,
    pub rule: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Whether `parse` makes a name of this text.
            pub fn accepts(text: &str) -> bool {
                let check: fn(&str) -> bool = $check;
                check(text)
            }

            pub fn parse(text: &str) -> Result<Self, BadName> {
                if Self::accepts(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(BadName { text: SafeText::new(text, 80).to_string(), kind: $kind, rule: $rule })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::parse(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $rule })
            }
        }
    )*};
}

names! {
    /// An MCP server, as it stands in `/mcp/{server}`.
    ServerName, "a server name", "lower-case letters, digits, `-` and single `_`, starting with a letter or digit, not ending with `_`, at most 63",
        |t| matches!(t.len(), 1..=63)
            && t.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
            && t.as_bytes()[0].is_ascii_alphanumeric() && !t.contains("__") && !t.ends_with('_');
    /// The name of a tool, as its server gives it.
    ToolName, "a tool name", "letters, digits, `_`, `.` and `-`, at most 128",
        |t| matches!(t.len(), 1..=128) && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    /// The name of a prompt, as its server gives it.
    PromptName, "a prompt name", "1 to 256 bytes without control characters",
        |t| matches!(t.len(), 1..=256) && !t.chars().any(char::is_control);
    /// One scope of a grant (RFC 6749 scope-token); `*` covers every tool of the server.
    Scope, "a scope", "visible ASCII without space, `\"` and `\\`, at most 200",
        |t| matches!(t.len(), 1..=200) && t.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
    /// The short name of an issuer in the configuration and in Cedar principals.
    IssuerAlias, "an issuer alias", "lower-case letters, digits, `-` and `_`, at most 63",
        |t| matches!(t.len(), 1..=63) && t.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    /// The exact `iss` of an issuer, as in `user_identities`.
    Issuer, "an issuer", "1 to 512 visible ASCII characters",
        |t| matches!(t.len(), 1..=512) && t.bytes().all(|b| b.is_ascii_graphic());
    /// Whom a credential names; means nothing without its issuer.
    Subject, "a subject", "1 to 512 characters without control characters",
        |t| matches!(t.len(), 1..=512) && !t.chars().any(char::is_control);
    /// An environment; every stored row belongs to one, and an instance serves one.
    EnvironmentName, "an environment name", "lower-case letters, digits, `-` and `_`, at most 63",
        |t| matches!(t.len(), 1..=63) && t.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
    /// The id of a row of `users`; a UUID in lower case on Postgres.
    UserId, "a user id", "1 to 128 visible ASCII characters",
        |t| matches!(t.len(), 1..=128) && t.bytes().all(|b| b.is_ascii_graphic());
    /// The id of a row of `mcp_authorizations`.
    GrantId, "a grant id", "1 to 128 visible ASCII characters",
        |t| matches!(t.len(), 1..=128) && t.bytes().all(|b| b.is_ascii_graphic());
    /// The public part of a Guardian API key.
    KeyId, "a key id", "8 to 32 lower-case letters and digits",
        |t| matches!(t.len(), 8..=32) && t.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    /// The OAuth client that a token was issued to (`client_id` or `azp`).
    ClientId, "a client id", "1 to 512 visible ASCII characters",
        |t| matches!(t.len(), 1..=512) && t.bytes().all(|b| b.is_ascii_graphic());
    /// A role of a user, from `users.roles` or from a configured token claim.
    RoleName, "a role", "1 to 128 characters without control characters",
        |t| matches!(t.len(), 1..=128) && !t.chars().any(char::is_control);
    /// The `@id` of a Cedar policy.
    PolicyId, "a policy id", "1 to 200 characters without control characters",
        |t| matches!(t.len(), 1..=200) && !t.chars().any(char::is_control);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_cannot_hold_the_separator_of_the_combined_endpoint() {
        assert!(ServerName::parse("git_hub-2").is_ok());
        for bad in ["", "a__b", "_a", "a_", "A", "a/b", "a.b", &"a".repeat(64)] {
            assert!(ServerName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tool_name_is_exact_bytes() {
        for good in ["a", "files.read", "Get-Weather_2", &"x".repeat(128)] {
            assert_eq!(ToolName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", " a", "a ", "a/b", "ä", "a\n", &"x".repeat(129)] {
            assert!(ToolName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_message_about_a_bad_name_cannot_carry_control_characters() {
        let text = ToolName::parse("a\u{1b}[31m\n").unwrap_err().to_string();
        assert!(!text.chars().any(char::is_control), "{text}");
    }
}
