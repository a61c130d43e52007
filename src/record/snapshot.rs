//! What `day0 ready diff` compares and `day0 ready ratchet` holds: the counts of a repository's own checks, and the
//! measurements of a release.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// `quality-baseline.json`: all measurements at one commit. Keys as in the founding document 004.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Snapshot {
    /// Schema of this record.
    #[serde(rename = "schema_version")]
    pub schema_version: u32,
    /// When it was taken, ISO 8601 UTC.
    pub timestamp: String,
    /// The commit of the work tree; empty outside a repository.
    pub commit_sha: String,
    /// Tests; `None` where none were counted.
    pub tests: Option<TestCounts>,
    /// Errors of the type checker.
    pub typecheck: Option<TypecheckCounts>,
    /// Errors of the linter.
    pub lint: Option<LintCounts>,
    /// Measurements of a release, by metric.
    #[serde(default)]
    pub release: BTreeMap<String, Measured>,
    /// Commands that ran but left nothing to count, by `tests`, `typecheck` or `lint`, with the reason.
    #[serde(default)]
    pub failed_commands: BTreeMap<String, String>,
}

/// Counts of a test run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCounts {
    /// All tests, skipped ones included.
    pub total: u64,
    /// Passed.
    pub passed: u64,
    /// Failed, crashed and never reported ones.
    pub failed: u64,
    /// Skipped or ignored.
    pub skipped: u64,
}

/// Counts of a type checker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TypecheckCounts {
    /// Errors.
    pub error_count: u64,
    /// Exit code of the command.
    pub exit_code: i32,
}

/// Counts of a linter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LintCounts {
    /// Errors.
    pub error_count: u64,
    /// Warnings.
    pub warning_count: u64,
}

/// A measurement. One without bounds is exact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Estimate.
    pub value: f64,
    /// One-sided 95 % lower bound; `None` for exact values.
    #[serde(default)]
    pub lower: Option<f64>,
    /// One-sided 95 % upper bound.
    #[serde(default)]
    pub upper: Option<f64>,
}

impl Measured {
    /// A value without noise.
    pub fn exact(value: f64) -> Self {
        Self { value, lower: None, upper: None }
    }

    /// A value with a normal one-sided 95 % bound on either side.
    pub fn with_stderr(value: f64, stderr: f64) -> Self {
        let half = Z_95 * stderr;
        Self { value, lower: Some(value - half), upper: Some(value + half) }
    }

    /// Lower bound, or the value itself.
    pub fn low(&self) -> f64 {
        self.lower.unwrap_or(self.value)
    }

    /// Upper bound, or the value itself.
    pub fn high(&self) -> f64 {
        self.upper.unwrap_or(self.value)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.value)?;
        match (self.lower, self.upper) {
            (Some(lower), Some(upper)) => write!(f, " ({lower:.4} … {upper:.4})"),
            _ => Ok(()),
        }
    }
}

/// One-sided 95 % quantile of the standard normal distribution.
const Z_95: f64 = 1.644_853_626_951_472_7;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Ratcheted by `min`.
    Higher,
    /// Ratcheted by `max`.
    Lower,
}

/// Names of the counted metrics with their direction; of release metrics the part before the first dot.
const METRICS: [(&str, Direction); 8] = [
    ("testCount", Direction::Higher),
    ("testFailures", Direction::Lower),
    ("typecheckErrors", Direction::Lower),
    ("lintErrors", Direction::Lower),
    ("lintWarnings", Direction::Lower),
    ("recovery", Direction::Higher),
    ("sizeRatio", Direction::Lower),
    ("throughput", Direction::Higher),
];
/// Share of the recipe's targets that are quantized.
pub const COVERAGE: &str = "coverage";

/// Which way of the metric called `name` is better; `None` for an unknown metric.
pub fn direction(name: &str) -> Option<Direction> {
    if name == COVERAGE {
        return Some(Direction::Higher);
    }
    let family = name.split_once('.').map_or(name, |(family, _)| family);
    let dotted = family != name;
    let takes_dot = matches!(family, "recovery" | "throughput");
    METRICS.iter().find(|(known, _)| *known == family && takes_dot == dotted).map(|(_, d)| *d)
}

/// Whether the commands of a repository count the metric; others are measured by a release.
pub fn is_count(name: &str) -> bool {
    matches!(name, "testCount" | "testFailures" | "typecheckErrors" | "lintErrors" | "lintWarnings")
}

/// Every known metric name, for suggestions.
pub fn metric_names() -> Vec<&'static str> {
    METRICS.iter().map(|(name, _)| *name).chain([COVERAGE]).collect()
}

impl Snapshot {
    /// Everything measured, by metric name.
    pub fn metrics(&self) -> BTreeMap<String, Measured> {
        let mut all = self.release.clone();
        let mut count = |name: &str, value: u64| {
            all.insert(name.to_owned(), Measured::exact(value as f64));
        };
        if let Some(tests) = self.tests {
            count("testCount", tests.total);
            count("testFailures", tests.failed);
        }
        if let Some(typecheck) = self.typecheck {
            count("typecheckErrors", typecheck.error_count);
        }
        if let Some(lint) = self.lint {
            count("lintErrors", lint.error_count);
            count("lintWarnings", lint.warning_count);
        }
        all
    }
}
