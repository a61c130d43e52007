//! The `day0` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(day0::cli::run(std::env::args_os()))
}
