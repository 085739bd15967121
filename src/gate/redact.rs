//! Redacts arguments for audit records: replaces the values of configured names at any depth. Off by default, so that a
//! record holds only the digest of the arguments.

use crate::config::{JournalConfig, RecordArguments};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Which arguments audit records hold, and which of them are hidden.
pub struct Redaction {
    keep: bool,
    hidden: BTreeSet<String>,
}

impl Redaction {
    pub fn new(config: &JournalConfig) -> Self {
        Self {
            keep: config.arguments == RecordArguments::Redacted,
            hidden: config.redact.iter().map(|name| name.to_lowercase()).collect(),
        }
    }

    /// The redacted arguments; `None` if there are none, or if records hold only their digest. `bytes` are the arguments as
    /// sent. They are read here if they were not parsed: the message was refused before, or its arguments are not judged.
    /// The strict parse has accepted them, so they do parse.
    pub fn apply(&self, parsed: Option<&Map<String, Value>>, bytes: Option<&[u8]>) -> Option<String> {
        let bytes = bytes.filter(|_| self.keep)?;
        let mut value = match parsed {
            Some(arguments) => Value::Object(arguments.clone()),
            None => serde_json::from_slice(bytes).ok()?,
        };
        self.redact(&mut value);
        Some(value.to_string())
    }

    fn redact(&self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if self.hidden.contains(&name.to_lowercase()) {
                        *value = Value::from("[redacted]");
                    } else {
                        self.redact(value);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.redact(item)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_name_is_hidden_at_any_depth_and_in_any_case() {
        let config = JournalConfig {
            arguments: RecordArguments::Redacted,
            redact: vec!["password".to_owned()],
            ..JournalConfig::default()
        };
        let text = r#"{"a":[{"Password":{"x":"s3cret"}}],"b":1}"#;
        let parsed: Map<String, Value> = serde_json::from_str(text).unwrap();
        let redaction = Redaction::new(&config);
        for kept in [
            redaction.apply(None, Some(text.as_bytes())),
            redaction.apply(Some(&parsed), Some(text.as_bytes())),
        ] {
            assert_eq!(kept.unwrap(), r#"{"a":[{"Password":"[redacted]"}],"b":1}"#);
        }
        assert_eq!(redaction.apply(Some(&Map::new()), None), None, "none were sent");
    }

    #[test]
    fn by_default_nothing_but_the_digest_is_kept() {
        assert_eq!(Redaction::new(&JournalConfig::default()).apply(None, Some(b"{}")), None);
    }
}
