//! From log-likelihoods to metrics: per item, per task, per group.
//!
//! Per item, an accuracy is 0 or 1. The others are per-unit losses whose mean, weighted by the item's units, gives the
//! aggregate: `bits_per_byte` in bits per byte (the weighted mean is the metric); `byte_perplexity`, `word_perplexity`
//! and `perplexity` in nats per byte, word and document (exp of the weighted mean is the metric).
//!
//! Source: lm-eval 0.4.13, `api/task.py` (`process_results`), `api/metrics.py`, `api/group.py`.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;

use rayon::prelude::*;

use crate::base::python;
use crate::record::eval::{ItemRecord, Metric, TaskRecord};
use crate::suite::python_random::PythonRandom;
use crate::suite::{Aggregation, Doc, Group, MetricKind, ResultsFunction, Task, mc2_labels};

/// Replicates of lm-eval's bootstrap, in chunks of 1000 with their own generator each.
pub const BOOTSTRAP_ITERS: usize = 100_000;
const BOOTSTRAP_CHUNK: usize = 1000;

/// Index of the largest value, the first among equals.
pub fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// The value of each of the task's metrics on one document; `loglikelihoods` and `is_greedy` as requests were made.
pub fn item_values(
    task: &Task,
    doc: &Doc,
    loglikelihoods: &[f64],
    is_greedy: &[bool],
) -> BTreeMap<String, f64> {
    let metrics = &task.config.metrics;
    let value = |metric: &MetricKind| {
        let value = match (task.config.process_results, metric) {
            (Some(ResultsFunction::TruthfulqaMc2), MetricKind::Acc) => mc2(doc, loglikelihoods),
            _ => item_value(*metric, doc, loglikelihoods, is_greedy),
        };
        (metric.name().to_owned(), value)
    };
    metrics.iter().map(value).collect()
}

/// Σ p of the true choices / Σ p of all; not a number where every p underflows to 0.
fn mc2(doc: &Doc, loglikelihoods: &[f64]) -> f64 {
    let probabilities: Vec<f64> = loglikelihoods.iter().map(|ll| ll.exp()).collect();
    let total: f64 = probabilities.iter().sum();
    // Rows without valid labels are refused when they are read.
    let labels = mc2_labels(&doc.fields).unwrap_or_default();
    probabilities.iter().zip(labels).filter(|(_, truth)| *truth).map(|(p, _)| p / total).sum()
}

fn item_value(metric: MetricKind, doc: &Doc, loglikelihoods: &[f64], is_greedy: &[bool]) -> f64 {
    match metric {
        MetricKind::Perplexity => -loglikelihoods[0],
        MetricKind::WordPerplexity | MetricKind::BytePerplexity => -loglikelihoods[0] / weight(metric, doc),
        MetricKind::BitsPerByte => -loglikelihoods[0] / weight(metric, doc) / LN_2,
        MetricKind::Acc if doc.choices.is_empty() => f64::from(is_greedy[0]),
        _ => choice_value(metric, doc, loglikelihoods, is_greedy),
    }
}

/// Accuracies of a multiple-choice question: C choices, and C more requests for `acc_mutual_info`.
fn choice_value(metric: MetricKind, doc: &Doc, loglikelihoods: &[f64], is_greedy: &[bool]) -> f64 {
    // Rows whose gold choice is not valid are refused when they are read.
    let gold = doc.gold().unwrap_or_default();
    let (conditional, unconditional) = loglikelihoods.split_at(doc.choices.len());
    let per = |length: fn(&str) -> usize| -> Vec<f64> {
        conditional.iter().zip(&doc.choices).map(|(ll, choice)| ll / length(choice) as f64).collect()
    };
    let right = match metric {
        MetricKind::ExactMatch => gold.iter().any(|g| is_greedy[*g]),
        MetricKind::AccNorm => gold.contains(&argmax(&per(|c| c.chars().count()))),
        MetricKind::AccBytes => gold.contains(&argmax(&per(str::len))),
        MetricKind::AccMutualInfo => {
            let gain: Vec<f64> = conditional.iter().zip(unconditional).map(|(c, u)| c - u).collect();
            gold.contains(&argmax(&gain))
        }
        _ => gold.contains(&argmax(conditional)),
    };
    f64::from(right)
}

/// Units of a document that a metric is per: bytes or words of the rolled text, else 1.
pub fn weight(metric: MetricKind, doc: &Doc) -> f64 {
    match metric {
        MetricKind::WordPerplexity => python::split_count(&doc.units_text) as f64,
        MetricKind::BytePerplexity | MetricKind::BitsPerByte => doc.units_text.len() as f64,
        _ => 1.0,
    }
}

/// The task's metrics over the items that have a score; none if there is no such item. The bootstrap takes seconds on
/// thousands of items, so `bootstrap_iters` may be 0 while a run is going on.
pub fn aggregate(task: &Task, items: &[ItemRecord], bootstrap_iters: usize) -> BTreeMap<String, Metric> {
    let scored: Vec<&ItemRecord> = items.iter().filter(|i| i.error.is_none()).collect();
    if scored.is_empty() {
        return BTreeMap::new();
    }
    let metric = |kind: &MetricKind| {
        let values: Vec<f64> = scored.iter().map(|i| i.values[kind.name()]).collect();
        let weights: Vec<f64> = scored.iter().map(|i| weight(*kind, &task.docs[i.doc_id])).collect();
        let (value, stderr) = match kind.aggregation() {
            Aggregation::Mean => (mean(&values), mean_stderr(&values)),
            Aggregation::Perplexity => (mean(&values).exp(), bootstrap_perplexity(&values, bootstrap_iters)),
            Aggregation::WeightedPerplexity => (weighted_mean(&values, &weights).exp(), None),
            Aggregation::BitsPerByte => (weighted_mean(&values, &weights), None),
        };
        (kind.name().to_owned(), Metric { value, stderr, higher_is_better: kind.higher_is_better() })
    };
    task.config.metrics.iter().map(metric).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn weighted_mean(values: &[f64], weights: &[f64]) -> f64 {
    let sum: f64 = values.iter().zip(weights).map(|(v, w)| v * w).sum();
    sum / weights.iter().sum::<f64>()
}

/// Sample standard deviation / √n; none for fewer than two values.
fn mean_stderr(values: &[f64]) -> Option<f64> {
    sample_stddev(values).map(|s| s / (values.len() as f64).sqrt())
}

fn sample_stddev(values: &[f64]) -> Option<f64> {
    let center = mean(values);
    let squares: f64 = values.iter().map(|v| (v - center).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Standard deviation of exp(mean) over resamples: chunk i draws with `random.Random(i).choices`.
fn bootstrap_perplexity(losses: &[f64], iters: usize) -> Option<f64> {
    if iters == 0 || losses.len() < 2 {
        return None;
    }
    let chunk = BOOTSTRAP_CHUNK.min(iters);
    let replicates: Vec<f64> = (0..iters / chunk)
        .into_par_iter()
        .flat_map_iter(|seed| {
            let mut random = PythonRandom::new(seed as u64);
            let replicate = move |_| {
                let sum: f64 = losses.iter().map(|_| losses[random.choice_index(losses.len())]).sum();
                (sum / losses.len() as f64).exp()
            };
            (0..chunk).map(replicate)
        })
        .collect();
    sample_stddev(&replicates)
}

/// A group's metrics over its tasks' records: `None` where no task has the metric. Returns items scored, too.
pub fn aggregate_group(
    group: &Group,
    tasks: &BTreeMap<String, TaskRecord>,
) -> (BTreeMap<String, Metric>, usize) {
    let members: Vec<&TaskRecord> = group.tasks.iter().filter_map(|name| tasks.get(name)).collect();
    let mut metrics = BTreeMap::new();
    for combined in &group.aggregates {
        let parts: Vec<(&Metric, f64)> = members
            .iter()
            .filter_map(|t| t.metrics.get(&combined.metric).map(|m| (m, t.scored() as f64)))
            .collect();
        if let Some(metric) = combine(&parts, combined.weight_by_size) {
            metrics.insert(combined.metric.clone(), metric);
        }
    }
    (metrics, members.iter().map(|t| t.scored()).sum())
}

/// Mean of the parts: by size with the pooled standard error, or plain with that of independent means.
fn combine(parts: &[(&Metric, f64)], by_size: bool) -> Option<Metric> {
    let k = parts.len() as f64;
    let total: f64 = parts.iter().map(|(_, n)| n).sum();
    let (first, _) = parts.first()?;
    let errors: Option<Vec<f64>> = parts.iter().map(|(m, _)| m.stderr).collect();
    let (value, stderr) = if by_size {
        let pooled = |errors: Vec<f64>| {
            let sum: f64 = errors.iter().zip(parts).map(|(se, (_, n))| (n - 1.0) * se * se * n).sum();
            (sum / (total - k) / total).sqrt()
        };
        (parts.iter().map(|(m, n)| m.value * n).sum::<f64>() / total, errors.map(pooled))
    } else {
        let plain = |errors: Vec<f64>| errors.iter().map(|se| se * se).sum::<f64>().sqrt() / k;
        (parts.iter().map(|(m, _)| m.value).sum::<f64>() / k, errors.map(plain))
    };
    Some(Metric { value, stderr, higher_is_better: first.higher_is_better })
}
