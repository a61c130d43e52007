//! Why a recipe cannot be used.

use std::path::PathBuf;

use crate::record::{Classified, FailureClass};

/// A recipe that does not exist or is not valid.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// No built-in recipe has this name.
    #[error("no recipe named '{name}'; {suggestion}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The closest name, or all of them.
        suggestion: String,
    },
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The layout has no place for a scheme.
    #[error("recipe {name}: ModelOpt's layout does not hold {found}, only {expected}")]
    Dialect {
        /// The recipe.
        name: String,
        /// The scheme.
        found: String,
        /// What it holds.
        expected: String,
    },
    /// The content is not a valid recipe.
    #[error("{file}{}: {problem}{}", place(*.at), suggestion.as_ref().map(|s| format!("; {s}")).unwrap_or_default())]
    Invalid {
        /// The file.
        file: String,
        /// Line and column, counted from 1.
        at: Option<(usize, usize)>,
        /// What is wrong.
        problem: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
}

fn place(at: Option<(usize, usize)>) -> String {
    at.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"))
}

impl Classified for RecipeError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Dialect { .. } => FailureClass::ModelUnsupported,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { .. } => {
                "day0 list recipes prints them; a path to a YAML file works too".to_owned()
            }
            Self::Read { .. } => "a recipe is a built-in name or a path to a YAML file".to_owned(),
            Self::Dialect { .. } => {
                "write compressed-tensors (leave --format out), or use fp8_dynamic, nvfp4a16 or mxfp8"
                    .to_owned()
            }
            Self::Invalid { .. } => "recipes/w4a16.yaml shows every required key".to_owned(),
        })
    }
}
