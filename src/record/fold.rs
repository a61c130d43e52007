//! The one fold: findings → outcome. A gate folds its findings, the release folds the findings of all gates.

use super::finding::{FailureClass, Finding};
use super::verdict::{Outcome, Verdict};

/// The result of a fold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded {
    /// Verdict or transient fault.
    pub outcome: Outcome,
    /// The class that decided, `None` for ACCEPT.
    pub failure_class: Option<FailureClass>,
    /// All deciding findings in one line, worst first; empty for ACCEPT.
    pub detail: String,
}

/// Precedence of a class in the fold; a higher rank wins.
///
/// INFEASIBLE > evidence not trustworthy > transient fault > REGRESSION > not enough evidence. So a proven regression
/// on one task is not hidden by an undecided other, and nothing is believed about evidence that cannot be trusted.
fn rank(class: FailureClass) -> u8 {
    use FailureClass as C;
    match class {
        C::ModelUnsupported | C::DeploymentHealthFailed => 5,
        C::QuantCoverageFailure
        | C::SampleAccountingFailed
        | C::ComparabilityFailed
        | C::EvalJudgeFailed
        | C::ExternalBaselineMismatch
        | C::ImplausibleGain
        | C::UserConfigError
        | C::Unknown => 4,
        C::InfraTransient => 3,
        C::AccuracyRegression => 2,
        C::InsufficientEvidence | C::ReadinessFailed | C::RatchetViolated | C::QaDegraded => 1,
    }
}

fn outcome_of(class: FailureClass) -> Outcome {
    Outcome::Verdict(match rank(class) {
        5 => Verdict::Infeasible,
        2 => Verdict::Regression,
        3 => return Outcome::Transient,
        _ => Verdict::Anomalous,
    })
}

/// Folds findings to an outcome. No deciding finding means ACCEPT.
pub fn fold(findings: &[Finding]) -> Folded {
    let mut deciding: Vec<&Finding> = findings.iter().filter(|f| f.decides()).collect();
    // Stable: findings of one class stay in the order in which the gate collected them.
    deciding.sort_by_key(|f| (u8::MAX - rank(f.failure_class), f.failure_class));
    let failure_class = deciding.first().map(|f| f.failure_class);
    Folded {
        outcome: failure_class.map_or(Outcome::Verdict(Verdict::Accept), outcome_of),
        failure_class,
        detail: deciding.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::super::gate::GateName;
    use super::*;

    fn finding(class: FailureClass) -> Finding {
        Finding::new(GateName::Compare, "check", class, "subject")
    }

    #[test]
    fn nothing_found_is_accept() {
        let folded = fold(&[]);
        assert_eq!(folded.outcome.exit_code(), 0);
        assert_eq!(folded.failure_class, None);
    }

    #[test]
    fn notes_decide_nothing() {
        assert!(fold(&[finding(FailureClass::AccuracyRegression).as_note()]).outcome.is_accept());
    }

    #[test]
    fn precedence_follows_the_table() {
        use FailureClass as C;
        let order = [
            (C::ModelUnsupported, 4),
            (C::ComparabilityFailed, 3),
            (C::InfraTransient, 75),
            (C::AccuracyRegression, 1),
            (C::InsufficientEvidence, 3),
        ];
        for from in 0..order.len() {
            let mut findings: Vec<Finding> = order[from..].iter().map(|(c, _)| finding(*c)).collect();
            findings.reverse();
            let folded = fold(&findings);
            assert_eq!(folded.failure_class, Some(order[from].0));
            assert_eq!(folded.outcome.exit_code(), order[from].1);
        }
    }

    #[test]
    fn every_class_has_an_outcome_that_is_not_accept() {
        for class in FailureClass::ALL {
            assert!(!fold(&[finding(class)]).outcome.is_accept(), "{class}");
        }
    }
}
