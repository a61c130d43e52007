//! Why calibration is not possible.

use std::path::PathBuf;

use crate::model::tokenizer::TokenizerError;
use crate::record::{Classified, Failure, FailureClass};

/// A text that cannot be used, or a pass that did not give what a recipe needs.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The text cannot be read.
    #[error("{}: the calibration text cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no text.
    #[error("{text}: no text in it, expected UTF-8 text to calibrate on")]
    Empty {
        /// The file.
        text: String,
    },
    /// The text is not UTF-8.
    #[error("{text}: byte {offset} is not UTF-8, expected text in UTF-8")]
    NotUtf8 {
        /// The file.
        text: String,
        /// Where.
        offset: u64,
    },
    /// A number is zero.
    #[error("calibration: {field} is 0, expected at least 1")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// The text cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A recipe needs the scale of a module that the pass did not see.
    #[error(
        "calibration saw no input of {module} nor of its siblings, expected each quantized module to be part of the model"
    )]
    Unseen {
        /// The module.
        module: String,
    },
    /// The model computes NaN or infinity.
    #[error("the inputs of {module} are NaN or infinite, expected finite ones")]
    NotFinite {
        /// The module.
        module: String,
    },
    /// A plan was carried out before its scales were known, or with others than before.
    #[error("static input scales: {found}, expected those of one calibration")]
    Order {
        /// What is wrong.
        found: &'static str,
    },
}

impl Classified for CalibrationError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Read { source, .. } => Failure::io("", source).class,
            Self::Empty { .. } | Self::NotUtf8 { .. } | Self::Zero { .. } => FailureClass::UserConfigError,
            Self::Tokenizer(error) => error.failure_class(),
            Self::Unseen { .. } | Self::NotFinite { .. } => FailureClass::ModelUnsupported,
            Self::Order { .. } => FailureClass::Unknown,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } | Self::Empty { .. } | Self::NotUtf8 { .. } => {
                Some("give a UTF-8 file with --calibration, or leave it out for the embedded text".to_owned())
            }
            Self::Tokenizer(error) => error.hint(),
            Self::Unseen { .. } => Some(
                "exclude the module in the recipe, calibrate on more text, or use a recipe with dynamic inputs such as \
                 fp8_dynamic"
                    .to_owned(),
            ),
            Self::NotFinite { .. } => {
                Some("the source itself is damaged or diverged in training; fetch it again".to_owned())
            }
            Self::Zero { .. } | Self::Order { .. } => None,
        }
    }
}
