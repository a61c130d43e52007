//! `seed_runs.json`: what `day0 ready repro measure` measured (founding document 000).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::provenance::Provenance;
use super::qa::CheckTier;

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedRuns {
    /// Schema of this record.
    pub schema_version: u32,
    /// Device as asked for.
    pub device: String,
    /// The families, in order.
    pub families: Vec<FamilyRuns>,
    /// Origin.
    pub provenance: Provenance,
}

/// All runs of one family, with its criteria.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FamilyRuns {
    /// Name.
    pub family: String,
    /// What one step is, e.g. `optimizer step`.
    pub step: String,
    /// Steps asked for.
    pub steps: u64,
    /// What a run must meet.
    pub criteria: Vec<Criterion>,
    /// One run a seed, in the order of the seeds.
    pub runs: Vec<SeedRun>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeedRun {
    /// Seed.
    pub seed: u64,
    /// Steps done.
    pub steps_done: u64,
    /// Steps that there are at all, where the data end; `None` where a run can be of any length.
    #[serde(default)]
    pub steps_available: Option<u64>,
    /// Why it ended early; empty when it did not.
    pub error: String,
    /// Seconds that do not grow with the steps.
    pub setup_s: f64,
    /// Seconds that do.
    pub steps_s: f64,
    /// Curves by metric.
    pub curves: BTreeMap<String, Vec<Point>>,
    /// Final value of each metric that has no curve; `None` is a value that is not finite.
    pub finals: BTreeMap<String, Option<f64>>,
    /// Number of values that were not finite, by metric.
    pub non_finite: BTreeMap<String, u64>,
    /// Digest over all results: the same seed must give the same one where results have the same bits.
    pub digest: Option<String>,
    /// The same of a repetition under other batch sizes, threads and order.
    pub repeat_digest: Option<String>,
    /// Values of the first run and of its repetition, by metric.
    #[serde(default)]
    pub repeat_values: BTreeMap<String, [Option<f64>; 2]>,
    /// Digest of what was asked, where the seed has a part in it.
    #[serde(default)]
    pub prompts_digest: Option<String>,
    /// What the runner wants to be known, e.g. what its seed does not vary.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl SeedRun {
    /// Whether it broke off.
    pub fn broke_off(&self) -> bool {
        !self.error.is_empty()
    }

    /// Steps to do where `steps` were asked for: no more than there are.
    pub fn steps_wanted(&self, steps: u64) -> u64 {
        self.steps_available.map_or(steps, |available| available.min(steps))
    }
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Value; `None` is one that is not finite.
    pub value: Option<f64>,
}

/// What a family must meet, as declared in its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    /// Name of the check.
    pub name: String,
    /// What is asked.
    pub rule: Rule,
    /// The metrics it is asked of.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// When it decides.
    pub tier: CheckTier,
}

/// The rules.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// (max − min) / mean of the final values of all seeds is at most `max`.
    RelativeSpread {
        /// Share of the mean.
        max: f64,
    },
    /// max − min of the final values of all seeds is below `below`.
    AbsoluteSpread {
        /// In units of the metric.
        below: f64,
    },
    /// The repetition of a seed gives the same bits.
    SameBits,
    /// The repetition of a seed gives values within this share of the first.
    RepeatWithin {
        /// Share of the first value.
        max: f64,
    },
    /// The metric falls by at least the share `min` within the first `within` steps; a shorter run is not evaluated.
    Decrease {
        /// Share of the first window's mean.
        min: f64,
        /// Steps.
        within: u64,
    },
    /// Every value is finite, in every step that was asked for.
    Finite,
    /// The final value is at most `max`.
    AtMost {
        /// In units of the metric.
        max: f64,
    },
    /// At least ⌈`min` · n⌉ of n seeds meet the family's other per-seed criteria.
    SuccessRate {
        /// Share of the seeds.
        min: f64,
    },
}
