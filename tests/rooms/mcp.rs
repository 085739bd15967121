//! `mcp`: the strict reader against the JSON grammar, against lenient parsers of the same bytes, and with odd messages.

use bytes::Bytes;
use neural_guardian::domain::{Era, ProtocolVersion, Reason};
use neural_guardian::mcp::{
    Bounds, Malformed, McpHeaders, Message, Request, check, method, negotiate, parse_message, read_mcp_headers,
};
use proptest::prelude::*;
use serde_json::Value;
use std::fmt::Write as _;

/// The reader that `lenient_parsers` compares with; the fuzz target defines the same module.
mod reader {
    pub use neural_guardian::mcp::{Bounds, Message, parse_message};
}

fn read_text(body: impl AsRef<[u8]>) -> Result<Message, Malformed> {
    parse_message(Bytes::copy_from_slice(body.as_ref()), &Bounds::default())
}

fn request(body: &str) -> Request {
    match read_text(body) {
        Ok(Message::Request(request)) => request,
        other => panic!("{body} is {other:?}"),
    }
}

fn reason(body: impl AsRef<[u8]>) -> Reason {
    let body = body.as_ref();
    match read_text(body) {
        Ok(message) => panic!("{} was read as {message:?}", String::from_utf8_lossy(body)),
        Err(fault) => fault.reason,
    }
}

fn call(arguments: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{arguments}}}}}"#)
}

mod grammar;

mod threats;

mod lenient_parsers;

mod differential;

mod eras;

mod params;

mod rfc8259;
