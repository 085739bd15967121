//! Which calls are allowed, and how each refusal is told to the caller and recorded.

mod matrix;
mod policy_manifest;
mod unannotated;
mod verdicts;
