//! Counts out of what test runners, type checkers and linters print. Every parser reads bytes of any content and either
//! counts or says why it cannot.

mod errors;
mod junit;
mod tests;

#[cfg(test)]
mod samples;

use serde::{Deserialize, Serialize};

use crate::record::snapshot::TestCounts;

/// The formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JUnit XML, as pytest, nextest, Maven and most runners write it.
    Junit,
    /// `cargo test`.
    Libtest,
    /// `cargo nextest run`.
    Nextest,
    /// `jest --json`.
    Jest,
    /// `vitest run --reporter=json`: the same layout.
    Vitest,
    /// pytest's last line.
    Pytest,
    /// `error TS1234:` lines.
    Tsc,
    /// ESLint's summary, its JSON, or its lines.
    Eslint,
    /// `cargo clippy --message-format=json`.
    Clippy,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A test run.
    Tests(TestCounts),
    /// A checker.
    Problems {
        /// Errors.
        errors: u64,
        /// Warnings.
        warnings: u64,
    },
}

/// Output that cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing of the format is there.
    #[error("no {expected} in the output")]
    Nothing {
        /// What was looked for.
        expected: &'static str,
    },
    /// It is the format, but broken.
    #[error("{format}: {detail}")]
    Malformed {
        /// The format.
        format: &'static str,
        /// Where and why.
        detail: String,
    },
}

impl Format {
    /// Counts `stdout` and `stderr` of a command, or the bytes of a report file given as `stdout`.
    pub fn parse(self, stdout: &[u8], stderr: &[u8]) -> Result<Parsed, ParseError> {
        let (out, err) = (String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr));
        let both = || [strip_ansi(&out), strip_ansi(&err)].join("\n");
        match self {
            Self::Junit => junit::junit(&out).map(Parsed::Tests),
            Self::Libtest => tests::libtest(&both()).map(Parsed::Tests),
            Self::Nextest => tests::nextest(&both()).map(Parsed::Tests),
            Self::Jest | Self::Vitest => tests::jest(&out).map(Parsed::Tests),
            Self::Pytest => tests::pytest(&both()).map(Parsed::Tests),
            Self::Tsc => Ok(errors::tsc(&both())),
            Self::Eslint => errors::eslint(&both()),
            Self::Clippy => errors::clippy(&out),
        }
    }
}

/// Text without colour codes.
fn strip_ansi(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            while chars.next_if(|c| !('@'..='~').contains(c)).is_some() {}
            chars.next();
        } else {
            plain.push(c);
        }
    }
    plain
}

/// The number before the word `word` among comma-separated parts: `3 failed, 10 passed`.
fn count_of(parts: &str, word: &str) -> u64 {
    parts
        .split(',')
        .filter_map(|part| part.trim().split_once(' '))
        .find(|(_, name)| *name == word || name.split(' ').next() == Some(word))
        .map_or(0, |(digits, _)| number(digits))
}

/// A count. Larger ones than any run has are cut, so that sums cannot overflow; what is no number counts nothing.
fn number(digits: &str) -> u64 {
    digits.parse().unwrap_or(0).min(MAX_COUNT)
}

/// No run has as many tests or errors.
const MAX_COUNT: u64 = 1 << 40;
