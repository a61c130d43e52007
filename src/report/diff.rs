//! What `day0 ready diff` prints: the comparison table and the brief for whoever works next (founding document 004,
//! `formatQualityReport` and "Prompt-Level Guidance").

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Deserialize;

use super::cell;
use crate::gate::diff::{COMPARISON, Delta, delta};
use crate::record::GateReport;
use crate::record::snapshot::Snapshot;

/// The Markdown table of both sides with a badge and what was found.
pub fn diff(baseline: &Snapshot, current: &Snapshot, delta: &Delta, report: &GateReport) -> String {
    let badge = if report.pass { "✅ PASSED" } else { "❌ FAILED" };
    let mut text = format!("## Quality gate: {badge}\n\n{}", table(baseline, current, delta));
    for finding in &report.findings {
        let kind = if finding.decides() { finding.failure_class.to_string() } else { "warning".to_owned() };
        let _ = writeln!(text, "- {kind}: {}", cell(&finding.to_string()));
    }
    text
}

/// The tables of every baseline that a release was compared with, under the name that the gate gave it.
pub fn comparisons(decided: &GateReport) -> String {
    #[derive(Deserialize)]
    struct Sides {
        baseline: Snapshot,
        current: Snapshot,
    }
    let mut text = String::new();
    for (name, seen) in &decided.checks {
        let Some(which) = name.strip_suffix(COMPARISON) else { continue };
        // A measurement that is not a number is no JSON; the findings name it.
        let Ok(sides) = Sides::deserialize(seen) else { continue };
        let delta = delta(&sides.baseline, &sides.current);
        let _ = writeln!(text, "Against the {} baseline:\n", which.trim_end_matches('.'));
        text.push_str(&table(&sides.baseline, &sides.current, &delta));
    }
    text
}

/// Both sides and their differences.
fn table(baseline: &Snapshot, current: &Snapshot, delta: &Delta) -> String {
    let mut text = String::from("| metric | baseline | current | delta |\n|---|---|---|---|\n");
    let mut row = |name: &str, before: Option<u64>, now: Option<u64>, delta: Option<i64>| {
        let shown = |n: Option<u64>| n.map_or_else(|| "–".to_owned(), |n| n.to_string());
        let delta = delta.map_or_else(|| "–".to_owned(), |d| format!("{d:+}"));
        let _ = writeln!(text, "| {name} | {} | {} | {delta} |", shown(before), shown(now));
    };
    let tests = |s: &Snapshot, of: fn(&crate::record::snapshot::TestCounts) -> u64| s.tests.as_ref().map(of);
    row("tests", tests(baseline, |t| t.total), tests(current, |t| t.total), delta.test_count_delta);
    row(
        "failed tests",
        tests(baseline, |t| t.failed),
        tests(current, |t| t.failed),
        delta.test_failures_delta,
    );
    let types = |s: &Snapshot| s.typecheck.map(|t| t.error_count);
    row("type errors", types(baseline), types(current), delta.type_errors_delta);
    let lints = |s: &Snapshot| s.lint.map(|l| l.error_count);
    row("lint errors", lints(baseline), lints(current), delta.lint_errors_delta);
    let names: BTreeSet<&String> = baseline.release.keys().chain(current.release.keys()).collect();
    for name in names {
        let value = |s: &Snapshot| s.release.get(name).map(|m| m.value);
        let shown = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{v:.4}"));
        let (before, now) = (value(baseline), value(current));
        let change = before.zip(now).map_or_else(|| "–".to_owned(), |(b, n)| format!("{:+.4}", n - b));
        let _ = writeln!(text, "| {} | {} | {} | {change} |", cell(name), shown(before), shown(now));
    }
    text.push('\n');
    text
}

/// The brief: where the work starts, and how to work.
pub fn brief(baseline: &Snapshot, tdd: bool, boyscout: bool) -> String {
    let mut text = String::from("## Quality baseline\n\n");
    let mut known = Vec::new();
    if let Some(tests) = baseline.tests {
        known.push(format!("{} failing tests (of {})", tests.failed, tests.total));
    }
    if let Some(types) = baseline.typecheck {
        known.push(format!("{} type errors", types.error_count));
    }
    if let Some(lint) = baseline.lint {
        known.push(format!("{} lint errors", lint.error_count));
    }
    known.extend(
        baseline.failed_commands.iter().map(|(what, why)| format!("{what} that cannot be counted ({why})")),
    );
    let known = if known.is_empty() { "nothing that was counted".to_owned() } else { known.join(", ") };
    let _ = writeln!(text, "You start with {known}. Do not make it worse.\n");
    text.push_str(
        "- Failures beyond this baseline are caused by the change: they fail it.\n\
         - Failures that equal the baseline were there before: they do not fail it.\n\
         - Removing a test needs a reason.\n",
    );
    if tdd {
        text.push_str(
            "\n### Work test first\n\n\
             1. RED: write failing tests for the acceptance criteria.\n\
             2. GREEN: write the least code that passes them.\n\
             3. REFACTOR: clean up while the tests stay green.\n\
             4. Run the full suite before committing.\n",
        );
    }
    if boyscout {
        text.push_str(
            "\n### Boy scout rule\n\n\
             If you modify a file that has lint warnings, type errors or failing tests already, fix them while you are\n\
             there. Leave files alone that the change does not touch.\n",
        );
    }
    text.push_str("\n### Before committing\n\nCheck that nothing got worse: `day0 ready diff check`.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate;
    use crate::record::snapshot::{Measured, TestCounts, TypecheckCounts};

    fn snapshot(failed: u64, errors: u64) -> Snapshot {
        Snapshot {
            tests: Some(TestCounts { total: 10, passed: 10 - failed, failed, skipped: 0 }),
            typecheck: Some(TypecheckCounts { error_count: errors, exit_code: 0 }),
            ..Snapshot::default()
        }
    }

    /// Document 004, `formatQualityReport`: a Markdown table comparing baseline and current, with a badge.
    #[test]
    fn the_table_shows_both_sides_and_the_delta() {
        let (before, mut now) = (snapshot(0, 3), snapshot(2, 1));
        now.release.insert("sizeRatio".into(), Measured::exact(0.5));
        let report = gate::diff::check(Some(&before), &now);
        let text = diff(&before, &now, &gate::diff::delta(&before, &now), &report);
        for line in [
            "FAILED",
            "| tests | 10 | 10 | +0 |",
            "| failed tests | 0 | 2 | +2 |",
            "| type errors | 3 | 1 | -2 |",
            "| lint errors | – | – | – |",
            "| sizeRatio | – | 0.5000 | – |",
            "READINESS_FAILED: testFailures",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    /// Document 004, `formatQualityReport`, of a release: the table from the gate's report alone.
    #[test]
    fn a_gates_report_holds_its_table() {
        let (before, mut now) = (snapshot(2, 3), snapshot(0, 3));
        now.release.insert("sizeRatio".into(), Measured { value: 0.5, lower: None, upper: None });
        let text = comparisons(&gate::diff::check(Some(&before), &now));
        for line in [
            "| failed tests | 2 | 0 | -2 |",
            "| type errors | 3 | 3 | +0 |",
            "| sizeRatio | – | 0.5000 | – |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert_eq!(comparisons(&gate::diff::check(None, &now)), "");
    }

    /// Document 004, "Prompt-Level Guidance": red, green, refactor, full suite; the boy scout rule; both by config.
    #[test]
    fn the_brief_says_where_work_starts_and_how_to_work() {
        let text = brief(&snapshot(0, 3), true, true);
        for words in
            ["0 failing tests", "3 type errors", "RED", "GREEN", "REFACTOR", "full suite", "Boy scout"]
        {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(text.contains("day0 ready diff check"));
        let plain = brief(&snapshot(0, 3), false, false);
        assert!(!plain.contains("RED") && !plain.contains("Boy scout"));
    }
}
