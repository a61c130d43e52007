//! Generation on every device: a request goes to the one that has least to do, where it stays.

use std::collections::VecDeque;

use super::error::{EngineError, RequestError};
use super::lane::Lane;
use super::run::Engine;
use super::sampling::Sampling;
use super::score::TokenLogprobs;

/// How much is generated at once; results do not depend on it.
#[derive(Debug, Clone, Copy)]
pub struct GeneratorOptions {
    /// Sequences in one step of a device.
    pub max_num_seqs: usize,
    /// Memory of keys and values on each device; one sequence of full length always fits.
    pub kv_cache_bytes: usize,
    /// Tokens of the longest sequence, prompt and generated together; no more than the model has positions, which is what
    /// it is where absent.
    pub max_len: Option<usize>,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self { max_num_seqs: 64, kv_cache_bytes: 1 << 30, max_len: None }
    }
}

/// A prompt to continue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerateRequest {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Number of choices, each generated on its own.
    pub n: usize,
    /// Most tokens of a choice.
    pub max_tokens: usize,
    /// Tokens before which no stop id is generated.
    pub min_tokens: usize,
    /// Ids that end a choice; they are part of it.
    pub stop_ids: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most likely tokens reported with each.
    pub top_n: usize,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The name its request was given.
    pub request: u64,
    /// Which of the request's choices.
    pub choice: usize,
    /// The token; log-probabilities are the model's, before temperature and penalties.
    pub token: TokenLogprobs,
    /// Whether it is the choice's last.
    pub is_last: bool,
}

/// A request that is given up; the others go on.
#[derive(Debug, thiserror::Error)]
#[error("request {request} is given up")]
pub struct GenerationFailure {
    /// The name the request was given.
    pub request: u64,
    /// Why.
    pub source: EngineError,
}

/// How busy a generator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GeneratorLoad {
    /// Sequences in the cache.
    pub running: usize,
    /// Sequences that wait for room.
    pub waiting: usize,
    /// Bytes of keys and values in use.
    pub kv_cache_bytes: usize,
}

/// Generates for any number of requests at once.
pub struct Generator<'a> {
    engine: &'a Engine,
    /// Tokens of the longest sequence.
    max_len: usize,
    /// One for each device.
    lanes: Vec<Lane<'a>>,
    /// Tokens of the last passes that were not handed out.
    ready: Vec<Generated>,
    /// Requests that the last passes ended, of which the caller does not know.
    failures: VecDeque<GenerationFailure>,
}

impl Engine {
    /// An empty generator on this engine.
    pub fn generator(&self, options: GeneratorOptions) -> Generator<'_> {
        let max_len = options.max_len.map_or(self.max_len(), |most| most.min(self.max_len()));
        let lane = |replica| Lane::new(self, replica, options, max_len);
        Generator {
            engine: self,
            max_len,
            lanes: self.replicas.iter().map(lane).collect(),
            ready: Vec::new(),
            failures: VecDeque::new(),
        }
    }

    /// Continues `prompt` by the most likely token (the first of equals) up to `max_tokens` times, until one of
    /// `stop_ids`, which is then the last token returned, or until the model's positions are used up.
    pub fn generate_greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        stop_ids: &[u32],
        top_n: usize,
    ) -> Result<Vec<TokenLogprobs>, EngineError> {
        let request = GenerateRequest {
            prompt: prompt.to_vec(),
            n: 1,
            max_tokens,
            stop_ids: stop_ids.to_vec(),
            top_n,
            ..GenerateRequest::default()
        };
        let mut generator = self.generator(GeneratorOptions::default());
        generator.add(0, request)?;
        let mut out = Vec::new();
        while !generator.is_idle() {
            out.extend(generator.step().map_err(|f| f.source)?.into_iter().map(|g| g.token));
        }
        Ok(out)
    }
}

impl Generator<'_> {
    /// Queues a request under a name of the caller's choice. A request for no tokens is done at once.
    pub fn add(&mut self, id: u64, request: GenerateRequest) -> Result<(), EngineError> {
        let invalid = |source| EngineError::Request { index: 0, source };
        if request.prompt.is_empty() {
            return Err(invalid(RequestError::Empty));
        }
        let inputs = request.prompt.len();
        self.engine.check_tokens(&request.prompt, inputs).map_err(invalid)?;
        if inputs > self.max_len {
            return Err(invalid(RequestError::TooLong { inputs, max_len: self.max_len }));
        }
        if request.max_tokens > 0 && request.n > 0 {
            let least_busy = self.lanes.iter_mut().min_by_key(|lane| lane.burden());
            if let Some(lane) = least_busy {
                lane.add(id, request);
            }
        }
        Ok(())
    }

    /// Drops a choice that nobody wants any more, or all of them.
    pub fn cancel(&mut self, id: u64, choice: Option<usize>) {
        for lane in &mut self.lanes {
            lane.cancel(id, choice);
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle) && self.ready.is_empty() && self.failures.is_empty()
    }

    /// How busy it is, all devices together.
    pub fn load(&self) -> GeneratorLoad {
        self.lanes.iter().map(Lane::load).fold(GeneratorLoad::default(), |all, of| GeneratorLoad {
            running: all.running + of.running,
            waiting: all.waiting + of.waiting,
            kv_cache_bytes: all.kv_cache_bytes + of.kv_cache_bytes,
        })
    }

    /// The tokens of one forward pass on each device that has something to do. Where it gave a request none, that request
    /// has left and is reported, one a call, before the tokens of the others are.
    pub fn step(&mut self) -> Result<Vec<Generated>, GenerationFailure> {
        if self.ready.is_empty() && self.failures.is_empty() {
            self.compute();
        }
        match self.failures.pop_front() {
            Some(failure) => Err(failure),
            None => Ok(std::mem::take(&mut self.ready)),
        }
    }

    /// A pass on each device, at the same time.
    fn compute(&mut self) {
        let mut busy: Vec<&mut Lane<'_>> = self.lanes.iter_mut().filter(|lane| !lane.is_idle()).collect();
        if let [only] = busy.as_mut_slice() {
            only.compute();
        } else {
            std::thread::scope(|scope| {
                for lane in &mut busy {
                    scope.spawn(|| lane.compute());
                }
            });
        }
        for lane in busy {
            let (failures, ready) = lane.take();
            self.failures.extend(failures);
            self.ready.extend(ready);
        }
    }
}
