//! Earlier releases: those of one lineage as the state of the quality score, and the last one that was accepted.

use std::path::{Path, PathBuf};

use crate::base::json;
use crate::gate::quality::MAX_ITERATIONS;
use crate::record::quality::{Action, Diagnosis, FixResult, QualityState};
use crate::record::release::ReleaseRecord;
use crate::record::{Finding, GateName, GateReport, Severity, Verdict};

/// An attempt: what was found, which gates ran, and how it ended.
pub struct Attempt<'a> {
    /// Findings.
    pub findings: &'a [Finding],
    /// Gates.
    pub gates: &'a [GateReport],
    /// Verdict.
    pub verdict: Option<Verdict>,
}

impl<'a> Attempt<'a> {
    /// The attempt that a release was.
    pub fn of(record: &'a ReleaseRecord) -> Self {
        Self { findings: &record.findings, gates: &record.gates, verdict: record.verdict }
    }
}

/// The state of a lineage: recipe attempts in order. The issues are those of the last one; each attempt after the first
/// is a fix, which held where the attempt was accepted.
pub fn state(attempts: &[Attempt<'_>]) -> QualityState {
    let last = attempts.last();
    let held = |attempt: &Attempt<'_>| {
        if attempt.verdict == Some(Verdict::Accept) { FixResult::Pass } else { FixResult::Fail }
    };
    let mut action_history = Vec::new();
    let action = |action: &str, result: &str| Action { action: action.to_owned(), result: result.to_owned() };
    for attempt in attempts.iter().skip(1) {
        let result = if held(attempt) == FixResult::Pass { "success" } else { "failure" };
        action_history.extend([action("action-fix", "success"), action("action-verify", result)]);
    }
    QualityState {
        issues: last.map(|a| issues(a.findings)).unwrap_or_default(),
        applied_fixes: attempts.iter().skip(1).map(held).collect(),
        diagnosis: last.map(|a| diagnosis(a.gates)).unwrap_or_default(),
        iteration_count: attempts.len() as u32,
        max_iterations: MAX_ITERATIONS,
        action_history,
        quality_gate: None,
        verdict: last.and_then(|a| a.verdict),
    }
}

/// Severities of what was found; what this gate itself said before is no issue of the run.
fn issues(findings: &[Finding]) -> Vec<Severity> {
    findings.iter().filter(|f| f.gate != GateName::Quality).map(|f| f.severity).collect()
}

/// DESIGN section 7: coverage counts exactly four diagnoses.
fn diagnosis(gates: &[GateReport]) -> Diagnosis {
    let count = |gate: GateName| gates.iter().filter(|g| g.gate == gate).count();
    Diagnosis {
        ptq: count(GateName::Ptq) > 0,
        run: count(GateName::Run) > 1,
        compare: count(GateName::Compare) > 0,
        repro: count(GateName::Repro) > 0,
    }
}

/// The last accepted release of this model and recipe among the runs beside `run`, by the time it was closed.
pub fn last_accepted(run: &Path, model: &str, recipe: &str) -> Option<PathBuf> {
    let own = run.canonicalize().ok()?;
    let entries = std::fs::read_dir(own.parent()?).ok()?.flatten();
    let accepted = entries.filter_map(|entry| {
        let path = entry.path();
        let record: ReleaseRecord = json::read(&path.join("release.json")).ok()?;
        let ours = path != own && record.model == model && record.recipe == recipe;
        (ours && record.verdict == Some(Verdict::Accept))
            .then(|| (record.provenance.timing.started_at.clone(), path))
    });
    accepted.max().map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::FailureClass;

    fn gate(gate: GateName) -> GateReport {
        GateReport::new(gate, BTreeMap::new(), BTreeMap::new(), Vec::new())
    }

    /// DESIGN section 7: one attempt means no fixes applied and iteration 1; coverage is ptq, run, compare, repro.
    #[test]
    fn a_lineage_is_its_attempts() {
        let gates =
            [GateName::Ptq, GateName::Run, GateName::Run, GateName::Compare, GateName::Repro].map(gate);
        let finding = |class| Finding::new(GateName::Compare, "x", class, "y");
        let bad = [finding(FailureClass::AccuracyRegression)];
        let first = Attempt { findings: &bad, gates: &gates[..2], verdict: Some(Verdict::Regression) };
        let alone = state(std::slice::from_ref(&first));
        assert_eq!((alone.applied_fixes.len(), alone.iteration_count), (0, 1));
        assert_eq!(alone.issues, [Severity::High]);
        assert_eq!(alone.diagnosis.count(), 1, "one arm's run is not the diagnosis of both");
        let second = Attempt { findings: &[], gates: &gates, verdict: Some(Verdict::Accept) };
        let both = state(&[first, second]);
        assert_eq!((both.applied_fixes.as_slice(), both.iteration_count), (&[FixResult::Pass][..], 2));
        assert_eq!((both.diagnosis.count(), both.issues.len()), (4, 0));
        assert_eq!(both.action_history[1].result, "success");
    }

    #[test]
    fn own_findings_are_no_issues() {
        let own = [Finding::new(GateName::Quality, "score", FailureClass::ReadinessFailed, "q")];
        assert!(state(&[Attempt { findings: &own, gates: &[], verdict: None }]).issues.is_empty());
    }
}
