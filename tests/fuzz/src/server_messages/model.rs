//! What a server's message says by a plain reading of its members, and what it should become. Values are slices of the
//! message, so that their places are known.

use super::{hidden, pinned};
use neural_guardian::domain::{ClientRequest, Era};
use neural_guardian::mcp::{ListKind, MessageKind, RequestedCapability, ResultType};
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub type Members<'a> = BTreeMap<String, &'a RawValue>;
type Edits = Vec<(Range<usize>, String)>;
/// Kind and method, and the places of id, progress token and cancelled request.
type Wired = (&'static str, String, [Option<Range<usize>>; 3]);

/// Known members that are not all lower case: another spelling of one is ambiguous.
const CAMEL: [&str; 15] = [
    "isError",
    "resultType",
    "requestState",
    "nextCursor",
    "taskId",
    "taskIds",
    "inputRequests",
    "resourceTemplates",
    "resourceSubscriptions",
    "uriTemplate",
    "cacheScope",
    "ttlMs",
    "protocolVersion",
    "progressToken",
    "requestId",
];
const RELATED: &str = "io.modelcontextprotocol/related-task";

pub struct Model<'a> {
    message: &'a str,
    top: Members<'a>,
    result: Option<Members<'a>>,
    params: Option<Members<'a>>,
    /// No name is another spelling of a known one.
    pub plain: bool,
}

pub fn object(text: &str) -> Option<Members<'_>> {
    serde_json::from_str(text).ok()
}

fn array(text: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(text).ok()
}

fn raw_text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

pub fn member(of: ListKind) -> &'static str {
    ["tools", "resources", "resourceTemplates", "prompts"][of as usize]
}

pub fn named_by(of: ListKind) -> &'static str {
    ["name", "uri", "uriTemplate", "name"][of as usize]
}

fn inside<'a>(members: &Members<'a>, name: &str) -> Option<Members<'a>> {
    object(members.get(name)?.get())
}

fn is_plain(value: &str) -> bool {
    match value.as_bytes().first() {
        Some(b'{') => {
            object(value).is_some_and(|members| members.iter().all(|(name, value)| plain_name(name) && is_plain(value.get())))
        }
        Some(b'[') => array(value).is_some_and(|items| items.iter().all(|item| is_plain(item.get()))),
        _ => true,
    }
}

fn plain_name(name: &str) -> bool {
    let lower = name.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    CAMEL.contains(&name) || (lower && !CAMEL.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// Ids and tokens are strings or numbers.
fn named<'a>(raw: Option<&&'a RawValue>) -> Option<&'a str> {
    raw.map(|raw| raw.get())
        .filter(|raw| raw.starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit()))
}

/// An opaque string; `Err` if it is anything else.
fn opaque<'a>(members: &Members<'a>, name: &str) -> Result<Option<&'a str>, ()> {
    match members.get(name).map(|raw| raw.get()) {
        None | Some("null") => Ok(None),
        Some(raw) if raw.starts_with('"') => Ok(Some(raw)),
        Some(_) => Err(()),
    }
}

impl<'a> Model<'a> {
    pub fn new(message: &'a str) -> Option<Self> {
        let top = object(message)?;
        Some(Self {
            message,
            result: inside(&top, "result"),
            params: inside(&top, "params"),
            plain: is_plain(message.trim()),
            top,
        })
    }

    fn at(&self, slice: &str) -> Range<usize> {
        let start = slice.as_ptr() as usize - self.message.as_ptr() as usize;
        start..start + slice.len()
    }

    fn edited(&self, mut edits: Edits) -> String {
        edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
        let mut text = self.message.to_owned();
        edits.into_iter().for_each(|(range, new)| text.replace_range(range, &new));
        text
    }

    fn is_jsonrpc(&self) -> bool {
        self.top.get("jsonrpc").is_some_and(|raw| raw.get() == "\"2.0\"")
    }

    fn id(&self) -> Option<&&'a RawValue> {
        self.top.get("id").filter(|raw| raw.get() != "null")
    }

    /// Seen from the request with the id `sent`.
    pub fn kind(&self, sent: &str) -> MessageKind {
        let has = |name: &str| self.top.contains_key(name);
        let error = self.top.get("error");
        let ours = |raw: &&RawValue| {
            let same_text = raw_text(raw).is_some_and(|id| serde_json::from_str(sent).is_ok_and(|sent: String| sent == id));
            raw.get() == sent || same_text || raw.get().parse::<f64>().is_ok_and(|id| sent.parse() == Ok(id))
        };
        match (has("method"), has("result"), error, self.id()) {
            _ if !self.is_jsonrpc() => MessageKind::Malformed(String::new()),
            (true, false, None, Some(_)) => MessageKind::ServerRequest,
            (true, false, None, None) => MessageKind::ServerNotification,
            (false, true, None, Some(id)) | (false, false, Some(_), Some(id)) if !ours(id) => MessageKind::OtherResponse,
            (false, true, None, Some(_)) => {
                let is_error = self.result.as_ref().and_then(|result| result.get("isError"));
                MessageKind::Result {
                    is_error: is_error.is_some_and(|raw| raw.get() == "true"),
                }
            }
            (false, false, Some(error), id) if error.get().starts_with('{') => {
                let code = inside(&self.top, "error").and_then(|error| error.get("code")?.get().parse().ok());
                MessageKind::Error {
                    code: code.unwrap_or_default(),
                    addressed: id.is_some(),
                }
            }
            _ => MessageKind::Malformed(String::new()),
        }
    }

    /// What Guardian acts on, one line a thing; `None` if one of it has the wrong form.
    pub fn said(&self) -> Option<Vec<String>> {
        let mut told = vec![];
        let mut tell = |what: &str, slice: Option<&str>| told.extend(slice.map(|slice| format!("{what} {:?}", self.at(slice))));
        let mut asks = vec![];
        let mut result_type = ResultType::Complete;
        let (method, id) = (self.top.get("method"), self.id());
        let method = method.map(|raw| raw_text(raw).ok_or(())).transpose().ok()?;
        for members in [&self.result, &self.params].into_iter().flatten() {
            let related = inside(members, "_meta").and_then(|meta| inside(&meta, RELATED));
            tell(
                "taskId",
                related.map(|related| opaque(&related, "taskId")).transpose().ok()?.flatten(),
            );
            tell("taskId", opaque(members, "taskId").ok()?);
            if let Some(requests) = inside(members, "inputRequests") {
                for request in requests.values() {
                    let request = object(request.get())?;
                    let method = raw_text(request.get("method")?)?;
                    let wish = match wish(&method, inside(&request, "params").as_ref())? {
                        RequestedCapability::Ping => RequestedCapability::Other,
                        wish => wish,
                    };
                    asks.push((method, wish));
                }
            }
        }
        if let Some(result) = &self.result {
            result_type = match result
                .get("resultType")
                .map(|raw| raw_text(raw).ok_or(()))
                .transpose()
                .ok()?
                .as_deref()
            {
                None | Some("complete") => ResultType::Complete,
                Some("input_required") => ResultType::InputRequired,
                Some("task") => ResultType::Task,
                Some(_) => ResultType::Unknown,
            };
            tell("requestState", opaque(result, "requestState").ok()?);
            tell("nextCursor", opaque(result, "nextCursor").ok()?);
            let task = inside(result, "task").map(|task| opaque(&task, "taskId")).transpose().ok()?;
            tell("taskId", task.flatten());
            let requests = result.get("inputRequests").map(|raw| raw.get());
            requests
                .is_none_or(|raw| raw == "null" || raw.starts_with('{'))
                .then_some(())?;
            let tasks = inside(result, "capabilities").and_then(|offered| offered.get("tasks").map(|raw| raw.get()));
            tell("offers tasks", tasks.filter(|raw| raw.starts_with('{')));
        }
        if let Some(params) = &self.params {
            let listened = inside(params, "notifications").and_then(|filter| array(filter.get("taskIds")?.get()));
            for task in listened.into_iter().flatten() {
                tell("taskId", opaque(&BTreeMap::from([(String::new(), task)]), "").ok()?);
            }
            let cancels = named(params.get("requestId"));
            tell(
                "cancels",
                cancels.filter(|_| method.as_deref() == Some("notifications/cancelled")),
            );
        }
        if method.is_some() {
            tell("id", id.map(|raw| raw.get()));
        }
        if !self.is_jsonrpc() {
            return None;
        }
        if let Some(method) = &method {
            told.push(format!("method {method}"));
            if id.is_some() {
                asks.push((method.clone(), wish(method, self.params.as_ref())?));
            }
        }
        let code = inside(&self.top, "error").and_then(|error| error.get("code").map(|raw| raw.get()));
        told.extend((code == Some("-32042")).then(|| "wants a URL".to_owned()));
        let lists = [
            ("tools", "tools/list"),
            ("prompts", "prompts/list"),
            ("resources", "resources/list"),
            ("resourceTemplates", "resources/templates/list"),
        ];
        let listed = lists
            .iter()
            .find(|(name, _)| self.result.as_ref().is_some_and(|result| result.contains_key(*name)));
        told.extend(listed.map(|(_, method)| format!("lists {method}")));
        told.push(format!("{result_type:?}"));
        told.extend(asks.iter().map(|(method, wish)| format!("asks {method} {wish:?}")));
        told.sort();
        Some(told)
    }

    pub fn wire(&self) -> Option<Wired> {
        let id = self.top.get("id").map(|raw| raw.get()).filter(|raw| *raw != "null");
        let usable = self.is_jsonrpc() && (id.is_none() || named(self.top.get("id")).is_some());
        let answers = self.top.contains_key("result") || self.top.contains_key("error");
        let token = |members: Option<&Members<'a>>| {
            members.and_then(|members| named(members.get("progressToken")).map(|raw| self.at(raw)))
        };
        let meta = self.params.as_ref().and_then(|params| inside(params, "_meta"));
        let place = id.map(|raw| self.at(raw));
        match self.top.get("method") {
            _ if !usable => None,
            None => answers.then(|| ("answer", String::new(), [place, None, None])),
            Some(_) if answers => None,
            Some(method) => {
                let method = raw_text(method)?;
                if id.is_some() {
                    return Some(("request", method, [place, token(meta.as_ref()), None]));
                }
                let cancels = self
                    .params
                    .as_ref()
                    .and_then(|params| named(params.get("requestId")).map(|raw| self.at(raw)));
                let cancels = cancels.filter(|_| method == "notifications/cancelled");
                Some(("notification", method, [None, token(self.params.as_ref()), cancels]))
            }
        }
    }

    /// The URI of a resource that was updated.
    pub fn notice(&self) -> Option<Option<String>> {
        match raw_text(self.top.get("method")?)?.as_str() {
            "notifications/resources/updated" => Some(Some(raw_text(self.params.as_ref()?.get("uri")?)?)),
            _ => Some(None),
        }
    }

    pub fn readdressed(&self, id: &str) -> Option<Vec<u8>> {
        let error = self.top.get("error").filter(|_| self.is_jsonrpc())?;
        Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#).into_bytes())
    }

    pub fn negotiated(&self) -> Option<String> {
        raw_text(self.result.as_ref()?.get("protocolVersion")?)
    }

    /// `None`: the list is not there, or no list at all.
    pub fn filtered(&self, of: Option<ListKind>, era: Era) -> Option<String> {
        if !self.top.contains_key("result") {
            return of.map(|_| self.message.to_owned());
        }
        let result = self.result.as_ref()?;
        let lists: Vec<_> = super::LISTS
            .iter()
            .filter_map(|of| Some((*of, *result.get(member(*of))?)))
            .collect();
        let lists: Vec<_> = lists
            .into_iter()
            .filter_map(|(of, raw)| Some((of, raw, array(raw.get())?)))
            .collect();
        if lists.is_empty() || of.is_some_and(|of| lists.iter().all(|(other, ..)| *other != of)) {
            return None;
        }
        let mut edits: Edits = lists
            .iter()
            .map(|(of, raw, items)| (self.at(raw.get()), shown(*of, items)))
            .collect();
        edits.extend(self.private_edit(result, era));
        Some(self.edited(edits))
    }

    pub fn private(&self, era: Era) -> Option<String> {
        let edit = self.result.as_ref().and_then(|result| self.private_edit(result, era));
        Some(self.edited(edit.into_iter().collect()))
    }

    fn private_edit(&self, result: &Members, era: Era) -> Option<(Range<usize>, String)> {
        let start = self.at(self.top["result"].get()).start + 1;
        match result.get("cacheScope") {
            Some(raw) => Some((self.at(raw.get()), r#""private""#.to_owned())),
            None if era == Era::Legacy => None,
            None if result.is_empty() => Some((start..start, r#""cacheScope":"private""#.to_owned())),
            None => Some((start..start, r#""cacheScope":"private","#.to_owned())),
        }
    }

    pub fn redefined(&self, name: &str) -> String {
        let edit = self
            .top
            .get("name")
            .map(|raw| (self.at(raw.get()), serde_json::Value::from(name).to_string()));
        self.edited(edit.into_iter().collect())
    }

    pub fn renamed(&self) -> String {
        let mut found = Found::default();
        if let Some(result) = &self.result {
            rename_result(result, &mut found);
        }
        if let Some(params) = &self.params {
            if self.top.get("method").and_then(|raw| raw_text(raw)).as_deref() == Some("notifications/resources/updated") {
                found.uris.extend(params.get("uri"));
            }
            let filter = inside(params, "notifications").and_then(|filter| array(filter.get("resourceSubscriptions")?.get()));
            found.uris.extend(filter.into_iter().flatten());
            if let Some(result) = inside(params, "result") {
                rename_result(&result, &mut found);
            }
        }
        let new = |prefix| move |raw: &&RawValue| Some((self.at(raw.get()), prefixed(prefix, &raw_text(raw)?)));
        let names = found.names.iter().filter_map(new(super::PREFIX));
        self.edited(names.chain(found.uris.iter().filter_map(new(super::URI_PREFIX))).collect())
    }

    /// Cursor and lifetime of a page.
    pub fn page(&self, of: ListKind) -> Option<(Option<String>, Option<u64>)> {
        let result = self.result.as_ref()?;
        array(result.get(member(of))?.get())?;
        let cursor = result.get("nextCursor").and_then(|raw| raw_text(raw));
        Some((cursor, result.get("ttlMs").and_then(|raw| raw.get().parse().ok())))
    }

    /// The items of a list, as they are written.
    pub fn items(&self, of: ListKind) -> Vec<&'a str> {
        let list = self.result.as_ref().and_then(|result| array(result.get(member(of))?.get()));
        list.into_iter().flatten().map(|raw| raw.get()).collect()
    }

    pub fn names(&self, of: ListKind) -> Vec<String> {
        let name = |item: &str| raw_text(object(item).expect("an object").get(named_by(of)).expect("a name")).expect("a string");
        self.items(of).into_iter().map(name).collect()
    }
}

/// What a message names, apart by what is put before it.
#[derive(Default)]
struct Found<'a> {
    names: Vec<&'a RawValue>,
    uris: Vec<&'a RawValue>,
}

fn prefixed(prefix: &str, text: &str) -> String {
    serde_json::Value::from(format!("{prefix}{text}")).to_string()
}

fn shown(of: ListKind, items: &[&RawValue]) -> String {
    let mut seen = BTreeSet::new();
    let mut shown = vec![];
    for item in items {
        let Some(name) = object(item.get()).and_then(|item| raw_text(item.get(named_by(of))?)) else {
            continue;
        };
        match () {
            () if hidden(&name) => {}
            () if !name.starts_with('p') => shown.push(item.get().to_owned()),
            () if seen.insert(name.clone()) => shown.push(pinned(&name)),
            () => {}
        }
    }
    format!("[{}]", shown.join(","))
}

fn wish(method: &str, params: Option<&Members>) -> Option<RequestedCapability> {
    let mode = params
        .and_then(|params| params.get("mode"))
        .map(|raw| raw_text(raw).ok_or(()))
        .transpose()
        .ok()?;
    Some(match (method, mode.as_deref()) {
        ("ping", _) => RequestedCapability::Ping,
        _ if params.is_some_and(|params| params.contains_key("task")) => RequestedCapability::Other,
        ("sampling/createMessage", _) => RequestedCapability::Client(ClientRequest::Sampling),
        ("roots/list", _) => RequestedCapability::Client(ClientRequest::Roots),
        ("elicitation/create", None | Some("form")) => RequestedCapability::Client(ClientRequest::Elicitation),
        ("elicitation/create", Some("url")) => RequestedCapability::Client(ClientRequest::ElicitationUrl),
        _ => RequestedCapability::Other,
    })
}

/// The names and URIs of a result that are renamed.
fn rename_result<'a>(result: &Members<'a>, found: &mut Found<'a>) {
    let each = |name: &str| result.get(name).and_then(|raw| array(raw.get())).into_iter().flatten();
    let objects = |name: &str| each(name).filter_map(|raw| object(raw.get()));
    for (list, name) in [
        ("tools", "name"),
        ("prompts", "name"),
        ("resources", "uri"),
        ("contents", "uri"),
        ("resourceTemplates", "uriTemplate"),
    ] {
        let into = if name == "name" { &mut found.names } else { &mut found.uris };
        into.extend(objects(list).filter_map(|item| item.get(name).copied()));
    }
    let mut blocks: Vec<Members> = objects("content").collect();
    for message in objects("messages") {
        let content = message.get("content").copied();
        blocks.extend(content.and_then(|raw| object(raw.get())));
        let several = content.and_then(|raw| array(raw.get())).into_iter().flatten();
        blocks.extend(several.filter_map(|raw| object(raw.get())));
    }
    for block in blocks {
        found.uris.extend(block.get("uri"));
        found
            .uris
            .extend(inside(&block, "resource").and_then(|resource| resource.get("uri").copied()));
    }
    if let Some(result) = inside(result, "result") {
        rename_result(&result, found);
    }
}
