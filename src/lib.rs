//! Neural Guardian.

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
