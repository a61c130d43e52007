//! Gate `diff`: is nothing worse than the captured baseline? (Founding document 004, "Baseline-Diff Gate".)
//!
//! ```text
//! testFailuresDelta = current.tests.failed    − baseline.tests.failed
//! typeErrorsDelta   = current.typecheck.errors − baseline.typecheck.errors
//! lintErrorsDelta   = current.lint.errors      − baseline.lint.errors
//! testCountDelta    = current.tests.total      − baseline.tests.total
//! passed = testFailuresDelta ≤ 0 ∧ typeErrorsDelta ≤ 0 ∧ lintErrorsDelta ≤ 0
//! ```
//!
//! Removed tests warn. A metric that only one side has, or whose command failed, is no evidence. Measurements of a
//! release block when they are worse beyond the noise of both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::findings::Collector;
use crate::record::snapshot::{Direction, Measured, Snapshot, direction};
use crate::record::{FailureClass, GateName, GateReport};

/// The check that holds both sides, for the comparison table.
pub const COMPARISON: &str = "comparison";

/// Differences of the counts; `None` where a side has no count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delta {
    /// Whether no failure count increased.
    pub passed: bool,
    /// Failed tests.
    pub test_failures_delta: Option<i64>,
    /// Errors of the type checker.
    pub type_errors_delta: Option<i64>,
    /// Errors of the linter.
    pub lint_errors_delta: Option<i64>,
    /// Tests.
    pub test_count_delta: Option<i64>,
}

impl Delta {
    /// Differences of what must not increase: check, difference, and what it counts.
    fn failures(&self) -> [(&'static str, Option<i64>, &'static str); 3] {
        [
            ("testFailures", self.test_failures_delta, "failed tests"),
            ("typecheckErrors", self.type_errors_delta, "type errors"),
            ("lintErrors", self.lint_errors_delta, "lint errors"),
        ]
    }
}

/// Pure arithmetic (document 004, `computeQualityDelta`).
pub fn delta(baseline: &Snapshot, current: &Snapshot) -> Delta {
    let difference = |of: fn(&Snapshot) -> Option<u64>| {
        // Counts are below 2^40.
        Some(of(current)? as i64 - of(baseline)? as i64)
    };
    let mut delta = Delta {
        passed: false,
        test_failures_delta: difference(|s| s.tests.map(|t| t.failed)),
        type_errors_delta: difference(|s| s.typecheck.map(|t| t.error_count)),
        lint_errors_delta: difference(|s| s.lint.map(|l| l.error_count)),
        test_count_delta: difference(|s| s.tests.map(|t| t.total)),
    };
    delta.passed = delta.failures().into_iter().filter_map(|(_, d, _)| d).all(|d| d <= 0);
    delta
}

/// Decides. Without a baseline there is nothing to compare with.
pub fn check(baseline: Option<&Snapshot>, current: &Snapshot) -> GateReport {
    let mut out = Collector::new(GateName::Diff);
    let Some(baseline) = baseline else {
        out.add(
            out.finding("baseline", FailureClass::InsufficientEvidence, "baseline")
                .observed("none was captured")
                .hint("capture one before the work begins: day0 ready diff capture"),
        );
        return out.report("");
    };
    let delta = delta(baseline, current);
    for (check, difference, what) in delta.failures() {
        failures(&mut out, check, difference, what);
    }
    if let Some(removed) = delta.test_count_delta.filter(|d| *d < 0) {
        out.add(
            out.finding("testCount", FailureClass::ReadinessFailed, "tests")
                .observed(format!("{} were removed", -removed))
                .hint("say where what they covered is tested now")
                .as_note(),
        );
    }
    out.check("testCount", json!({"delta": delta.test_count_delta}));
    no_evidence(&mut out, baseline, current);
    measurements(&mut out, &baseline.release, &current.release);
    out.check(COMPARISON, json!({"baseline": baseline, "current": current}));
    out.mark(COMPARISON, Value::Null);
    out.report(format!("nothing is worse than the baseline{}", improved(&delta)))
}

/// What a gate that passes says of what got better (document 004: "gate passes, improvement logged").
fn improved(delta: &Delta) -> String {
    let better: Vec<String> = delta
        .failures()
        .into_iter()
        .filter_map(|(_, difference, what)| {
            let fewer = difference.filter(|d| *d < 0)?.unsigned_abs();
            Some(format!("{what} −{fewer}"))
        })
        .collect();
    if better.is_empty() { String::new() } else { format!("; improved: {}", better.join(", ")) }
}

fn failures(out: &mut Collector, check: &str, difference: Option<i64>, what: &str) {
    if let Some(more) = difference.filter(|d| *d > 0) {
        out.add(
            out.finding(check, FailureClass::ReadinessFailed, what)
                .observed(format!("{more} more than at the baseline"))
                .expected("no more")
                .hint("fix what this change broke; what failed before it is not asked for"),
        );
    }
    out.check(check, json!({"delta": difference}));
}

/// What a side could not count, although the other one did or it was asked to.
fn no_evidence(out: &mut Collector, baseline: &Snapshot, current: &Snapshot) {
    let mut missing = |what: &str, before: bool, now: bool| {
        let failed = current.failed_commands.get(what);
        let reason = match (failed, before, now) {
            (Some(reason), ..) => reason.clone(),
            (None, true, false) => "counted at the baseline, not now".to_owned(),
            (None, false, true) => "counted now, not at the baseline".to_owned(),
            _ => return,
        };
        let finding = out
            .finding("evidence", FailureClass::InsufficientEvidence, what)
            .observed(reason)
            .hint("make the command run again, or capture a new baseline with --force");
        // A new check has nothing to be compared with, and makes nothing worse.
        let new = failed.is_none() && now;
        out.add(if new { finding.as_note() } else { finding });
    };
    missing("tests", baseline.tests.is_some(), current.tests.is_some());
    missing("typecheck", baseline.typecheck.is_some(), current.typecheck.is_some());
    missing("lint", baseline.lint.is_some(), current.lint.is_some());
    for (metric, _) in baseline.release.iter().filter(|(name, _)| !current.release.contains_key(*name)) {
        missing(metric, true, false);
    }
    out.check("evidence", json!({"failed_commands": current.failed_commands}));
}

/// Measurements of a release against those of the baseline.
fn measurements(
    out: &mut Collector,
    baseline: &BTreeMap<String, Measured>,
    current: &BTreeMap<String, Measured>,
) {
    for (metric, now) in current {
        let (Some(before), Some(direction)) = (baseline.get(metric), direction(metric)) else { continue };
        let (worse, shown) = match direction {
            Direction::Higher => (now.value < before.value, now.high() < before.low()),
            Direction::Lower => (now.value > before.value, now.low() > before.high()),
        };
        let finding = out
            .finding(metric, FailureClass::ReadinessFailed, metric)
            .observed(now.value.to_string())
            .expected(format!("{} or better, as at the baseline", before.value));
        if shown || !now.value.is_finite() {
            out.add(finding);
        } else if worse {
            out.add(finding.hint("within the noise of both measurements").as_note());
        }
        out.check(metric, json!({"baseline": before, "current": now}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::snapshot::{LintCounts, TestCounts, TypecheckCounts};

    fn snapshot(total: u64, failed: u64, type_errors: u64, lint_errors: u64) -> Snapshot {
        Snapshot {
            tests: Some(TestCounts { total, passed: total - failed, failed, skipped: 0 }),
            typecheck: Some(TypecheckCounts { error_count: type_errors, exit_code: 0 }),
            lint: Some(LintCounts { error_count: lint_errors, warning_count: 0 }),
            ..Snapshot::default()
        }
    }

    /// Document 004, "Delta Computation": each formula, alone.
    #[test]
    fn deltas_are_current_minus_baseline() {
        let found = delta(&snapshot(100, 2, 3, 5), &snapshot(97, 1, 7, 5));
        let expected = Delta {
            passed: false,
            test_failures_delta: Some(-1),
            type_errors_delta: Some(4),
            lint_errors_delta: Some(0),
            test_count_delta: Some(-3),
        };
        assert_eq!(found, expected);
        for (current, passed) in [
            (snapshot(100, 2, 3, 5), true),
            (snapshot(100, 3, 3, 5), false),
            (snapshot(100, 2, 4, 5), false),
            (snapshot(100, 2, 3, 6), false),
            (snapshot(90, 0, 0, 0), true),
        ] {
            assert_eq!(delta(&snapshot(100, 2, 3, 5), &current).passed, passed);
            let report = check(Some(&snapshot(100, 2, 3, 5)), &current);
            assert_eq!(report.pass, passed, "{}", report.detail);
        }
    }

    /// Document 004, "When It Runs": metrics improved, so the gate passes and the improvement is logged.
    #[test]
    fn improvements_are_logged() {
        let detail = |current| check(Some(&snapshot(100, 2, 3, 5)), &current).detail;
        assert_eq!(
            detail(snapshot(100, 0, 3, 4)),
            "nothing is worse than the baseline; improved: failed tests −2, lint errors −1"
        );
        assert_eq!(detail(snapshot(100, 2, 3, 5)), "nothing is worse than the baseline");
        assert!(!detail(snapshot(100, 0, 4, 5)).contains("improved"), "not of a gate that fails");
    }

    /// Document 004: a negative testCountDelta generates a warning but does not fail the gate.
    #[test]
    fn removed_tests_warn() {
        let report = check(Some(&snapshot(100, 0, 0, 0)), &snapshot(98, 0, 0, 0));
        assert!(report.pass);
        assert!(
            report.findings.iter().any(|f| f.check == "testCount" && f.observed.contains("2 were removed"))
        );
    }

    /// Document 004, "QA Baseline Awareness": failures that equal the baseline are pre-existing and do not fail.
    #[test]
    fn what_failed_before_does_not_fail_the_gate() {
        assert!(check(Some(&snapshot(100, 7, 9, 11)), &snapshot(100, 7, 9, 11)).pass);
    }

    /// Document 004, "Graceful Degradation", under DESIGN section 7: no evidence is INSUFFICIENT_EVIDENCE where it is
    /// required; whoever asks decides whether it is.
    #[test]
    fn no_baseline_and_failed_commands_are_no_evidence() {
        let none = Some(FailureClass::InsufficientEvidence);
        assert_eq!(check(None, &snapshot(1, 0, 0, 0)).failure_class, none);
        let mut hung = snapshot(1, 0, 0, 0);
        hung.tests = None;
        hung.failed_commands.insert("tests".into(), "took longer than 5 s".into());
        let report = check(Some(&snapshot(1, 0, 0, 0)), &hung);
        assert_eq!(report.failure_class, none);
        assert!(report.detail.contains("took longer"));
        hung.failed_commands.clear();
        assert_eq!(check(Some(&snapshot(1, 0, 0, 0)), &hung).failure_class, none);
        // A check that is new is a note.
        assert!(check(Some(&hung), &snapshot(1, 0, 0, 0)).pass);
    }

    #[test]
    fn measurements_of_a_release_block_beyond_noise_only() {
        let of = |value, stderr| {
            let measured = Measured::with_stderr(value, stderr);
            Snapshot { release: BTreeMap::from([("recovery.a".to_owned(), measured)]), ..Snapshot::default() }
        };
        assert!(check(Some(&of(1.0, 0.01)), &of(0.98, 0.01)).pass);
        assert!(!check(Some(&of(1.0, 0.01)), &of(0.95, 0.01)).pass);
        assert!(!check(Some(&of(1.0, 0.01)), &of(f64::NAN, 0.01)).pass);
        let exact = |value| Snapshot {
            release: BTreeMap::from([("sizeRatio".to_owned(), Measured::exact(value))]),
            ..Snapshot::default()
        };
        assert!(check(Some(&exact(0.5)), &exact(0.4)).pass);
        assert!(!check(Some(&exact(0.5)), &exact(0.51)).pass);
        assert!(!check(Some(&exact(0.5)), &Snapshot::default()).pass);
    }
}
