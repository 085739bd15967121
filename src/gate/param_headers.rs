//! `Mcp-Param-*` headers (2026-07-28), which repeat tool arguments. A header that the tool declares with `x-mcp-header` must
//! equal its argument, and is written again from the argument; undeclared ones are forwarded unchanged.
//! No header takes part in the policy decision.

use crate::decide::{ParamHeader, ParamHeaderKind, Permit, Snapshot};
use crate::domain::{Call, Era, Method, Reason, Refusal};
use crate::mcp::{decode_header_value, encode_header_value};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

pub type HeaderField = (HeaderName, HeaderValue);

const PREFIX: &str = "mcp-param-";
/// The largest integer that every JSON parser keeps exactly (RFC 8259, section 6).
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// The `Mcp-Param-*` headers to forward with a permitted call.
pub(super) fn checked_headers(permit: &Permit, headers: &HeaderMap, snapshot: &Snapshot) -> Result<Vec<HeaderField>, Refusal> {
    if permit.call().era == Era::Legacy {
        return Ok(Vec::new());
    }
    let declared = declared_headers(permit.call(), snapshot)?;
    let is_declared = |name: &HeaderName| declared.iter().any(|param_header| param_header.field == name.as_str());
    let undeclared = |(name, _): &(&HeaderName, &HeaderValue)| name.as_str().starts_with(PREFIX) && !is_declared(name);
    let passed = headers.iter().filter(undeclared);
    let mut fields: Vec<HeaderField> = passed.map(|(name, value)| (name.clone(), value.clone())).collect();
    for param_header in declared {
        fields.extend(checked_header(param_header, permit.arguments(), headers)?);
    }
    Ok(fields)
}

/// The headers that the called tool declares. A tool with an invalid `x-mcp-header` does not exist for modern clients.
fn declared_headers<'a>(call: &Call, snapshot: &'a Snapshot) -> Result<&'a [ParamHeader], Refusal> {
    if call.method != Method::ToolsCall {
        return Ok(&[]);
    }
    let tool = call.tool().and_then(|tool| snapshot.tool(&call.server, tool.as_str()));
    match tool.map(|tool| tool.param_headers()) {
        None => Ok(&[]),
        Some(Ok(declared)) => Ok(declared),
        Some(Err(why)) => Err(Refusal::with_detail(
            Reason::UnknownTool,
            format!("it is left out, because {why}"),
        )),
    }
}

/// Checks one declared header against its argument and writes it again.
fn checked_header(
    param_header: &ParamHeader,
    arguments: Option<&Map<String, Value>>,
    headers: &HeaderMap,
) -> Result<Option<HeaderField>, Refusal> {
    let mismatch = |what: &str| Refusal::with_detail(Reason::HeaderMismatch, format!("{} {what}", param_header.field));
    let argument = arguments.and_then(|arguments| argument_at(&param_header.path, arguments));
    let mut values = headers.get_all(param_header.field.as_str()).iter();
    let (argument, field) = match (argument, values.next(), values.next()) {
        (_, _, Some(_)) => return Err(mismatch("is there more than once")),
        (None, None, None) => return Ok(None),
        (None, Some(_), None) => return Err(mismatch("is there, the argument is not")),
        (Some(_), None, None) => return Err(mismatch("is missing")),
        (Some(argument), Some(field), None) => (argument, field),
    };
    let text = field.to_str().ok().map(|text| text.trim_matches([' ', '\t']));
    let said = text
        .and_then(decode_header_value)
        .ok_or_else(|| mismatch("is not readable"))?;
    if !matches(&said, argument, param_header.kind) {
        return Err(mismatch("does not say what the argument says"));
    }
    let written = match argument {
        Value::String(text) => encode_header_value(text).into_owned(),
        Value::Number(_) => as_safe_integer(argument).map(|number| number.to_string()).unwrap_or_default(),
        other => other.to_string(),
    };
    let name = HeaderName::from_bytes(param_header.field.as_bytes());
    let value = HeaderValue::from_str(&written);
    match (name, value) {
        (Ok(name), Ok(value)) => Ok(Some((name, value))),
        _ => Err(mismatch("cannot be written")),
    }
}

/// The argument at a path; `None` if it is absent or null.
fn argument_at<'a>(path: &[String], arguments: &'a Map<String, Value>) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let argument = rest.iter().try_fold(arguments.get(first)?, |value, name| value.get(name))?;
    Some(argument).filter(|argument| !argument.is_null())
}

fn matches(said: &str, argument: &Value, kind: ParamHeaderKind) -> bool {
    match (kind, argument) {
        (ParamHeaderKind::String, Value::String(text)) => said == text,
        (ParamHeaderKind::Boolean, Value::Bool(flag)) => said == if *flag { "true" } else { "false" },
        (ParamHeaderKind::Integer, Value::Number(_)) => {
            let digits = said.strip_prefix('-').unwrap_or(said);
            let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_whole && as_safe_integer(argument).is_some() && as_safe_integer(argument) == said.parse().ok()
        }
        _ => false,
    }
}

/// The value of an integer however it is written, e.g. `42.0` as 42; `None` outside the exact range.
fn as_safe_integer(number: &Value) -> Option<i64> {
    let number = number.as_i64().or_else(|| {
        let number = number.as_f64()?;
        // The range check follows below. Within the range a double holds every integer exactly.
        (number.fract() == 0.0 && number.abs() <= MAX_SAFE_INTEGER as f64).then_some(number as i64)
    });
    number.filter(|number| number.abs() <= MAX_SAFE_INTEGER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mirrored(kind: ParamHeaderKind) -> ParamHeader {
        ParamHeader {
            field: "mcp-param-x".to_owned(),
            path: vec!["a".to_owned(), "b".to_owned()],
            kind,
        }
    }

    fn sent(kind: ParamHeaderKind, argument: Value, values: &[&str]) -> Result<Option<String>, Reason> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("mcp-param-x", HeaderValue::from_str(value).unwrap());
        }
        match checked_header(&mirrored(kind), json!({ "a": { "b": argument } }).as_object(), &headers) {
            Ok(field) => Ok(field.map(|(_, value)| value.to_str().unwrap().to_owned())),
            Err(refusal) => Err(refusal.reason),
        }
    }

    #[test]
    fn a_field_says_what_its_argument_says_and_is_written_anew() {
        use ParamHeaderKind::{Boolean, Integer, String};
        for (kind, argument, said, written) in [
            (String, json!("us-west1"), "us-west1", "us-west1"),
            (String, json!("us-west1"), "=?base64?dXMtd2VzdDE=?=", "us-west1"),
            (
                String,
                json!("Hello, 世界"),
                "=?base64?SGVsbG8sIOS4lueVjA==?=",
                "=?base64?SGVsbG8sIOS4lueVjA==?=",
            ),
            (
                String,
                json!(" padded "),
                "=?base64?IHBhZGRlZCA=?=",
                "=?base64?IHBhZGRlZCA=?=",
            ),
            (Integer, json!(42), "42", "42"),
            (Integer, json!(42), "042", "42"),
            (Integer, json!(42.0), "42", "42"),
            (Integer, json!(-7), "-7", "-7"),
            (Integer, json!(0), "-0", "0"),
            (Integer, json!(MAX_SAFE_INTEGER), "9007199254740991", "9007199254740991"),
            (Boolean, json!(true), "true", "true"),
            (Boolean, json!(false), "false", "false"),
        ] {
            assert_eq!(
                sent(kind, argument.clone(), &[said]),
                Ok(Some(written.to_owned())),
                "{argument} {said}"
            );
        }
        assert_eq!(sent(String, Value::Null, &[]), Ok(None));
    }

    #[test]
    fn a_field_that_says_something_else_is_refused() {
        use ParamHeaderKind::{Boolean, Integer, String};
        for (kind, argument, said) in [
            (String, json!("a"), &["b"][..]),
            (String, json!("a"), &["A"]),
            (String, json!("a"), &[]),
            (String, json!("a"), &["a", "a"]),
            (String, json!("a"), &["=?base64?YQ?="]),
            (String, json!("1"), &["=?base64?MQ==?=", "1"]),
            (String, json!(1), &["1"]),
            (String, Value::Null, &["null"]),
            (String, Value::Null, &[""]),
            (Integer, json!(42), &["43"]),
            (Integer, json!(42), &["42.0"]),
            (Integer, json!(42), &["+42"]),
            (Integer, json!(42), &["0x2a"]),
            (Integer, json!(42), &[""]),
            (Integer, json!(42.5), &["42"]),
            (Integer, json!(MAX_SAFE_INTEGER + 1), &["9007199254740992"]),
            (Integer, json!(1e300), &["1"]),
            (Boolean, json!(true), &["True"]),
            (Boolean, json!(true), &["1"]),
            (Boolean, json!(false), &["true"]),
        ] {
            assert_eq!(
                sent(kind, argument.clone(), said),
                Err(Reason::HeaderMismatch),
                "{argument} {said:?}"
            );
        }
    }
}
