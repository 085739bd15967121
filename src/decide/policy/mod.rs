//! Policy files: read into rules, bounded, validated against the catalogue. It uses `tool`, and decides nothing.

pub(super) mod applicability;
pub(super) mod check;
pub(super) mod deep_stack;
pub(super) mod depth;
pub(super) mod entity_names;
pub(super) mod inferred_args;
pub(super) mod missing;
pub(super) mod rule;
pub(super) mod source_spans;
pub(super) mod usage;
pub(super) mod validator;
