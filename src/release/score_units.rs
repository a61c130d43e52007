//! Units that score tasks in waves and merge the waves to an evaluation record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::graph::{Timer, node};
use super::keys;
use super::waves::{LookOutput, Sequence, look_name};
use crate::base::json;
use crate::base::progress::Progress;
use crate::eval::{self, ItemRef, JOURNAL, Journal, OutputInfo, PreparedTask, Scorer};
use crate::exec::{Context, FnUnit, Node, Output, Owner, UnitKey};
use crate::record::eval::{EvalRecord, ItemRecord, TaskRecord, TaskStatus, Visit, WaveConfirmation};
use crate::record::score::EngineIdentity;
use crate::record::serve::Confirmation;
use crate::record::{Failure, FailureClass, Provenance, SCHEMA_VERSION};

/// Starts the engine when the first unit needs it; later calls return the same.
pub type ScorerSource<'a> = Box<dyn Fn(&Context<'_>) -> Result<Arc<dyn Scorer>, Failure> + Send + Sync + 'a>;

/// One model to be evaluated on prepared tasks.
pub struct EvalJob<'a> {
    /// Name of the arm, in node names and records.
    pub arm: String,
    /// Stage of the nodes.
    pub stage: &'static str,
    /// Tasks with their requests.
    pub tasks: &'a [PreparedTask],
    /// What is scored in which waves; every task is in one of them.
    pub sequences: Vec<Sequence>,
    /// What `results.json` says beside the scores.
    pub info: OutputInfo<'a>,
    /// Key of the arm.
    pub key: UnitKey,
    /// Key of everything that decides which items are needed; the arm's own where all are.
    pub decided_by: UnitKey,
    /// What answers.
    pub scorer: ScorerSource<'a>,
    /// What a transient failure means to whoever knows the engine.
    pub diagnose: Box<dyn Fn(Failure) -> Failure + Send + Sync + 'a>,
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
    /// What showed afterwards that it was still the same; `None` of an engine in this process.
    #[serde(default)]
    confirmation: Option<Confirmation>,
    /// The items of each task, in order of visit.
    pub items: BTreeMap<String, Vec<ItemRecord>>,
}

impl Wave {
    /// Whether the engine was shown to be the probed one after the last item; of a wave that was not needed nothing is to
    /// be shown.
    pub fn is_confirmed(&self) -> bool {
        self.items.is_empty() || self.confirmation.is_some()
    }
}

/// Name of the unit that scores a wave of a task or group.
pub fn score_name(arm: &str, sequence: &str, wave: usize) -> String {
    format!("score/{arm}/{sequence}/{wave}")
}

/// A wave: `(sequence index, wave index)`.
pub type WaveId = (usize, usize);

impl<'a> EvalJob<'a> {
    /// Waves that take all items of each task.
    pub fn plain_waves(tasks: &[PreparedTask]) -> Vec<Sequence> {
        let plain = |(index, task): (usize, &PreparedTask)| {
            Sequence::of_task(task.name(), index, task.items.len(), None)
        };
        tasks.iter().enumerate().map(plain).collect()
    }

    /// All waves, sequence by sequence.
    pub fn wave_ids(&self) -> Vec<WaveId> {
        let of = |(s, sequence): (usize, &Sequence)| (0..sequence.waves.len()).map(move |w| (s, w));
        self.sequences.iter().enumerate().flat_map(of).collect()
    }

    /// Names of the nodes of all waves.
    pub fn wave_names(&self) -> Vec<String> {
        self.wave_ids().into_iter().map(|id| self.wave_name(id)).collect()
    }

    /// Names of the looks of everything that may stop early.
    pub fn look_names(&self) -> Vec<String> {
        let ids = self.wave_ids().into_iter().filter(|(s, _)| self.sequences[*s].rule.is_some());
        ids.map(|(s, wave)| look_name(&self.sequences[s].name, wave)).collect()
    }

    /// Name of the node that scores a wave.
    pub fn wave_name(&self, (sequence, wave): WaveId) -> String {
        score_name(&self.arm, &self.sequences[sequence].name, wave)
    }

    /// The items of a wave.
    pub fn wave_items(&self, (sequence, wave): WaveId) -> Vec<ItemRef<'a>> {
        self.sequences[sequence].items(wave).map(|(task, place)| (&self.tasks[task], place)).collect()
    }

    /// Key of the unit that scores one wave.
    pub fn wave_key(&self, id: WaveId) -> UnitKey {
        keys::wave(&self.key, &self.wave_items(id))
    }

    /// The node that scores one wave; with `looks`, unless a look before it decided the task.
    pub fn wave_node(&'a self, id: WaveId, mut after: Vec<String>, looks: bool) -> Node<'a> {
        let sequence = &self.sequences[id.0];
        let look =
            (looks && id.1 > 0 && sequence.rule.is_some()).then(|| look_name(&sequence.name, id.1 - 1));
        after.extend(look.clone());
        let unit = FnUnit::new(self.wave_key(id), move |context| {
            if let Some(look) = &look
                && context.output::<LookOutput>(look)?.is_decided()
            {
                return Ok(Output::of(&Wave::default())?.private());
            }
            let scored = self.score(context, id).map_err(|failure| match failure.class {
                FailureClass::InfraTransient => (self.diagnose)(failure),
                _ => failure,
            });
            Output::of(&scored?)
        })
        // Items that failed are work to do again when the run is resumed, unless nothing can score them.
        .verified_by(move |output: &Value| {
            let hopeless = |task: &str, item: &ItemRecord| {
                let task = self.tasks.iter().find(|t| t.name() == task);
                task.is_some_and(|task| task.problems().any(|(doc_id, _)| doc_id == item.doc_id))
            };
            Wave::deserialize(output).is_ok_and(|wave| {
                let mut items =
                    wave.items.iter().flat_map(|(task, items)| items.iter().map(move |item| (task, item)));
                items.all(|(task, item)| item.error.is_none() || hopeless(task, item))
            })
        });
        let node = node(self.wave_name(id), self.stage, after, unit);
        let tokens = |(task, place): (usize, usize)| self.tasks[task].items[place].num_computed_tokens();
        Node { cost: sequence.items(id.1).map(tokens).sum(), ..node }
    }

    /// Outcomes of items whose wave is not finished.
    fn journal_path(&self) -> PathBuf {
        let own = Owner::current().job.map_or_else(String::new, |job| format!("-{}", job.replace('+', "-")));
        self.out.join(format!("{JOURNAL}{own}.jsonl"))
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

    fn score(&self, context: &Context<'_>, id: WaveId) -> Result<Wave, Failure> {
        let scorer = (self.scorer)(context)?;
        let (sequence, asked) = (&self.sequences[id.0], self.wave_items(id));
        let windows: usize = asked.iter().map(|(task, place)| task.items[*place].num_windows()).sum();
        let total = sequence.visited(sequence.waves.len().saturating_sub(1));
        let label = format!("{} {} to item {} of {total}", self.arm, sequence.name, sequence.visited(id.1));
        let progress = Progress::new(&label, windows as u64, "requests");
        let journal = self.journal(&scorer.identity())?;
        let scored = eval::score_items_once(&*scorer, &asked, &journal, &|n| progress.inc(n as u64))?;
        let outcomes = asked.iter().zip(scored.items);
        let mut items: BTreeMap<String, Vec<ItemRecord>> = BTreeMap::new();
        for ((task, _), outcome) in outcomes {
            if let Some(error) = outcome.error.as_ref().filter(|error| error.transient) {
                let message = format!("{} arm, task {}: {}", self.arm, task.name(), error.message);
                return Err(Failure::new(FailureClass::InfraTransient, message));
            }
            items.entry(task.name().to_owned()).or_default().push(outcome);
        }
        Ok(Wave { identity: Some(scorer.identity()), confirmation: scored.confirmation, items })
    }

    /// The node that merges all waves and writes the evaluation's files.
    pub fn merge_node(&'a self, name: String, after: Vec<String>) -> Node<'a> {
        let key = keys::derived(&format!("eval/3 {}", self.arm), &self.decided_by);
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
        .verified_by(move |_: &Value| verify_path.is_file())
        .reading([self.wave_names(), self.look_names()].concat());
        node(name, self.stage, after, unit)
    }

    fn merge(&self, context: &Context<'_>) -> Result<EvalRecord, Failure> {
        let timer = Timer::start();
        let mut identity: Option<EngineIdentity> = None;
        let (mut tasks, mut confirmations) = (BTreeMap::new(), Vec::new());
        for (index, sequence) in self.sequences.iter().enumerate() {
            let last = last_wave(sequence, context)?;
            let mut items: BTreeMap<String, Vec<ItemRecord>> = BTreeMap::new();
            for wave in 0..(last + 1).min(sequence.waves.len()) {
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
                confirmations.extend(
                    wave.confirmation.map(|confirmation| WaveConfirmation { wave: name, confirmation }),
                );
                for (task, outcomes) in wave.items {
                    items.entry(task).or_default().extend(outcomes);
                }
            }
            for task in &sequence.tasks {
                let name = self.tasks[*task].name();
                let items = items.remove(name).unwrap_or_default();
                tasks.insert(name.to_owned(), self.task_record(sequence, *task, last, items));
            }
        }
        let identity = identity.ok_or_else(|| Failure::config("the suites hold no items to score"))?;
        Ok(EvalRecord {
            schema_version: SCHEMA_VERSION,
            arm: self.arm.clone(),
            identity,
            tasks,
            groups: eval::group_records(self.info.groups),
            confirmations,
            provenance: timer.stop(self.provenance.clone()),
        })
    }

    fn task_record(
        &self,
        sequence: &Sequence,
        index: usize,
        last: usize,
        items: Vec<ItemRecord>,
    ) -> TaskRecord {
        let task = &self.tasks[index];
        let visit = sequence.rule.is_some().then(|| Visit {
            order: items.iter().map(|item| item.doc_id).collect(),
            looks: sequence.looks_of(index, last),
            group: sequence.group.clone(),
            not_needed: task.items.len() - items.len(),
        });
        TaskRecord { visit, ..eval::task_record(task, items, TaskStatus::Success) }
    }
}

/// The last wave that counts: the one whose look decided the sequence, else the last of all.
fn last_wave(sequence: &Sequence, context: &Context<'_>) -> Result<usize, Failure> {
    let waves = sequence.waves.len();
    for wave in (0..waves).take_while(|_| sequence.rule.is_some()) {
        if context.output::<LookOutput>(&look_name(&sequence.name, wave))?.is_decided() {
            return Ok(wave);
        }
    }
    Ok(waves.saturating_sub(1))
}
