//! Gate `qa`: do the project's own checks pass? (Founding document 002.)
//!
//! A required check that did not pass is READINESS_FAILED; checks that never ran are no evidence. A failsafe that passed
//! is QA_DEGRADED: the reduced set is not what was asked for.

use std::collections::BTreeMap;

use serde_json::json;

use super::findings::Collector;
use crate::record::qa::{CheckResult, CheckStatus, QaMode, QaResults};
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Decides. `run_error` is why the runner itself did not finish, where it did not.
pub fn decide(results: &QaResults, run_error: Option<&str>) -> GateReport {
    let mut out = Collector::new(GateName::Qa);
    out.require_schema(results.schema_version);
    let before = results.failed_before().map(|check| (format!("container.{}", check.label), check));
    let now = results.checks.iter().map(|check| (format!("check.{}", check.label), check));
    let checks: Vec<(String, &CheckResult)> = now.chain(before).collect();
    out.add_list(checks.iter().filter_map(|(name, check)| finding(&out, name, check)).collect());
    for (name, check) in &checks {
        let seen = json!({"status": check.status, "required": check.required, "elapsed_s": check.elapsed_s});
        out.check(name, seen);
    }
    if !results.complete {
        out.add(
            out.finding("complete", FailureClass::InsufficientEvidence, "qa")
                .observed(run_error.unwrap_or("the runner did not finish"))
                .hint("run the gate again; RUN_INSTRUCTIONS.md says how"),
        );
    }
    let ran = |c: &&CheckResult| !matches!(c.status, CheckStatus::Skipped);
    if !results.checks.iter().any(|c| ran(&c)) {
        out.add(
            out.finding("checks", FailureClass::InsufficientEvidence, "qa").observed("no check of this tier"),
        );
    }
    out.check("complete", json!({"complete": results.complete}));
    if results.mode == QaMode::Failsafe {
        out.add(
            out.finding("mode", FailureClass::QaDegraded, "qa")
                .observed("only the reduced set ran, without a container")
                .expected("the full set in a container"),
        );
    }
    out.check("mode", json!({"mode": results.mode}));
    let passed = results.checks.iter().filter(|c| c.status == CheckStatus::Passed).count();
    out.report(format!("{passed} check(s) passed, mode {}", results.mode))
}

fn finding(out: &Collector, name: &str, check: &CheckResult) -> Option<Finding> {
    let (class, observed) = match check.status {
        CheckStatus::Passed | CheckStatus::Skipped => return None,
        CheckStatus::Failed | CheckStatus::TimedOut => (FailureClass::ReadinessFailed, check.detail.clone()),
        CheckStatus::NotRun => (FailureClass::InsufficientEvidence, "not run".to_owned()),
        CheckStatus::Lost => (FailureClass::InsufficientEvidence, "its container was lost".to_owned()),
    };
    let finding = out
        .finding(name, class, &check.label)
        .observed(observed)
        .expected("exit code 0")
        .hint(format!("run `{}` and read what it prints", check.command));
    Some(if check.required { finding } else { finding.as_note() })
}

/// The exit code of `day0 ready qa`: that of the gate, where a degraded run counts as the file declares.
pub fn exit_report(results: &QaResults, run_error: Option<&str>) -> GateReport {
    let mut report = decide(results, run_error);
    if results.failsafe_is_enough {
        soften(&mut report);
    }
    report
}

/// Makes the degradation a note.
fn soften(report: &mut GateReport) {
    let soft = |finding: &Finding| finding.failure_class == FailureClass::QaDegraded;
    let findings: Vec<Finding> = report
        .findings
        .iter()
        .map(|finding| if soft(finding) { finding.clone().as_note() } else { finding.clone() })
        .collect();
    let (checks, detail) = (std::mem::take(&mut report.checks), report.detail.clone());
    let mut new = GateReport::new(GateName::Qa, checks, BTreeMap::new(), findings);
    if new.pass {
        new.detail = detail;
    }
    *report = new;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SCHEMA_VERSION;
    use crate::record::qa::CheckTier;

    fn results(mode: QaMode, statuses: &[(CheckStatus, bool)]) -> QaResults {
        let check = |(index, (status, required)): (usize, &(CheckStatus, bool))| CheckResult {
            label: format!("c{index}"),
            command: "true".into(),
            tier: CheckTier::Pr,
            required: *required,
            status: *status,
            exit_code: None,
            signal: None,
            elapsed_s: 0.0,
            timeout_s: 1.0,
            output_bytes: 0,
            tail: String::new(),
            detail: "exit code 1".into(),
        };
        QaResults {
            schema_version: SCHEMA_VERSION,
            mode,
            complete: true,
            counts: BTreeMap::new(),
            checks: statuses.iter().enumerate().map(check).collect(),
            lost: vec![],
            failsafe_is_enough: true,
        }
    }

    /// Document 002, "Reading outcomes": success is a completed container run in which all required checks passed.
    #[test]
    fn success_is_every_required_check_passed() {
        use CheckStatus::{Failed, Lost, NotRun, Passed, Skipped, TimedOut};
        let class = |statuses: &[(CheckStatus, bool)]| {
            decide(&results(QaMode::Container, statuses), None).failure_class
        };
        assert_eq!(class(&[(Passed, true), (Skipped, true), (Failed, false)]), None);
        for status in [Failed, TimedOut] {
            assert_eq!(class(&[(Passed, true), (status, true)]), Some(FailureClass::ReadinessFailed));
        }
        for status in [NotRun, Lost] {
            assert_eq!(class(&[(status, true)]), Some(FailureClass::InsufficientEvidence));
        }
        assert_eq!(class(&[(Skipped, true)]), Some(FailureClass::InsufficientEvidence));
        assert_eq!(class(&[]), Some(FailureClass::InsufficientEvidence));
    }

    /// Document 002, "Soft degradation", under DESIGN section 7: the failsafe's success alone is QA_DEGRADED for a
    /// release; for the command itself the project's policy decides.
    #[test]
    fn a_failsafe_is_degraded_and_its_exit_code_is_policy() {
        let passed = results(QaMode::Failsafe, &[(CheckStatus::Passed, true)]);
        assert_eq!(decide(&passed, None).failure_class, Some(FailureClass::QaDegraded));
        assert!(exit_report(&passed, None).pass);
        assert!(!exit_report(&QaResults { failsafe_is_enough: false, ..passed }, None).pass);
        let failed = results(QaMode::Failsafe, &[(CheckStatus::Failed, true)]);
        assert_eq!(exit_report(&failed, None).failure_class, Some(FailureClass::ReadinessFailed));
        // A project that declares that it has no container is not degraded.
        assert!(decide(&results(QaMode::Local, &[(CheckStatus::Passed, true)]), None).pass);
    }

    /// Document 002, "Container mode": the outcome inside the container, also of one that is lost later.
    #[test]
    fn a_check_that_failed_before_the_loss_still_fails() {
        use CheckStatus::{Failed, Lost, Passed, TimedOut};
        for status in [Failed, TimedOut] {
            let before = results(QaMode::Container, &[(Passed, true), (status, true), (Lost, true)]);
            let after = QaResults { lost: before.checks, ..results(QaMode::Failsafe, &[(Passed, true)]) };
            let report = exit_report(&after, None);
            assert_eq!(report.failure_class, Some(FailureClass::ReadinessFailed));
            assert!(
                report.checks.contains_key("container.c1") && !report.checks.contains_key("container.c2")
            );
        }
        let before = results(QaMode::Container, &[(Failed, false), (Lost, true)]);
        let after = QaResults { lost: before.checks, ..results(QaMode::Failsafe, &[(Passed, true)]) };
        assert!(exit_report(&after, None).pass, "one that is not required decides nothing");
    }

    #[test]
    fn a_runner_that_did_not_finish_never_passes() {
        let mut unfinished = results(QaMode::Local, &[(CheckStatus::Passed, true)]);
        unfinished.complete = false;
        let report = decide(&unfinished, Some("killed"));
        assert_eq!(report.failure_class, Some(FailureClass::InsufficientEvidence));
        assert!(report.detail.contains("killed"));
    }
}
