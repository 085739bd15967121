//! The audit record of a call: durable before the call is sent, and kept through every failure.

mod changes;
mod comparison;
mod inputs;
mod journal;
mod killed;
mod outcomes;
mod soak;
mod trail;
