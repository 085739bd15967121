//! `store` on both engines: one body per test, run on SQLite and on a real Postgres.

mod audit;
mod changes;
mod compare;
mod documents;
mod errors;
mod feed;
mod opening;
mod roles;
mod tools;
mod unreadable;
mod users;
pub mod world;
