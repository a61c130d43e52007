//! Type checkers and linters.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::tests::{matches, pattern};
use super::{MAX_COUNT, ParseError, Parsed, number};

pattern!(TSC, r"(?m)\berror TS\d+:");

/// Document 004: count the `error TS\d+` lines.
pub(super) fn tsc(text: &str) -> Parsed {
    Parsed::Problems { errors: matches(&TSC, text).count() as u64, warnings: 0 }
}

pattern!(ESLINT, r"(?m)^\s*[✖×x]?\s*\d+ problems? \((\d+) errors?, (\d+) warnings?\)");
pattern!(ESLINT_LINE, r"(?m)^\s+\d+:\d+\s+(error|warning)\s");

/// Document 004: ESLint's summary line, or its lines; also its JSON. ESLint prints nothing when it finds nothing.
pub(super) fn eslint(text: &str) -> Result<Parsed, ParseError> {
    if let Some(json) = text.lines().find(|l| l.starts_with('[')) {
        return eslint_json(json);
    }
    if let Some(summary) = matches(&ESLINT, text).last() {
        return Ok(Parsed::Problems { errors: number(&summary[1]), warnings: number(&summary[2]) });
    }
    let lines: Vec<_> = matches(&ESLINT_LINE, text).map(|c| c[1] == *"error").collect();
    let errors = lines.iter().filter(|is_error| **is_error).count() as u64;
    Ok(Parsed::Problems { errors, warnings: lines.len() as u64 - errors })
}

fn eslint_json(line: &str) -> Result<Parsed, ParseError> {
    let malformed = |detail: String| ParseError::Malformed { format: "ESLint JSON", detail };
    let files: Vec<Value> = serde_json::from_str(line).map_err(|e| malformed(e.to_string()))?;
    let sum = |key: &str| {
        let counts = files.iter().map(|file| {
            let count = file.get(key).and_then(Value::as_u64);
            count.map(|n| n.min(MAX_COUNT)).ok_or_else(|| malformed(format!("an entry has no count {key}")))
        });
        counts.sum::<Result<u64, _>>()
    };
    Ok(Parsed::Problems { errors: sum("errorCount")?, warnings: sum("warningCount")? })
}

/// `cargo clippy --message-format=json`: one object a line. A message that several targets give counts once; summaries
/// ("aborting due to 2 previous errors") have no place and do not count.
pub(super) fn clippy(text: &str) -> Result<Parsed, ParseError> {
    let mut seen = BTreeSet::new();
    let (mut errors, mut warnings) = (0, 0);
    let mut is_cargo = false;
    for (number, line) in text.lines().enumerate().filter(|(_, l)| l.starts_with('{')) {
        let value: Value = serde_json::from_str(line).map_err(|e| ParseError::Malformed {
            format: "clippy JSON",
            detail: format!("line {}: {e}", number + 1),
        })?;
        is_cargo |= value.get("reason").is_some();
        let Some(message) = value.get("message").filter(|_| value["reason"] == "compiler-message") else {
            continue;
        };
        let has_place = message["spans"].as_array().is_some_and(|spans| !spans.is_empty());
        let text = message["rendered"].as_str().unwrap_or_default().to_owned();
        if !has_place || !seen.insert(text) {
            continue;
        }
        match message["level"].as_str() {
            Some("error" | "error: internal compiler error") => errors += 1,
            Some("warning") => warnings += 1,
            _ => {}
        }
    }
    if is_cargo {
        return Ok(Parsed::Problems { errors, warnings });
    }
    Err(ParseError::Nothing { expected: "cargo JSON messages (--message-format=json)" })
}
