//! Forwarding against servers that misbehave, over real sockets, with calls that were really judged and recorded.

mod answers;
mod https;
mod rig;
mod server;
mod streams;
mod tools;
