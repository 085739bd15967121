//! Tests of single rooms with real parts: databases, files, sockets.

#[path = "../support/postgres.rs"]
mod postgres;
mod store;
