//! Fuzz target: what Guardian reads in a server's message, and what it writes instead, is what a plain reading by serde_json
//! has. Every function is compared with a model of it, byte for byte; a rewrite of one must agree with its model.
//!
//! A message that a lenient parser could read otherwise may be refused. One that is plain must not be.

#![no_main]

#[path = "server_messages/model.rs"]
mod model;

use bytes::Bytes;
use model::{Model, object};
use neural_guardian::domain::{ClientRequest, ClientRequests, Era, MessageId, ServerName};
use neural_guardian::mcp::{
    Bounds, Edits, JsonRpcKind, JsonSpan, ListKind, ListVisibility, Malformed, Message, MessageKind, Namespace, Page,
    ServerMessage, ServerNotification, StreamKind, VisibilityFn, check, merge_pages, parse_message, prune_capabilities,
    rename_tool, without_member,
};

const LISTS: [ListKind; 4] = [ListKind::Tools, ListKind::Resources, ListKind::Templates, ListKind::Prompts];
/// As Guardian bounds a server's message.
const BOUNDS: Bounds = Bounds {
    depth: 100,
    members: 1_000_000,
    number_digits: 300,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let valid = check(bytes, &BOUNDS).is_ok();
    let message = Bytes::copy_from_slice(bytes);
    let model = valid
        .then(|| std::str::from_utf8(bytes).expect("valid JSON is UTF-8"))
        .and_then(Model::new);
    match &model {
        Some(model) => {
            kinds(&message, model);
            routes(&message, model);
            readdresses(&message);
            rewrites(&message, model);
            pages(&message, model);
        }
        None => refused(&message),
    }
    capabilities(bytes);
});

/// No function takes what is no object, or no JSON at all.
fn refused(message: &Bytes) {
    let seven = id("7");
    assert!(
        matches!(ServerMessage::classify(message, &seven), (MessageKind::Malformed(_), said) if said == ServerMessage::default())
    );
    assert!(ServerMessage::parse(message).is_err());
    assert!(renamed(message, &namespace()).is_err());
    let filtered = filter_if_list(message, &mut shown, Era::Modern);
    assert!(!matches!(filtered, Ok(Some(_))));
    assert!(LISTS.iter().all(|of| Page::read(message, *of).is_none()));
}

fn kinds(message: &Bytes, model: &Model) {
    for sent in ["7", r#""a\/b""#] {
        let id = id(sent);
        let kind = match ServerMessage::parse(message) {
            Ok(parsed) => parsed.envelope_kind(message, &id),
            Err(malformed) => MessageKind::Malformed(malformed.detail),
        };
        let (wanted, kind) = (model.kind(sent), bare(kind));
        assert!(kind == wanted || (refuses(&kind) && !model.plain), "{kind:?}, not {wanted:?}");
        let (heard_kind, said) = ServerMessage::classify(message, &id);
        let heard_kind = bare(heard_kind);
        assert!(heard_kind == kind || refuses(&heard_kind), "{heard_kind:?}, but {kind:?}");
        match model.said() {
            Some(told) if model.plain || said != ServerMessage::default() => {
                assert_eq!(heard_kind, wanted);
                assert_eq!(tell(&said), told);
            }
            Some(_) => {}
            None => assert!(
                refuses(&heard_kind) && said == ServerMessage::default(),
                "{heard_kind:?} {said:?}"
            ),
        }
    }
    let parsed = ServerMessage::parse(message).ok();
    let readdressed = parsed
        .as_ref()
        .and_then(|parsed| parsed.readdressed(message, &id("\"n\"")).ok());
    same(readdressed.as_deref(), model.readdressed("\"n\"").as_deref(), model.plain);
    if model.plain {
        let version = parsed.and_then(|parsed| parsed.negotiated_version(message));
        assert_eq!(version, model.negotiated());
    }
}

fn routes(message: &Bytes, model: &Model) {
    let parsed = ServerMessage::parse(message).ok();
    let found = parsed.as_ref().and_then(|parsed| {
        let (kind, method) = match parsed.route().ok()? {
            JsonRpcKind::Request(method) => ("request", method),
            JsonRpcKind::Notification(method) => ("notification", method),
            JsonRpcKind::Response => ("answer", String::new()),
        };
        let cancelled = parsed.cancelled_request.filter(|_| kind == "notification");
        let id = parsed.id.or(parsed.response_id());
        let places = [id, parsed.progress_token, cancelled].map(|place| place.map(JsonSpan::range));
        Some((kind, method, places))
    });
    same(found.as_ref(), model.wire().as_ref(), model.plain);
    let noticed = parsed
        .and_then(|parsed| parsed.notification(message))
        .map(|notice| match notice {
            ServerNotification::ResourceUpdated(uri) => Some(uri),
            ServerNotification::Other => None,
        });
    same(noticed.as_ref(), model.notice().as_ref(), model.plain);
}

/// With another id, an answer is what a fresh parse of it finds. (The place that a complaint names is one in what the server
/// sent, not in what was written.)
fn readdresses(message: &Bytes) {
    let Ok(parsed) = ServerMessage::parse(message) else { return };
    if parsed.route() != Ok(JsonRpcKind::Response) {
        return;
    }
    for sent in ["7", "-1234567890", r#""n""#, r#""a\/b\u00e9""#] {
        let sent = id(sent);
        let (written, moved) = parsed.clone().with_response_id(message, &sent);
        let (kind, said) = moved.into_kind(&written, &sent);
        let (fresh_kind, fresh_said) = ServerMessage::classify(&written, &sent);
        assert_eq!((bare(kind), said), (bare(fresh_kind), fresh_said));
    }
}

fn rewrites(message: &Bytes, model: &Model) {
    for era in [Era::Legacy, Era::Modern] {
        for of in LISTS {
            let filtered = filter_list(message, of, &mut shown, era);
            same(text(&filtered), model.filtered(Some(of), era).as_deref(), model.plain);
            if let Ok(filtered) = &filtered {
                nothing_hidden(filtered);
            }
        }
        let filtered = filter_if_list(message, &mut shown, era).and_then(|found| found.ok_or_else(nothing));
        same(text(&filtered), model.filtered(None, era).as_deref(), model.plain);
        same(text(&mark_private(message, era)), model.private(era).as_deref(), model.plain);
    }
    same(text(&renamed(message, &namespace())), Some(&model.renamed()), model.plain);
    let definition = std::str::from_utf8(message).expect("a model is made of text");
    same(
        rename_tool(definition, "p\"q").ok().as_ref(),
        Some(&model.redefined("p\"q")),
        model.plain,
    );
    if let (
        _,
        ServerMessage {
            tasks_capability: Some(place),
            ..
        },
    ) = ServerMessage::classify(message, &id("7"))
    {
        let kept = without_member(message, place, "list").unwrap_or_default();
        assert!(kept.is_none_or(|kept| object(&kept).is_some_and(|kept| !kept.contains_key("list"))));
    }
}

/// As at `/mcp`: what was filtered is renamed and merged.
fn pages(message: &Bytes, model: &Model) {
    for of in LISTS {
        let page = Page::read(message, of);
        same(
            page.as_ref().map(|page| (&page.next_cursor, page.ttl_ms)),
            model.page(of).as_ref().map(|(cursor, ttl)| (cursor, *ttl)),
            model.plain,
        );
        let Ok(filtered) = filter_list(message, of, &mut shown, Era::Legacy) else {
            continue;
        };
        let Ok(renamed) = renamed(&filtered, &namespace()) else {
            assert!(!model.plain, "what can be filtered can be renamed");
            continue;
        };
        if of == ListKind::Tools {
            in_one_splice(message, &renamed);
        }
        let Some(page) = Page::read(&renamed, of) else {
            continue;
        };
        let merged = merge_pages(
            &id("7"),
            of,
            &[page.clone(), Page::default(), page],
            Some("\"c\""),
            Era::Modern,
        );
        let merged = Model::new(std::str::from_utf8(&merged).expect("UTF-8")).expect("a merged list is valid");
        let once = Model::new(std::str::from_utf8(&renamed).expect("UTF-8"))
            .expect("a renamed list is valid")
            .items(of);
        assert_eq!(merged.items(of), [once.clone(), once].concat());
        for name in merged.names(of) {
            let prefix = match of {
                ListKind::Tools | ListKind::Prompts => PREFIX,
                ListKind::Resources | ListKind::Templates => URI_PREFIX,
            };
            assert!(name.strip_prefix(prefix).is_some_and(|name| !hidden(name)), "{name}");
        }
    }
}

/// Filtering and renaming tools in one splice does the same as one after the other. Only tools are replaced by what is pinned.
fn in_one_splice(message: &Bytes, one_after_the_other: &Bytes) {
    let (mut edits, of) = (Edits::default(), Some(ListKind::Tools));
    if let Ok(parsed) = ServerMessage::parse(message)
        && let Ok(lists) = parsed.filter_lists(message, of, &mut shown, Some(&namespace()), Era::Legacy, &mut edits)
        && parsed.rename(message, &namespace(), lists, &mut edits).is_ok()
    {
        assert_eq!(edits.apply(message).as_ref(), Ok(one_after_the_other));
    }
}

/// What a client offers, with what its server may not ask for taken out.
fn capabilities(bytes: &[u8]) {
    let Ok(offered) = std::str::from_utf8(bytes) else { return };
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"2025-06-18","capabilities":{offered}}}}}"#
    );
    let Ok(Message::Request(request)) = parse_message(body.into(), &Bounds::default()) else {
        return;
    };
    let Some(place) = request.params.and_then(|params| params.capabilities) else {
        return;
    };
    let written = object(place.text(&request.body)).expect("capabilities are an object");
    for allowed in [
        &[][..],
        &[ClientRequest::Sampling, ClientRequest::Elicitation],
        &[ClientRequest::ElicitationUrl],
    ] {
        let requests: ClientRequests = allowed.iter().copied().collect();
        let Ok(pruned) = prune_capabilities(&request.body, place, requests) else {
            continue;
        };
        let pruned = pruned.unwrap_or_else(|| place.text(&request.body).to_owned());
        let kept = object(&pruned).expect("pruned capabilities are an object");
        for (name, value) in &written {
            let here = kept.get(name).map(|value| value.get());
            match name.to_lowercase().replace('ſ', "s").as_str() {
                "elicitation" => {
                    let forms = allowed.contains(&ClientRequest::Elicitation);
                    let urls = allowed.contains(&ClientRequest::ElicitationUrl);
                    assert!(here.is_none() || forms || urls);
                    let inside = here.and_then(object).unwrap_or_default();
                    let offers = |what: &str| inside.keys().any(|name| name.eq_ignore_ascii_case(what));
                    assert!((forms || !offers("form")) && (urls || !offers("url")), "{pruned}");
                    assert!(
                        forms || here.is_none() || offers("url"),
                        "without either it means forms: {pruned}"
                    );
                }
                "sampling" => assert_eq!(here.is_some(), requests.allow(ClientRequest::Sampling)),
                "roots" => assert_eq!(here.is_some(), requests.allow(ClientRequest::Roots)),
                "tasks" => assert_eq!(here, None),
                _ => assert_eq!(here, Some(value.get())),
            }
        }
        assert!(kept.keys().all(|name| written.contains_key(name)));
    }
}

fn filter_list(answer: &[u8], of: ListKind, keep: VisibilityFn<'_>, era: Era) -> Result<Bytes, Malformed> {
    let (_, filtered) = filtered(answer, Some(of), keep, era)?;
    Ok(filtered)
}

fn filter_if_list(answer: &[u8], keep: VisibilityFn<'_>, era: Era) -> Result<Option<Bytes>, Malformed> {
    let (are_lists, filtered) = filtered(answer, None, keep, era)?;
    Ok(are_lists.then_some(filtered))
}

fn filtered(answer: &[u8], of: Option<ListKind>, keep: VisibilityFn<'_>, era: Era) -> Result<(bool, Bytes), Malformed> {
    let mut edits = Edits::default();
    let are_lists = ServerMessage::parse(answer)?.filter_lists(answer, of, keep, None, era, &mut edits)?;
    Ok((are_lists, edits.apply(&Bytes::copy_from_slice(answer))?))
}

fn mark_private(answer: &[u8], era: Era) -> Result<Bytes, Malformed> {
    let mut edits = Edits::default();
    ServerMessage::parse(answer)?.mark_private(answer, era, &mut edits)?;
    edits.apply(&Bytes::copy_from_slice(answer))
}

fn renamed(message: &Bytes, namespace: &Namespace) -> Result<Bytes, Malformed> {
    let mut edits = Edits::default();
    ServerMessage::parse(message)?.rename(message, namespace, false, &mut edits)?;
    edits.apply(message)
}

fn same<T: PartialEq + std::fmt::Debug>(found: Option<T>, wanted: Option<T>, plain: bool) {
    assert!(found == wanted || (found.is_none() && !plain), "{found:#?}, not {wanted:#?}");
}

/// Lenient parsers find no hidden name either.
fn nothing_hidden(answer: &Bytes) {
    let top: serde_json::Value = match serde_json::from_slice(answer) {
        Ok(top) => top,
        // A number that no `f64` holds.
        Err(error) => return assert!(error.to_string().contains("out of range"), "{error}"),
    };
    let result = top.as_object().and_then(|top| top.get("result")?.as_object());
    for (name, list) in result.into_iter().flatten() {
        let Some(of) = LISTS.iter().find(|of| model::member(**of).eq_ignore_ascii_case(name)) else {
            continue;
        };
        for item in list.as_array().into_iter().flatten() {
            let members = item.as_object().expect("only objects are listed");
            let mut names = members
                .iter()
                .filter(|(name, _)| name.eq_ignore_ascii_case(model::named_by(*of)));
            let (_, name) = names.next().expect("only named items are listed");
            assert!(
                names.next().is_none() && !hidden(name.as_str().expect("a name is a string")),
                "{item}"
            );
        }
    }
}

const PREFIX: &str = "f__";
const URI_PREFIX: &str = "f+";

fn namespace() -> Namespace {
    Namespace::new(ServerName::parse("f").expect("a name"), StreamKind::Answer)
}

fn hidden(name: &str) -> bool {
    name.starts_with('h')
}

fn shown(_: ListKind, name: &str) -> ListVisibility {
    match name.chars().next() {
        Some('h') => ListVisibility::Hidden,
        Some('p') => ListVisibility::Replaced(pinned(name).into()),
        _ => ListVisibility::Unchanged,
    }
}

fn pinned(name: &str) -> String {
    serde_json::json!({"name": name, "uri": name, "uriTemplate": name}).to_string()
}

fn id(json: &str) -> MessageId {
    MessageId::from_json(Bytes::copy_from_slice(json.as_bytes()))
}

fn refuses(kind: &MessageKind) -> bool {
    matches!(kind, MessageKind::Malformed(_))
}

/// Without why a message is malformed.
fn bare(kind: MessageKind) -> MessageKind {
    match kind {
        MessageKind::Malformed(_) => MessageKind::Malformed(String::new()),
        kind => kind,
    }
}

fn nothing() -> Malformed {
    filter_list(
        b"{\"result\":{}}",
        ListKind::Tools,
        &mut shown as VisibilityFn<'_>,
        Era::Legacy,
    )
    .expect_err("there is no list")
}

fn text(written: &Result<Bytes, Malformed>) -> Option<&str> {
    let text = std::str::from_utf8(written.as_ref().ok()?).expect("UTF-8");
    assert!(serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok(), "{text}");
    Some(text)
}

/// What was heard, one line a thing, in the words of the model.
fn tell(said: &ServerMessage) -> Vec<String> {
    let at = |what: &str, place: Option<JsonSpan>| place.map(|place| format!("{what} {:?}", place.range()));
    let mut told: Vec<String> = [
        said.method.as_ref().map(|method| format!("method {method}")),
        said.list_method.map(|method| format!("lists {method}")),
        said.needs_url_elicitation.then(|| "wants a URL".to_owned()),
        at("id", said.id),
        at("requestState", said.request_state),
        at("nextCursor", said.next_cursor),
        at("cancels", said.cancelled_request),
        at("offers tasks", said.tasks_capability),
        Some(format!("{:?}", said.result_type)),
    ]
    .into_iter()
    .flatten()
    .collect();
    told.extend(said.tasks.iter().filter_map(|task| at("taskId", Some(*task))));
    told.extend(
        said.client_requests
            .iter()
            .map(|ask| format!("asks {} {:?}", ask.method, ask.capability)),
    );
    told.sort();
    told
}
