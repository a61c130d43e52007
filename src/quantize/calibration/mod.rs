//! What calibration runs on, and what static scales follow from what it saw.
//!
//! A pass over text observes max |x| of the inputs of every linear module (absmax); the engine makes it. Samples are
//! equal stretches of the text, so that any number of them stands for all of it.

mod error;
mod scales;
mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use error::CalibrationError;
pub(super) use scales::InputScales;
pub use text::CalibrationText;

use crate::recipe::Recipe;
use crate::record::calibration::CalibrationData;

/// Samples where nobody says how many. 32 thousand tokens: as many as llm-compressor's NVFP4 example takes.
const DEFAULT_SAMPLES: usize = 64;
/// Tokens of a sample where nobody says how many.
const DEFAULT_SEQUENCE_LENGTH: usize = 512;

/// Calibration as it was asked for; what is left open comes from the recipe, else from the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationConfig {
    /// File of text in UTF-8; none: the embedded text.
    pub text: Option<PathBuf>,
    /// Number of samples.
    pub samples: Option<usize>,
    /// Most tokens of a sample.
    pub sequence_length: Option<usize>,
}

/// A calibration to be made.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// The text.
    pub text: CalibrationText,
    /// Number of samples.
    pub samples: usize,
    /// Most tokens of a sample.
    pub sequence_length: usize,
}

impl CalibrationConfig {
    /// `self`, with every field that `over` sets taken from there.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        Self {
            text: over.text.or(self.text),
            samples: over.samples.or(self.samples),
            sequence_length: over.sequence_length.or(self.sequence_length),
        }
    }

    /// Opens the text and settles the numbers: those asked for, else the largest of the recipes', else the defaults.
    /// Samples are no longer than `max_len`, what the model takes.
    pub fn settle<'a>(
        &self,
        recipes: impl Iterator<Item = &'a Recipe>,
        max_len: usize,
    ) -> Result<Calibration, CalibrationError> {
        let (mut samples, mut length) = (None, None);
        for recipe in recipes {
            samples = samples.max(recipe.calibration.samples);
            length = length.max(recipe.calibration.sequence_length);
        }
        let samples = self.samples.or(samples).unwrap_or(DEFAULT_SAMPLES);
        let length = self.sequence_length.or(length).unwrap_or(DEFAULT_SEQUENCE_LENGTH);
        for (field, value) in [("samples", samples), ("sequence_length", length)] {
            if value == 0 {
                return Err(CalibrationError::Zero { field });
            }
        }
        let text = match &self.text {
            None => CalibrationText::embedded(),
            Some(path) => CalibrationText::file(path)?,
        };
        Ok(Calibration { text, samples, sequence_length: length.min(max_len) })
    }
}

impl Calibration {
    /// What records say about it.
    pub fn data(&self) -> CalibrationData {
        CalibrationData {
            text: self.text.name(),
            text_digest: self.text.digest().clone(),
            samples: self.samples,
            sequence_length: self.sequence_length,
        }
    }
}

#[cfg(test)]
mod tests;
