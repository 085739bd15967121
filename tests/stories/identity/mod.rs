//! Who the caller is, what stays apart between callers, and what ends their access.

mod credentials;
mod introspection;
mod isolation;
mod revocation;
