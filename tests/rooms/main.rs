//! Each room through its public interface, with real parts: databases, files, sockets, clocks.

mod config;
mod decide;
mod demo;
mod grants;
mod identity;
mod journal;
mod limits;
mod mcp;
#[path = "../support/postgres.rs"]
mod postgres;
mod store;
mod transport;
mod upstream;
