//! Fixtures of the stories: a real `guardian` process, a recording MCP server, issuers, clients and both stores.

// Each test binary uses only a part of this.
#![allow(dead_code)]

pub mod authorization;
pub mod bodies;
pub mod certificates;
pub mod client;
pub mod folder;
pub mod frames;
pub mod golden;
pub mod hostile_server;
pub mod http;
pub mod issuer;
pub mod ports;
pub mod postgres;
pub mod real_servers;
pub mod resources_and_prompts;
pub mod sdk_authorization;
pub mod sdk_clients;
pub mod server;
pub mod stdio;
pub mod stores;
pub mod upstream;
pub mod wait;
pub mod world;

/// Runs the same story on the embedded store and on Postgres.
macro_rules! on_both_stores {
    ($($(#[$doc:meta])* async fn $name:ident($world:ident: World) $story:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$doc])*
            async fn story(mut $world: World) $story

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                story(World::new(crate::support::stores::Engine::Sqlite).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                story(World::new(crate::support::stores::Engine::Postgres).await).await;
            }
        }
    )*};
}

pub(crate) use on_both_stores;
