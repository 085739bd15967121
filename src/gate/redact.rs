//! Arguments as a record may hold them: the values of configured names replaced, at any depth. Off unless asked for.

use crate::config::{JournalConfig, RecordArguments};
use serde_json::Value;
use std::collections::BTreeSet;

/// What of the arguments goes on record.
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

    /// `None` when only the digest is kept. Arguments were read strictly before, so they do parse.
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
                members
                    .iter_mut()
                    .for_each(|(name, value)| match self.hidden.contains(&name.to_lowercase()) {
                        true => *value = Value::from("[redacted]"),
                        false => self.redact(value),
                    })
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
