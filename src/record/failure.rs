//! How errors of any module become exit codes, messages and findings.

use std::error::Error;
use std::fmt;

use super::finding::FailureClass;
use super::verdict::exit_code;
use crate::base::closest::suggestion;

/// An error that knows what it means for the release.
pub trait Classified: Error {
    /// The class, which decides exit code and verdict.
    fn failure_class(&self) -> FailureClass;

    /// How to avoid it, in one sentence.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Any [`Classified`] error, flattened: what crosses module borders upwards.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The class.
    pub class: FailureClass,
    /// The error and its sources, joined by `: `.
    pub message: String,
    /// How to avoid it.
    pub hint: Option<String>,
    /// The signal that stopped the work, if one did.
    #[serde(default)]
    pub signal: Option<i32>,
}

impl Failure {
    /// Work stopped by a signal.
    pub fn interrupted(signal: i32) -> Self {
        let failure = Self::new(FailureClass::InfraTransient, format!("interrupted by signal {signal}"));
        Self { signal: Some(signal), ..failure.with_hint("run the same command again to continue") }
    }

    /// The exit code of a command that ends with this failure.
    pub fn exit_code(&self) -> u8 {
        self.signal.map_or_else(|| exit_code::of_class(self.class), exit_code::interrupted)
    }

    /// A failure without an underlying error value.
    pub fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None, signal: None }
    }

    /// A usage or configuration error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(FailureClass::UserConfigError, message)
    }

    /// Sets the hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// YAML called `name` that is not what was expected. `fields` are suggested for a key that is unknown.
    pub fn yaml(name: &str, error: &serde_yaml_ng::Error, fields: &[&str]) -> Self {
        let message = error.to_string();
        let failure = Self::config(format!("{name}: {message}"));
        match message.split('`').nth(1).filter(|_| message.contains("unknown field")) {
            Some(field) => failure.with_hint(suggestion(field, fields)),
            None => failure,
        }
    }

    /// An I/O error on `what`: a full disk is transient, everything else a configuration error.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let class = match error.kind() {
            K::StorageFull
            | K::QuotaExceeded
            | K::WriteZero
            | K::Interrupted
            | K::TimedOut
            | K::StaleNetworkFileHandle => FailureClass::InfraTransient,
            _ => FailureClass::UserConfigError,
        };
        Self::new(class, format!("{what}: {error}"))
    }
}

impl<E: Classified> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { class: error.failure_class(), message: chain(&error), hint: error.hint(), signal: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error and its sources in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Classified for crate::base::json::JsonError {
    fn failure_class(&self) -> FailureClass {
        self.io().map_or(FailureClass::UserConfigError, |e| Failure::io("", e).class)
    }
}
