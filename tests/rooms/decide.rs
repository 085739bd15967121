//! `decide`: what compiles, what is reported of policies that do not, and decisions, compared with a model.

mod again;
mod compile;
mod depth;
mod model;
mod order;
mod random;
mod resources_and_prompts;
mod scope_named;
mod starter;
pub mod world;
