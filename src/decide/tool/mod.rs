//! What a tool's definition says to policies: its arguments as Cedar types, its JSON Schema as a validator, its Cedar
//! entities and the Cedar schema. Everything here comes from servers, which may be hostile. It knows no policy.

pub(super) mod arg_types;
pub(super) mod arguments;
pub(super) mod param_headers;
pub(super) mod primitive_kind;
pub(super) mod schema;
pub(super) mod schema_cost;
pub(super) mod target;
