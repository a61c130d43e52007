//! `day0 init`.

use std::path::PathBuf;

use clap::Args;

use super::output;
use crate::record::Failure;
use crate::release::config::TEMPLATE;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// File to write.
    #[arg(default_value = "day0.yaml")]
    path: PathBuf,
    /// Replace an existing file.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let path = &arguments.path;
    if path.exists() && !arguments.force {
        return Err(
            Failure::config(format!("{}: exists already", path.display())).with_hint("--force replaces it")
        );
    }
    crate::base::atomic::write(path, TEMPLATE.as_bytes()).map_err(|e| Failure::io(path.display(), &e))?;
    output::line(&path.display().to_string());
    Ok(0)
}
