//! Generation on several devices: requests go to the one with least to do, and results do not depend on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::failing_device::{Failing, while_set};
use super::fixture::{Model, checkpoint, options};
use crate::engine::run::Replica;
use crate::engine::{Engine, EngineError, GenerateRequest, Generated, GeneratorOptions, Sampling};

/// A model on two devices, the second of which fails while it is told so.
fn engine() -> (tempfile::TempDir, Engine, Arc<AtomicBool>) {
    let (dir, checkpoint) = checkpoint(Model { tied: true, quantized: None, wide: false }, 1);
    let load = || Engine::load(&checkpoint, &options(1, 64)).unwrap();
    let (mut engine, mut other) = (load(), load());
    let fails = Arc::new(AtomicBool::new(false));
    let replica = other.replicas.remove(0);
    let backend = Box::new(Failing { inner: replica.backend, failure: while_set(&fails) });
    engine.replicas.push(Replica { backend, ..replica });
    (dir, engine, fails)
}

fn request(token: u32, n: usize, max_tokens: usize) -> GenerateRequest {
    let sampling = Sampling { temperature: 0.7, seed: u64::from(token), ..Sampling::default() };
    GenerateRequest { prompt: vec![token, 2, 3], n, max_tokens, sampling, ..GenerateRequest::default() }
}

/// Tokens of all requests, by request and choice.
fn generate(engine: &Engine, requests: &[GenerateRequest]) -> Vec<Generated> {
    let mut generator = engine.generator(GeneratorOptions::default());
    for (id, request) in (1..).zip(requests) {
        generator.add(id, request.clone()).unwrap();
    }
    let mut all = Vec::new();
    while !generator.is_idle() {
        all.extend(generator.step().unwrap());
    }
    all.sort_by_key(|g| (g.request, g.choice));
    all
}

#[test]
fn tokens_do_not_depend_on_the_device() {
    let (_dir, mut engine, _) = engine();
    let requests: Vec<GenerateRequest> = (0..7).map(|i| request(i, 1 + i as usize % 3, 9)).collect();
    let both = generate(&engine, &requests);
    engine.replicas.truncate(1);
    assert_eq!(both, generate(&engine, &requests));
    assert_eq!(both.len(), 9 * requests.iter().map(|r| r.n).sum::<usize>());
}

/// By choices, then by tokens: a request of three choices leaves the next three to the other device. The failing device takes
/// only its own requests with it.
#[test]
fn requests_go_to_the_device_with_least_to_do() {
    let (_dir, engine, fails) = engine();
    let mut generator = engine.generator(GeneratorOptions::default());
    for (id, n) in [(1, 1), (2, 3), (3, 1), (4, 1), (5, 1)] {
        generator.add(id, request(id as u32, n, 9)).unwrap();
    }
    assert_eq!((generator.load().running, generator.load().waiting), (0, 5));
    fails.store(true, Ordering::Relaxed);
    let failure = generator.step().unwrap_err();
    assert!(failure.request == 2 && matches!(failure.source, EngineError::Device(_)));
    // Three choices there, three requests here, then the sixth choice goes where there are fewer tokens.
    let last = generator.step().unwrap_err();
    assert_eq!(last.request, 5, "{last}");
    let requests: Vec<u64> = generator.step().unwrap().iter().map(|g| g.request).collect();
    assert_eq!(requests, [1, 3, 4]);
    let load = generator.load();
    assert_eq!((load.running, load.waiting), (3, 0));
    generator.cancel(3, None);
    // The device that lost its requests has least to do now.
    generator.add(6, request(6, 1, 2)).unwrap();
    assert_eq!(generator.step().unwrap_err().request, 6);
    fails.store(false, Ordering::Relaxed);
    generator.add(7, request(7, 1, 2)).unwrap();
    let mut tokens = Vec::new();
    while !generator.is_idle() {
        tokens.extend(generator.step().unwrap().into_iter().map(|g| g.request));
    }
    let of = |id: u64| tokens.iter().filter(|request| **request == id).count();
    assert_eq!([1, 3, 4, 7].map(of), [8, 0, 8, 2]);
}
