//! Parses a server's message once. It finds the requests to the client, and the opaque tokens that only this client may
//! bring back. It does not know which requests are allowed.

use super::answer::{ANSWER_BOUNDS, AnswerKind, Envelope};
use super::json::{Fault, Kind, Scan, Span, Twins, decode, fault};
use super::splice::Place;
use crate::domain::{ClientRequest, MessageId, Reason};

/// The parts of a server's message that Guardian acts on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Of a request or a notification.
    pub method: Option<String>,
    /// Of a request.
    pub id: Option<Place>,
    pub result_type: ResultType,
    pub request_state: Option<Place>,
    pub next_cursor: Option<Place>,
    /// If the result is a list: the method that such a list answers.
    pub lists: Option<&'static str>,
    /// All task ids: of the result, of related tasks, of a subscription.
    pub tasks: Vec<Place>,
    /// The request that a `notifications/cancelled` cancels.
    pub cancels: Option<Place>,
    /// The requests to the client: the message itself, or those in `inputRequests`.
    pub asks: Vec<Ask>,
    /// The error -32042 (URL elicitation required, legacy): the user must open a URL first.
    pub wants_url: bool,
    /// The `tasks` capability in the result of `initialize`.
    pub tasks_offered: Option<Place>,
}

/// One request to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub method: String,
    pub wish: Wish,
}

/// What a request of the server asks the client for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Ping,
    Client(ClientRequest),
    /// A request that no client behind Guardian may get.
    Other,
}

/// `resultType` of the modern era; absent means complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResultType {
    #[default]
    Complete,
    InputRequired,
    Task,
    Unknown,
}

/// Classifies a server's message as `answer_kind` does, and parses it in the same pass.
pub fn heard(message: &[u8], id: &MessageId) -> (AnswerKind, Said) {
    match read(message) {
        Ok((envelope, said)) => (envelope.kind(message, id), said),
        Err(fault) => (AnswerKind::Malformed(fault.detail), Said::default()),
    }
}

fn read(message: &[u8]) -> Result<(Envelope, Said), Fault> {
    let reader = Reader {
        text: message,
        said: Said::default(),
        is_error: None,
        code: None,
    };
    reader.read()
}

const LISTS: [(&str, &str); 4] = [
    ("tools", "tools/list"),
    ("prompts", "prompts/list"),
    ("resources", "resources/list"),
    ("resourceTemplates", "resources/templates/list"),
];
/// The legacy error that asks for a URL elicitation without sending a request.
const URL_WANTED: &str = "-32042";
/// The member of `_meta` that names the task a message belongs to.
const RELATED: &str = "io.modelcontextprotocol/related-task";

struct Reader<'a> {
    text: &'a [u8],
    said: Said,
    is_error: Option<Span>,
    code: Option<Span>,
}

/// The parameters that change what a request to the client asks for.
#[derive(Default)]
struct Manner {
    mode: Option<Span>,
    /// The client would have to run the request as a task, which Guardian does not support.
    as_task: bool,
}

impl Reader<'_> {
    fn read(mut self) -> Result<(Envelope, Said), Fault> {
        let mut scan = Scan::open(self.text, &ANSWER_BOUNDS, Twins::Exact)?;
        let mut manner = Manner::default();
        let fields = scan.fields(
            0,
            &["jsonrpc", "id", "method", "params", "result", "error"],
            |scan, index, depth| match (index, scan.peek()) {
                (3, Some(b'{')) => self.params(scan, depth, &mut manner),
                (4, Some(b'{')) => self.result(scan, depth),
                (5, Some(b'{')) => self.error(scan, depth),
                _ => scan.value(depth),
            },
        )?;
        scan.close()?;
        let [jsonrpc, id, method, _, result, error] = fields.spans;
        let envelope = Envelope::of(self.text, [jsonrpc, id, method, result, error], self.is_error, self.code)?;
        let Some(method) = method else {
            self.said.cancels = None;
            return Ok((envelope, self.said));
        };
        let method = text(self.text, "method", method)?;
        let id = id.filter(|id| id.kind != Kind::Null);
        if id.is_some() {
            let wish = self.wish(&method, &manner)?;
            self.said.asks.push(Ask {
                method: method.clone(),
                wish,
            });
        }
        self.said.cancels = self.said.cancels.filter(|_| method == "notifications/cancelled");
        self.said.id = id.map(Place::from);
        self.said.method = Some(method);
        Ok((envelope, self.said))
    }

    fn result(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        const MEMBERS: [&str; 13] = [
            "isError",
            "capabilities",
            "resultType",
            "requestState",
            "nextCursor",
            "taskId",
            "task",
            "_meta",
            "inputRequests",
            LISTS[0].0,
            LISTS[1].0,
            LISTS[2].0,
            LISTS[3].0,
        ];
        let start = scan.here();
        let fields = scan.fields(depth, &MEMBERS, |scan, index, depth| match (MEMBERS[index], scan.peek()) {
            ("task", Some(b'{')) => self.task(scan, depth),
            ("_meta", Some(b'{')) => self.meta(scan, depth),
            ("inputRequests", Some(b'{')) => self.requests(scan, depth),
            ("capabilities", Some(b'{')) => self.offers(scan, depth),
            _ => scan.value(depth),
        })?;
        let [is_error, _, kind, state, cursor, task, _, _, asked, lists @ ..] = fields.spans;
        self.is_error = is_error;
        self.said.result_type = match kind {
            None => ResultType::Complete,
            Some(span) => match text(self.text, "resultType", span)?.as_str() {
                "complete" => ResultType::Complete,
                "input_required" => ResultType::InputRequired,
                "task" => ResultType::Task,
                _ => ResultType::Unknown,
            },
        };
        self.said.request_state = opaque("requestState", state)?;
        self.said.next_cursor = opaque("nextCursor", cursor)?;
        self.said.tasks.extend(opaque("taskId", task)?);
        if asked.is_some_and(|span| !matches!(span.kind, Kind::Object | Kind::Null)) {
            return Err(broken("`inputRequests` is not an object"));
        }
        let listed = LISTS.iter().zip(lists).find(|(_, span)| span.is_some());
        self.said.lists = listed.map(|((_, method), _)| *method);
        Ok(scan.since(start, Kind::Object))
    }

    fn params(&mut self, scan: &mut Scan<'_>, depth: usize, manner: &mut Manner) -> Result<Span, Fault> {
        const MEMBERS: [&str; 7] = [
            "requestId",
            "taskId",
            "mode",
            "task",
            "_meta",
            "notifications",
            "inputRequests",
        ];
        let start = scan.here();
        let fields = scan.fields(depth, &MEMBERS, |scan, index, depth| match (MEMBERS[index], scan.peek()) {
            ("_meta", Some(b'{')) => self.meta(scan, depth),
            ("notifications", Some(b'{')) => self.subscribed(scan, depth),
            ("inputRequests", Some(b'{')) => self.requests(scan, depth),
            _ => scan.value(depth),
        })?;
        let [cancels, task, mode, as_task, ..] = fields.spans;
        self.said.cancels = cancels
            .filter(|span| matches!(span.kind, Kind::Text(_) | Kind::Number(_)))
            .map(Place::from);
        self.said.tasks.extend(opaque("taskId", task)?);
        *manner = Manner {
            mode,
            as_task: as_task.is_some(),
        };
        Ok(scan.since(start, Kind::Object))
    }

    fn error(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        let fields = scan.fields(depth, &["code"], |scan, _, depth| scan.value(depth))?;
        self.code = fields.spans[0];
        let code = self.code.map(|span| &self.text[span.range()]);
        self.said.wants_url = code == Some(URL_WANTED.as_bytes());
        Ok(scan.since(start, Kind::Object))
    }

    /// Reads `capabilities`: `{"tasks": {…}}`.
    fn offers(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        let fields = scan.fields(depth, &["tasks"], |scan, _, depth| scan.value(depth))?;
        let tasks = fields.spans[0].filter(|span| span.kind == Kind::Object);
        self.said.tasks_offered = tasks.map(Place::from);
        Ok(scan.since(start, Kind::Object))
    }

    /// Reads `{"taskId": …}`.
    fn task(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        let fields = scan.fields(depth, &["taskId"], |scan, _, depth| scan.value(depth))?;
        self.said.tasks.extend(opaque("taskId", fields.spans[0])?);
        Ok(scan.since(start, Kind::Object))
    }

    fn meta(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        scan.fields(depth, &[RELATED], |scan, _, depth| match scan.peek() {
            Some(b'{') => self.task(scan, depth),
            _ => scan.value(depth),
        })?;
        Ok(scan.since(start, Kind::Object))
    }

    /// Reads the granted filter of a subscription: `{"taskIds": […]}`.
    fn subscribed(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        scan.fields(depth, &["taskIds"], |scan, _, depth| {
            if scan.peek() != Some(b'[') {
                return scan.value(depth);
            }
            let start = scan.here();
            scan.array(depth, &mut |scan, depth| {
                let id = scan.value(depth)?;
                self.said.tasks.extend(opaque("taskIds", Some(id))?);
                Ok(())
            })?;
            Ok(scan.since(start, Kind::Array))
        })?;
        Ok(scan.since(start, Kind::Object))
    }

    /// Reads `inputRequests`: `{"<key>": {"method": …, "params": {…}}, …}`.
    fn requests(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<Span, Fault> {
        let start = scan.here();
        scan.object(depth, &mut |scan, _, depth| {
            let mut manner = Manner::default();
            let fields = scan.fields(depth, &["method", "params"], |scan, index, depth| {
                if index == 0 || scan.peek() != Some(b'{') {
                    return scan.value(depth);
                }
                let start = scan.here();
                let fields = scan.fields(depth, &["mode", "task"], |scan, _, depth| scan.value(depth))?;
                manner = Manner {
                    mode: fields.spans[0],
                    as_task: fields.spans[1].is_some(),
                };
                Ok(scan.since(start, Kind::Object))
            })?;
            let method = fields.spans[0].ok_or_else(|| broken("a request to the client has no method"))?;
            let method = text(self.text, "method", method)?;
            let wish = match self.wish(&method, &manner)? {
                Wish::Ping => Wish::Other,
                wish => wish,
            };
            self.said.asks.push(Ask { method, wish });
            Ok(())
        })?;
        Ok(scan.since(start, Kind::Object))
    }

    fn wish(&self, method: &str, manner: &Manner) -> Result<Wish, Fault> {
        let mode = manner.mode.map(|mode| text(self.text, "mode", mode)).transpose()?;
        Ok(match (method, mode.as_deref()) {
            ("ping", _) => Wish::Ping,
            _ if manner.as_task => Wish::Other,
            ("sampling/createMessage", _) => Wish::Client(ClientRequest::Sampling),
            ("roots/list", _) => Wish::Client(ClientRequest::Roots),
            ("elicitation/create", None | Some("form")) => Wish::Client(ClientRequest::Elicitation),
            ("elicitation/create", Some("url")) => Wish::Client(ClientRequest::ElicitationUrl),
            _ => Wish::Other,
        })
    }
}

/// An opaque string, which only the server understands. `null` counts as absent.
fn opaque(name: &str, span: Option<Span>) -> Result<Option<Place>, Fault> {
    match span {
        None => Ok(None),
        Some(span) => match span.kind {
            Kind::Text(_) => Ok(Some(span.into())),
            Kind::Null => Ok(None),
            _ => Err(broken(format!("`{name}` is not a string"))),
        },
    }
}

fn text(message: &[u8], name: &str, span: Span) -> Result<String, Fault> {
    match span.kind {
        Kind::Text(_) => Ok(decode(message, span)?.into_owned()),
        _ => Err(broken(format!("`{name}` is not a string"))),
    }
}

fn broken(detail: impl Into<String>) -> Fault {
    fault(Reason::UpstreamBroken, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &str) -> Said {
        super::read(message.as_bytes())
            .unwrap_or_else(|fault| panic!("{message}: {fault}"))
            .1
    }

    fn at(message: &str, place: Option<Place>) -> &str {
        place.map_or("", |place| place.text(message.as_bytes()))
    }

    #[test]
    fn what_is_asked_of_the_client_is_found_wherever_it_is_asked() {
        let asked = |message: &str| read(message).asks.iter().map(|ask| ask.wish).collect::<Vec<_>>();
        let request = |method: &str, params: &str| {
            asked(&format!(
                r#"{{"jsonrpc":"2.0","id":4,"method":"{method}","params":{params}}}"#
            ))
        };
        use ClientRequest as Of;
        assert_eq!(request("ping", "{}"), [Wish::Ping]);
        assert_eq!(request("roots/list", "{}"), [Wish::Client(Of::Roots)]);
        assert_eq!(
            request("sampling/createMessage", r#"{"mode":"x"}"#),
            [Wish::Client(Of::Sampling)]
        );
        assert_eq!(request("elicitation/create", "{}"), [Wish::Client(Of::Elicitation)]);
        assert_eq!(
            request("elicitation/create", r#"{"mode":"form"}"#),
            [Wish::Client(Of::Elicitation)]
        );
        assert_eq!(
            request("elicitation/create", r#"{"m\u006fde":"url"}"#),
            [Wish::Client(Of::ElicitationUrl)]
        );
        assert_eq!(request("elicitation/create", r#"{"mode":"other"}"#), [Wish::Other]);
        assert_eq!(request("elicitation/create", r#"{"task":{}}"#), [Wish::Other]);
        assert_eq!(request("tasks/get", r#"{"taskId":"a"}"#), [Wish::Other]);
        assert_eq!(
            asked(
                r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{
                "a":{"method":"elicitation/create","params":{"mode":"url"}},"b":{"params":{},"method":"roots/list"},"c":{"method":"ping"}}}}"#
            ),
            [Wish::Client(Of::ElicitationUrl), Wish::Client(Of::Roots), Wish::Other]
        );
        assert_eq!(
            asked(r#"{"jsonrpc":"2.0","method":"roots/list"}"#),
            [],
            "nobody answers a notification"
        );
    }

    #[test]
    fn what_a_client_brings_back_is_found() {
        let message = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"nextCursor":"no"}],"nextCursor":"p\u00e9","_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t1"}},"task":{"taskId":"t2","status":"working"},"taskId":"t3","requestState":"s","structuredContent":{"taskId":"no"}}}"#;
        let said = read(message);
        assert_eq!(at(message, said.next_cursor), r#""p\u00e9""#);
        assert_eq!(at(message, said.request_state), r#""s""#);
        let tasks: Vec<_> = said.tasks.iter().map(|place| place.text(message.as_bytes())).collect();
        assert_eq!(tasks, [r#""t1""#, r#""t2""#, r#""t3""#]);
        assert_eq!(said.lists, Some("tools/list"));
        let message = r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"taskIds":["a","b"]}}}"#;
        assert_eq!(read(message).tasks.len(), 2);
        let none = read(r#"{"jsonrpc":"2.0","id":1,"result":{"nextCursor":null,"requestState":null}}"#);
        assert_eq!(none, Said::default());
    }

    #[test]
    fn only_a_cancellation_takes_a_request_back() {
        let note = |method: &str| format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{{"requestId":7}}}}"#);
        let message = note("notifications/cancelled");
        assert_eq!(at(&message, read(&message).cancels), "7");
        assert_eq!(read(&note("notifications/message")).cancels, None);
    }

    #[test]
    fn a_result_has_one_of_three_types() {
        let kind = |written: &str| {
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"resultType":{written}}}}}"#);
            super::read(message.as_bytes()).map(|(_, said)| said.result_type).ok()
        };
        assert_eq!(kind(r#""complete""#), Some(ResultType::Complete));
        assert_eq!(kind(r#""input\u005frequired""#), Some(ResultType::InputRequired));
        assert_eq!(kind(r#""task""#), Some(ResultType::Task));
        assert_eq!(kind(r#""Task""#), Some(ResultType::Unknown));
        assert!(kind("null").is_none() && kind("1").is_none());
        assert_eq!(
            read(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).result_type,
            ResultType::Complete
        );
    }

    #[test]
    fn an_error_can_ask_too() {
        let wants = |error: &str| read(&format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#)).wants_url;
        assert!(wants(r#"{"code":-32042,"message":"","data":{"elicitations":[]}}"#));
        assert!(!wants(r#"{"code":-32602,"message":"-32042"}"#));
    }

    #[test]
    fn what_could_be_read_twofold_is_refused() {
        for result in [
            r#"{"taskId":5}"#,
            r#"{"requestState":{}}"#,
            r#"{"nextCursor":["a"]}"#,
            r#"{"inputRequests":[]}"#,
            r#"{"inputRequests":{"a":{"params":{}}}}"#,
            r#"{"inputRequests":{"a":1}}"#,
            r#"{"InputRequests":{}}"#,
            r#"{"resulttype":"task"}"#,
            r#"{"inputRequests":{"a":{"method":"roots/list","Method":"ping"}}}"#,
        ] {
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
            assert!(super::read(message.as_bytes()).is_err(), "{message}");
        }
    }

    #[test]
    fn a_message_is_recognised_as_without_reading_it() {
        let id = MessageId::from_json(bytes::Bytes::from_static(b"7"));
        for message in [
            r#"{"jsonrpc":"2.0","id":7,"result":{"isError":true,"taskId":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":7.0,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":null}"#,
            r#"{"jsonrpc":"2.0","id":8,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no"}}"#,
            r#"{"jsonrpc":"2.0","error":{"message":"no"}}"#,
            r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{"a":1,"a":2}}"#,
            r#"{"id":7,"result":{}}"#,
            "[]",
        ] {
            let kind = super::super::answer_kind(message.as_bytes(), &id);
            assert_eq!(heard(message.as_bytes(), &id).0, kind, "{message}");
        }
    }
}
