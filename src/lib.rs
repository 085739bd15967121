//! Neural Guardian.

pub mod config;
pub mod decide;
pub mod domain;
pub mod journal;
pub mod store;
