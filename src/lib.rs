//! Neural Guardian: a reverse proxy that proves, judges, limits and records every MCP tool call before it is sent.
//!
//! This is the map. A room uses rooms of lower floors only, and each technology is named in one room; `tests/hygiene` holds
//! both. A call travels upwards from `transport` to [`gate`], which puts the rooms in order: read `gate/mod.rs` first.
//!
//! | floor | room | what it is |
//! |---|---|---|
//! | 7 | [`cli`] | one file a command; the quickstart and its demo server |
//! | 6 | [`app`] | wires the rooms from one configuration: start, watch, drain, stop; the clock |
//! | 5 | [`gate`] | the request path: caller, facts, decision, record, forward, reply; all servers as one at `/mcp` |
//! | 5 | [`console`] | what operators look at: health and metrics |
//! | 4 | [`upstream`] | the MCP servers: pools, processes, sessions, tool lists, `forward(Cleared)` |
//! | 3 | [`identity`] | token, API key or certificate → `Principal` |
//! | 3 | [`grants`] | who may do what, in memory and never older than a bound |
//! | 3 | [`limits`] | rates and concurrency; a refused call consumes nothing |
//! | 3 | [`journal`] | the durable, chained spool of records, and its way to the database |
//! | 2 | [`store`] | the only SQL: Postgres and SQLite behind one set of functions |
//! | 2 | [`transport`] | the only TLS and sockets |
//! | 2 | [`telemetry`] | logs and metrics |
//! | 1 | [`decide`] | the only Cedar: call and facts → permit or refusal; pure |
//! | 1 | [`mcp`] | the grammar of MCP over bytes; pure |
//! | 1 | [`config`] | one TOML file, checked whole |
//! | 0 | [`domain`] | the words |
//!
//! A call is a value that each step consumes: `Call` → [`decide::decide`] → `Permit` → [`journal::Journal::open`] →
//! `Cleared` → [`upstream::Upstream::forward`] → `Answer` → reply. Fields are private, so that no step can be skipped.

pub mod app;
pub mod cli;
pub mod config;
pub mod console;
pub mod decide;
pub mod domain;
pub mod gate;
pub mod grants;
pub mod identity;
pub mod journal;
pub mod limits;
pub mod mcp;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod upstream;
