//! Rooms from the outside: what each promises, by its public functions alone, with real databases, files and sockets.

mod decide;
mod journal;
#[path = "../support/postgres.rs"]
mod postgres;
mod store;
