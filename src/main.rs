//! The `guardian` binary: reads the command line and hands over.

fn main() -> std::process::ExitCode {
    neural_guardian::cli::run()
}
