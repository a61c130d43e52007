//! What one arm's evaluation produced: every item's log-likelihoods and the metrics over them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::provenance::Provenance;
use super::score::EngineIdentity;
use super::serve::Confirmation;
use crate::base::digest::Digest;

/// Result of evaluating one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// `baseline` or `candidate`; free text for a single evaluation.
    pub arm: String,
    /// What answered.
    pub identity: EngineIdentity,
    /// Results per task, by task name.
    pub tasks: BTreeMap<String, TaskRecord>,
    /// Groups of these tasks, by name.
    #[serde(default)]
    pub groups: BTreeMap<String, GroupRecord>,
    /// What an endpoint said of itself while it was asked, in order; empty for an engine in this process.
    #[serde(default)]
    pub confirmations: Vec<WaveConfirmation>,
    /// Origin.
    pub provenance: Provenance,
}

/// A group of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// All tasks below it.
    pub tasks: Vec<String>,
    /// Metrics that are combined over them, and whether tasks then count by their number of items; else each counts the
    /// same. None for a mere bundle, which has no score of its own.
    pub metrics: BTreeMap<String, bool>,
    /// Tasks and groups below it that its suite calls advisory: they decide only where somebody says so.
    #[serde(default)]
    pub advisory: Vec<String>,
}

/// That an endpoint was still the one it was at the start when a wave had been scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaveConfirmation {
    /// The wave, by the name of its unit.
    pub wave: String,
    /// What showed it.
    pub confirmation: Confirmation,
}

/// In which order items are chosen, and so which ones a limit keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemOrder {
    /// As in the data set: a limit keeps the first items, as lm-eval's `--limit`. Data sets are often sorted by subject
    /// or source, so the first items are no sample of all.
    Dataset,
    /// By Python's `random.Random(seed).shuffle` of the split: a limit keeps a random sample that depends on the seed
    /// alone.
    Permuted {
        /// Seed.
        seed: u64,
    },
}

/// State of a task's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskStatus {
    /// All items were visited.
    Success,
    /// Some items are still to be scored.
    Running,
    /// The task could not be run.
    Failed,
}

/// One task of one arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Task name.
    pub task: String,
    /// Task version from its YAML.
    pub version: String,
    /// Digest of the task definition (YAML after includes) and the data it reads.
    pub task_digest: Digest,
    /// State.
    pub status: TaskStatus,
    /// Items that had to be scored under the limit.
    pub expected: usize,
    /// Items of the full split.
    pub full_split: usize,
    /// Why the number of items is what it is, e.g. `--limit 40`; empty for the full split.
    pub limited_by: String,
    /// In which order items were chosen, and so what a limit left; `None` where nobody says.
    #[serde(default)]
    pub order: Option<ItemOrder>,
    /// Items with a context that was cut on the left because it is longer than the model's input.
    #[serde(default)]
    pub truncated: usize,
    /// Items in ascending `doc_id`.
    pub items: Vec<ItemRecord>,
    /// The one metric that decides.
    pub primary_metric: MetricInfo,
    /// Aggregated metrics, e.g. `acc`, `acc_norm`.
    pub metrics: BTreeMap<String, Metric>,
    /// How items were visited, where the task could be decided before the last one; `None` for a fixed set of items.
    #[serde(default)]
    pub visit: Option<Visit>,
}

/// The path of a task that is looked at while it is scored. With the items it replays every look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// `doc_id`s in order of visit: a permutation fixed before the run, as far as it was needed.
    pub order: Vec<usize>,
    /// Items visited at each look, ascending; the last is `order.len()`.
    pub looks: Vec<usize>,
    /// The group whose looks these are, where the task is decided as a part of it; a look may then follow no item of
    /// this task.
    #[serde(default)]
    pub group: Option<String>,
    /// Items left out because the task was decided before.
    pub not_needed: usize,
}

impl TaskRecord {
    /// Items with a valid score.
    pub fn scored(&self) -> usize {
        self.items.iter().filter(|i| i.error.is_none()).count()
    }

    /// Items that failed with a reason.
    pub fn failed(&self) -> usize {
        self.items.len() - self.scored()
    }

    /// Whether the items are all of the split or a random sample of it. A visit follows a permutation.
    pub fn is_sample(&self) -> bool {
        let whole = self.limited_by.is_empty() && self.expected == self.full_split;
        whole || self.visit.is_some() || matches!(self.order, Some(ItemOrder::Permuted { .. }))
    }

    /// Items left out because the task was decided before they were visited.
    pub fn not_needed(&self) -> usize {
        self.visit.as_ref().map_or(0, |visit| visit.not_needed)
    }
}

/// The metric that decides, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricInfo {
    /// Name, e.g. `acc`, `acc_norm`, `bits_per_byte`.
    pub name: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Full scale: 1 for 0/1 metrics; `None` for unbounded ones, whose margin is relative.
    pub scale: Option<f64>,
}

/// An aggregated metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Estimate.
    pub value: f64,
    /// Standard error; `None` where lm-eval says N/A.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// One document of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemRecord {
    /// Index in the split.
    pub doc_id: usize,
    /// Digest of the rendered requests (context and continuation texts).
    pub prompt_digest: Digest,
    /// Digest of the requests' token ids and context lengths.
    pub token_digest: Digest,
    /// Summed log-likelihood of each request (choice), in request order; empty when the item failed.
    pub loglikelihoods: Vec<f64>,
    /// Whether each request's continuation is greedy.
    pub is_greedy: Vec<bool>,
    /// Value of each metric on this item: 0/1 for accuracies.
    pub values: BTreeMap<String, f64>,
    /// For bits_per_byte and the like: the weight (bytes or words) of the item; 1 otherwise.
    pub weight: f64,
    /// Index of the right choice, where there is exactly one.
    #[serde(default)]
    pub gold: Option<usize>,
    /// Digest of the right answer as lm-eval writes it, Python's `str(target)`; `None` in records that do not tell.
    #[serde(default)]
    pub target_digest: Option<Digest>,
    /// Cluster the item belongs to (subject), if the task declares one.
    pub cluster: Option<String>,
    /// Why the item has no score.
    pub error: Option<ItemError>,
}

/// Stands for texts or tokens of which a run does not tell.
pub fn unknown_digest() -> Digest {
    Digest::of(b"unknown")
}

/// What changes when the baseline is scored again in another way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// The other way, e.g. `on cpu-portable` or `one prompt at a time, last item first`.
    pub how: String,
    /// Items scored again.
    pub items: usize,
    /// Items whose primary metric changed; of continuous metrics nearly all do.
    pub flips: usize,
    /// Mean absolute difference of the log-likelihoods, in nats.
    pub mean_abs_dll: f64,
    /// Largest absolute difference of a log-likelihood, in nats.
    pub max_abs_dll: f64,
}

/// Why an item has no score.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemError {
    /// HTTP status, for endpoints.
    pub status: Option<u16>,
    /// Whether a retry could help (connection lost, 5xx, timeout).
    pub transient: bool,
    /// In words.
    pub message: String,
}
