//! Removes from a client's declared capabilities those that the server may not use. The remaining values keep their bytes.

use super::json::{Bounds, Fault, Malformed, Scan, Twins};
use super::names::fold_equal;
use super::splice::Place;
use crate::domain::{ClientRequest, ClientRequests};

/// The pruned capabilities; `None` if nothing is removed.
pub fn prune(message: &[u8], capabilities: Place, allowed: ClientRequests) -> Result<Option<String>, Malformed> {
    let written = capabilities.text(message);
    Ok(pruned(written, |name, value| keep(name, value, allowed))?)
}

/// An object without the member `member`; `None` if it has no such member.
pub fn without(message: &[u8], object: Place, member: &str) -> Result<Option<String>, Malformed> {
    let cut = |name: &str, _: &str| Ok(if fold_equal(name, member) { Kept::Cut } else { Kept::AsItIs });
    Ok(pruned(object.text(message), cut)?)
}

/// What happens to one member.
enum Kept {
    AsItIs,
    As(String),
    Cut,
}

fn keep(name: &str, value: &str, allowed: ClientRequests) -> Result<Kept, Fault> {
    let listed = |request| if allowed.allow(request) { Kept::AsItIs } else { Kept::Cut };
    // Names are compared without case, because some servers ignore case too.
    Ok(match name {
        _ if fold_equal(name, "sampling") => listed(ClientRequest::Sampling),
        _ if fold_equal(name, "roots") => listed(ClientRequest::Roots),
        _ if fold_equal(name, "elicitation") => elicitation(value, allowed)?,
        // Tasks that a client runs for a server. No server may ask for them.
        _ if fold_equal(name, "tasks") => Kept::Cut,
        _ => Kept::AsItIs,
    })
}

/// An `elicitation` capability with neither `form` nor `url` means forms.
fn elicitation(value: &str, allowed: ClientRequests) -> Result<Kept, Fault> {
    let forms = allowed.allow(ClientRequest::Elicitation);
    let urls = allowed.allow(ClientRequest::ElicitationUrl);
    if forms && urls {
        return Ok(Kept::AsItIs);
    }
    if !forms && !urls || !value.starts_with('{') {
        return Ok(Kept::Cut);
    }
    let (mut form, mut url, mut any) = (false, false, false);
    let kept = pruned(value, |name, _| {
        any = true;
        form |= fold_equal(name, "form");
        url |= fold_equal(name, "url");
        let cut = (fold_equal(name, "form") && !forms) || (fold_equal(name, "url") && !urls);
        Ok(if cut { Kept::Cut } else { Kept::AsItIs })
    })?;
    let offered = if urls { url } else { form || !url };
    Ok(match kept {
        _ if !offered => Kept::Cut,
        None => Kept::AsItIs,
        Some(text) => Kept::As(text),
    })
}

/// An object with the members that `keep` retains; `None` if all stay as they are.
fn pruned(object: &str, mut keep: impl FnMut(&str, &str) -> Result<Kept, Fault>) -> Result<Option<String>, Fault> {
    let bounds = Bounds::default();
    let mut scan = Scan::open(object.as_bytes(), &bounds, Twins::Folded)?;
    let (mut text, mut changed) = (String::from("{"), false);
    scan.object(0, &mut |scan, name, depth| {
        let name = scan.name(&name).to_owned();
        let range = scan.value(depth)?.range();
        let value = &object[range];
        let kept = keep(&name, value)?;
        changed |= !matches!(kept, Kept::AsItIs);
        let value = match &kept {
            Kept::AsItIs => value,
            Kept::As(value) => value,
            Kept::Cut => return Ok(()),
        };
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&serde_json::Value::from(name).to_string());
        text.push(':');
        text.push_str(value);
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
        let kept = pruned(capabilities, |name, value| keep(name, value, allowed)).unwrap();
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
