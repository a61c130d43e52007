//! What a gate or a stage noticed, and the table of failure classes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::gate::GateName;

/// How much a finding weighs. `Medium` and `Low` are notes: they appear in reports and decide nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// Worth acting on, but not deciding (advisory checks).
    Medium,
    /// Decides the verdict.
    High,
    /// Decides the verdict; nothing after it can be trusted.
    Critical,
}

/// Why something is not ACCEPT. The order is the order of precedence within one rank of the fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureClass {
    /// Nothing matched, architecture or scheme impossible, or the predicted output is not smaller than BF16.
    ModelUnsupported,
    /// The engine did not come up, or did not stay up, after one restart.
    DeploymentHealthFailed,
    /// Coverage, scales, fused sets, metadata or measured size are not what the recipe promised.
    QuantCoverageFailure,
    /// Items are missing, failed or have no valid score.
    SampleAccountingFailed,
    /// The two arms did not answer the same requests under the same conditions, or are not two different models.
    ComparabilityFailed,
    /// The endpoint refused to answer (401/403/429) or lost its log-prob self-test.
    EvalJudgeFailed,
    /// The measured baseline is far from its published score.
    ExternalBaselineMismatch,
    /// The candidate is better than quantization can explain.
    ImplausibleGain,
    /// An input file or configuration is wrong.
    UserConfigError,
    /// Something failed in a way nobody foresaw.
    Unknown,
    /// A transient infrastructure fault, after the retry budget.
    InfraTransient,
    /// The candidate is shown to be worse than the margin allows.
    AccuracyRegression,
    /// The data do not suffice to show either.
    InsufficientEvidence,
    /// A required readiness gate failed.
    ReadinessFailed,
    /// A ratcheted metric got worse.
    RatchetViolated,
    /// A required QA gate ran only in its reduced form.
    QaDegraded,
}

impl FailureClass {
    /// Every class, in order of declaration.
    pub const ALL: [Self; 16] = [
        Self::ModelUnsupported,
        Self::DeploymentHealthFailed,
        Self::QuantCoverageFailure,
        Self::SampleAccountingFailed,
        Self::ComparabilityFailed,
        Self::EvalJudgeFailed,
        Self::ExternalBaselineMismatch,
        Self::ImplausibleGain,
        Self::UserConfigError,
        Self::Unknown,
        Self::InfraTransient,
        Self::AccuracyRegression,
        Self::InsufficientEvidence,
        Self::ReadinessFailed,
        Self::RatchetViolated,
        Self::QaDegraded,
    ];

    /// The severity a finding of this class has unless the check is advisory.
    pub fn severity(self) -> Severity {
        match self {
            Self::ModelUnsupported
            | Self::DeploymentHealthFailed
            | Self::QuantCoverageFailure
            | Self::SampleAccountingFailed
            | Self::ComparabilityFailed
            | Self::EvalJudgeFailed => Severity::Critical,
            _ => Severity::High,
        }
    }

    /// What to do next, in one sentence.
    pub fn next_action(self) -> &'static str {
        match self {
            Self::ModelUnsupported => "choose the recipe named in the hint, or exclude the named tensors",
            Self::DeploymentHealthFailed => "reproduce with the printed command and read the log excerpt",
            Self::QuantCoverageFailure => "quantize again; look at the named tensors first",
            Self::SampleAccountingFailed => {
                "find out why the named items have no valid score before trusting any"
            }
            Self::ComparabilityFailed => {
                "run both arms again under the same conditions; start with the first difference"
            }
            Self::EvalJudgeFailed => "fix the endpoint's credentials, rate limit or log-probs and run again",
            Self::ExternalBaselineMismatch => {
                "fix the baseline's set-up and rerun it; compare prompts and task version"
            }
            Self::ImplausibleGain => "rerun both arms; look for a contaminated cache or a wrong baseline",
            Self::UserConfigError => "correct the named file or field",
            Self::Unknown => "read the log excerpt and investigate",
            Self::InfraTransient => "resume the run",
            Self::AccuracyRegression => "use a gentler recipe, or exclude the layers that hurt most",
            Self::InsufficientEvidence => {
                "score more items (raise or drop --limit, add tasks) or accept a wider margin"
            }
            Self::ReadinessFailed => "fix the named readiness check",
            Self::RatchetViolated => "restore the metric, or loosen the ratchet with a recorded reason",
            Self::QaDegraded => "run the full QA set in a container",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned));
        f.write_str(text.as_deref().unwrap_or("UNKNOWN"))
    }
}

/// One thing a gate noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The gate that noticed it.
    pub gate: GateName,
    /// The check within the gate, e.g. `scales`, `comparability.prompts`.
    pub check: String,
    /// Weight.
    pub severity: Severity,
    /// Class, which decides the verdict.
    pub failure_class: FailureClass,
    /// What it is about: a tensor, a task, a file, an item.
    pub subject: String,
    /// What was found.
    pub observed: String,
    /// What was expected.
    pub expected: String,
    /// How to settle or avoid it.
    pub hint: String,
}

impl Finding {
    /// A finding with the class's own severity and next action as hint.
    pub fn new(gate: GateName, check: &str, failure_class: FailureClass, subject: impl Into<String>) -> Self {
        Self {
            gate,
            check: check.to_owned(),
            severity: failure_class.severity(),
            failure_class,
            subject: subject.into(),
            observed: String::new(),
            expected: String::new(),
            hint: failure_class.next_action().to_owned(),
        }
    }

    /// Sets what was found.
    #[must_use]
    pub fn observed(mut self, text: impl Into<String>) -> Self {
        self.observed = text.into();
        self
    }

    /// Sets what was expected.
    #[must_use]
    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = text.into();
        self
    }

    /// Replaces the hint.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = text.into();
        self
    }

    /// Makes the finding a note that decides nothing.
    #[must_use]
    pub fn as_note(mut self) -> Self {
        self.severity = Severity::Medium;
        self
    }

    /// Whether the finding takes part in the fold.
    pub fn decides(&self) -> bool {
        self.severity >= Severity::High
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.subject)?;
        if !self.observed.is_empty() {
            write!(f, ": {}", self.observed)?;
        }
        if !self.expected.is_empty() {
            write!(f, " (expected {})", self.expected)?;
        }
        Ok(())
    }
}
