//! Stories over real TLS sockets: the real binary, a recording MCP server behind it, and either store. The name of a
//! story is a sentence that is true of Guardian.

#[path = "../support/mod.rs"]
mod support;
