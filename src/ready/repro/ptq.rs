//! Family `ptq`: the candidate's scores under other few-shot draws; and, for each seed, part of the items again in
//! another order, in other batches, on another number of threads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::measure::{Runner, empty_run, finite};
use crate::base::digest::DigestBuilder;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions, kernel_path, max_len};
use crate::eval::local::LocalScorer;
use crate::eval::{self, EvalOptions, PreparedTask};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::eval::{ItemOrder, ItemRecord, TaskStatus};
use crate::record::repro::SeedRun;
use crate::record::{Failure, FailureClass};
use crate::suite::Suite;

/// Seed that chooses which items every run scores: seeds are compared on the same ones.
const ITEMS_SEED: u64 = 1234;
/// One of so many items is scored again.
const REPEATED_SHARE: usize = 4;
/// Items scored between two looks for a signal.
const CHUNK: usize = 64;

/// Scores a candidate.
pub struct PtqRunner {
    /// The candidate.
    pub checkpoint: PathBuf,
    /// Its tasks.
    pub suite: Suite,
    /// Worker threads.
    pub threads: Threads,
    /// What the engine's linear layers multiply.
    pub dtype: ComputeDtype,
}

impl Runner for PtqRunner {
    fn identity(&self) -> Result<String, Failure> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let tokenizer = Tokenizer::load(&self.checkpoint)?;
        let options = EvalOptions { limit: Some(1), ..EvalOptions::new(max_len(checkpoint.config())) };
        let mut digest = DigestBuilder::default();
        for task in &self.suite.tasks {
            digest.field(eval::prepare(task, &tokenizer, &options)?.digest.as_str().as_bytes());
        }
        let (threads, path) = (self.threads.count, kernel_path(self.dtype));
        Ok(format!("checkpoint {} tasks {} threads {threads} {path}", checkpoint.digest()?, digest.finish()))
    }

    fn run(&self, seed: u64, steps: u64) -> Result<SeedRun, Failure> {
        let mut run = empty_run(seed);
        let start = Instant::now();
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let tokenizer = Tokenizer::load(&self.checkpoint)?;
        let tasks = self.prepare(&checkpoint, &tokenizer, seed, steps)?;
        let engine = Arc::new(Engine::load(&checkpoint, &self.options(self.threads.clone()))?);
        let scorer = LocalScorer::new(engine);
        run.setup_s = start.elapsed().as_secs_f64();

        let started = Instant::now();
        let total: usize = tasks.iter().map(|t| t.items.len()).sum();
        let progress = Progress::new(&format!("ptq seed {seed}"), total as u64, "items");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut scored = Vec::new();
        for task in &tasks {
            let mut order: Vec<usize> = (0..task.items.len()).collect();
            order.shuffle(&mut rng);
            scored.push(score(&scorer, task, &order, &|n| progress.inc(n))?);
        }
        run.steps_s = started.elapsed().as_secs_f64();
        run.steps_done = steps.min(total as u64);
        if (total as u64) < steps {
            run.notes.push(format!("the suite holds {total} items; all were scored"));
            run.steps_done = steps;
        }

        let again = Instant::now();
        drop(scorer);
        self.repeat(&checkpoint, &tasks, &scored, &mut run)?;
        for (task, items) in tasks.iter().zip(scored) {
            judge(task, items, &mut run);
        }
        run.notes.push("the recipe's calibration has no seed: it is made from weights alone".to_owned());
        run.setup_s += again.elapsed().as_secs_f64();
        Ok(run)
    }
}

impl PtqRunner {
    fn options(&self, threads: Threads) -> EngineOptions {
        EngineOptions { dtype: self.dtype, ..EngineOptions::new(threads) }
    }

    /// The tasks' items: the same for every seed, behind examples that the seed draws.
    fn prepare(
        &self,
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        seed: u64,
        steps: u64,
    ) -> Result<Vec<PreparedTask>, Failure> {
        let tasks = self.suite.tasks.len().max(1) as u64;
        let options = EvalOptions {
            limit: Some(usize::try_from(steps.div_ceil(tasks)).unwrap_or(usize::MAX)),
            order: ItemOrder::Permuted { seed: ITEMS_SEED },
            fewshot_seed: seed,
            ..EvalOptions::new(max_len(checkpoint.config()))
        };
        let prepared = self.suite.tasks.iter().map(|task| eval::prepare(task, tokenizer, &options));
        Ok(prepared.collect::<Result<Vec<_>, _>>()?)
    }

    /// Part of the items again: backwards, in batches of another size, on another number of threads.
    fn repeat(
        &self,
        checkpoint: &Checkpoint,
        tasks: &[PreparedTask],
        scored: &[Vec<ItemRecord>],
        run: &mut SeedRun,
    ) -> Result<(), Failure> {
        let count = if self.threads.count > 1 { 1 } else { 2 };
        let threads = Threads { count, origin: "repetition".to_owned() };
        let mut options = self.options(threads);
        options.max_batched_tokens = options.max_batched_tokens / 3 + run.seed as usize % 64;
        let scorer = LocalScorer::new(Arc::new(Engine::load(checkpoint, &options)?));
        let (mut first, mut again) = (DigestBuilder::default(), DigestBuilder::default());
        for (task, items) in tasks.iter().zip(scored) {
            let mut order: Vec<usize> = (0..task.items.len()).step_by(REPEATED_SHARE).collect();
            order.reverse();
            let mut repeated = score(&scorer, task, &order, &|_| ())?;
            repeated.sort_by_key(|i| i.doc_id);
            for item in &repeated {
                fold(&mut again, item);
                if let Some(before) = items.iter().find(|i| i.doc_id == item.doc_id) {
                    fold(&mut first, before);
                }
            }
        }
        run.digest = Some(first.finish().to_string());
        run.repeat_digest = Some(again.finish().to_string());
        Ok(())
    }
}

/// Scores items in this order; a signal ends it between two chunks.
fn score(
    scorer: &LocalScorer,
    task: &PreparedTask,
    order: &[usize],
    progress: &dyn Fn(u64),
) -> Result<Vec<ItemRecord>, Failure> {
    let mut records = Vec::with_capacity(order.len());
    for chunk in order.chunks(CHUNK) {
        if let Some(signal) = interrupt::received() {
            return Err(Failure::interrupted(signal));
        }
        let wanted: Vec<(&PreparedTask, usize)> = chunk.iter().map(|index| (task, *index)).collect();
        records.extend(eval::score_items(scorer, &wanted, &|_| ()));
        progress(chunk.len() as u64);
    }
    if let Some(error) = records.iter().find_map(|i| i.error.as_ref()) {
        let message = format!("task {}: {}", task.name(), error.message);
        return Err(Failure::new(FailureClass::SampleAccountingFailed, message));
    }
    Ok(records)
}

fn fold(digest: &mut DigestBuilder, item: &ItemRecord) {
    digest.field(&item.doc_id.to_le_bytes());
    for loglikelihood in &item.loglikelihoods {
        digest.update(&loglikelihood.to_bits().to_le_bytes());
    }
}

/// The task's score: as a share of its scale, or as it is where it has none.
fn judge(task: &PreparedTask, items: Vec<ItemRecord>, run: &mut SeedRun) {
    let name = task.name().to_owned();
    for value in items.iter().flat_map(|i| &i.loglikelihoods) {
        finite(run, &format!("loglikelihood.{name}"), *value);
    }
    // Running: standard errors that need a bootstrap are not asked for.
    let record = eval::task_record(task, items, TaskStatus::Running);
    let value = record.metrics.get(&record.primary_metric.name).map_or(f64::NAN, |m| m.value);
    let (metric, value) = match record.primary_metric.scale {
        Some(scale) => (format!("score.{name}"), value / scale),
        None => (format!("unbounded.{name}"), value),
    };
    let value = finite(run, &metric, value);
    run.finals.insert(metric, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::source;
    use crate::suite;

    /// DESIGN section 7: the candidate under other permutation and few-shot seeds, batch sizes and threads; the same
    /// seed gives the same bits.
    #[test]
    fn scores_repeat_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let model = source::resolve("day0-tiny", dir.path()).unwrap();
        let threads = Threads { count: 2, origin: "test".into() };
        let suite = suite::load("tiny_pets,tiny_stories", None).unwrap();
        let runner = PtqRunner { checkpoint: model.dir, suite, threads, dtype: ComputeDtype::default() };
        let run = runner.run(5, 16).unwrap();
        assert_eq!(run.steps_done, 16);
        assert!(run.digest.is_some() && run.digest == run.repeat_digest);
        assert!(run.finals["score.tiny_pets"].is_some() && run.finals["unbounded.tiny_stories"].is_some());
        // Other visiting orders of the same items, which have no examples: the same scores.
        assert_eq!(runner.run(6, 16).unwrap().finals, run.finals);
    }
}
