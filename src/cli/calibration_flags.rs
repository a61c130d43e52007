//! Flags of commands that may calibrate.

use std::path::PathBuf;

use clap::Args;

use crate::quantize::calibration::CalibrationConfig;

/// For recipes with static input scales.
#[derive(Debug, Clone, Args)]
pub(super) struct CalibrationFlags {
    /// UTF-8 text to calibrate static input scales on [default: the embedded text].
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Samples taken from the calibration text [default: the recipe's, else 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    calibration_samples: Option<u32>,
    /// Most tokens of a calibration sample [default: the recipe's, else 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    calibration_length: Option<u32>,
}

impl CalibrationFlags {
    /// As the flags say.
    pub fn config(&self) -> CalibrationConfig {
        CalibrationConfig {
            text: self.calibration.clone(),
            samples: self.calibration_samples.map(|n| n as usize),
            sequence_length: self.calibration_length.map(|n| n as usize),
        }
    }
}
