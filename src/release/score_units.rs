//! Units that score tasks in waves and merge the waves to an evaluation record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::graph::{Timer, node};
use super::keys;
use super::waves::{LookOutput, TaskWaves, look_name};
use crate::base::json;
use crate::base::progress::Progress;
use crate::eval::{self, Journal, OutputInfo, PreparedTask, Scorer};
use crate::exec::{Context, FnUnit, Node, Output, UnitKey};
use crate::record::eval::{EvalRecord, ItemRecord, TaskRecord, TaskStatus, Visit};
use crate::record::score::EngineIdentity;
use crate::record::{Failure, FailureClass, Provenance, SCHEMA_VERSION};

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
    /// Waves of each task.
    pub waves: Vec<TaskWaves>,
    /// What `results.json` says beside the scores.
    pub info: OutputInfo<'a>,
    /// Key of the arm.
    pub key: UnitKey,
    /// Key of everything that decides which items are needed; the arm's own where all are.
    pub decided_by: UnitKey,
    /// What answers.
    pub scorer: ScorerSource<'a>,
    /// Directory of `record.json`, `results.json` and the samples.
    pub out: PathBuf,
    /// Origin of the record.
    pub provenance: Provenance,
    /// Outcomes so far.
    pub journal: OpenJournal,
}

/// The journal of an evaluation and the engine it belongs to, once it is open.
#[derive(Default)]
pub struct OpenJournal(Mutex<Option<(EngineIdentity, Arc<Journal>)>>);

/// Output of a score unit.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Wave {
    /// What answered; `None` where nothing was asked because the task was decided before.
    identity: Option<EngineIdentity>,
    /// The items in order of visit.
    pub items: Vec<ItemRecord>,
}

/// Name of the unit that scores a wave.
pub fn score_name(arm: &str, task: &str, wave: usize) -> String {
    format!("score/{arm}/{task}/{wave}")
}

/// A wave of a task: `(task index, wave index)`.
pub type WaveId = (usize, usize);

impl<'a> EvalJob<'a> {
    /// Waves that take all items of each task.
    pub fn plain_waves(tasks: &[PreparedTask]) -> Vec<TaskWaves> {
        tasks.iter().map(|task| TaskWaves::new(task.items.len(), None)).collect()
    }

    /// All waves, task by task.
    pub fn wave_ids(&self) -> Vec<WaveId> {
        let of = |(t, waves): (usize, &TaskWaves)| (0..waves.ends.len()).map(move |w| (t, w));
        self.waves.iter().enumerate().flat_map(of).collect()
    }

    /// Names of the nodes of all waves.
    pub fn wave_names(&self) -> Vec<String> {
        self.wave_ids().into_iter().map(|id| self.wave_name(id)).collect()
    }

    /// Names of the looks of all tasks that may stop early.
    pub fn look_names(&self) -> Vec<String> {
        let ids = self.wave_ids().into_iter().filter(|(task, _)| self.waves[*task].rule.is_some());
        ids.map(|(task, wave)| look_name(self.tasks[task].name(), wave)).collect()
    }

    fn wave_name(&self, (task, wave): WaveId) -> String {
        score_name(&self.arm, self.tasks[task].name(), wave)
    }

    /// Key of the unit that scores one wave.
    pub fn wave_key(&self, (task, wave): WaveId) -> UnitKey {
        let items: Vec<usize> = self.waves[task].items(wave).collect();
        keys::wave(&self.key, &self.tasks[task], &items)
    }

    /// The node that scores one wave; with `looks`, unless a look before it decided the task.
    pub fn wave_node(&'a self, id: WaveId, mut after: Vec<String>, looks: bool) -> Node<'a> {
        let task = &self.tasks[id.0];
        let items: Vec<usize> = self.waves[id.0].items(id.1).collect();
        let look =
            (looks && id.1 > 0 && self.waves[id.0].rule.is_some()).then(|| look_name(task.name(), id.1 - 1));
        after.extend(look.clone());
        let unit = FnUnit::new(self.wave_key(id), move |context| {
            if let Some(look) = &look
                && context.output::<LookOutput>(look)?.is_decided()
            {
                return Ok(Output::of(&Wave::default())?.private());
            }
            Output::of(&self.score(task, &items)?)
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

    /// The outcomes of this engine, read once: waves are small and many.
    fn journal(&self, engine: &EngineIdentity) -> Result<Arc<Journal>, Failure> {
        let mut slot = self.journal.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, journal)) = slot.as_ref().filter(|(of, _)| of == engine) {
            return Ok(Arc::clone(journal));
        }
        let path = self.journal_path();
        let journal = std::fs::create_dir_all(&self.out)
            .and_then(|()| Journal::open(&path, self.key.as_str(), engine))
            .map_err(|e| Failure::io(path.display(), &e))?;
        let journal = Arc::new(journal);
        *slot = Some((engine.clone(), Arc::clone(&journal)));
        Ok(journal)
    }

    fn score(&self, task: &PreparedTask, items: &[usize]) -> Result<Wave, Failure> {
        let scorer = (self.scorer)()?;
        let windows = items.iter().map(|i| task.items[*i].num_windows() as u64);
        let (last, total) = (items.last().map_or(0, |i| i + 1), task.items.len());
        let label = format!("{} {} to item {last} of {total}", self.arm, task.name());
        let progress = Progress::new(&label, windows.sum(), "requests");
        let journal = self.journal(&scorer.identity())?;
        let scored = eval::score_items_once(&*scorer, task, items, &journal, &|n| progress.inc(n as u64))?;
        if let Some(error) = scored.iter().find_map(|i| i.error.as_ref().filter(|e| e.transient)) {
            let message = format!("{} arm, task {}: {}", self.arm, task.name(), error.message);
            return Err(Failure::new(FailureClass::InfraTransient, message));
        }
        Ok(Wave { identity: Some(scorer.identity()), items: scored })
    }

    /// The node that merges all waves and writes the evaluation's files.
    pub fn merge_node(&'a self, name: String, after: Vec<String>) -> Node<'a> {
        let key = keys::derived(&format!("eval/2 {}", self.arm), &self.decided_by);
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

    /// The last wave that counts: the one whose look decided the task, else the last of all.
    fn last_wave(&self, task: usize, context: &Context<'_>) -> Result<usize, Failure> {
        let TaskWaves { ends, rule } = &self.waves[task];
        let name = self.tasks[task].name();
        for wave in (0..ends.len()).take_while(|_| rule.is_some()) {
            if context.output::<LookOutput>(&look_name(name, wave))?.is_decided() {
                return Ok(wave);
            }
        }
        Ok(ends.len().saturating_sub(1))
    }

    fn merge(&self, context: &Context<'_>) -> Result<EvalRecord, Failure> {
        let timer = Timer::start();
        let mut identity: Option<EngineIdentity> = None;
        let mut tasks = BTreeMap::new();
        for (index, task) in self.tasks.iter().enumerate() {
            let last = self.last_wave(index, context)?;
            let mut items = Vec::new();
            for wave in 0..(last + 1).min(self.waves[index].ends.len()) {
                let name = self.wave_name((index, wave));
                let wave: Wave = context.output(&name)?;
                let unanswered =
                    || Failure::new(FailureClass::Unknown, format!("{name}: a needed wave was not scored"));
                let answered_by = wave.identity.ok_or_else(unanswered)?;
                let first = identity.get_or_insert_with(|| answered_by.clone());
                if *first != answered_by {
                    let message = format!("{name}: answered by another engine than the waves before it");
                    return Err(Failure::new(FailureClass::ComparabilityFailed, message));
                }
                items.extend(wave.items);
            }
            tasks.insert(task.name().to_owned(), self.task_record(index, last, items));
        }
        let identity = identity.ok_or_else(|| Failure::config("the suites hold no items to score"))?;
        Ok(EvalRecord {
            schema_version: SCHEMA_VERSION,
            arm: self.arm.clone(),
            identity,
            tasks,
            provenance: timer.stop(self.provenance.clone()),
        })
    }

    fn task_record(&self, index: usize, last: usize, items: Vec<ItemRecord>) -> TaskRecord {
        let (task, waves) = (&self.tasks[index], &self.waves[index]);
        let visit = waves.rule.is_some().then(|| Visit {
            order: items.iter().map(|item| item.doc_id).collect(),
            looks: waves.ends.iter().copied().take(last + 1).collect(),
            not_needed: task.items.len() - items.len(),
        });
        TaskRecord { visit, ..eval::task_record(task, items, TaskStatus::Success) }
    }
}
