//! One wave: items to the scorer, results back to the items; and the record of a task.

use super::metrics;
use super::prepared::{PreparedItem, PreparedTask};
use super::scorer::{OnDone, Scorer};
use crate::base::python;
use crate::record::eval::{ItemError, ItemRecord, MetricInfo, TaskRecord, TaskStatus};
use crate::record::score::{ScoreRequest, ScoreResult};

/// Scores the items with these indices into `prepared.items`; one record each, in the same order.
pub fn score_items(
    scorer: &dyn Scorer,
    prepared: &PreparedTask,
    items: &[usize],
    progress: OnDone<'_>,
) -> Vec<ItemRecord> {
    let windows = |i: &usize| prepared.items[*i].requests.iter().flat_map(|r| &r.windows);
    let requests: Vec<ScoreRequest> = items.iter().flat_map(windows).cloned().collect();
    let mut results = scorer.score(&requests, progress).into_iter();
    let mut record = |i: &usize| item_record(prepared, &prepared.items[*i], &mut results);
    items.iter().map(&mut record).collect()
}

/// Takes the item's results off the front of `results`.
fn item_record(
    prepared: &PreparedTask,
    item: &PreparedItem,
    results: &mut dyn Iterator<Item = Result<ScoreResult, ItemError>>,
) -> ItemRecord {
    let doc = prepared.doc(item);
    let config = &prepared.task.config;
    let mut record = ItemRecord {
        doc_id: item.doc_id,
        prompt_digest: item.prompt_digest.clone(),
        token_digest: item.token_digest.clone(),
        loglikelihoods: Vec::new(),
        is_greedy: Vec::new(),
        values: std::collections::BTreeMap::new(),
        weight: metrics::weight(config.primary_metric, doc),
        cluster: config.cluster.as_ref().and_then(|c| doc.fields.get(c)).map(python::str),
        error: None,
    };
    for request in &item.requests {
        let (mut loglikelihood, mut is_greedy) = (0.0, true);
        for window in &request.windows {
            // All results of an item are taken, also after one has failed: the next item's come after them.
            match checked(window, results.next()) {
                Ok(result) => {
                    loglikelihood += result.loglikelihood();
                    is_greedy &= result.is_greedy();
                }
                Err(error) => record.error = record.error.or(Some(error)),
            }
        }
        record.loglikelihoods.push(loglikelihood);
        record.is_greedy.push(is_greedy);
    }
    if record.error.is_some() {
        record.loglikelihoods.clear();
        record.is_greedy.clear();
    } else {
        record.values = metrics::item_values(&prepared.task, doc, &record.loglikelihoods, &record.is_greedy);
    }
    record
}

/// A result is believed only if it has one finite value for each scored token.
fn checked(
    request: &ScoreRequest,
    result: Option<Result<ScoreResult, ItemError>>,
) -> Result<ScoreResult, ItemError> {
    let broken = |message: String| ItemError { status: None, transient: false, message };
    let result = result.unwrap_or_else(|| Err(broken("the engine gave no result".to_owned())))?;
    let expected = request.tokens.len() - request.context_len;
    if result.token_logprobs.len() != expected || result.token_is_greedy.len() != expected {
        return Err(broken(format!(
            "{} log-probabilities for {expected} scored tokens",
            result.token_logprobs.len()
        )));
    }
    match result.token_logprobs.iter().position(|l| !l.is_finite()) {
        Some(i) => {
            Err(broken(format!("log-probability {} of token {i} is not finite", result.token_logprobs[i])))
        }
        None => Ok(result),
    }
}

/// The record of a task from the items visited so far. Standard errors that need a bootstrap come with success only.
pub fn task_record(prepared: &PreparedTask, mut items: Vec<ItemRecord>, status: TaskStatus) -> TaskRecord {
    items.sort_by_key(|i| i.doc_id);
    let config = &prepared.task.config;
    let primary = config.primary_metric;
    let bootstrap_iters = if status == TaskStatus::Success { metrics::BOOTSTRAP_ITERS } else { 0 };
    TaskRecord {
        task: config.task.clone(),
        version: python::str(&config.version),
        task_digest: prepared.digest.clone(),
        status,
        expected: prepared.items.len(),
        full_split: prepared.full_split,
        limited_by: prepared.limited_by.clone(),
        primary_metric: MetricInfo {
            name: primary.name().to_owned(),
            higher_is_better: primary.higher_is_better(),
            scale: primary.scale(),
        },
        metrics: metrics::aggregate(&prepared.task, &items, bootstrap_iters),
        items,
    }
}
