//! `day0 import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Settings, output};
use crate::base::progress::note;
use crate::checkpoint::gguf::{self, ImportDtype, ImportOptions};
use crate::record::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// GGUF file.
    file: PathBuf,
    /// Directory to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Dtype of the written weights.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let dtype = match arguments.dtype {
        Dtype::Bf16 => ImportDtype::Bf16,
        Dtype::F32 => ImportDtype::F32,
    };
    let summary = gguf::import(&arguments.file, &arguments.out, ImportOptions { dtype })?;
    for text in &summary.notes {
        note(text);
    }
    if settings.json {
        output::json(&summary)?;
    } else {
        output::line(&arguments.out.display().to_string());
    }
    Ok(0)
}
