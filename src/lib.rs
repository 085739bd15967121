//! Neural Guardian.

pub mod config;
pub mod domain;
