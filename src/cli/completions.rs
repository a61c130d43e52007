//! `day0 completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::record::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shell to complete for.
    shell: Shell,
}

pub(super) fn run<C: CommandFactory>(arguments: &Arguments) -> Result<u8, Failure> {
    clap_complete::generate(arguments.shell, &mut C::command(), "day0", &mut std::io::stdout());
    Ok(0)
}
