//! Test runners.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{MAX_COUNT, ParseError, count_of, number};
use crate::record::snapshot::TestCounts;

/// A regular expression that is known to compile.
macro_rules! pattern {
    ($name:ident, $text:literal) => {
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($text).ok());
    };
}
pub(super) use pattern;

/// The groups of every match of `pattern` in `text`.
pub(super) fn matches<'t>(
    pattern: &'static LazyLock<Option<Regex>>,
    text: &'t str,
) -> impl Iterator<Item = regex::Captures<'t>> {
    pattern.as_ref().into_iter().flat_map(move |p| p.captures_iter(text))
}

pattern!(
    LIBTEST,
    r"(?m)^test result: \S+ (\d+) passed; (\d+) failed; (\d+) ignored; (\d+) measured; \d+ filtered out"
);
pattern!(LIBTEST_RUNNING, r"(?m)^running (\d+) tests?\r?$");

/// `cargo test`: the summaries of all binaries. Tests that were announced and never reported crashed.
pub(super) fn libtest(text: &str) -> Result<TestCounts, ParseError> {
    let mut counts = TestCounts::default();
    let mut summaries = 0;
    for summary in matches(&LIBTEST, text) {
        summaries += 1;
        counts.passed += number(&summary[1]) + number(&summary[4]);
        counts.failed += number(&summary[2]);
        counts.skipped += number(&summary[3]);
    }
    let announced: u64 = matches(&LIBTEST_RUNNING, text).map(|c| number(&c[1])).sum();
    if summaries == 0 && announced == 0 {
        return Err(ParseError::Nothing { expected: "libtest summary ('test result: …')" });
    }
    counts.total = counts.passed + counts.failed + counts.skipped;
    let unaccounted = announced.saturating_sub(counts.total);
    counts.failed += unaccounted;
    counts.total += unaccounted;
    Ok(counts)
}

pattern!(NEXTEST, r"(?m)^\s*Summary \[[^\]]*\]\s+(?:(\d+)/)?(\d+) tests? run: (.*)$");

/// `cargo nextest run`: its last summary. Tests that a cancelled run left out did not pass.
pub(super) fn nextest(text: &str) -> Result<TestCounts, ParseError> {
    let Some(summary) = matches(&NEXTEST, text).last() else {
        return Err(ParseError::Nothing { expected: "nextest summary ('Summary […] N tests run: …')" });
    };
    let planned = number(&summary[2]);
    // `2 passed (1 slow, 1 flaky)`: what is in parentheses is a part of what stands before them.
    let parts = without_parentheses(&summary[3]);
    let passed = count_of(&parts, "passed");
    let skipped = count_of(&parts, "skipped");
    Ok(TestCounts { total: planned + skipped, passed, failed: planned.saturating_sub(passed), skipped })
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0_u32;
    let keep = |c: &char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    };
    text.chars().filter(keep).collect()
}

/// Jest's and Vitest's JSON, behind whatever a package manager printed before it.
pub(super) fn jest(text: &str) -> Result<TestCounts, ParseError> {
    let starts = text.match_indices('{').map(|(at, _)| at);
    let at_line_start = starts.filter(|at| *at == 0 || text.as_bytes()[at - 1] == b'\n');
    let mut problem = None;
    for at in at_line_start {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) if value.get("numTotalTests").is_some() => return jest_counts(&value),
            Some(Err(e)) => problem = problem.or(Some(e.to_string())),
            _ => {}
        }
    }
    Err(match problem {
        Some(detail) => ParseError::Malformed { format: "Jest/Vitest JSON", detail },
        None => ParseError::Nothing { expected: "Jest/Vitest JSON (an object with numTotalTests)" },
    })
}

fn jest_counts(report: &Value) -> Result<TestCounts, ParseError> {
    let required = |key: &str| {
        let value = report.get(key).and_then(Value::as_u64).map(|n| n.min(MAX_COUNT));
        let detail = || format!("{key} is {}, expected a count", report.get(key).unwrap_or(&Value::Null));
        value.ok_or_else(|| ParseError::Malformed { format: "Jest/Vitest JSON", detail: detail() })
    };
    let optional = |key: &str| report.get(key).and_then(Value::as_u64).unwrap_or(0).min(MAX_COUNT);
    let (total, passed, failed) =
        (required("numTotalTests")?, required("numPassedTests")?, required("numFailedTests")?);
    // A file that cannot be loaded has no tests that could fail.
    let suites = report.get("testResults").and_then(Value::as_array);
    let broken = suites.into_iter().flatten().filter(|suite| {
        let no_tests = suite.get("assertionResults").and_then(Value::as_array).is_none_or(Vec::is_empty);
        no_tests && suite.get("status").and_then(Value::as_str) == Some("failed")
    });
    let broken = broken.count() as u64;
    let broken = broken.max(optional("numRuntimeErrorTestSuites"));
    Ok(TestCounts {
        total: total + broken,
        passed,
        failed: failed + broken,
        skipped: optional("numPendingTests") + optional("numTodoTests"),
    })
}

pattern!(
    PYTEST,
    r"(?m)^=*\s*((?:\d+ [a-z]+(?: [a-z]+)?(?:, )?)+) in [0-9.]+(?:s| seconds)(?: \([0-9:]+\))?\s*=*\r?$"
);
pattern!(PYTEST_NONE, r"(?m)^=*\s*no tests ran in ");

/// pytest's last line: `=== 3 failed, 10 passed, 1 error in 0.12s ===`.
pub(super) fn pytest(text: &str) -> Result<TestCounts, ParseError> {
    let Some(line) = matches(&PYTEST, text).last() else {
        return match matches(&PYTEST_NONE, text).next() {
            Some(_) => Ok(TestCounts::default()),
            None => Err(ParseError::Nothing { expected: "pytest summary ('N passed in …')" }),
        };
    };
    let count = |word: &str| count_of(&line[1], word);
    let errors = count("errors").max(count("error"));
    let counts = TestCounts {
        total: 0,
        passed: count("passed") + count("xpassed"),
        failed: count("failed") + errors,
        skipped: count("skipped") + count("xfailed"),
    };
    Ok(TestCounts { total: counts.passed + counts.failed + counts.skipped, ..counts })
}
