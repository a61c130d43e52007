//! One wave: items to the scorer, results back to the items; and the record of a task.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::journal::Journal;
use super::metrics;
use super::prepared::{PreparedItem, PreparedTask};
use super::scorer::{OnDone, Scorer};
use crate::base::digest::Digest;
use crate::base::{interrupt, python};
use crate::record::eval::{GroupRecord, ItemError, ItemRecord, MetricInfo, TaskRecord, TaskStatus};
use crate::record::score::{ScoreRequest, ScoreResult};
use crate::record::serve::Confirmation;
use crate::record::{Classified, Failure, FailureClass};
use crate::suite::{Group, Task};

/// Items scored between two looks at the journal and the engine: few enough that a kill loses seconds, enough to keep
/// batches full.
const CHUNK_ITEMS: usize = 128;

/// An item of a task, by its index into the task's items.
pub type ItemRef<'a> = (&'a PreparedTask, usize);

/// Scores items of any tasks together; one record each, in the same order.
pub fn score_items(scorer: &dyn Scorer, items: &[ItemRef<'_>], progress: OnDone<'_>) -> Vec<ItemRecord> {
    let asked = items.iter().flat_map(|(task, i)| &task.items[*i].requests);
    let requests: Vec<ScoreRequest> = asked.flat_map(|request| request.windows.iter().cloned()).collect();
    let mut results = scorer.score(&requests, progress).into_iter();
    items.iter().map(|(task, i)| item_record(task, &task.items[*i], &mut results)).collect()
}

/// Outcomes of items, and what showed last that the engine was still the examined one.
#[derive(Debug)]
pub struct Scored {
    /// One for each item, in order.
    pub items: Vec<ItemRecord>,
    /// `None` where nothing was asked, or of an engine in this process.
    pub confirmation: Option<Confirmation>,
}

/// Like [`score_items`], but takes outcomes from the journal where it has them and writes new ones into it. After each
/// chunk the engine is asked whether it is still the one that was examined; a chunk that another one may have answered
/// is thrown away.
pub fn score_items_once(
    scorer: &dyn Scorer,
    items: &[ItemRef<'_>],
    journal: &Journal,
    progress: OnDone<'_>,
) -> Result<Scored, ScoreError> {
    let mut outcomes: Vec<Option<ItemRecord>> = Vec::with_capacity(items.len());
    for (task, index) in items {
        let item = &task.items[*index];
        let known = journal.get(task, item);
        if known.is_some() {
            progress(item.num_windows());
        }
        outcomes.push(known);
    }
    let pending: Vec<usize> = (0..items.len()).filter(|place| outcomes[*place].is_none()).collect();
    let (mut stopped, mut confirmation) = (None, None);
    for chunk in pending.chunks(CHUNK_ITEMS) {
        let asked: Vec<ItemRef<'_>> = chunk.iter().map(|place| items[*place]).collect();
        let answers = score_items(scorer, &asked, progress);
        let any_scored = answers.iter().any(|o| o.error.is_none());
        if any_scored {
            confirmation = scorer.confirm().map_err(ScoreError::Engine)?.or(confirmation);
        }
        let last_error = answers.iter().rev().find_map(|o| o.error.clone());
        for (place, outcome) in chunk.iter().zip(answers) {
            let (task, index) = items[*place];
            let put = journal.put(task, &task.items[index], &outcome);
            put.map_err(|source| ScoreError::Journal { path: journal.path().to_path_buf(), source })?;
            outcomes[*place] = Some(outcome);
        }
        // An engine that answers nothing at all is not asked again and again; the rest stays pending.
        let sent = asked.iter().any(|(task, index)| task.items[*index].problem.is_none());
        if interrupt::received().is_some() || (sent && !any_scored) {
            stopped = last_error;
            break;
        }
    }
    let interrupted = || ItemError { status: None, transient: true, message: "interrupted".to_owned() };
    let outcome = |(outcome, (task, index)): (Option<ItemRecord>, &ItemRef<'_>)| {
        let pending = || failed_item(task, &task.items[*index], stopped.clone().unwrap_or_else(interrupted));
        outcome.unwrap_or_else(pending)
    };
    Ok(Scored { items: outcomes.into_iter().zip(items).map(outcome).collect(), confirmation })
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
        target_digest: Some(Digest::of(python::str(&doc.target).as_bytes())),
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
pub fn primary_metric(task: &Task) -> MetricInfo {
    let primary = task.config.primary_metric;
    MetricInfo {
        name: primary.name().to_owned(),
        higher_is_better: primary.higher_is_better(),
        scale: primary.scale(),
    }
}

/// What a comparison needs to know of the groups.
pub fn group_records(groups: &[Group]) -> BTreeMap<String, GroupRecord> {
    let record = |group: &Group| {
        let metrics = group.aggregates.iter().map(|m| (m.metric.clone(), m.weight_by_size)).collect();
        let mut tasks = group.tasks.clone();
        tasks.sort();
        (group.name.clone(), GroupRecord { tasks, metrics, advisory: group.advisory.clone() })
    };
    groups.iter().filter(|group| !group.tasks.is_empty()).map(record).collect()
}

/// The record of a task from the items visited so far. Standard errors that need a bootstrap come with success only.
pub fn task_record(prepared: &PreparedTask, mut items: Vec<ItemRecord>, status: TaskStatus) -> TaskRecord {
    items.sort_by_key(|i| i.doc_id);
    let config = &prepared.task.config;
    let visited: BTreeSet<usize> = items.iter().map(|i| i.doc_id).collect();
    let cut = prepared.items.iter().filter(|i| i.is_truncated());
    let truncated = cut.filter(|i| visited.contains(&i.doc_id)).count();
    let bootstrap_iters = if status == TaskStatus::Success { metrics::BOOTSTRAP_ITERS } else { 0 };
    TaskRecord {
        task: config.task.clone(),
        version: python::str(&config.version),
        task_digest: prepared.digest.clone(),
        status,
        expected: prepared.items.len(),
        full_split: prepared.full_split,
        limited_by: prepared.limited_by.clone(),
        order: Some(prepared.order),
        truncated,
        primary_metric: primary_metric(&prepared.task),
        metrics: metrics::aggregate(&prepared.task, &items, bootstrap_iters),
        items,
        visit: None,
    }
}
