//! Cedar's part of a decision.

use super::standing::Held;
use super::{Basis, CompiledTool, Facts};
use crate::domain::{Reason, Refusal};

pub(super) fn judge(
    _tool: &CompiledTool,
    _arguments: &serde_json::Value,
    _held: &Held<'_>,
    _facts: &Facts<'_>,
    _basis: &mut Basis,
) -> Result<(), Refusal> {
    Err(Reason::NoPolicyPermits.into())
}

pub(super) fn could_permit(_tool: &CompiledTool, _held: &Held<'_>, _facts: &Facts<'_>) -> bool {
    true
}
