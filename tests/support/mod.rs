//! What the stories are told with: a real `guardian` process, a recording MCP server, issuers, clients and both stores.

// Each story file uses its own part of this.
#![allow(dead_code)]

pub mod certificates;
pub mod client;
pub mod golden;
pub mod http;
pub mod issuer;
pub mod ports;
pub mod server;
pub mod upstream;
pub mod wait;
