//! `day0 unit`: what a job of a batch system runs.

use std::path::PathBuf;

use clap::Args;

use super::{Settings, output};
use crate::record::Failure;
use crate::release::slurm::{Part, run_part};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A stage (quantize, scan, score, compare, closeout), the name of a unit, or its key.
    key: String,
    /// The run directory.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Which part of the stage.
    #[arg(long, value_name = "N", requires = "parts")]
    part: Option<u16>,
    /// Number of parts.
    #[arg(long, value_name = "N", requires = "part", value_parser = clap::value_parser!(u16).range(1..))]
    parts: Option<u16>,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let of = arguments.part.zip(arguments.parts).map(|(part, parts)| (part.into(), parts.into()));
    let part = Part { key: &arguments.key, of };
    run_part(&arguments.run, &part, settings.threads.clone(), &output::line)
}
