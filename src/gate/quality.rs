//! Gate `quality`: the quality score of a run (founding document 003).
//!
//! ```text
//! severity   = max(0, 100 − 25·critical − 15·high − 5·medium − 1·low)      weighs 0.4
//! fix        = round(100 · passed / applied), 100 where none was applied   weighs 0.3
//! coverage   = [0, 0, 10, 15, 20][diagnoses made]                          weighs 1
//! efficiency = 10, 7, 4 for 1, 2, 3 iterations, else 0                     weighs 1
//! total      = round(0.4·severity + 0.3·fix + coverage + efficiency)
//! FAIL:   critical > 0, or high > 5, or total < 60
//! REVIEW: high > 2, or total < 80
//! ```
//!
//! Where the document's tables and its functions differ, the functions hold. Rounding is JavaScript's: halves go up.

use serde_json::json;

use super::findings::Collector;
use crate::record::quality::{FixResult, Integrity, QualityGate, QualityScore, QualityState};
use crate::record::{FailureClass, GateName, GateReport, Severity, Verdict};

/// Attempts at most (document 003, "Max Iterations").
pub const MAX_ITERATIONS: u32 = 5;
/// Actions that count as recent.
const RECENT_ACTIONS: usize = 10;

/// `calculateSeverityScore`.
pub fn severity_score(issues: &[Severity]) -> u32 {
    let deductions: u32 = issues.iter().fold(0, |sum, issue| sum.saturating_add(weight(*issue)));
    100_u32.saturating_sub(deductions)
}

fn weight(severity: Severity) -> u32 {
    match severity {
        Severity::Critical => 25,
        Severity::High => 15,
        Severity::Medium => 5,
        Severity::Low => 1,
    }
}

/// `calculateFixScore`: no fixes needed is good.
pub fn fix_score(applied: &[FixResult]) -> u32 {
    if applied.is_empty() {
        return 100;
    }
    let passed = applied.iter().filter(|f| **f == FixResult::Pass).count();
    round(passed as f64 / applied.len() as f64 * 100.0)
}

/// `Math.round` of a value that is not negative.
fn round(value: f64) -> u32 {
    (value + 0.5).floor() as u32
}

/// The coverage of so many diagnoses.
pub fn coverage_score(diagnoses: usize) -> u32 {
    [0, 0, 10, 15, 20].get(diagnoses).copied().unwrap_or(0)
}

/// The efficiency of so many iterations.
pub fn efficiency_score(iterations: u32) -> u32 {
    match iterations {
        0 | 1 => 10,
        2 => 7,
        3 => 4,
        _ => 0,
    }
}

/// `calculateQualityScore` with `determineQualityGate`.
pub fn score(state: &QualityState) -> QualityScore {
    let (severity, fix) = (severity_score(&state.issues), fix_score(&state.applied_fixes));
    let coverage = coverage_score(state.diagnosis.count());
    let efficiency = efficiency_score(state.iteration_count);
    let total =
        round(f64::from(severity) * 0.4 + f64::from(fix) * 0.3 + f64::from(coverage) + f64::from(efficiency));
    let count = |severity: Severity| state.issues.iter().filter(|s| **s == severity).count();
    let (critical, high) = (count(Severity::Critical), count(Severity::High));
    let gate = if critical > 0 || high > 5 || total < 60 {
        QualityGate::Fail
    } else if high > 2 || total < 80 {
        QualityGate::Review
    } else {
        QualityGate::Pass
    };
    QualityScore { severity, fix, coverage, efficiency, total, critical, high, gate }
}

/// `shouldContinueIteration`; never on evidence that cannot be trusted.
pub fn should_continue(state: &QualityState) -> bool {
    if state.verdict == Some(Verdict::Anomalous) || state.quality_gate == Some(QualityGate::Pass) {
        return false;
    }
    if state.iteration_count >= state.max_iterations {
        return false;
    }
    if state.iteration_count >= 2 {
        let start = state.action_history.len().saturating_sub(RECENT_ACTIONS);
        let resolved = state.action_history[start..]
            .iter()
            .any(|a| a.action == "action-verify" && a.result == "success");
        if !resolved {
            return false;
        }
    }
    state.issues.iter().any(|s| *s >= Severity::High)
}

/// Decides. PASS adds nothing and REVIEW is a note; a FAIL with critical or high issues is what those issues decide
/// already, any other FAIL, and a run directory that is not whole, fail this gate.
pub fn decide(state: &QualityState, integrity: Option<&Integrity>) -> GateReport {
    let mut out = Collector::new(GateName::Quality);
    let score = score(state);
    let finding = out
        .finding("score", FailureClass::ReadinessFailed, "quality")
        .observed(format!("{} with a score of {}", score.gate, score.total))
        .expected("PASS: a score of 80, no critical and at most 2 high issues")
        .hint("work on what the findings name, then release again");
    match score.gate {
        QualityGate::Pass => {}
        QualityGate::Fail if score.critical == 0 && score.high == 0 => out.add(finding),
        QualityGate::Review | QualityGate::Fail => out.add(finding.as_note()),
    }
    // Every field is a number or a name, so this cannot fail; an empty entry would say so.
    out.check("score", serde_json::to_value(&score).unwrap_or_else(|_| json!({})));
    if let Some(integrity) = integrity {
        for (criterion, problems) in &integrity.problems {
            let check = format!("integrity.{criterion}");
            let list = problems.iter().map(|problem| {
                out.finding(&check, FailureClass::ReadinessFailed, criterion)
                    .observed(problem)
                    .hint("release again into a new directory; a damaged run proves nothing")
            });
            let list = list.collect();
            out.add_list(list);
            out.check(&check, json!({"problems": problems.len()}));
        }
    }
    out.report(format!("{} with a score of {} of 100", score.gate, score.total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::quality::{Action, Diagnosis};

    fn issues(critical: usize, high: usize, medium: usize, low: usize) -> Vec<Severity> {
        let of = |severity, n| std::iter::repeat_n(severity, n);
        of(Severity::Critical, critical)
            .chain(of(Severity::High, high))
            .chain(of(Severity::Medium, medium))
            .chain(of(Severity::Low, low))
            .collect()
    }

    fn diagnosed(count: usize) -> Diagnosis {
        Diagnosis { ptq: count > 0, run: count > 1, compare: count > 2, repro: count > 3 }
    }

    fn state(issues: Vec<Severity>) -> QualityState {
        QualityState {
            issues,
            diagnosis: diagnosed(4),
            iteration_count: 1,
            max_iterations: MAX_ITERATIONS,
            ..QualityState::default()
        }
    }

    /// Document 003, dimension 1: −25, −15, −5, −1 each, not below 0.
    #[test]
    fn severity_deducts_by_the_table() {
        for (found, expected) in [
            (issues(0, 0, 0, 0), 100),
            (issues(1, 0, 0, 0), 75),
            (issues(0, 1, 0, 0), 85),
            (issues(0, 0, 1, 0), 95),
            (issues(0, 0, 0, 1), 99),
            (issues(1, 2, 3, 4), 100 - 25 - 30 - 15 - 4),
            (issues(4, 0, 0, 0), 0),
            (issues(9, 9, 9, 9), 0),
        ] {
            assert_eq!(severity_score(&found), expected);
        }
    }

    /// Document 003, dimension 2: `Math.round((passed / total) * 100)`, 100 without fixes.
    #[test]
    fn fixes_count_by_their_share() {
        use FixResult::{Fail, Pass};
        assert_eq!(fix_score(&[]), 100);
        assert_eq!(fix_score(&[Pass]), 100);
        assert_eq!(fix_score(&[Fail]), 0);
        assert_eq!(fix_score(&[Pass, Fail, Fail]), 33);
        assert_eq!(fix_score(&[Pass, Pass, Fail]), 67);
        // 12.5 rounds up, as in JavaScript.
        assert_eq!(fix_score(&[Pass, Fail, Fail, Fail, Fail, Fail, Fail, Fail]), 13);
    }

    /// Document 003, dimensions 3 and 4: every row of both tables.
    #[test]
    fn coverage_and_efficiency_follow_their_tables() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(coverage_score), [0, 0, 10, 15, 20, 0]);
        assert_eq!([0, 1, 2, 3, 4, 9].map(efficiency_score), [10, 10, 7, 4, 0, 0]);
        for n in 0..=4 {
            assert_eq!(diagnosed(n).count(), n);
        }
    }

    /// Document 003, `calculateQualityScore`: the weighted total, rounded.
    #[test]
    fn the_total_is_the_weighted_sum() {
        assert_eq!(score(&state(vec![])).total, 100);
        let mixed = QualityState {
            applied_fixes: vec![FixResult::Pass, FixResult::Fail],
            diagnosis: diagnosed(3),
            iteration_count: 3,
            ..state(issues(0, 1, 1, 1))
        };
        // 0.4 · 79 + 0.3 · 50 + 15 + 4 = 65.6
        assert_eq!(score(&mixed).total, 66);
        let worst = QualityState {
            applied_fixes: vec![FixResult::Fail],
            diagnosis: diagnosed(0),
            iteration_count: 5,
            ..state(issues(4, 0, 0, 0))
        };
        assert_eq!(score(&worst).total, 0);
    }

    /// Document 003, `determineQualityGate`, at each threshold and one beyond.
    #[test]
    fn gates_follow_their_thresholds() {
        use QualityGate::{Fail, Pass, Review};
        let gate = |s: &QualityState| score(s).gate;
        assert_eq!(gate(&state(issues(1, 0, 0, 0))), Fail);
        assert_eq!(gate(&state(issues(0, 2, 0, 0))), Pass);
        assert_eq!(gate(&state(issues(0, 3, 0, 0))), Review);
        assert_eq!(gate(&state(issues(0, 5, 0, 0))), Review);
        assert_eq!(gate(&state(issues(0, 6, 0, 0))), Fail);
        // Totals of 80, 79, 60 and 59: 60 + 0.4 · severity with everything else at its best.
        assert_eq!((gate(&state(issues(0, 0, 10, 0))), score(&state(issues(0, 0, 10, 0))).total), (Pass, 80));
        assert_eq!(
            (gate(&state(issues(0, 0, 10, 2))), score(&state(issues(0, 0, 10, 2))).total),
            (Review, 79)
        );
        assert_eq!(
            (gate(&state(issues(0, 0, 20, 0))), score(&state(issues(0, 0, 20, 0))).total),
            (Review, 60)
        );
        let below = QualityState { iteration_count: 2, ..state(issues(0, 0, 19, 3)) };
        assert_eq!((gate(&below), score(&below).total), (Fail, 58));
        let at = QualityState { iteration_count: 2, ..state(issues(0, 0, 18, 4)) };
        assert_eq!((gate(&at), score(&at).total), (Fail, 59));
    }

    /// DESIGN section 7: PASS adds nothing, REVIEW is a note, FAIL with critical or high findings is theirs.
    #[test]
    fn the_gate_adds_only_what_nothing_else_decides() {
        assert!(decide(&state(vec![]), None).findings.is_empty());
        let review = decide(&state(issues(0, 3, 0, 0)), None);
        assert!(review.pass && review.findings.len() == 1);
        assert!(decide(&state(issues(1, 0, 0, 0)), None).pass);
        let notes_only = QualityState { diagnosis: diagnosed(1), ..state(issues(0, 0, 20, 0)) };
        let report = decide(&notes_only, None);
        assert_eq!(report.failure_class, Some(FailureClass::ReadinessFailed));
        assert_eq!(report.checks["score"]["total"], json!(40));
    }

    /// Document 003, "Data Flow Issues" and "Agent Coordination Issues", as DESIGN section 7 reads them: run integrity.
    #[test]
    fn a_run_that_is_not_whole_fails() {
        let mut integrity = Integrity::default();
        integrity.problems.insert("single_release".into(), vec![]);
        assert!(decide(&state(vec![]), Some(&integrity)).pass);
        integrity.problems.insert("no_orphans".into(), vec!["ready/x.tmp".into()]);
        let report = decide(&state(vec![]), Some(&integrity));
        assert!(!report.pass && report.detail.contains("ready/x.tmp"));
        assert_eq!(report.checks["integrity.single_release"]["pass"], json!(true));
    }

    fn action(name: &str, result: &str) -> Action {
        Action { action: name.into(), result: result.into() }
    }

    /// Document 003, `shouldContinueIteration`, line by line.
    #[test]
    fn iteration_ends_as_coded() {
        let urgent = state(issues(0, 1, 0, 0));
        assert!(should_continue(&urgent));
        // "Exit if quality gate passed".
        assert!(!should_continue(&QualityState { quality_gate: Some(QualityGate::Pass), ..urgent.clone() }));
        assert!(should_continue(&QualityState { quality_gate: Some(QualityGate::Fail), ..urgent.clone() }));
        // "Continue if critical/high issues remain".
        assert!(!should_continue(&state(issues(0, 0, 9, 9))));
        assert!(should_continue(&state(issues(1, 0, 0, 0))));
        // "Exit if max iterations reached"; 5 by default.
        let verified = vec![action("action-verify", "success")];
        let at = |iteration_count| QualityState {
            iteration_count,
            action_history: verified.clone(),
            ..urgent.clone()
        };
        assert!(should_continue(&at(4)));
        assert!(!should_continue(&at(5)));
        assert_eq!(MAX_ITERATIONS, 5);
    }

    /// Document 003: no verified fix among the last 10 actions ends the loop from the second iteration on.
    #[test]
    fn no_progress_in_the_last_ten_actions_ends_it() {
        let with = |actions: Vec<Action>| QualityState {
            iteration_count: 2,
            action_history: actions,
            ..state(issues(0, 1, 0, 0))
        };
        let mut actions = vec![action("action-verify", "success")];
        actions.extend(std::iter::repeat_n(action("action-fix", "success"), 9));
        assert!(should_continue(&with(actions.clone())));
        actions.push(action("action-verify", "fail"));
        assert!(!should_continue(&with(actions)));
        assert!(!should_continue(&with(vec![])));
        // The first iteration needs no history.
        assert!(should_continue(&QualityState { iteration_count: 1, ..with(vec![]) }));
    }

    /// DESIGN section 7: never on ANOMALOUS.
    #[test]
    fn nothing_is_iterated_on_untrusted_evidence() {
        let with = |verdict| QualityState { verdict: Some(verdict), ..state(issues(0, 1, 0, 0)) };
        assert!(should_continue(&with(Verdict::Regression)));
        assert!(!should_continue(&with(Verdict::Anomalous)));
    }
}
