//! Neural Guardian: a reverse proxy that authenticates, authorises, limits and records every MCP tool call before it is sent.
//!
//! This is the map. A room uses rooms of lower floors only, and each technology is named in one room; `tests/hygiene` holds
//! both. A call travels upwards from `transport` to [`gate`], which puts the rooms in order: read `gate/mod.rs` first.
//!
//! | floor | room | what it is |
//! |---|---|---|
//! | 8 | [`cli`] | one file a command; the quickstart and its demo server |
//! | 7 | [`app`] | wires the rooms from one configuration: start, watch, drain, stop; the clock |
//! | 6 | [`combined`] | `/mcp`: all servers of a caller as one, on top of the gate |
//! | 5 | [`gate`] | the request path: authenticate, parse, authorise, record, forward, respond |
//! | 5 | [`console`] | what operators look at: health and metrics |
//! | 4 | [`upstream`] | the MCP servers over HTTP, stdio and legacy SSE: channels, tool lists, `forward(Cleared)` |
//! | 3 | [`identity`] | token, API key or certificate → `Principal` |
//! | 3 | [`grants`] | who may do what, in memory and never older than a bound |
//! | 3 | [`limits`] | rates and concurrency; a refused call consumes nothing |
//! | 3 | [`sessions`] | sealed session ids and signed handles, bound to their caller |
//! | 3 | [`journal`] | the durable, chained spool of records, and its way to the database |
//! | 2 | [`store`] | the only SQL: Postgres and SQLite behind one set of functions |
//! | 2 | [`transport`] | the only TLS and sockets |
//! | 2 | [`telemetry`] | logs and metrics |
//! | 2 | [`key_ring`] | versioned secret keys in a file: peppers and session keys |
//! | 1 | [`decide`] | the only Cedar: call and input → permit or refusal; pure |
//! | 1 | [`mcp`] | the grammar of MCP over bytes; pure |
//! | 1 | [`config`] | one TOML file, checked whole |
//! | 0 | [`domain`] | the words |
//!
//! # One `tools/call`
//!
//! `gate/mod.rs` puts the stages in order. Each consumes the value of the one before and carries what the next needs.
//!
//! | # | stage | files | value |
//! |---|---|---|---|
//! | 1 | accept the connection, refuse what two parsers could read differently | `transport/{serve,framing}.rs` | `Request` |
//! | 2 | check Host and Origin, find the server | `gate/{receive,routing}.rs` | `Route` |
//! | 3 | authenticate the caller, read the body | `gate/{receive,authn,body_budget}.rs`, `identity` | `AuthenticatedRequest` |
//! | 4 | parse the body once; era, version, method | `gate/message.rs`, `mcp` | `NegotiatedMessage` |
//! | 5 | turn handles into the server's tokens, resolve the target | `gate/{call,handles}.rs`, `sessions` | `ParsedCall` |
//! | 6 | load grants and policies, decide, check `Mcp-Param-*`, count | `gate/{authz,param_headers,admission}.rs`, [`decide::decide`], `limits` | `AuthorizedCall` with the `Permit` |
//! | 7 | write the decision and wait for the disk | `gate/record.rs`, [`journal::Journal::open`] | `RecordedCall` with `Cleared` |
//! | 8 | ask the grants once more, send the call | `gate/forward.rs`, [`upstream::Upstream::forward`] | `ForwardedCall` with the `Answer` |
//! | 9 | filter lists, encode handles, seal session ids | `gate/{screen,visibility,handles}.rs` | `Answered` |
//! | 10 | word and record refusals; the outcome is recorded when the answer ends | `gate/{reply,record}.rs`, `journal` | `Response` |
//!
//! Only `decide` makes a `Permit` and only the journal makes a `Cleared` call of it, so that no stage can be skipped.
//!
//! # Words
//!
//! | word | what it means here |
//! |---|---|
//! | answer | what a server sends back for a call: JSON, a stream of events, or nothing |
//! | authz context | caller, grants, their age and policies for one message, as loaded at one moment |
//! | basis | what a decision rested on: policies, grant, digests; it goes into the record |
//! | capability | what a client or server announces in `initialize` that it can do |
//! | catalogue | the tools of all servers as they are pinned |
//! | channel | a persistent connection to a server: a process's pipes or an event stream |
//! | cleared | a permitted call whose record is on disk; only the journal makes one |
//! | combined endpoint | `/mcp`: all servers of a caller behind one URL, names with the server as a prefix |
//! | confirmation | asking the store whether anything changed since the last time |
//! | credential | token, API key or client certificate that a request carries |
//! | decision input | all that `decide` may look at: caller, grants, time, address, policies |
//! | denial | a refusal as it is told to a client; its shape is configured for each server |
//! | era | which of the two incompatible MCP generations a message belongs to: legacy (sessions) or modern (stateless) |
//! | evaluation cache | what of a decision depends only on caller and tool, kept for the next call |
//! | feed | the table of committed changes that grants are followed by |
//! | generation | counts changes that took effect here; tells whether a look-up still holds |
//! | grant | a user's permission for a server: status, scopes, expiry |
//! | handle | an opaque token of a server (cursor, task id, request id), bound to the caller by HMAC |
//! | incarnation | one run of an instance; records are numbered within it |
//! | lease | how long knowledge of grants may be used before it must be confirmed |
//! | left out | enrolled, but not loaded because `grants.max_members` is reached |
//! | list visibility | whether one caller sees an entry of a list, and in which form |
//! | member | a user or service that is enrolled in this environment, with identities, keys and grants |
//! | outcome | how a permitted call ended |
//! | permit | the proof that a call may be made; only `decide` makes one |
//! | pin | the approved definition of a tool; another one is refused |
//! | primitive | MCP's word for tools, resources and prompts |
//! | principal | who an authenticated credential stands for: issuer and subject |
//! | reason | the stable code of a refusal |
//! | refusal | why a message is not forwarded: reason, sentence, remedy |
//! | scope | a named right of a grant; a tool needs the scope of its own name unless the registry says otherwise |
//! | screen | what rewrites an answer for one caller |
//! | seal | to encrypt a server's session id so that only its caller can use it |
//! | segment | one file of the journal |
//! | server | an MCP server behind Guardian; upstream in HTTP's terms |
//! | session | MCP's legacy session with one server |
//! | shadow | a policy that is evaluated and told of, but does not decide |
//! | slice | the policies that can apply to one caller and tool |
//! | snapshot | policies and catalogue compiled together; replaced as a whole |
//! | spool | records on disk that are not in the database yet |
//! | staleness | how long ago grants were confirmed; bounded by `grants.max_staleness` |
//! | unlisted primitive | a resource or prompt: no pinned catalogue lists it |
//! | watermark | up to where the journal was shipped |

pub mod app;
pub mod cli;
pub mod combined;
pub mod config;
pub mod console;
pub mod decide;
pub mod domain;
pub mod gate;
pub mod grants;
pub mod identity;
pub mod journal;
pub mod key_ring;
pub mod limits;
pub mod mcp;
pub mod sessions;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod upstream;

/// The version of this build, as Guardian tells it to clients and servers.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
