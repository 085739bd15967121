//! Neural Guardian.

pub mod config;
pub mod decide;
pub mod domain;
pub mod store;
