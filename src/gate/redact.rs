//! Redacts arguments for audit records: replaces the values of configured names at any depth. Off by default, so that a
//! record holds only the digest of the arguments.

use crate::config::{JournalConfig, RecordArguments};
use serde_json::Value;
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

    /// The redacted arguments; `None` if records hold only the digest. The strict parse has accepted the arguments before,
    /// so they do parse here.
    pub fn apply(&self, arguments: Option<&[u8]>) -> Option<String> {
        if !self.keep {
            return None;
        }
        let mut value = serde_json::from_slice(arguments?).ok()?;
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
        let kept = Redaction::new(&config)
            .apply(Some(br#"{"a":[{"Password":{"x":"s3cret"}}],"b":1}"#))
            .unwrap();
        assert_eq!(kept, r#"{"a":[{"Password":"[redacted]"}],"b":1}"#);
    }

    #[test]
    fn by_default_nothing_but_the_digest_is_kept() {
        assert_eq!(Redaction::new(&JournalConfig::default()).apply(Some(b"{}")), None);
    }
}
