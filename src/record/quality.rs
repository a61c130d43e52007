//! What the quality score is computed from and what it says (founding document 003).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::finding::Severity;
use super::verdict::Verdict;

/// State of a run and its lineage, as the functions of the document read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QualityState {
    /// Severities of the issues: the findings of the last attempt.
    pub issues: Vec<Severity>,
    /// Fixes that were applied: each later recipe attempt of the lineage, whether it was verified.
    pub applied_fixes: Vec<FixResult>,
    /// The four diagnoses, each with whether it was made.
    pub diagnosis: Diagnosis,
    /// Attempts so far, the first included.
    pub iteration_count: u32,
    /// Largest number of attempts.
    pub max_iterations: u32,
    /// What was done, in order.
    pub action_history: Vec<Action>,
    /// The gate as last decided.
    pub quality_gate: Option<QualityGate>,
    /// The verdict of the last attempt: nothing is iterated on evidence that cannot be trusted.
    pub verdict: Option<Verdict>,
}

/// Whether a fix held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FixResult {
    /// Verified.
    Pass,
    /// Did not help.
    Fail,
}

/// The four diagnoses of a release: the gates that looked at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Gate `ptq`.
    pub ptq: bool,
    /// Gate `run`, on both arms.
    pub run: bool,
    /// Gate `compare`.
    pub compare: bool,
    /// Gate `repro`.
    pub repro: bool,
}

impl Diagnosis {
    /// How many were made.
    pub fn count(self) -> usize {
        [self.ptq, self.run, self.compare, self.repro].into_iter().filter(|made| *made).count()
    }
}

/// One entry of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Name, e.g. `action-verify`.
    pub action: String,
    /// Outcome, e.g. `success`.
    pub result: String,
}

/// PASS, REVIEW or FAIL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum QualityGate {
    /// Minor issues at most.
    Pass,
    /// Issues that need attention.
    Review,
    /// Serious issues.
    Fail,
}

impl std::fmt::Display for QualityGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "PASS",
            Self::Review => "REVIEW",
            Self::Fail => "FAIL",
        })
    }
}

/// The score with its parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QualityScore {
    /// 0 to 100, weighs 40 %.
    pub severity: u32,
    /// 0 to 100, weighs 30 %.
    pub fix: u32,
    /// 0 to 20, as it is.
    pub coverage: u32,
    /// 0 to 10, as it is.
    pub efficiency: u32,
    /// 0 to 100.
    pub total: u32,
    /// Critical issues.
    pub critical: usize,
    /// High issues.
    pub high: usize,
    /// The decision.
    pub gate: QualityGate,
}

/// Whether a run directory is whole: the criteria of the document on context, data flow and coordination.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Integrity {
    /// Each criterion with what breaks it; an empty list holds.
    pub problems: BTreeMap<String, Vec<String>>,
}
