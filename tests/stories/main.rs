//! Stories over real TLS sockets: the real `guardian` binary with a recording MCP server behind it, on either store. The
//! name of a story is a sentence that is true of Guardian.
//!
//! `support` holds the fixtures. A story that fails keeps its folder and prints the log of its `guardian serve`.

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod clients;
mod combined;
mod decisions;
mod identity;
mod operations;
mod protocol;
mod servers;
mod threats;

use std::path::Path;
use support::upstream::Upstream;
use support::world::World;

/// Adds a server `files` and Ana, a reader with scopes for `echo`, `read_file` and `slow`; returns the server and her key.
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

/// The text of every story, read from the folder, so that a table which names a story can be checked against it.
fn stories() -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    texts
}
