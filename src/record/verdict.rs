//! Verdicts, outcomes and exit codes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::finding::FailureClass;

/// The answer to "may this checkpoint be published today?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// What the recipe promised, smaller, and shown to be within the margin on every task.
    Accept,
    /// Shown to be worse than the margin allows on at least one task.
    Regression,
    /// The evidence cannot be trusted or is not enough.
    Anomalous,
    /// This model, recipe and target cannot be made or served as asked.
    Infeasible,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "ACCEPT",
            Self::Regression => "REGRESSION",
            Self::Anomalous => "ANOMALOUS",
            Self::Infeasible => "INFEASIBLE",
        })
    }
}

/// What a fold decided: a verdict, or that infrastructure failed before there could be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// There is a verdict.
    Verdict(Verdict),
    /// No verdict: a transient fault; the run directory resumes.
    Transient,
}

impl Outcome {
    /// The verdict, if there is one.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Verdict(v) => Some(v),
            Self::Transient => None,
        }
    }

    /// Whether the outcome is ACCEPT.
    pub fn is_accept(self) -> bool {
        self == Self::Verdict(Verdict::Accept)
    }

    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Verdict(Verdict::Accept) => exit_code::ACCEPT,
            Self::Verdict(Verdict::Regression) => exit_code::REGRESSION,
            Self::Verdict(Verdict::Anomalous) => exit_code::ANOMALOUS,
            Self::Verdict(Verdict::Infeasible) => exit_code::INFEASIBLE,
            Self::Transient => exit_code::TRANSIENT,
        }
    }
}

/// Exit codes of the `day0` process.
pub mod exit_code {
    use super::FailureClass;

    /// ACCEPT; for commands without a verdict: done.
    pub const ACCEPT: u8 = 0;
    /// REGRESSION.
    pub const REGRESSION: u8 = 1;
    /// Usage or configuration error, before any stage ran.
    pub const USAGE: u8 = 2;
    /// ANOMALOUS.
    pub const ANOMALOUS: u8 = 3;
    /// INFEASIBLE.
    pub const INFEASIBLE: u8 = 4;
    /// Planned, dry run, or submitted without waiting.
    pub const PLANNED: u8 = 10;
    /// Transient infrastructure fault after the retry budget; the run directory resumes.
    pub const TRANSIENT: u8 = 75;

    /// Interrupted by a signal; the run directory resumes.
    pub fn interrupted(signal: i32) -> u8 {
        128u8.saturating_add(signal as u8)
    }

    /// The exit code of a command that has no verdict and failed with `class`.
    pub fn of_class(class: FailureClass) -> u8 {
        match class {
            FailureClass::UserConfigError => USAGE,
            FailureClass::InfraTransient => TRANSIENT,
            FailureClass::ModelUnsupported | FailureClass::DeploymentHealthFailed => INFEASIBLE,
            FailureClass::AccuracyRegression => REGRESSION,
            FailureClass::QuantCoverageFailure
            | FailureClass::SampleAccountingFailed
            | FailureClass::ComparabilityFailed
            | FailureClass::EvalJudgeFailed
            | FailureClass::ExternalBaselineMismatch
            | FailureClass::ImplausibleGain
            | FailureClass::Unknown
            | FailureClass::InsufficientEvidence
            | FailureClass::ReadinessFailed
            | FailureClass::RatchetViolated
            | FailureClass::QaDegraded => ANOMALOUS,
        }
    }
}
