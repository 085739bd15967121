//! Takes a JSON Web Token apart: header, claims and signature, refusing duplicate members. Verifies nothing, and never
//! follows what a token points at (`jku`, `x5u`, `jwk`, `x5c`).

use crate::domain::{Reason, Timestamp};
use crate::mcp;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

const MAX_KEY_ID: usize = 256;

/// A parsed token, not yet verified.
pub(super) struct Jwt<'a> {
    pub algorithm: Algorithm,
    pub key_id: String,
    /// The header's `typ`, in lower case.
    pub kind: Option<String>,
    pub claims: Claims,
    /// `header.payload`: the text that is signed.
    pub message: &'a str,
    pub signature: &'a str,
}

/// The members of a token's header or payload, or of the answer to an introspection.
pub(super) struct Claims(Map<String, Value>);

impl<'a> Jwt<'a> {
    /// Parses a token. `crit` is refused, because no extension is understood.
    pub fn read(text: &'a str) -> Result<Self, Reason> {
        let (message, signature) = text.rsplit_once('.').ok_or(Reason::MalformedCredential)?;
        let (header, payload) = message.split_once('.').ok_or(Reason::MalformedCredential)?;
        decode(signature)?;
        let header = Claims(part(header)?);
        if header.0.contains_key("crit") {
            return Err(Reason::MalformedCredential);
        }
        let algorithm = header.text("alg")?.ok_or(Reason::MalformedCredential)?;
        let key_id = header.text("kid")?.filter(|id| (1..=MAX_KEY_ID).contains(&id.len()));
        Ok(Self {
            algorithm: algorithm.parse().map_err(|_| Reason::WrongAlgorithm)?,
            key_id: key_id.ok_or(Reason::UnknownSigningKey)?.to_owned(),
            kind: header.text("typ")?.map(str::to_ascii_lowercase),
            claims: Claims(part(payload)?),
            message,
            signature,
        })
    }
}

/// Each accessor expects a type; a claim of another type makes the token malformed, never absent.
impl Claims {
    pub fn new(members: Map<String, Value>) -> Self {
        Self(members)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>, Reason> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Reason::MalformedCredential),
        }
    }

    pub fn flag(&self, name: &str) -> Result<bool, Reason> {
        match self.0.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Reason::MalformedCredential),
        }
    }

    /// A NumericDate (RFC 7519, 2): seconds, possibly with a fraction.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, Reason> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
                (Some(secs), _) => calendar_time(Timestamp::from_secs(secs)),
                // The cast saturates, at a time that is in no calendar.
                (None, Some(secs)) => calendar_time(Timestamp::from_micros((secs * 1e6) as i64)),
                (None, None) => Err(Reason::MalformedCredential),
            },
            Some(_) => Err(Reason::MalformedCredential),
        }
    }

    /// A string or an array of strings at a dotted path; empty if absent.
    pub fn texts(&self, path: &str) -> Result<Vec<&str>, Reason> {
        let text = |value: &'_ Value| match value {
            Value::String(_) => Ok(()),
            _ => Err(Reason::MalformedCredential),
        };
        match self.at(path) {
            None => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one]),
            Some(Value::Array(values)) => {
                values.iter().try_for_each(text)?;
                Ok(values.iter().filter_map(Value::as_str).collect())
            }
            Some(_) => Err(Reason::MalformedCredential),
        }
    }

    /// A claim whose own name has dots (`https://example.com/roles`) comes before a nested one.
    fn at(&self, path: &str) -> Option<&Value> {
        if let Some(value) = self.0.get(path) {
            return Some(value);
        }
        let mut steps = path.split('.');
        let first = self.0.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    }
}

fn part(text: &str) -> Result<Map<String, Value>, Reason> {
    strict_object(&decode(text)?).ok_or(Reason::MalformedCredential)
}

/// Parses a JSON object under the rules for messages, so that no two parsers read a token or a key set differently: no member
/// twice at any depth, no byte order mark, bounded in depth. `None` if it is no such object.
pub(super) fn strict_object(bytes: &[u8]) -> Option<Map<String, Value>> {
    mcp::check(bytes, &mcp::Bounds::default()).ok()?;
    serde_json::from_slice(bytes).ok()
}

fn decode(text: &str) -> Result<Vec<u8>, Reason> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Reason::MalformedCredential)
}

/// A number that is no time of the calendar (years -9999 to 9999) is no NumericDate.
fn calendar_time(at: Timestamp) -> Result<Option<Timestamp>, Reason> {
    if at.is_in_calendar() {
        Ok(Some(at))
    } else {
        Err(Reason::MalformedCredential)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> String {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", encode(header), encode(payload), encode("signature"))
    }

    fn refused(text: &str) -> Option<Reason> {
        Jwt::read(text).err()
    }

    const HEADER: &str = r#"{"alg":"ES256","kid":"1"}"#;

    #[test]
    fn a_token_has_three_parts_with_one_reading_each() {
        assert_eq!(refused(&token(HEADER, "{}")), None);
        let good = token(HEADER, "{}");
        let (message, signature) = good.rsplit_once('.').unwrap();
        for bad in [
            "",
            "a",
            "a.b",
            "..",
            message,
            &format!("{good}.x"),
            &format!("{message}.{signature}="),
            &format!(" {good}"),
            &token(HEADER, r#"{"aud":"a","aud":"b"}"#),
            &token(HEADER, r#"{"a":{"b":1,"b":2}}"#),
            &token(HEADER, "[]"),
            &token(HEADER, "{"),
            &token(r#"{"alg":"ES256","kid":"1","kid":"2"}"#, "{}"),
            &token(r#"{"alg":"ES256","kid":"1","crit":["b64"],"b64":false}"#, "{}"),
            &token(r#"{"alg":"ES256","kid":"1","crit":[]}"#, "{}"),
            &token(r#"{"alg":["ES256"],"kid":"1"}"#, "{}"),
            &token(r#"{"alg":"ES256","kid":1}"#, "{}"),
            &token(r#"{"kid":"1"}"#, "{}"),
        ] {
            assert_eq!(refused(bad), Some(Reason::MalformedCredential), "{bad}");
        }
        assert_eq!(
            refused(&format!("{message}.")),
            None,
            "no signature is a wrong one, which is found where keys are"
        );
        for alg in ["none", "NONE", "nOnE", "", "es256", "ES512", "HS255"] {
            let text = token(&format!(r#"{{"alg":"{alg}","kid":"1"}}"#), "{}");
            assert_eq!(refused(&text), Some(Reason::WrongAlgorithm), "{alg}");
        }
        let long = "x".repeat(MAX_KEY_ID + 1);
        for header in [
            r#"{"alg":"ES256"}"#.to_owned(),
            r#"{"alg":"ES256","kid":""}"#.to_owned(),
            format!(r#"{{"alg":"ES256","kid":"{long}"}}"#),
        ] {
            assert_eq!(refused(&token(&header, "{}")), Some(Reason::UnknownSigningKey));
        }
    }

    #[test]
    fn a_claim_of_the_wrong_type_is_not_an_absent_one() {
        let text = token(
            HEADER,
            r#"{"text":"a","list":["a","b"],"mixed":["a",1],"number":5,"half":1.5,"huge":1e300,"null":null,
                "meta":{"roles":["x"]},"https://a.b/roles":["y"]}"#,
        );
        let claims = Jwt::read(&text).unwrap().claims;
        let malformed = Reason::MalformedCredential;
        assert_eq!(claims.text("text"), Ok(Some("a")));
        assert_eq!(claims.text("absent"), Ok(None));
        for wrong in ["list", "number", "null"] {
            assert_eq!(claims.text(wrong), Err(malformed));
            assert_eq!(claims.flag(wrong), Err(malformed));
        }
        assert_eq!(claims.time("number"), Ok(Some(Timestamp::from_secs(5))));
        assert_eq!(claims.time("half"), Ok(Some(Timestamp::from_micros(1_500_000))));
        assert_eq!(claims.time("huge"), Err(malformed));
        assert_eq!((claims.time("text"), claims.time("null")), (Err(malformed), Err(malformed)));
        assert_eq!(claims.texts("list"), Ok(vec!["a", "b"]));
        assert_eq!(claims.texts("text"), Ok(vec!["a"]));
        assert_eq!(claims.texts("meta.roles"), Ok(vec!["x"]));
        assert_eq!(claims.texts("https://a.b/roles"), Ok(vec!["y"]));
        assert_eq!(claims.texts("meta.absent"), Ok(vec![]));
        for wrong in ["mixed", "number", "null", "meta"] {
            assert_eq!(claims.texts(wrong), Err(malformed), "{wrong}");
        }
    }

    #[test]
    fn a_member_named_twice_is_refused_however_it_is_spelt() {
        assert!(strict_object(br#"{"a":1,"b":{"a":2},"c":[{"a":3}]}"#).is_some());
        for twice in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"b":{"a":1,"a":2}}"#,
            r#"{"b":[{"a":1,"a":2}]}"#,
        ] {
            assert!(strict_object(twice.as_bytes()).is_none(), "{twice}");
        }
        for other in ["[]", "1", "null", "", "{} {}", "{\"a\":1", "\u{feff}{}", r#"{"a":1e999}"#] {
            assert!(strict_object(other.as_bytes()).is_none(), "{other}");
        }
        assert!(strict_object("[".repeat(5_000).as_bytes()).is_none());
    }
}
