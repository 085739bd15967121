//! The `guardian` binary: it hands the command line to `cli::run`.

/// mimalloc, because a call makes some fifty small allocations and another thread often frees them. The crate's feature
/// `no_thp` turns transparent huge pages off, so that an idle process holds little memory. Debug builds keep the system's
/// allocator, which memory checkers understand.
#[cfg(not(debug_assertions))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    neural_guardian::cli::run()
}
