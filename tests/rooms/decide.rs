//! `decide`: what compiles and what is told of what does not, and what is decided, held against a model.

mod compile;
mod model;
mod order;
mod random;
mod resources_and_prompts;
mod starter;
pub mod world;
