//! Family `ptq`: the candidate's scores under other few-shot draws; and, for each seed, part of the items again in
//! another order, in other batches, on another number of threads.
//!
//! A seed does not vary the calibration, because calibration draws nothing: weights need none, and the input scales of
//! recipes that have static ones come from equal stretches of the whole text (`quantize::calibration`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::eval::{self, EvalOptions, OnDone, PreparedTask, Scorer};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::Failure;
use crate::record::eval::{ItemError, ItemOrder, ItemRecord, TaskStatus};
use crate::record::repro::SeedRun;
use crate::record::score::{EngineIdentity, ScoreRequest, ScoreResult};
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
        let scorer = load(&checkpoint, &self.options(self.threads.clone()))?;
        run.setup_s = start.elapsed().as_secs_f64();

        let total: usize = tasks.iter().map(|t| t.items.len()).sum();
        let progress = Progress::new(&format!("ptq seed {seed}"), total as u64, "items");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let shuffled = |task: &PreparedTask| {
            let mut order: Vec<usize> = (0..task.items.len()).collect();
            order.shuffle(&mut rng);
            order
        };
        let orders: Vec<Vec<usize>> = tasks.iter().map(shuffled).collect();
        let scored = answers(&scorer, &tasks, &orders, &mut run, &|n| progress.inc(n))?;
        drop(scorer);
        run.steps_done = total as u64;
        run.steps_available = Some(self.items());
        run.prompts_digest = Some(prompts(&tasks));
        self.repeat(&checkpoint, &tasks, &scored, &mut run)?;
        for (task, items) in tasks.iter().zip(scored) {
            judge(task, items, &mut run);
        }
        let varied =
            "few-shot examples and the order of visit; calibration draws nothing that a seed could vary";
        run.notes.push(format!("the seed varies {varied}"));
        Ok(run)
    }
}

impl PtqRunner {
    fn options(&self, threads: Threads) -> EngineOptions {
        EngineOptions { dtype: self.dtype, ..EngineOptions::new(threads) }
    }

    /// Items of all tasks together.
    fn items(&self) -> u64 {
        self.suite.tasks.iter().map(|task| task.docs.len() as u64).sum()
    }

    /// The tasks' items: the same for every seed, behind examples that the seed draws. Tasks for which no step is left
    /// are left out.
    fn prepare(
        &self,
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        seed: u64,
        steps: u64,
    ) -> Result<Vec<PreparedTask>, Failure> {
        let docs: Vec<usize> = self.suite.tasks.iter().map(|task| task.docs.len()).collect();
        let options = |limit| EvalOptions {
            limit: Some(limit),
            order: ItemOrder::Permuted { seed: ITEMS_SEED },
            fewshot_seed: seed,
            ..EvalOptions::new(max_len(checkpoint.config()))
        };
        let shares = self.suite.tasks.iter().zip(shares(steps, &docs)).filter(|(_, share)| *share > 0);
        let prepared = shares.map(|(task, share)| eval::prepare(task, tokenizer, &options(share)));
        Ok(prepared.collect::<Result<Vec<_>, _>>()?)
    }

    /// Part of the items again: backwards, in batches of another size, on another number of threads. Loading is set-up;
    /// the items are a share of the steps, and grow with them.
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
        let start = Instant::now();
        let scorer = load(checkpoint, &options)?;
        run.setup_s += start.elapsed().as_secs_f64();
        let backwards = |task: &PreparedTask| {
            let mut order: Vec<usize> = (0..task.items.len()).step_by(REPEATED_SHARE).collect();
            order.reverse();
            order
        };
        let orders: Vec<Vec<usize>> = tasks.iter().map(backwards).collect();
        let repetition = answers(&scorer, tasks, &orders, run, &|_| ())?;
        let (mut first, mut again) = (DigestBuilder::default(), DigestBuilder::default());
        for (mut repeated, items) in repetition.into_iter().zip(scored) {
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

fn load(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<LocalScorer, Failure> {
    Ok(LocalScorer::new(Arc::new(Engine::load(checkpoint, options)?)))
}

/// Items of each task: the same number, or all that it has; `steps` together, or all that there are.
fn shares(steps: u64, docs: &[usize]) -> Vec<usize> {
    let mut left = usize::try_from(steps).unwrap_or(usize::MAX);
    let mut shares = vec![0; docs.len()];
    let mut smallest_first: Vec<usize> = (0..docs.len()).collect();
    smallest_first.sort_by_key(|task| docs[*task]);
    for (before, task) in smallest_first.into_iter().enumerate() {
        shares[task] = docs[task].min(left.div_ceil(docs.len() - before));
        left -= shares[task];
    }
    shares
}

/// Digest of all prompts.
fn prompts(tasks: &[PreparedTask]) -> String {
    let mut digest = DigestBuilder::default();
    for item in tasks.iter().flat_map(|task| &task.items) {
        digest.field(item.prompt_digest.as_str().as_bytes());
    }
    digest.finish().to_string()
}

/// An engine, and how many of its log-probabilities were not finite: an item's error has words for that, and no number.
struct Counting<'a> {
    inner: &'a dyn Scorer,
    non_finite: AtomicU64,
}

impl Scorer for Counting<'_> {
    fn identity(&self) -> EngineIdentity {
        self.inner.identity()
    }

    fn max_len(&self) -> usize {
        self.inner.max_len()
    }

    fn score(&self, requests: &[ScoreRequest], progress: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
        let results = self.inner.score(requests, progress);
        let values = results.iter().flatten().flat_map(|result| &result.token_logprobs);
        let count = values.filter(|value| !value.is_finite()).count();
        self.non_finite.fetch_add(count as u64, Ordering::Relaxed);
        results
    }
}

/// Scores the items of every task in these orders, into the run's time of steps. Values that are not finite are counted
/// in the run; another reason why an item has no score is its error.
fn answers(
    scorer: &dyn Scorer,
    tasks: &[PreparedTask],
    orders: &[Vec<usize>],
    run: &mut SeedRun,
    progress: &dyn Fn(u64),
) -> Result<Vec<Vec<ItemRecord>>, Failure> {
    let start = Instant::now();
    let mut answers = Vec::new();
    for (task, order) in tasks.iter().zip(orders) {
        let counting = Counting { inner: scorer, non_finite: AtomicU64::new(0) };
        let items = score(&counting, task, order, progress)?;
        let non_finite = counting.non_finite.into_inner();
        let error = items.iter().find_map(|i| Some((i.doc_id, i.error.as_ref()?)));
        if non_finite > 0 {
            *run.non_finite.entry(metric(task)).or_default() += non_finite;
        } else if let (Some((doc_id, error)), false) = (error, run.broke_off()) {
            run.error = format!("task {}, item {doc_id}: {}", task.name(), error.message);
        }
        answers.push(items);
    }
    run.steps_s += start.elapsed().as_secs_f64();
    Ok(answers)
}

/// The name under which values of a task that are not finite are counted.
fn metric(task: &PreparedTask) -> String {
    format!("loglikelihood.{}", task.name())
}

/// Scores items in this order; a signal ends it between two chunks.
fn score(
    scorer: &dyn Scorer,
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
    // The last chunk may have been left unfinished.
    interrupt::received().map_or(Ok(records), |signal| Err(Failure::interrupted(signal)))
}

fn fold(digest: &mut DigestBuilder, item: &ItemRecord) {
    digest.field(&item.doc_id.to_le_bytes());
    for loglikelihood in &item.loglikelihoods {
        digest.update(&loglikelihood.to_bits().to_le_bytes());
    }
}

/// The task's score: as a share of its scale, or as it is where it has none. Of a part of the items there is none.
fn judge(task: &PreparedTask, items: Vec<ItemRecord>, run: &mut SeedRun) {
    let primary = eval::primary_metric(&task.task);
    let kind = if primary.scale.is_some() { "score" } else { "unbounded" };
    let name = format!("{kind}.{}", task.name());
    if items.iter().any(|i| i.error.is_some()) {
        if run.non_finite.contains_key(&metric(task)) {
            run.finals.insert(name, None);
        }
        return;
    }
    // Running: standard errors that need a bootstrap are not asked for.
    let record = eval::task_record(task, items, TaskStatus::Running);
    let value = record.metrics.get(&primary.name).map_or(f64::NAN, |m| m.value);
    let value = finite(run, &name, value / primary.scale.unwrap_or(1.0));
    run.finals.insert(name, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::source;
    use crate::suite;

    fn runner(dir: &std::path::Path) -> PtqRunner {
        let model = source::resolve("day0-tiny", dir).unwrap();
        let threads = Threads { count: 2, origin: "test".into() };
        let suite = suite::load("tiny_pets,tiny_stories", None).unwrap();
        PtqRunner { checkpoint: model.dir, suite, threads, dtype: ComputeDtype::default() }
    }

    /// DESIGN section 7: the candidate under other permutation and few-shot seeds, batch sizes and threads; the same
    /// seed gives the same bits.
    #[test]
    fn scores_repeat_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let run = runner.run(5, 16).unwrap();
        assert_eq!((run.steps_done, run.error.as_str()), (16, ""));
        assert!(run.digest.is_some() && run.digest == run.repeat_digest);
        assert!(run.finals["score.tiny_pets"].is_some() && run.finals["unbounded.tiny_stories"].is_some());
        assert!(run.setup_s > 0.0 && run.steps_s > 0.0);
        assert_eq!(run.steps_available, Some(runner.items()));
        // Other visiting orders of the same items, which have no examples: the same questions, and the same scores.
        let other = runner.run(6, 16).unwrap();
        assert_eq!((other.finals, other.prompts_digest), (run.finals, run.prompts_digest));
    }

    /// Document 000, "Estimate Runtime from Measured Results": steps are items, as many as are asked for or there are.
    #[test]
    fn steps_are_shared_by_the_tasks_as_far_as_their_items_go() {
        assert_eq!(shares(16, &[320, 1000]), [8, 8]);
        assert_eq!(shares(17, &[1000, 320]), [8, 9]);
        assert_eq!(shares(1000, &[1000, 320]), [680, 320]);
        assert_eq!(shares(5000, &[1000, 320]), [1000, 320]);
        assert_eq!(shares(1, &[5, 5, 5]), [1, 0, 0]);
        assert!(shares(7, &[]).is_empty());
    }

    /// An engine whose every third answer is not a number, or that takes no request.
    struct Broken {
        takes_requests: bool,
    }

    impl Scorer for Broken {
        fn identity(&self) -> EngineIdentity {
            unreachable!("nobody asks")
        }

        fn max_len(&self) -> usize {
            512
        }

        fn score(&self, requests: &[ScoreRequest], _: OnDone<'_>) -> Vec<Result<ScoreResult, ItemError>> {
            let answer = |(index, request): (usize, &ScoreRequest)| {
                let scored = request.tokens.len() - request.context_len;
                let value = if index % 3 == 0 { f32::NAN } else { -1.0 };
                let result =
                    ScoreResult { token_logprobs: vec![value; scored], token_is_greedy: vec![false; scored] };
                let refusal = || ItemError { status: None, transient: false, message: "too long".into() };
                self.takes_requests.then_some(result).ok_or_else(refusal)
            };
            requests.iter().enumerate().map(answer).collect()
        }
    }

    /// Document 000, "Numerical stability": what is not finite is counted and ends no measurement.
    #[test]
    fn values_that_are_not_finite_are_counted_and_other_errors_are_the_runs() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let checkpoint = Checkpoint::open(&runner.checkpoint).unwrap();
        let tokenizer = Tokenizer::load(&runner.checkpoint).unwrap();
        let tasks = runner.prepare(&checkpoint, &tokenizer, 0, 8).unwrap();
        let orders: Vec<Vec<usize>> = tasks.iter().map(|t| (0..t.items.len()).collect()).collect();
        let ran = |takes_requests| {
            let mut run = empty_run(0);
            let scored = answers(&Broken { takes_requests }, &tasks, &orders, &mut run, &|_| ()).unwrap();
            for (task, items) in tasks.iter().zip(scored) {
                judge(task, items, &mut run);
            }
            run
        };
        let not_finite = ran(true);
        assert_eq!(not_finite.error, "");
        assert!(not_finite.non_finite["loglikelihood.tiny_pets"] > 0);
        assert_eq!(not_finite.finals["score.tiny_pets"], None, "a score of some items is none");
        let refused = ran(false);
        assert!(
            refused.error.contains("tiny_pets") && refused.error.contains("too long"),
            "{}",
            refused.error
        );
        assert!(refused.non_finite.is_empty() && refused.finals.is_empty());
    }
}
