//! The engine's thread. Between two calls of the engine requests come and go: prompts that wait to be scored are
//! scored together, so that they share what they have in common; whatever is being generated advances by one step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::active::{Active, ScoreItem};
use super::backend::{Backend, Generation};
use super::job::{Event, Failed, Job};
use super::metrics::Metrics;
use super::text::TextCodec;
use crate::engine::{Generated, GeneratorOptions, PromptQuery, common_prefix};

/// Forward passes of one call at most, where a single prompt takes no more: requests come, go and are given up between
/// calls.
const SCORED_PASSES: usize = 2;
/// Prompt tokens computed in one call while others wait for their next token.
const SCORED_ROWS_BESIDE_GENERATION: usize = 1024;
/// Prompt tokens of one call for each row, those included that prompts share: their answers take time too.
const SCORED_TOKENS_A_ROW: usize = 4;
/// Clients that were answered together ask again one after the other: the engine waits for them, so as not to take the
/// first alone, for at most this part of the time for which it worked.
const GATHERED: u32 = 10;
/// None of them has come for this part of it: no more will.
const PAUSE: u32 = 20;
/// How often they are looked for.
const GLANCE: Duration = Duration::from_micros(200);

/// What the thread shares with the server.
#[derive(Debug, Default)]
pub(super) struct Flags {
    /// The engine panicked.
    pub broken: AtomicBool,
    /// No new requests.
    pub draining: AtomicBool,
    /// End at once.
    pub abandon: AtomicBool,
}

/// Starts the thread; it ends when every sender is gone and all work is done, or soon after `abandon` is set.
pub(super) fn spawn(
    backend: Arc<dyn Backend>,
    text: Arc<dyn TextCodec>,
    options: GeneratorOptions,
    jobs: mpsc::Receiver<Job>,
    metrics: Arc<Metrics>,
    flags: Arc<Flags>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("day0-engine".to_owned()).spawn(move || {
        let backend = &*backend;
        let mut worker = Worker {
            backend,
            text: &*text,
            metrics: &metrics,
            options,
            generation: backend.generation(options),
            active: BTreeMap::new(),
            names: HashMap::new(),
            next_name: 0,
            last: Last::default(),
        };
        worker.run(jobs, &flags);
    })
}

struct Worker<'a> {
    backend: &'a dyn Backend,
    text: &'a dyn TextCodec,
    metrics: &'a Metrics,
    options: GeneratorOptions,
    generation: Box<dyn Generation + 'a>,
    /// Requests in order of arrival.
    active: BTreeMap<u64, Active>,
    /// What the generation calls a prompt → request and prompt.
    names: HashMap<u64, (u64, usize)>,
    next_name: u64,
    last: Last,
}

/// What the last turn did.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    /// How long it took.
    took: Duration,
    /// Requests that it ended.
    ended: usize,
}

impl Worker<'_> {
    fn run(&mut self, mut jobs: mpsc::Receiver<Job>, flags: &Flags) {
        loop {
            if self.active.is_empty() {
                let Some(job) = jobs.blocking_recv() else { return };
                self.accept(job);
                self.gather(&mut jobs, flags);
            }
            while let Ok(job) = jobs.try_recv() {
                self.accept(job);
            }
            if flags.abandon.load(Ordering::Relaxed) {
                return;
            }
            self.drop_unwanted();
            let (begun, before) = (Instant::now(), self.active.len());
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                flags.broken.store(true, Ordering::Relaxed);
                self.fail_all("the engine panicked; see the log");
            }
            self.active.retain(|_, active| !active.is_done());
            self.last = Last { took: begun.elapsed(), ended: before - self.active.len() };
            self.measure(jobs.len());
        }
    }

    /// Waits for as many requests as the last turn ended, if they are on their way.
    fn gather(&mut self, jobs: &mut mpsc::Receiver<Job>, flags: &Flags) {
        let begun = Instant::now();
        let mut came = begun;
        while self.active.len() < self.last.ended
            && begun.elapsed() < self.last.took / GATHERED
            && came.elapsed() < self.last.took / PAUSE
            && !flags.abandon.load(Ordering::Relaxed)
        {
            if let Ok(job) = jobs.try_recv() {
                self.accept(job);
                came = Instant::now();
            } else {
                std::thread::sleep(GLANCE);
            }
        }
    }

    fn accept(&mut self, job: Job) {
        self.metrics.prompt_tokens.add(job.request.prompts.iter().map(|p| p.ids.len()).sum());
        self.next_name += 1;
        self.active.insert(self.next_name, Active::new(job));
    }

    /// Requests whose client is gone or whose time is over.
    fn drop_unwanted(&mut self) {
        let now = Instant::now();
        let gone: Vec<u64> =
            self.active.iter().filter(|(_, a)| a.is_unwanted(now)).map(|(k, _)| *k).collect();
        for key in gone {
            if self.active.get(&key).is_some_and(|a| a.job.events.is_closed()) {
                self.metrics.requests_cancelled.add(1);
            }
            self.give_up(key, Failed::TimedOut);
        }
    }

    /// A request gets no (more) answer.
    fn give_up(&mut self, key: u64, failed: Failed) {
        let Some(active) = self.active.remove(&key) else { return };
        // Nobody may be there to read it.
        let _ = active.job.events.send(Event::Failed(failed));
        self.forget(key);
    }

    /// Ends what is being generated for a request.
    fn forget(&mut self, key: u64) {
        let generation = &mut self.generation;
        self.names.retain(|name, (of, _)| {
            if *of == key {
                generation.cancel(*name, None);
            }
            *of != key
        });
    }

    /// The engine's state is unknown: nobody gets an answer.
    fn fail_all(&mut self, message: &str) {
        for active in std::mem::take(&mut self.active).into_values() {
            let _ = active.job.events.send(Event::Failed(Failed::Engine(message.to_owned())));
        }
        self.names.clear();
        self.generation = self.backend.generation(self.options);
    }

    fn turn(&mut self) {
        self.score();
        self.start_generating();
        while !self.names.is_empty() {
            match self.generation.step() {
                Ok(generated) => return self.deliver_all(generated),
                Err(failed) => {
                    if let Some((key, _)) = self.names.get(&failed.id).copied() {
                        self.give_up(key, Failed::Engine(failed.message));
                    }
                }
            }
        }
    }

    /// Scores waiting prompts, those of the oldest requests first.
    fn score(&mut self) {
        let (keys, items) = self.next_to_score();
        if items.is_empty() {
            return;
        }
        self.metrics.batch_size.observe(items.len() as f64);
        let queries: Vec<PromptQuery> = items.iter().map(ScoreItem::query).collect();
        let (text, metrics) = (self.text, self.metrics);
        let scored = self.backend.score_prompts(&queries, &mut |at, entries| {
            items[at].answer(entries, text, metrics);
        });
        match scored {
            Ok(stats) => {
                metrics.prefix_cache_queries.add(stats.inputs);
                metrics.prefix_cache_hits.add(stats.inputs.saturating_sub(stats.computed));
            }
            Err(error) => {
                for key in keys {
                    self.give_up(key, Failed::Engine(error.to_string()));
                }
            }
        }
    }

    /// Prompts for one call, and the requests they are of.
    fn next_to_score(&mut self) -> (BTreeSet<u64>, Vec<ScoreItem>) {
        let all = SCORED_PASSES * self.backend.pass_rows();
        let most = if self.names.is_empty() { all } else { SCORED_ROWS_BESIDE_GENERATION };
        let (mut keys, mut items) = (BTreeSet::new(), Vec::<ScoreItem>::new());
        let (mut rows, mut tokens) = (0, 0);
        for (key, active) in &mut self.active {
            while let Some(ids) = active.next_unscored() {
                let len = ids.len();
                let new = len - items.last().map_or(0, |before| common_prefix(before.ids(), ids));
                if !items.is_empty() && (rows + new > most || tokens + len > SCORED_TOKENS_A_ROW * all) {
                    break;
                }
                rows += new;
                tokens += len;
                items.extend(active.take_unscored(self.metrics));
                keys.insert(*key);
            }
        }
        (keys, items)
    }

    /// Lets prompts that are scored, or need not be, join the generation.
    fn start_generating(&mut self) {
        let mut refused = Vec::new();
        for (key, active) in &mut self.active {
            while let Some((prompt, request)) = active.next_to_generate(self.metrics) {
                self.next_name += 1;
                self.names.insert(self.next_name, (*key, prompt));
                if let Err(error) = self.generation.add(self.next_name, request) {
                    refused.push((*key, error));
                    break;
                }
            }
        }
        for (key, error) in refused {
            self.give_up(key, Failed::Engine(error.to_string()));
        }
    }

    fn deliver_all(&mut self, generated: Vec<Generated>) {
        if !generated.is_empty() {
            self.metrics.batch_size.observe(generated.len() as f64);
        }
        for token in generated {
            self.deliver(token);
        }
    }

    fn deliver(&mut self, generated: Generated) {
        self.metrics.generation_tokens.add(1);
        let name = generated.request;
        let Some((key, prompt)) = self.names.get(&name).copied() else { return };
        let Some(active) = self.active.get_mut(&key) else { return };
        let local = generated.choice;
        let ended = active.deliver(prompt, generated, self.text, self.metrics);
        if ended.by_text {
            self.generation.cancel(name, Some(local));
        }
        if ended.prompt {
            self.names.remove(&name);
        }
    }

    fn measure(&self, queued: usize) {
        let load = self.generation.load();
        let begun = self.active.values().filter(|a| a.has_begun()).count();
        self.metrics.requests_running.set(begun);
        self.metrics.requests_waiting.set(self.active.len() - begun + queued);
        self.metrics.sequences_running.set(load.running);
        self.metrics.sequences_waiting.set(load.waiting);
        self.metrics.kv_cache_bytes.set(load.kv_cache_bytes);
    }
}
