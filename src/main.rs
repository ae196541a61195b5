//! The `rafthold` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    rafthold::cli::run()
}
