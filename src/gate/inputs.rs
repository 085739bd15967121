//! What records keep of arguments (`audit.inputs`): by default only a digest, under a key of the caller's own.

use crate::config::{AuditConfig, Inputs};
use crate::domain::{InputsKept, MAX_RECORD, RecordedInputs, RequestId};
use crate::journal::PersonKeys;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Longer arguments do not fit into their record once they are sealed (in base64), so they are not sealed at all.
const MOST_SEALED: usize = MAX_RECORD / 4 * 3;

/// Which form arguments have in records, and which of them are hidden.
pub struct InputKeeper {
    inputs: Inputs,
    hidden: BTreeSet<String>,
}

impl InputKeeper {
    pub fn new(config: &AuditConfig) -> Self {
        Self {
            inputs: config.inputs,
            hidden: config.redact.iter().map(|name| name.to_lowercase()).collect(),
        }
    }

    /// The arguments for the record of this request. `sent` are their bytes, `None` if there were none; `parsed` are the same
    /// where they were parsed already. `keys` are those of the caller; who is no user of the store has none, and no digest.
    pub fn keep(
        &self,
        request: RequestId,
        keys: Option<&PersonKeys>,
        parsed: Option<&Map<String, Value>>,
        sent: Option<&[u8]>,
    ) -> RecordedInputs {
        let Some(sent) = sent else {
            return RecordedInputs::default();
        };
        let digest = || RecordedInputs {
            kept: Some(InputsKept::Digest),
            key: keys.map(|keys| keys.version),
            digest: keys.map(|keys| keys.digest(sent)),
            text: None,
        };
        // The digest stays where the text is too long for its record.
        let kept_as = |kept, text| RecordedInputs {
            kept: Some(kept),
            text,
            ..digest()
        };
        match (self.inputs, keys) {
            (Inputs::Digest, _) | (Inputs::Sealed, None) => digest(),
            (Inputs::Redacted, _) => kept_as(InputsKept::Redacted, self.redacted(parsed, sent)),
            (Inputs::Sealed, Some(keys)) => {
                let fits = sent.len() <= MOST_SEALED;
                kept_as(InputsKept::Sealed, fits.then(|| keys.seal(request, sent)))
            }
            // The strict parse took no bytes that are not UTF-8.
            (Inputs::Plain, _) => kept_as(InputsKept::Plain, std::str::from_utf8(sent).ok().map(str::to_owned)),
        }
    }

    /// They are read here if they were not parsed: the message was refused before, or its arguments are not judged. The strict
    /// parse has accepted them, so they do parse.
    fn redacted(&self, parsed: Option<&Map<String, Value>>, sent: &[u8]) -> Option<String> {
        let mut value = match parsed {
            Some(arguments) => Value::Object(arguments.clone()),
            None => serde_json::from_slice(sent).ok()?,
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
    use crate::domain::InputSalt;
    use crate::journal::InputSecrets;
    use uuid::Uuid;

    const REQUEST: RequestId = RequestId(Uuid::from_u128(7));
    const TEXT: &str = r#"{"a":[{"Password":{"x":"s3cret"}}],"b":1.0}"#;

    fn kept(inputs: Inputs, keys: Option<&PersonKeys>) -> RecordedInputs {
        let redact = vec!["password".to_owned()];
        let config = AuditConfig {
            inputs,
            redact,
            ..AuditConfig::default()
        };
        let keeper = InputKeeper::new(&config);
        let none = keeper.keep(REQUEST, keys, Some(&Map::new()), None);
        assert_eq!(none, RecordedInputs::default(), "none were sent");
        let parsed: Map<String, Value> = serde_json::from_str(TEXT).unwrap();
        let [one, other] = [None, Some(&parsed)].map(|parsed| keeper.keep(REQUEST, keys, parsed, Some(TEXT.as_bytes())));
        if inputs != Inputs::Sealed {
            assert_eq!(one, other);
        }
        one
    }

    #[test]
    fn each_setting_keeps_what_it_says() {
        let keys = InputSecrets::random().unwrap().newest_keys(&InputSalt([1; 32]));
        let digest = RecordedInputs {
            kept: Some(InputsKept::Digest),
            key: Some(1),
            digest: Some(keys.digest(TEXT.as_bytes())),
            text: None,
        };
        assert_eq!(kept(Inputs::Digest, Some(&keys)), digest);
        let redacted = RecordedInputs {
            kept: Some(InputsKept::Redacted),
            text: Some(r#"{"a":[{"Password":"[redacted]"}],"b":1.0}"#.to_owned()),
            ..digest
        };
        assert_eq!(kept(Inputs::Redacted, Some(&keys)), redacted);
        let long = vec![b' '; MOST_SEALED + 1];
        let config = AuditConfig {
            inputs: Inputs::Sealed,
            ..AuditConfig::default()
        };
        let padded = InputKeeper::new(&config).keep(REQUEST, Some(&keys), None, Some(&long));
        let whole = (padded.kept, padded.digest, padded.text);
        assert_eq!(
            whole,
            (Some(InputsKept::Sealed), Some(keys.digest(&long)), None),
            "too long for its record"
        );
        let plain = kept(Inputs::Plain, Some(&keys));
        assert_eq!(
            (plain.kept, plain.digest, plain.text.as_deref()),
            (Some(InputsKept::Plain), digest.digest, Some(TEXT))
        );
        let sealed = kept(Inputs::Sealed, Some(&keys));
        assert_eq!(
            (sealed.kept, sealed.key, sealed.digest),
            (Some(InputsKept::Sealed), Some(1), digest.digest)
        );
        assert_eq!(keys.open(REQUEST, &sealed.text.unwrap()).unwrap(), TEXT.as_bytes());
    }

    #[test]
    fn without_a_key_nothing_is_kept_that_could_be_guessed() {
        let nothing = RecordedInputs {
            kept: Some(InputsKept::Digest),
            ..RecordedInputs::default()
        };
        assert_eq!(kept(Inputs::Digest, None), nothing);
        assert_eq!(kept(Inputs::Sealed, None), nothing);
        assert_eq!(kept(Inputs::Redacted, None).digest, None);
    }
}
