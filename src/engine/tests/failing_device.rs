//! A device that fails: scoring says so, requests that were being generated are given up, and what comes after starts anew.
//! One whose memory is full: both go on with less of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::{Model, checkpoint, options, two_hundred};
use crate::device::cuda::CudaError;
use crate::engine::{Engine, EngineError, GenerateRequest, GeneratorOptions, PromptQuery, Sampling};
use crate::model::{Backend, HeadAnswer, ModelConfig, RaggedBatch, Session, Slots};
use crate::ops::log_softmax::HeadQuery;
use crate::record::score::ScoreRequest;

/// Why a pass over a batch fails, if it does.
pub(super) type Failure = Arc<dyn Fn(&RaggedBatch) -> Option<CudaError> + Send + Sync>;

/// A backend whose passes fail where it is told so.
pub(super) struct Failing {
    pub inner: Box<dyn Backend>,
    pub failure: Failure,
}

/// Passes fail as long as `fails` is set.
pub(super) fn while_set(fails: &Arc<AtomicBool>) -> Failure {
    let fails = Arc::clone(fails);
    let error = CudaError::Call { call: "cuLaunchKernel", code: "CUDA_ERROR_LAUNCH_FAILED".to_owned() };
    Arc::new(move |_| fails.load(Ordering::Relaxed).then(|| error.clone()))
}

struct FailingSession {
    inner: Box<dyn Session>,
    failure: Failure,
}

impl Backend for Failing {
    fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    fn session(&self) -> Box<dyn Session> {
        Box::new(FailingSession { inner: self.inner.session(), failure: Arc::clone(&self.failure) })
    }
}

impl Slots for FailingSession {
    fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes()
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.inner.copy(from, to, len);
    }
}

impl Session for FailingSession {
    fn forward(&mut self, batch: &RaggedBatch) -> Result<(), CudaError> {
        if let Some(error) = (self.failure)(batch) {
            return Err(error);
        }
        self.inner.forward(batch)
    }

    fn log_softmax(&mut self, rows: Range<usize>, query: &HeadQuery<'_>) -> Result<HeadAnswer, CudaError> {
        self.inner.log_softmax(rows, query)
    }

    fn rest(&mut self) {
        self.inner.rest();
    }

    fn clear(&mut self) {
        self.inner.clear();
    }
}

/// The engine with passes that fail.
fn failing(mut engine: Engine, failure: Failure) -> Engine {
    let replica = engine.replicas.remove(0);
    let backend = Box::new(Failing { inner: replica.backend, failure });
    engine.replicas.push(crate::engine::run::Replica { backend, ..replica });
    *engine.replicas[0].prefixes.lock().unwrap() = Engine::new_prefix_cache(&engine.replicas[0]);
    engine
}

/// A device with memory for so many rows.
fn with_memory_for(rows: usize) -> Failure {
    Arc::new(move |batch| {
        let full = CudaError::OutOfMemory { ordinal: 0, call: "cuMemAlloc", bytes: 10, free: 5, total: 100 };
        (batch.tokens.len() > rows).then_some(full)
    })
}

/// Smaller batches are tried, in this call and in those after it; every token is answered once, with the same bits.
#[test]
fn batches_without_memory_are_tried_smaller() {
    let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: false }, 1);
    let load = || Engine::load(&checkpoint, &options(2, 4096)).unwrap();
    let requests = two_hundred();
    let whole = load();
    let expected = whole.score(&requests, &|_| ()).unwrap();
    let engine = failing(load(), with_memory_for(300));
    assert_eq!(engine.score(&requests, &|_| ()).unwrap(), expected);
    let rows = engine.replicas[0].limits.rows();
    assert!((256..=300).contains(&rows), "{rows}");
    let prompts: Vec<PromptQuery> = requests
        .iter()
        .map(|r| PromptQuery { tokens: r.tokens.clone(), first: 1, top_n: 1, with_ranks: false })
        .collect();
    let answers = |engine: &Engine| {
        let mut answers = vec![Vec::new(); prompts.len()];
        engine.score_prompts(&prompts, &mut |prompt, entries| answers[prompt].push(entries)).unwrap();
        answers
    };
    let found = answers(&engine);
    assert!(found.iter().all(|answers| answers.len() == 1));
    assert_eq!(found, answers(&whole));
    let engine = failing(load(), with_memory_for(300));
    assert_eq!(answers(&engine), found, "in the first call too");

    // The fewest rows are tried, and no fewer.
    let engine = failing(load(), with_memory_for(100));
    let error = engine.score(&requests, &|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::BatchMemory { rows: 101..=256, .. }), "{error}");
    assert!(error.to_string().ends_with("; use another device, or --device cpu"), "{error}");
    assert_eq!(failing(load(), with_memory_for(256)).score(&requests, &|_| ()).unwrap(), expected);
}

/// A device with memory for so many slots of keys and values.
fn with_memory_for_slots(slots: usize) -> Failure {
    Arc::new(move |batch| {
        let full = CudaError::OutOfMemory { ordinal: 0, call: "cuMemAlloc", bytes: 10, free: 5, total: 100 };
        let stored = batch.stored.iter().map(|stored| stored.first_slot + stored.rows.len());
        (stored.max() > Some(slots)).then_some(full)
    })
}

/// What is held of other prompts goes before batches get smaller, in the middle of a call and after others; a prompt that
/// finds no memory even alone is an error.
#[test]
fn what_is_held_of_other_prompts_goes_first() {
    let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: false }, 1);
    let load = || Engine::load(&checkpoint, &options(2, 8)).unwrap();
    // Each of three pages, in eleven parts, with nothing in common.
    let prompt = |first: u32| ScoreRequest {
        tokens: (0..88).map(|i| (first + i * (first + 3)) % 40).collect(),
        context_len: 70,
    };
    let requests: Vec<ScoreRequest> = (0..20).map(prompt).collect();
    let whole = load();
    let expected = whole.score(&requests, &|_| ()).unwrap();
    let held = |engine: &Engine| engine.replicas[0].prefixes.lock().unwrap().held_bytes();
    let slot_bytes = whole.replicas[0].backend.session().slot_bytes();
    let everything = held(&whole).unwrap();
    assert!(everything > 300 * slot_bytes, "else nothing has to go: {everything}");

    let most = 128;
    let engine = failing(load(), with_memory_for_slots(most));
    assert_eq!(engine.score(&requests, &|_| ()).unwrap(), expected);
    let limits = &engine.replicas[0].limits;
    let kept = limits.cache_bytes();
    assert!((96 * slot_bytes..=most * slot_bytes).contains(&kept), "{kept}");
    assert!(held(&engine).unwrap() <= kept);
    assert_eq!(limits.rows(), 8);
    // What a call left is in the next one's way only until memory runs out.
    let engine = failing(load(), with_memory_for_slots(most));
    for (request, expected) in requests.iter().zip(&expected) {
        assert_eq!(engine.score(std::slice::from_ref(request), &|_| ()).unwrap()[0], *expected);
    }
    assert_eq!(engine.replicas[0].limits.rows(), 8);

    let engine = failing(load(), with_memory_for_slots(40));
    let error = engine.score(&requests, &|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::BatchMemory { .. }), "{error}");
    assert_eq!(held(&engine), None, "nobody knows what the pass left there");
}

/// Tokens of each request, and the requests that were given up.
fn generate(engine: &Engine, requests: &[GenerateRequest]) -> (Vec<Vec<(usize, u32)>>, Vec<u64>) {
    let mut generator = engine.generator(GeneratorOptions::default());
    for (id, request) in (0..).zip(requests) {
        generator.add(id, request.clone()).unwrap();
    }
    let (mut tokens, mut failed) = (vec![Vec::new(); requests.len()], Vec::new());
    while !generator.is_idle() {
        match generator.step() {
            Ok(generated) => {
                for token in generated {
                    tokens[token.request as usize].push((token.choice, token.token.token));
                }
            }
            Err(failure) => {
                let full = matches!(failure.source, EngineError::Device(CudaError::OutOfMemory { .. }));
                assert!(full, "{}", failure.source);
                failed.push(failure.request);
            }
        }
    }
    assert_eq!(generator.load().kv_cache_bytes, 0);
    for tokens in &mut tokens {
        tokens.sort_by_key(|(choice, _)| *choice);
    }
    (tokens, failed)
}

/// What finds no memory starts over, less of it at a time, and has the same tokens; what does not fit alone is given up.
#[test]
fn sequences_without_memory_start_over() {
    let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: false }, 1);
    let load = |rows: usize| Engine::load(&checkpoint, &options(2, rows)).unwrap();
    let request = |token: u32, len: usize, n: usize| GenerateRequest {
        prompt: (0..len as u32).map(|i| (token + i * 7) % 40).collect(),
        n,
        max_tokens: 20,
        sampling: Sampling { temperature: 0.8, seed: 3, ..Sampling::default() },
        ..GenerateRequest::default()
    };
    let requests: Vec<_> = (0..8).map(|i| request(i, 30 + 5 * i as usize, 1 + i as usize % 3)).collect();
    let (expected, failed) = generate(&load(4096), &requests);
    assert!(failed.is_empty());
    // Pages that are too many, sequences that are, and rows that are.
    let engine = failing(load(64), with_memory_for_slots(300));
    assert_eq!(generate(&engine, &requests), (expected.clone(), Vec::new()));
    let engine = failing(load(64), with_memory_for_slots(100));
    assert_eq!(generate(&engine, &requests), (expected.clone(), Vec::new()));
    assert_eq!(engine.replicas[0].limits.rows(), 64);
    let engine = failing(load(4096), with_memory_for(260));
    assert_eq!(generate(&engine, &requests), (expected.clone(), Vec::new()));
    assert!((256..=260).contains(&engine.replicas[0].limits.rows()));
    // The last three are longer than 70 tokens in the end.
    let engine = failing(load(64), with_memory_for_slots(70));
    let (found, failed) = generate(&engine, &requests);
    assert_eq!(failed, [5, 6, 7]);
    assert_eq!(found[..5], expected[..5]);
    // What was computed for scores goes too.
    engine.score(&two_hundred()[..4], &|_| ()).unwrap();
    assert!(engine.replicas[0].prefixes.lock().unwrap().held_bytes().is_some());
    assert_eq!(generate(&engine, &requests).1, [5, 6, 7]);
    assert_eq!(engine.replicas[0].prefixes.lock().unwrap().held_bytes(), None);
}

#[test]
fn what_runs_is_given_up_and_what_comes_after_is_not() {
    let (_dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: false }, 1);
    let fails = Arc::new(AtomicBool::new(false));
    let engine = failing(Engine::load(&checkpoint, &options(2, 64)).unwrap(), while_set(&fails));
    let requests = two_hundred();
    let expected = engine.score(&requests, &|_| ()).unwrap();

    let request = |token: u32| GenerateRequest {
        prompt: vec![token, 2, 3],
        n: 2,
        max_tokens: 5,
        ..GenerateRequest::default()
    };
    let mut generator = engine.generator(GeneratorOptions::default());
    generator.add(1, request(1)).unwrap();
    generator.add(2, request(4)).unwrap();
    assert_eq!(generator.step().unwrap().len(), 4);
    fails.store(true, Ordering::Relaxed);
    assert!(matches!(engine.score(&requests, &|_| ()), Err(EngineError::Device(_))));
    let given_up: Vec<u64> = (0..2).map(|_| generator.step().unwrap_err().request).collect();
    assert_eq!(given_up, [1, 2]);
    assert!(generator.is_idle() && generator.load().kv_cache_bytes == 0);

    fails.store(false, Ordering::Relaxed);
    assert_eq!(engine.score(&requests, &|_| ()).unwrap(), expected);
    generator.add(3, request(1)).unwrap();
    let mut tokens = 0;
    while !generator.is_idle() {
        tokens += generator.step().unwrap().len();
    }
    assert_eq!(tokens, 10);
}
