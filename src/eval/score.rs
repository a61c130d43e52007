//! One wave: items to the scorer, results back to the items; and the record of a task.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use super::journal::Journal;
use super::metrics;
use super::prepared::{PreparedItem, PreparedTask};
use super::scorer::{OnDone, Scorer};
use crate::base::{interrupt, python};
use crate::record::eval::{ItemError, ItemRecord, MetricInfo, TaskRecord, TaskStatus};
use crate::record::score::{ScoreRequest, ScoreResult};
use crate::record::{Classified, Failure, FailureClass};

/// Items scored between two looks at the journal and the engine: few enough that a kill loses seconds, enough to keep
/// batches full.
const CHUNK_ITEMS: usize = 128;

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

/// Like [`score_items`], but takes outcomes from the journal where it has them and writes new ones into it. After each
/// chunk the engine is asked whether it is still the one that was examined; a chunk that another one may have answered
/// is thrown away.
pub fn score_items_once(
    scorer: &dyn Scorer,
    prepared: &PreparedTask,
    items: &[usize],
    journal: &Journal,
    progress: OnDone<'_>,
) -> Result<Vec<ItemRecord>, ScoreError> {
    let mut known: HashMap<usize, ItemRecord> = HashMap::new();
    let mut pending = Vec::new();
    for index in items {
        match journal.get(prepared, &prepared.items[*index]) {
            Some(outcome) => {
                progress(prepared.items[*index].num_windows());
                known.insert(*index, outcome);
            }
            None => pending.push(*index),
        }
    }
    let mut stopped = None;
    for chunk in pending.chunks(CHUNK_ITEMS) {
        let outcomes = score_items(scorer, prepared, chunk, progress);
        let any_scored = outcomes.iter().any(|o| o.error.is_none());
        if any_scored {
            scorer.confirm().map_err(ScoreError::Engine)?;
        }
        let last_error = outcomes.iter().rev().find_map(|o| o.error.clone());
        for (index, outcome) in chunk.iter().zip(outcomes) {
            let put = journal.put(prepared, &prepared.items[*index], &outcome);
            put.map_err(|source| ScoreError::Journal { path: journal.path().to_path_buf(), source })?;
            known.insert(*index, outcome);
        }
        // An engine that answers nothing at all is not asked again and again; the rest stays pending.
        let sent = chunk.iter().any(|index| prepared.items[*index].problem.is_none());
        if interrupt::received().is_some() || (sent && !any_scored) {
            stopped = last_error;
            break;
        }
    }
    let interrupted = || ItemError { status: None, transient: true, message: "interrupted".to_owned() };
    let outcome = |index: &usize| {
        let item = &prepared.items[*index];
        let pending = || failed_item(prepared, item, stopped.clone().unwrap_or_else(interrupted));
        known.remove(index).unwrap_or_else(pending)
    };
    Ok(items.iter().map(outcome).collect())
}

/// Why scores cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// The engine is not, or may not be, the one that was examined.
    #[error("{}", .0.message)]
    Engine(ItemError),
    /// The journal cannot be written.
    #[error("{}: cannot be written", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Classified for ScoreError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Engine(ItemError { status: Some(401 | 403 | 429), .. }) => FailureClass::EvalJudgeFailed,
            Self::Engine(error) if error.transient => FailureClass::InfraTransient,
            Self::Engine(_) => FailureClass::ComparabilityFailed,
            Self::Journal { source, .. } => Failure::io("", source).class,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) if !error.transient => Some(
                "serve one checkpoint for the whole evaluation, and start again in an empty directory"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// The record of an item that failed.
fn failed_item(prepared: &PreparedTask, item: &PreparedItem, error: ItemError) -> ItemRecord {
    ItemRecord { error: Some(error), ..empty_item(prepared, item) }
}

/// The record of an item without values.
fn empty_item(prepared: &PreparedTask, item: &PreparedItem) -> ItemRecord {
    let doc = prepared.doc(item);
    let config = &prepared.task.config;
    ItemRecord {
        doc_id: item.doc_id,
        prompt_digest: item.prompt_digest.clone(),
        token_digest: item.token_digest.clone(),
        loglikelihoods: Vec::new(),
        is_greedy: Vec::new(),
        values: BTreeMap::new(),
        weight: metrics::weight(config.primary_metric, doc),
        gold: doc.gold().ok().and_then(|gold| match gold[..] {
            [one] if !doc.choices.is_empty() => Some(one),
            _ => None,
        }),
        cluster: config.cluster.as_ref().and_then(|c| doc.fields.get(c)).map(python::str),
        error: None,
    }
}

/// Takes the item's results off the front of `results`.
fn item_record(
    prepared: &PreparedTask,
    item: &PreparedItem,
    results: &mut dyn Iterator<Item = Result<ScoreResult, ItemError>>,
) -> ItemRecord {
    if let Some(problem) = &item.problem {
        let error = ItemError { status: None, transient: false, message: problem.clone() };
        return failed_item(prepared, item, error);
    }
    let mut record = empty_item(prepared, item);
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
    if record.error.is_none() {
        let doc = prepared.doc(item);
        record.values = metrics::item_values(&prepared.task, doc, &record.loglikelihoods, &record.is_greedy);
        if let Some((name, value)) = record.values.iter().find(|(_, v)| !v.is_finite()) {
            let message = format!("{name} is {value}: every choice's probability is too small for a number");
            record.error = Some(ItemError { status: None, transient: false, message });
        }
    }
    if record.error.is_some() {
        record.loglikelihoods.clear();
        record.is_greedy.clear();
        record.values.clear();
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

/// The metric of a task that decides.
pub fn primary_metric(prepared: &PreparedTask) -> MetricInfo {
    let primary = prepared.task.config.primary_metric;
    MetricInfo {
        name: primary.name().to_owned(),
        higher_is_better: primary.higher_is_better(),
        scale: primary.scale(),
    }
}

/// The record of a task from the items visited so far. Standard errors that need a bootstrap come with success only.
pub fn task_record(prepared: &PreparedTask, mut items: Vec<ItemRecord>, status: TaskStatus) -> TaskRecord {
    items.sort_by_key(|i| i.doc_id);
    let config = &prepared.task.config;
    let bootstrap_iters = if status == TaskStatus::Success { metrics::BOOTSTRAP_ITERS } else { 0 };
    TaskRecord {
        task: config.task.clone(),
        version: python::str(&config.version),
        task_digest: prepared.digest.clone(),
        status,
        expected: prepared.items.len(),
        full_split: prepared.full_split,
        limited_by: prepared.limited_by.clone(),
        primary_metric: primary_metric(prepared),
        metrics: metrics::aggregate(&prepared.task, &items, bootstrap_iters),
        items,
        visit: None,
    }
}
