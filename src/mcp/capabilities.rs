//! The capabilities of clients. Removes from what a client declares those that the server may not use; the remaining values
//! keep their bytes. Writes those that Guardian declares for itself, and reads which requests a client declares to answer.

use super::json::{Bounds, DuplicateNames, Fault, JsonSpan, Malformed, Scanner};
use super::member_names::fold_equal;
use crate::domain::{ClientRequest, ClientRequests};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// The pruned capabilities; `None` if nothing is removed.
pub fn prune_capabilities(message: &[u8], capabilities: JsonSpan, allowed: ClientRequests) -> Result<Option<String>, Malformed> {
    let written = capabilities.text(message);
    Ok(pruned(written, |name, value| prune_member(name, value, allowed))?)
}

/// The capabilities of a client that answers these requests.
pub fn declare_capabilities(requests: ClientRequests) -> Value {
    let mut capabilities = json!({});
    for request in requests.kinds() {
        match request {
            ClientRequest::Sampling => capabilities["sampling"] = json!({}),
            ClientRequest::Elicitation => capabilities["elicitation"]["form"] = json!({}),
            ClientRequest::ElicitationUrl => capabilities["elicitation"]["url"] = json!({}),
            ClientRequest::Roots => capabilities["roots"] = json!({}),
        }
    }
    capabilities
}

/// The requests that a client with these capabilities answers.
pub fn declared_requests(capabilities: &Map<String, Value>) -> ClientRequests {
    let elicitation = capabilities.get("elicitation").and_then(Value::as_object);
    let elicits = |mode: &str| elicitation.is_some_and(|modes| modes.contains_key(mode));
    let declared = |request: &ClientRequest| match request {
        ClientRequest::Sampling => capabilities.contains_key("sampling"),
        ClientRequest::Roots => capabilities.contains_key("roots"),
        ClientRequest::ElicitationUrl => elicits("url"),
        // Neither mode means forms.
        ClientRequest::Elicitation => elicits("form") || elicitation.is_some() && !elicits("url"),
    };
    ClientRequest::ALL.into_iter().filter(declared).collect()
}

/// An object without the member `member`; `None` if it has no such member.
pub fn without_member(message: &[u8], object: JsonSpan, member: &str) -> Result<Option<String>, Malformed> {
    Ok(pruned(object.text(message), |name, value| {
        Ok(unless(fold_equal(name, member), value))
    })?)
}

/// A value that is kept, unless it is cut.
fn unless(is_cut: bool, value: &str) -> Option<Cow<'_, str>> {
    (!is_cut).then_some(Cow::Borrowed(value))
}

/// What stays of one capability; `None` if it is removed.
fn prune_member<'v>(name: &str, value: &'v str, allowed: ClientRequests) -> Result<Option<Cow<'v, str>>, Fault> {
    // Names are compared without case, because some servers ignore case too.
    Ok(match name {
        _ if fold_equal(name, "sampling") => unless(!allowed.allow(ClientRequest::Sampling), value),
        _ if fold_equal(name, "roots") => unless(!allowed.allow(ClientRequest::Roots), value),
        _ if fold_equal(name, "elicitation") => elicitation(value, allowed)?,
        // Tasks that a client runs for a server. No server may ask for them.
        _ => unless(fold_equal(name, "tasks"), value),
    })
}

/// An `elicitation` capability with neither `form` nor `url` means forms.
fn elicitation(value: &str, allowed: ClientRequests) -> Result<Option<Cow<'_, str>>, Fault> {
    let forms = allowed.allow(ClientRequest::Elicitation);
    let urls = allowed.allow(ClientRequest::ElicitationUrl);
    if forms && urls {
        return Ok(Some(value.into()));
    }
    if !forms && !urls || !value.starts_with('{') {
        return Ok(None);
    }
    let (mut form, mut url, mut any) = (false, false, false);
    let kept = pruned(value, |name, value| {
        any = true;
        form |= fold_equal(name, "form");
        url |= fold_equal(name, "url");
        let cut = (fold_equal(name, "form") && !forms) || (fold_equal(name, "url") && !urls);
        Ok(unless(cut, value))
    })?;
    let offered = if urls { url } else { form || !url };
    Ok(offered.then(|| kept.map_or(value.into(), Cow::Owned)))
}

/// An object with what `keep` leaves of its members; `None` if all stay as they are.
fn pruned(
    object: &str,
    mut keep: impl for<'v> FnMut(&str, &'v str) -> Result<Option<Cow<'v, str>>, Fault>,
) -> Result<Option<String>, Fault> {
    let bounds = Bounds::default();
    let mut scanner = Scanner::open(object.as_bytes(), &bounds, DuplicateNames::Folded)?;
    let (mut text, mut changed) = (String::from("{"), false);
    scanner.object(0, &mut |scanner, name, depth| {
        let name = scanner.name(&name).to_owned();
        let range = scanner.value(depth)?.range();
        let value = &object[range];
        let kept = keep(&name, value)?;
        changed |= !matches!(kept, Some(Cow::Borrowed(_)));
        let Some(value) = kept else { return Ok(()) };
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&serde_json::Value::from(name).to_string());
        text.push(':');
        text.push_str(&value);
        Ok(())
    })?;
    text.push('}');
    Ok(changed.then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClientRequest as Of;

    fn cut(capabilities: &str, allowed: &[ClientRequest]) -> String {
        let allowed: ClientRequests = allowed.iter().copied().collect();
        let kept = pruned(capabilities, |name, value| prune_member(name, value, allowed)).unwrap();
        kept.unwrap_or_else(|| "untouched".to_owned())
    }

    #[test]
    fn what_a_server_may_not_ask_is_not_offered_to_it() {
        let all = r#"{"sampling":{"tools":{}}, "roots":{"listChanged":true},"elicitation":{"form":{},"url":{}},"extensions":{"a/b":{ "n":1.0 }}}"#;
        assert_eq!(cut(all, &Of::ALL), "untouched");
        assert_eq!(cut(all, &[]), r#"{"extensions":{"a/b":{ "n":1.0 }}}"#);
        assert_eq!(
            cut(all, &[Of::Sampling, Of::ElicitationUrl]),
            r#"{"sampling":{"tools":{}},"elicitation":{"url":{}},"extensions":{"a/b":{ "n":1.0 }}}"#
        );
        assert_eq!(cut(r#"{"experimental":{"x":{}}}"#, &[]), "untouched");
        assert_eq!(cut("{}", &[]), "untouched");
        assert_eq!(cut(r#"{"Sampl\u0069ng":{}}"#, &[]), "{}");
        assert_eq!(
            cut(r#"{"tasks":{"list":{}}}"#, &Of::ALL),
            "{}",
            "clients run no tasks for servers"
        );
    }

    #[test]
    fn what_guardian_declares_is_what_a_client_with_it_answers() {
        for kinds in [
            &[][..],
            &[Of::Sampling],
            &[Of::Elicitation],
            &[Of::ElicitationUrl, Of::Roots],
            &Of::ALL,
        ] {
            let requests: ClientRequests = kinds.iter().copied().collect();
            let declared = declare_capabilities(requests);
            assert_eq!(declared_requests(declared.as_object().unwrap()), requests, "{declared}");
            assert_eq!(cut(&declared.to_string(), kinds), "untouched");
        }
        let forms = json!({ "elicitation": {} });
        let forms = declared_requests(forms.as_object().unwrap());
        assert!(forms.allow(Of::Elicitation) && !forms.allow(Of::ElicitationUrl));
    }

    #[test]
    fn forms_and_urls_are_told_apart() {
        let form = |elicitation: &str| cut(&format!(r#"{{"elicitation":{elicitation}}}"#), &[Of::Elicitation]);
        let url = |elicitation: &str| cut(&format!(r#"{{"elicitation":{elicitation}}}"#), &[Of::ElicitationUrl]);
        assert_eq!(form("{}"), "untouched");
        assert_eq!(form(r#"{"form":{}}"#), "untouched");
        assert_eq!(form(r#"{"form":{},"url":{}}"#), r#"{"elicitation":{"form":{}}}"#);
        assert_eq!(form(r#"{"url":{}}"#), "{}");
        assert_eq!(form("null"), "{}");
        assert_eq!(url("{}"), "{}");
        assert_eq!(url(r#"{"form":{}}"#), "{}");
        assert_eq!(url(r#"{"url":{},"form":{}}"#), r#"{"elicitation":{"url":{}}}"#);
        assert_eq!(url(r#"{"url":{}}"#), "untouched");
    }
}
