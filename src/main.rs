//! The `guardian` binary: reads the command line and hands over.

/// A call makes some fifty small values, and what one thread makes another often drops. Tests keep the system's allocator,
/// which the tools that watch memory know. Without huge pages (a feature of the crate): a process that does little shall
/// hold little.
#[cfg(not(debug_assertions))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    neural_guardian::cli::run()
}
