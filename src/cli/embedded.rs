//! The starter policies, for a program that runs far from its repository.

/// File names and texts of `policies/`.
pub const POLICIES: &[(&str, &str)] = &[];
