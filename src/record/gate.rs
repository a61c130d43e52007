//! What a gate prints and stores: its checks, findings and verdict.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::finding::{FailureClass, Finding};
use super::fold::fold;
use super::verdict::{Outcome, Verdict};

/// The gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateName {
    /// Is the checkpoint what the recipe promised?
    Ptq,
    /// Is it served, and is what is served this checkpoint?
    Serve,
    /// Is one arm's evaluation complete and sane?
    Run,
    /// Is the candidate within the margin of the baseline?
    Compare,
    /// Are results reproducible?
    Repro,
    /// Does the project's own QA pass?
    Qa,
    /// Is nothing worse than the captured baseline?
    Diff,
    /// Are ratcheted metrics kept?
    Ratchet,
    /// Is the run's quality score high enough?
    Quality,
    /// Not a gate: found by the conductor around the gates (a stage that could not run).
    Release,
}

impl fmt::Display for GateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ptq => "ptq",
            Self::Serve => "serve",
            Self::Run => "run",
            Self::Compare => "compare",
            Self::Repro => "repro",
            Self::Qa => "qa",
            Self::Diff => "diff",
            Self::Ratchet => "ratchet",
            Self::Quality => "quality",
            Self::Release => "release",
        })
    }
}

/// A gate's decision with its evidence. Contains every key that the upstream gate scripts print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// Schema of this record.
    pub schema_version: u32,
    /// The gate.
    pub gate: GateName,
    /// What was judged when a gate runs more than once, e.g. the arm; empty otherwise.
    pub subject: String,
    /// `None` when a transient fault left nothing to judge.
    pub verdict: Option<Verdict>,
    /// The verdict as upstream's `decision`.
    pub decision: Option<Verdict>,
    /// Whether the verdict is ACCEPT.
    pub pass: bool,
    /// The class that decided.
    pub failure_class: Option<FailureClass>,
    /// The deciding findings in one line.
    pub detail: String,
    /// What each check saw; a check's value has at least `pass`.
    pub checks: BTreeMap<String, Value>,
    /// Per-task evidence.
    pub per_task: BTreeMap<String, Value>,
    /// Everything noticed, notes included.
    pub findings: Vec<Finding>,
}

impl GateReport {
    /// Folds `findings` into a report.
    pub fn new(
        gate: GateName,
        checks: BTreeMap<String, Value>,
        per_task: BTreeMap<String, Value>,
        findings: Vec<Finding>,
    ) -> Self {
        let folded = fold(&findings);
        let verdict = folded.outcome.verdict();
        Self {
            schema_version: super::SCHEMA_VERSION,
            gate,
            subject: String::new(),
            verdict,
            decision: verdict,
            pass: folded.outcome.is_accept(),
            failure_class: folded.failure_class,
            detail: folded.detail,
            checks,
            per_task,
            findings,
        }
    }

    /// Names what was judged.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// The folded outcome.
    pub fn outcome(&self) -> Outcome {
        fold(&self.findings).outcome
    }
}
