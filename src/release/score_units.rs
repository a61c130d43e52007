//! Units that score tasks in waves and merge the waves to an evaluation record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::graph::{Timer, node};
use super::keys;
use crate::base::json;
use crate::base::progress::Progress;
use crate::eval::{self, Journal, OutputInfo, PreparedTask, Scorer};
use crate::exec::{Context, FnUnit, Node, Output, UnitKey};
use crate::record::eval::{EvalRecord, ItemRecord, TaskStatus};
use crate::record::score::EngineIdentity;
use crate::record::{Failure, FailureClass, Provenance, SCHEMA_VERSION};

/// Items of one wave: few enough that a kill loses little, enough to keep the engine's batches full.
const WAVE_ITEMS: usize = 1024;

/// Starts the engine when the first unit needs it; later calls return the same.
pub type ScorerSource<'a> = Box<dyn Fn() -> Result<Arc<dyn Scorer>, Failure> + Send + Sync + 'a>;

/// One model to be evaluated on prepared tasks.
pub struct EvalJob<'a> {
    /// Name of the arm, in node names and records.
    pub arm: String,
    /// Stage of the nodes.
    pub stage: &'static str,
    /// Tasks with their requests.
    pub tasks: &'a [PreparedTask],
    /// What `results.json` says beside the scores.
    pub info: OutputInfo<'a>,
    /// Key of the arm.
    pub key: UnitKey,
    /// What answers.
    pub scorer: ScorerSource<'a>,
    /// Directory of `record.json`, `results.json` and the samples.
    pub out: PathBuf,
    /// Origin of the record.
    pub provenance: Provenance,
}

/// Output of a score unit.
#[derive(Debug, Serialize, Deserialize)]
struct Wave {
    identity: EngineIdentity,
    items: Vec<ItemRecord>,
}

/// A wave of a task: `(task index, wave index)`.
pub type WaveId = (usize, usize);

impl<'a> EvalJob<'a> {
    /// All waves, task by task.
    pub fn waves(&self) -> Vec<WaveId> {
        let count = |task: &PreparedTask| task.items.len().div_ceil(WAVE_ITEMS);
        self.tasks.iter().enumerate().flat_map(|(t, task)| (0..count(task)).map(move |w| (t, w))).collect()
    }

    /// Names of the nodes of all waves.
    pub fn wave_names(&self) -> Vec<String> {
        self.waves().into_iter().map(|id| self.wave_name(id)).collect()
    }

    fn wave_name(&self, (task, wave): WaveId) -> String {
        format!("score/{}/{}/{wave}", self.arm, self.tasks[task].name())
    }

    /// The node that scores one wave.
    pub fn wave_node(&'a self, id: WaveId, after: Vec<String>) -> Node<'a> {
        let task = &self.tasks[id.0];
        let items: Vec<usize> = (id.1 * WAVE_ITEMS..task.items.len().min((id.1 + 1) * WAVE_ITEMS)).collect();
        let unit = FnUnit::new(keys::wave(&self.key, task, &items), move |_| {
            let wave = self.score(task, &items)?;
            Output::of(&wave)
        })
        // Items that failed are work to do again when the run is resumed, unless nothing can score them.
        .verified_by(|output: &Value| {
            let hopeless: BTreeSet<usize> = task.problems().map(|(doc_id, _)| doc_id).collect();
            let settled = |i: &ItemRecord| i.error.is_none() || hopeless.contains(&i.doc_id);
            Wave::deserialize(output).is_ok_and(|wave| wave.items.iter().all(settled))
        });
        node(self.wave_name(id), self.stage, after, unit)
    }

    /// Outcomes of items whose wave is not finished.
    fn journal_path(&self) -> PathBuf {
        self.out.join("items.jsonl")
    }

    fn score(&self, task: &PreparedTask, items: &[usize]) -> Result<Wave, Failure> {
        let scorer = (self.scorer)()?;
        let windows = items.iter().map(|i| task.items[*i].num_windows() as u64);
        let progress = Progress::new(&format!("{} {}", self.arm, task.name()), windows.sum(), "requests");
        let path = self.journal_path();
        let journal = Journal::open(&path, self.key.as_str(), &scorer.identity())
            .map_err(|e| Failure::io(path.display(), &e))?;
        let scored = eval::score_items_once(&*scorer, task, items, &journal, &|n| progress.inc(n as u64))?;
        if let Some(error) = scored.iter().find_map(|i| i.error.as_ref().filter(|e| e.transient)) {
            let message = format!("{} arm, task {}: {}", self.arm, task.name(), error.message);
            return Err(Failure::new(FailureClass::InfraTransient, message));
        }
        Ok(Wave { identity: scorer.identity(), items: scored })
    }

    /// The node that merges all waves and writes the evaluation's files.
    pub fn merge_node(&'a self, name: String, after: Vec<String>) -> Node<'a> {
        let key = keys::derived("eval/1", &keys::evaluated(&self.key, self.tasks));
        let path = self.out.join("record.json");
        let verify_path = path.clone();
        let unit = FnUnit::new(key, move |context| {
            let record = self.merge(context)?;
            json::write(&path, &record)?;
            eval::write_outputs(&self.out, &record, self.tasks, &self.info)?;
            let journal = self.journal_path();
            Journal::remove(&journal).map_err(|e| Failure::io(journal.display(), &e))?;
            let scores: BTreeMap<_, _> = record.tasks.iter().map(|(name, t)| (name, &t.metrics)).collect();
            Output::of(&scores)
        })
        .verified_by(move |_: &Value| verify_path.is_file());
        node(name, self.stage, after, unit)
    }

    fn merge(&self, context: &Context<'_>) -> Result<EvalRecord, Failure> {
        let timer = Timer::start();
        let mut identity: Option<EngineIdentity> = None;
        let mut items: Vec<Vec<ItemRecord>> = self.tasks.iter().map(|_| Vec::new()).collect();
        for id in self.waves() {
            let name = self.wave_name(id);
            let wave: Wave = context.output(&name)?;
            let first = identity.get_or_insert_with(|| wave.identity.clone());
            if *first != wave.identity {
                let message = format!("{name}: answered by another engine than the waves before it");
                return Err(Failure::new(FailureClass::ComparabilityFailed, message));
            }
            items[id.0].extend(wave.items);
        }
        let identity = identity.ok_or_else(|| Failure::config("the suites hold no items to score"))?;
        let tasks = self.tasks.iter().zip(items);
        Ok(EvalRecord {
            schema_version: SCHEMA_VERSION,
            arm: self.arm.clone(),
            identity,
            tasks: tasks
                .map(|(task, items)| {
                    (task.name().to_owned(), eval::task_record(task, items, TaskStatus::Success))
                })
                .collect(),
            provenance: timer.stop(self.provenance.clone()),
        })
    }
}
