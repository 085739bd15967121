//! `upstream`: forwarding to servers that misbehave, over real sockets, with calls that were really decided and recorded.

mod answers;
mod cleared_call;
mod https;
mod server;
mod streams;
mod tools;
