//! What a comparison is asked to decide.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::subject::Subject;
use crate::base::stats::Alpha;
use crate::gate::findings::Collector;
use crate::record::FailureClass;
use crate::record::eval::{EvalRecord, MetricInfo, NoiseFloor};

/// How a drop is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// By a paired interval: ACCEPT only what is shown to be within the margin.
    #[default]
    Certify,
    /// By the point estimate, as the upstream gate: a drop of at most the margin.
    Threshold,
}

/// Whether a task decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Its findings decide the verdict. Also spelled `critical`.
    #[default]
    #[serde(alias = "critical")]
    Required,
    /// Its findings are notes.
    Advisory,
}

/// Largest drop that may be published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Margin {
    /// As a fraction of the metric's scale.
    Absolute(f64),
    /// As a fraction of the baseline's value.
    Relative(f64),
}

impl Margin {
    /// The fraction.
    pub fn value(self) -> f64 {
        match self {
            Self::Absolute(value) | Self::Relative(value) => value,
        }
    }

    /// Margin of a metric that nobody set one for: 1 % of its scale, or of the baseline where it has none.
    fn default_for(metric: &MetricInfo) -> Self {
        if metric.scale.is_some() { Self::Absolute(0.01) } else { Self::Relative(0.01) }
    }
}

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if matches!(self, Self::Absolute(_)) { "scale" } else { "the baseline" };
        write!(f, "{} % of {of}", 100.0 * self.value())
    }
}

/// What is asked of one task or group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskOptions {
    /// Its margin; `None` for the comparison's.
    pub margin: Option<Margin>,
    /// Whether it decides.
    pub tier: Tier,
    /// Of a group with a score of its own: whether it is decided as one; else each of its tasks is.
    pub pooled: bool,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self { margin: None, tier: Tier::default(), pooled: true }
    }
}

/// A score of the original model that others published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The score, in the unit of the task's primary metric (0.57, not 57, of 1).
    pub score: f64,
    /// Largest difference between the measured baseline and it, as a fraction of the scale (of the score itself for
    /// metrics without one).
    #[serde(default = "Published::tolerance")]
    pub tolerance: f64,
}

impl Published {
    /// The 5 points of the upstream run validation.
    pub const TOLERANCE: f64 = 0.05;

    fn tolerance() -> f64 {
        Self::TOLERANCE
    }
}

/// What a comparison is asked to decide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompareOptions {
    /// How a drop is judged.
    pub policy: Policy,
    /// One-sided level of each bound.
    pub alpha: Alpha,
    /// Margin of tasks that set none; `None`: 1 % of the scale, or of the baseline for metrics without a scale.
    pub margin: Option<Margin>,
    /// Margins and tiers by task or group; what is not named is required.
    pub tasks: BTreeMap<String, TaskOptions>,
    /// Whether a run comes from another harness, which may score without log-likelihoods.
    pub imported: bool,
    /// Whether engines, devices, kernel paths and tokenizers may differ: a note then, not a fault.
    pub across_engines: bool,
    /// Whether prompts and right answers that a run does not tell are taken to be the same: a note then.
    pub trust_prompts: bool,
    /// What rescoring the baseline on other kernels changed, by task.
    pub noise: BTreeMap<String, NoiseFloor>,
    /// Published scores of the baseline by task.
    pub published: BTreeMap<String, Published>,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            policy: Policy::Certify,
            alpha: Alpha::FIVE_PERCENT,
            margin: None,
            tasks: BTreeMap::new(),
            imported: false,
            across_engines: false,
            trust_prompts: false,
            noise: BTreeMap::new(),
            published: BTreeMap::new(),
        }
    }
}

impl CompareOptions {
    /// Whether `task` decides.
    pub fn tier(&self, task: &str) -> Tier {
        self.tasks.get(task).map_or(Tier::Required, |task| task.tier)
    }

    /// The margin of `task`, whose primary metric is `metric`.
    pub fn margin_of(&self, task: &str, metric: &MetricInfo) -> Margin {
        let own = self.tasks.get(task).and_then(|task| task.margin);
        own.or(self.margin).unwrap_or_else(|| Margin::default_for(metric))
    }
}

/// Adds what is wrong with the options for these subjects.
pub(super) fn check(
    out: &mut Collector,
    options: &CompareOptions,
    baseline: &EvalRecord,
    subjects: &[Subject],
) {
    for subject in subjects {
        if let Some(task) = subject.tasks.first().and_then(|task| baseline.tasks.get(task)) {
            check_subject(out, options, &subject.name, &task.primary_metric);
        }
    }
    let deciding = |subject: &&Subject| subject.decides() && options.tier(&subject.name) == Tier::Required;
    if !subjects.iter().any(|subject| deciding(&subject)) && !baseline.tasks.is_empty() {
        out.add(
            out.finding("options", FailureClass::InsufficientEvidence, "tasks")
                .observed("all are advisory")
                .expected("at least one required task"),
        );
    }
    let known = |name: &String| {
        subjects.iter().any(|subject| subject.name == *name) || baseline.groups.contains_key(name)
    };
    for (name, task) in &options.tasks {
        if task.tier == Tier::Required && !known(name) {
            out.add(
                out.finding("options", FailureClass::InsufficientEvidence, name)
                    .observed("required, but not evaluated")
                    .hint("evaluate the task, or make it advisory"),
            );
        }
    }
}

fn check_subject(out: &mut Collector, options: &CompareOptions, name: &str, metric: &MetricInfo) {
    let margin = options.margin_of(name, metric);
    let bad = |observed: String, expected: &str, out: &mut Collector| {
        let finding = out.finding("options", FailureClass::UserConfigError, name);
        out.add(finding.observed(observed).expected(expected));
    };
    if !(margin.value() > 0.0 && margin.value() < 1.0) {
        bad(format!("margin {margin}"), "a fraction between 0 and 1", out);
    }
    if metric.scale.is_none() && matches!(margin, Margin::Absolute(_)) {
        bad(format!("margin {margin}, but {} has none", metric.name), "a relative margin", out);
    }
    if metric.scale.is_some_and(|scale| !(scale.is_finite() && scale > 0.0)) {
        bad(format!("scale {:?} of {}", metric.scale, metric.name), "a positive number", out);
    }
    if let Some(published) = options.published.get(name) {
        let highest = metric.scale.unwrap_or(f64::MAX);
        if !(0.0..=highest).contains(&published.score) {
            bad(
                format!("published score {}", published.score),
                &format!("0 to {highest}, as {} is", metric.name),
                out,
            );
        }
    }
}
