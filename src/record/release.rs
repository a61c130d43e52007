//! The index of a run directory: the verdict with everything it rests on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::finding::{FailureClass, Finding};
use super::gate::GateReport;
use super::provenance::Provenance;
use super::serve::ServeSpeed;
use super::verdict::Verdict;

/// `release.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// Identifier of the run: the directory's default name.
    pub run_id: String,
    /// Model as the user named it.
    pub model: String,
    /// Recipe name.
    pub recipe: String,
    /// Suites or tasks.
    pub suites: Vec<String>,
    /// Verdict; `None` when infrastructure failed first.
    pub verdict: Option<Verdict>,
    /// The class that decided.
    pub failure_class: Option<FailureClass>,
    /// The deciding findings in one line.
    pub detail: String,
    /// May the checkpoint be published? One sentence.
    pub recommendation: String,
    /// Stages in order, those that did not run included.
    pub stages: Vec<StageRecord>,
    /// Gates in order.
    pub gates: Vec<GateReport>,
    /// All findings.
    pub findings: Vec<Finding>,
    /// The readiness gates, those that did not run included.
    #[serde(default)]
    pub readiness: Vec<ReadinessRecord>,
    /// What was not tested, in words.
    pub not_tested: Vec<String>,
    /// How fast the arms are, by arm; what was not measured is missing.
    #[serde(default)]
    pub speed: BTreeMap<String, ServeSpeed>,
    /// Whether the baseline arm's scores came from an earlier run with the same key.
    pub baseline_reused: bool,
    /// Where the units ran and what was tried again.
    #[serde(default)]
    pub execution: Execution,
    /// Artifacts of the run, relative path → digest.
    pub artifacts: BTreeMap<String, crate::base::digest::Digest>,
    /// Origin.
    pub provenance: Provenance,
}

/// One readiness gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessRecord {
    /// `roundtrip`, `repro`, `qa`, `diff`, `ratchet` or `quality`.
    pub gate: String,
    /// `required`, `advisory` or `off`.
    pub level: String,
    /// What it says: `pass`, `fail`, `not run`.
    pub result: String,
    /// In one line.
    pub detail: String,
}

/// One stage of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Stage name: `quantize`, `scan`, `serve`, `eval`, `compare`, or a readiness gate's.
    pub stage: String,
    /// Verdict of its gate; `None` when it did not run or ended without one.
    pub verdict: Option<Verdict>,
    /// Why it did not run; empty when it did.
    pub skipped: String,
    /// Duration in seconds.
    pub elapsed_s: f64,
}

/// Where the units of a run ran and what was tried again. Nothing in it decides anything, and it is the one part of the
/// record that differs between a local run and one on a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Units and places.
    pub places: Vec<PlaceRecord>,
    /// Attempts that gave no result.
    pub retried: Vec<RetryRecord>,
    /// Jobs that were put back into the queue.
    #[serde(default)]
    pub restarted: Vec<RestartRecord>,
    /// Submissions of what was left.
    #[serde(default)]
    pub resubmitted: Vec<ResubmissionRecord>,
}

impl Execution {
    /// Everything that was tried again, one line each.
    pub fn tried_again(&self) -> Vec<String> {
        let on = |place: &str, job: &str| {
            if job.is_empty() { format!("on {place}") } else { format!("on {place}, job {job}") }
        };
        let resubmitted =
            self.resubmitted.iter().map(|s| format!("submission {} ({}): {}", s.number, s.by, s.why));
        let restarted = self.restarted.iter().map(|r| {
            let times = if r.restarts == 1 { "once".to_owned() } else { format!("{} times", r.restarts) };
            format!("job {}: put back into the queue {times}", r.job)
        });
        let retried =
            self.retried.iter().map(|r| format!("{} ({}): {}", r.unit, on(&r.place, &r.job), r.why));
        resubmitted.chain(restarted).chain(retried).collect()
    }
}

/// A job that was put back into the queue, by itself before its time limit or by Slurm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRecord {
    /// Slurm job, with `_N` for a task of an array.
    pub job: String,
    /// How often, as far as it ran units afterwards.
    pub restarts: u32,
}

/// A submission of what the ones before it left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResubmissionRecord {
    /// Its number, from 2 on.
    pub number: u32,
    /// Who submitted.
    pub by: String,
    /// Why.
    pub why: String,
}

/// Units that ran in one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceRecord {
    /// Name of the unit, or what the names of several have in common.
    pub units: String,
    /// How many.
    pub count: usize,
    /// Node or host.
    pub place: String,
    /// Slurm job, with `_N` for a task of an array and `+N` after N restarts; empty for a local run.
    pub job: String,
    /// Seconds that they took.
    pub elapsed_s: f64,
}

/// An attempt that gave no result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryRecord {
    /// Unit.
    pub unit: String,
    /// Node or host.
    pub place: String,
    /// Slurm job; empty for a local run.
    pub job: String,
    /// Why it ended, if anybody knows.
    pub why: String,
}
