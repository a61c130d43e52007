//! `day0 completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shell to complete for.
    shell: Shell,
}

pub(super) fn run<C: CommandFactory>(arguments: &Arguments) -> u8 {
    clap_complete::generate(arguments.shell, &mut C::command(), "day0", &mut std::io::stdout());
    0
}
