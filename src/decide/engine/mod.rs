//! Policies and catalogue compiled together, and the decisions made by them. It uses `policy` and `tool`.

pub(super) mod again;
pub(super) mod cedar_principal;
pub(super) mod compiled_tool;
pub(super) mod eval_cache;
pub(super) mod evaluate;
pub(super) mod input;
pub(super) mod listing;
pub(super) mod preconditions;
pub(super) mod slice;
pub(super) mod snapshot;
pub(super) mod time_fields;
pub(super) mod unlisted;
pub(super) mod unread;
pub(super) mod verdict;
pub(super) mod visibility;
