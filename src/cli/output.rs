//! Standard output and the printing of failures.

use std::io::Write;

use serde::Serialize;

use crate::base::json;
use crate::record::{Failure, FailureClass};

/// Prints one line of data. A closed pipe ends the output, not the program's exit code.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = json::pretty(value)
        .map_err(|e| Failure::new(FailureClass::Unknown, format!("the result is not JSON: {e}")))?;
    line(text.trim_end());
    Ok(())
}

/// Prints a failure with its class and hint on standard error.
pub fn failure(failure: &Failure) {
    let mut err = std::io::stderr();
    let _ = writeln!(err, "error: {}", failure.message);
    if failure.class != FailureClass::UserConfigError {
        let _ = writeln!(err, "class: {}", failure.class);
    }
    if let Some(hint) = &failure.hint {
        let _ = writeln!(err, "hint: {hint}");
    }
}
