//! Runs work that recurses over policies on a thread with a stack large enough for every policy within the bounds of
//! `depth.rs`. The threads that serve have 2 MiB, of which a call may use a good part.

use std::panic::resume_unwind;
use std::thread::{Builder, scope};

/// Per level, Cedar takes up to 16 KiB of stack for a bracket and 6 KiB for an operator, so 2.2 MiB at the bounds. Only what
/// is used is backed by memory.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// Runs `work` and waits for it. If no thread can be started it runs here, where there is room for ordinary policies.
pub(in crate::decide) fn on_deep_stack<T: Send>(work: impl Fn() -> T + Sync) -> T {
    scope(|scope| {
        let thread = Builder::new()
            .name("policies".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, &work);
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => work(),
        }
    })
}
