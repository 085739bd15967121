//! Stories over real TLS sockets: the real binary, a recording MCP server behind it, and either store. The name of a
//! story is a sentence that is true of Guardian.
//!
//! `support` is what they are told with; a failed story keeps its folder and prints the log of its `guardian serve`.

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod clients;
mod combined;
mod combined_abuse;
mod combined_kinds;
mod combined_lists;
mod combined_sessions;
mod combined_streams;
mod conformance;
mod conversation;
mod errors;
mod handles;
mod identity;
mod isolation;
mod journal;
mod lifecycle;
mod limits;
mod manifest;
mod matrix;
mod oldest;
mod programs;
mod protocol;
mod real_clients;
mod replicas;
mod revocation;
mod signing_in;
mod store_faults;
mod streams;
mod tasks;
mod threats;
mod verdicts;
mod wares;

use support::upstream::Upstream;
use support::world::World;

/// A server `files`, and Ana, a reader with scopes for `echo` and `read_file`, and her key.
async fn ana_reads_files(world: &mut World) -> (Upstream, String) {
    let files = Upstream::start().await;
    world.server("files", &files.url, "");
    let key = ana(world).await;
    (files, key)
}

async fn ana(world: &mut World) -> String {
    world.person("ana", &["reader"]).await;
    world.grant("ana", "files", "echo,read_file,slow");
    world.key("ana")
}

/// The text of the stories, so that a table may name one and be held to it.
const STORIES: &[&str] = &[
    include_str!("attacks.rs"),
    include_str!("combined.rs"),
    include_str!("combined_kinds.rs"),
    include_str!("combined_lists.rs"),
    include_str!("combined_sessions.rs"),
    include_str!("combined_streams.rs"),
    include_str!("conversation.rs"),
    include_str!("handles.rs"),
    include_str!("identity.rs"),
    include_str!("isolation.rs"),
    include_str!("journal.rs"),
    include_str!("lifecycle.rs"),
    include_str!("limits.rs"),
    include_str!("protocol.rs"),
    include_str!("replicas.rs"),
    include_str!("revocation.rs"),
    include_str!("store_faults.rs"),
    include_str!("streams.rs"),
    include_str!("tasks.rs"),
    include_str!("threats/bodies.rs"),
    include_str!("threats/frames.rs"),
    include_str!("threats/framing.rs"),
    include_str!("threats/heads.rs"),
    include_str!("threats/owners.rs"),
    include_str!("threats/servers.rs"),
    include_str!("threats/slow.rs"),
    include_str!("threats/streams.rs"),
    include_str!("verdicts.rs"),
    include_str!("wares.rs"),
];
