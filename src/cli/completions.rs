//! `day0 completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Shell to complete for.
    shell: Shell,
}

pub(super) fn run<C: CommandFactory>(arguments: &Arguments) -> u8 {
    // The generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut C::command(), "day0", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    0
}
