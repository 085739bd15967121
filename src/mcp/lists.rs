//! `tools/list` answers rewritten for one caller: hidden tools go, shown ones carry their pinned definition, everything
//! else stays byte for byte. Filtering is a courtesy; the call itself is what is judged.

use super::answer::ANSWER_BOUNDS;
use super::json::{Fault, Kind, Malformed, Scan, Span, Twins, decode};
use super::splice::spliced;
use crate::domain::{Era, Reason};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Rewrites `result.tools`: `keep` gives the definition to show for a name, or `None` to hide it. An answer that is an
/// error comes back as it is.
pub fn filter_tools(answer: &[u8], keep: &mut dyn FnMut(&str) -> Option<Arc<str>>, era: Era) -> Result<Bytes, Malformed> {
    let list = List::read(answer)?;
    match (list.result, list.tools) {
        (None, _) => Ok(Bytes::copy_from_slice(answer)),
        (Some(_), None) => Err(Malformed::new(Reason::UpstreamBroken, "the answer has no list of tools")),
        (Some(result), Some(tools)) => Ok(rewritten(answer, &list, result, tools, keep, era)?),
    }
}

/// The same for an answer of which it is not known what it answers: `None` if it holds no list of tools.
pub fn filter_listed(
    answer: &[u8],
    keep: &mut dyn FnMut(&str) -> Option<Arc<str>>,
    era: Era,
) -> Result<Option<Bytes>, Malformed> {
    let list = List::read(answer)?;
    match (list.result, list.tools) {
        (Some(result), Some(tools)) => Ok(Some(rewritten(answer, &list, result, tools, keep, era)?)),
        _ => Ok(None),
    }
}

fn rewritten(
    answer: &[u8],
    list: &List,
    result: Span,
    tools: Span,
    keep: &mut dyn FnMut(&str) -> Option<Arc<str>>,
    era: Era,
) -> Result<Bytes, Fault> {
    let inside = result.range().start + 1;
    let mut edits = vec![(tools.range(), shown(answer, &list.items, keep)?)];
    match list.cache_scope {
        Some(span) => edits.push((span.range(), r#""private""#.to_owned())),
        None if era == Era::Modern => edits.push((inside..inside, r#""cacheScope":"private","#.to_owned())),
        None => (),
    }
    Ok(spliced(answer, edits))
}

struct List {
    result: Option<Span>,
    tools: Option<Span>,
    cache_scope: Option<Span>,
    /// The name of each tool, where it has one.
    items: Vec<Option<Span>>,
}

impl List {
    fn read(answer: &[u8]) -> Result<Self, Fault> {
        let mut scan = Scan::open(answer, &ANSWER_BOUNDS, Twins::Exact)?;
        let mut items = Vec::new();
        let (mut tools, mut cache_scope) = (None, None);
        let fields = scan.fields(0, &["jsonrpc", "id", "result", "error"], |scan, index, depth| {
            if index != 2 || scan.peek() != Some(b'{') {
                return scan.value(depth);
            }
            let start = scan.here();
            let fields = scan.fields(depth, &["tools", "cacheScope"], |scan, index, depth| {
                if index != 0 || scan.peek() != Some(b'[') {
                    return scan.value(depth);
                }
                read_tools(scan, depth, &mut items)
            })?;
            tools = fields.spans[0].filter(|span| span.kind == Kind::Array);
            cache_scope = fields.spans[1];
            Ok(scan.since(start, Kind::Object))
        })?;
        scan.close()?;
        Ok(Self {
            result: fields.spans[2],
            tools,
            cache_scope,
            items,
        })
    }
}

fn read_tools(scan: &mut Scan<'_>, depth: usize, items: &mut Vec<Option<Span>>) -> Result<Span, Fault> {
    let start = scan.here();
    scan.array(depth, &mut |scan, depth| {
        let name = match scan.peek() {
            Some(b'{') => scan.fields(depth, &["name"], |scan, _, depth| scan.value(depth))?.spans[0],
            _ => {
                scan.value(depth)?;
                None
            }
        };
        items.push(name.filter(|span| matches!(span.kind, Kind::Text(_))));
        Ok(())
    })?;
    Ok(scan.since(start, Kind::Array))
}

fn shown(answer: &[u8], items: &[Option<Span>], keep: &mut dyn FnMut(&str) -> Option<Arc<str>>) -> Result<String, Fault> {
    let mut text = String::from("[");
    let mut seen = BTreeSet::new();
    for span in items.iter().flatten() {
        let name = decode(answer, *span)?;
        let Some(definition) = keep(&name) else { continue };
        if !seen.insert(name) {
            continue;
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&definition);
    }
    text.push(']');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(answer: &str, era: Era) -> String {
        let mut keep = |name: &str| match name {
            "hidden" => None,
            "Hidden" => None,
            name => Some(format!(r#"{{"name":"{name}","pinned":true}}"#).into()),
        };
        String::from_utf8(filter_tools(answer.as_bytes(), &mut keep, era).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn hidden_tools_go_and_shown_ones_are_as_pinned() {
        let answer = r#"{ "jsonrpc":"2.0", "id":1, "result":{"nextCursor":"c", "tools":[ {"name":"b","description":"new"}, {"name":"hidden"},
            {"description":"nameless"}, 7, {"name":1}, {"n\u0061me":"a"}, {"name":"b"} ], "x" : 1.50}}"#;
        let wanted = r#"{ "jsonrpc":"2.0", "id":1, "result":{"nextCursor":"c", "tools":[{"name":"b","pinned":true},{"name":"a","pinned":true}], "x" : 1.50}}"#;
        assert_eq!(filtered(answer, Era::Legacy), wanted);
        let emptied = filtered(
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"hidden"}]}}"#,
            Era::Legacy,
        );
        assert_eq!(emptied, r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#);
    }

    #[test]
    fn a_list_is_found_in_an_answer_to_nobody_knows_what() {
        let listed = |answer: &str| {
            let found = filter_listed(answer.as_bytes(), &mut |_| None, Era::Legacy);
            found.map(|found| found.map(|body| String::from_utf8(body.to_vec()).unwrap()))
        };
        let hidden = listed(r#"{"jsonrpc":"2.0","id":9,"result":{"tools":[{"name":"hidden"}]}}"#);
        assert_eq!(hidden.unwrap().unwrap(), r#"{"jsonrpc":"2.0","id":9,"result":{"tools":[]}}"#);
        assert_eq!(listed(r#"{"jsonrpc":"2.0","id":9,"result":{"content":[]}}"#), Ok(None));
        assert!(listed(r#"{"jsonrpc":"2.0","id":9,"result":{"Tools":[{"name":"hidden"}]}}"#).is_err());
    }

    #[test]
    fn a_filtered_list_is_private() {
        let list = |scope: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{{scope}"tools":[],"ttlMs":5}}}}"#);
        for scope in [
            r#""cacheScope":"public","#,
            r#""cacheScope": 7 ,"#,
            r#""cacheScope":"private","#,
            "",
        ] {
            let shown: serde_json::Value = serde_json::from_str(&filtered(&list(scope), Era::Modern)).unwrap();
            assert_eq!(shown["result"]["cacheScope"], "private", "{scope}");
        }
        assert_eq!(filtered(&list(""), Era::Legacy), list(""));
    }

    #[test]
    fn errors_pass_and_what_cannot_be_filtered_does_not() {
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"tools"}}"#;
        assert_eq!(filtered(error, Era::Modern), error);
        for answer in [
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":{"a":{"name":"hidden"}}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"tools":[{"name":"hidden"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"Tools":[{"name":"hidden"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","name":"hidden"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}"#,
        ] {
            assert!(
                filter_tools(answer.as_bytes(), &mut |_| None, Era::Legacy).is_err(),
                "{answer}"
            );
        }
    }
}
