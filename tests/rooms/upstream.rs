//! Forwarding against servers that misbehave, over real sockets, with calls that were really judged and recorded.

mod answers;
mod cleared_call;
mod https;
mod server;
mod streams;
mod tools;
