//! The grammar of MCP: JSON-RPC bodies, header fields, event streams, answers. Pure: bytes in, values out.
//!
//! Nothing here knows the caller or what they may do. It only refuses what two parsers could read differently.

mod answer;
mod canonical;
mod heads;
mod json;
mod lists;
mod names;
mod notices;
mod pages;
mod params;
mod prune;
mod read;
mod rename;
mod said;
mod sentinel;
mod splice;
mod sse;
mod wire;

pub use answer::{AnswerKind, answer_kind, error, negotiated, readdress, result};
pub use canonical::canonical;
pub use heads::{
    Heads, LAST_EVENT_ID, METHOD, NAME, PROTOCOL_VERSION, SESSION_ID, agree, agree_headless, agree_notification, method,
    mirrored, notification, read_heads,
};
pub use json::{Bounds, Malformed, check};
pub use lists::{Keep, Listed, Shown, filter_list, filter_listed, made_private};
pub use notices::{Notice, notice};
pub use pages::{Page, list};
pub use params::{Completion, Reference, completion, listened};
pub use prune::{prune, without};
pub use read::{Message, Meta, Notification, Params, Request, Response, TASKS, Token, read};
pub use rename::{Rename, redefined, renamed};
pub use said::{Ask, ResultType, Said, Wish, heard};
pub use sentinel::{decode_sentinel, encode_sentinel};
pub use splice::{Place, splice};
pub use sse::{SseFault, SseFrame, SseReader};
pub use wire::{Wire, WireKind, wire};
