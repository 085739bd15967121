//! The grammar of MCP: JSON-RPC bodies, header fields, event streams, answers. Pure: bytes in, values out.
//!
//! Nothing here knows the caller or what they may do. It only refuses what two parsers could read differently.

mod canonical;
mod capabilities;
mod client_message;
mod headers;
mod json;
mod lists;
mod member_names;
mod message_kind;
mod namespace;
mod own_messages;
mod page_merge;
mod params;
mod server_message;
mod server_message_reader;
mod splice;
mod sse;

pub use canonical::canonical;
pub use capabilities::{declare_capabilities, declared_requests, prune_capabilities, without_member};
pub use client_message::{Message, Meta, Notification, OpaqueToken, Params, Request, Response, TASKS, parse_message};
pub use headers::{
    LAST_EVENT_ID, METHOD, McpHeaders, NAME, PROTOCOL_VERSION, SESSION_ID, decode_header_value, encode_header_value, fits_header,
    method, mirror_headers, negotiate, negotiate_bodyless, negotiate_notification, notification, read_mcp_headers,
};
pub use json::{Bounds, JsonSpan, Malformed, check};
pub use lists::{ListVisibility, VisibilityFn, rename_tool};
pub use message_kind::MessageKind;
pub use namespace::{Namespace, StreamKind, parse_event_note, parse_name, parse_uri};
pub use own_messages::{
    error, guardian_client_info, guardian_initialize, guardian_server_info, initialize_params, initialized, result,
};
pub use page_merge::{Page, merge_pages};
pub use params::{Completion, Reference, completion, subscribed_uris};
pub use server_message::{
    ClientRequestRef, JsonRpcKind, ListKind, RequestedCapability, ResultType, ServerMessage, ServerNotification,
};
pub use splice::{Edits, replace_value};
pub use sse::{SseFault, SseFrame, SseReader, sse_event};
