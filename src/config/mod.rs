//! The configuration: one TOML file, read raw, checked whole, then used as values that cannot be wrong.

mod model;

pub use model::*;
