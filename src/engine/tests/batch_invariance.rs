//! On one kernel path a request's numbers have the same bits whatever else is asked, in whatever batches and threads.

use proptest::prelude::*;

use super::fixture::{MAX_LEN, Model, VOCAB, bits, checkpoint, engine, options, shuffled, two_hundred};
use crate::engine::{Engine, EngineOptions};
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::score::{ScoreRequest, ScoreResult};

const DENSE: [Model; 3] = [
    Model { tied: true, quantized: None, wide: false },
    Model { tied: false, quantized: None, wide: false },
    Model { tied: true, quantized: None, wide: true },
];
const QUANTIZED: [Model; 2] = [
    Model { tied: true, quantized: Some("float"), wide: false },
    Model { tied: false, quantized: Some("int"), wide: false },
];

fn models() -> Vec<Model> {
    [&DENSE[..], &QUANTIZED[..]].concat()
}

fn score(engine: &Engine, requests: &[ScoreRequest]) -> Vec<ScoreResult> {
    engine.score(requests, &|_| ()).unwrap()
}

/// Of requests scored `size` at a time.
fn scored_bits(engine: &Engine, requests: &[ScoreRequest], size: usize) -> Vec<(Vec<u32>, Vec<bool>)> {
    requests.chunks(size.max(1)).flat_map(|requests| score(engine, requests)).map(|r| bits(&r)).collect()
}

/// Requests as evaluations make them: a few headers, contexts that continue them, several continuations each.
fn requests() -> impl Strategy<Value = Vec<ScoreRequest>> {
    let token = 0..VOCAB as u32;
    let headers = proptest::collection::vec(proptest::collection::vec(token.clone(), 0..40), 1..3);
    let item = (
        any::<prop::sample::Index>(),
        proptest::collection::vec(token.clone(), 1..20),
        proptest::collection::vec(proptest::collection::vec(token, 1..5), 1..4),
    );
    (headers, proptest::collection::vec(item, 1..12)).prop_map(|(headers, items)| {
        let mut requests = Vec::new();
        for (header, context, continuations) in items {
            for continuation in continuations {
                let mut tokens = header.get(&headers).clone();
                tokens.extend_from_slice(&context);
                let context_len = tokens.len();
                tokens.extend(continuation);
                requests.push(ScoreRequest { tokens, context_len });
            }
        }
        requests
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn bits_depend_on_the_request_alone(
        requests in requests(),
        model in prop::sample::select(models()),
        seed: u32,
        max_rows in 1usize..200,
        shuffle: u64,
    ) {
        let (_dir, checkpoint) = checkpoint(model, seed);
        for path in KernelPath::all() {
            let load = |threads, rows| Engine::load_with(&checkpoint, &options(threads, rows), path).unwrap();
            let all = requests.len();
            let together = scored_bits(&load(1, 4096), &requests, all);
            let small = load(3, max_rows);
            prop_assert_eq!(&scored_bits(&small, &requests, all), &together);
            prop_assert_eq!(&scored_bits(&small, &requests, 1), &together);
            let mut order: Vec<usize> = (0..requests.len()).collect();
            order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(shuffle | 1));
            let shuffled: Vec<ScoreRequest> = order.iter().map(|i| requests[*i].clone()).collect();
            let results = scored_bits(&small, &shuffled, all);
            for (i, result) in order.iter().zip(results) {
                prop_assert_eq!(&result, &together[*i]);
            }
        }
    }
}

/// Alone, 7 and 64 at a time, each in order and shuffled, on one thread and on two: the same bits and greedy flags on
/// every kernel path.
fn in_any_company(models: &[Model]) {
    let requests = two_hundred();
    let order = shuffled(requests.len());
    let mixed: Vec<ScoreRequest> = order.iter().map(|i| requests[*i].clone()).collect();
    for (model, path) in models.iter().flat_map(|m| KernelPath::all().into_iter().map(move |p| (*m, p))) {
        let (_dir, checkpoint) = checkpoint(model, 7);
        let load = |threads| Engine::load_with(&checkpoint, &options(threads, 128), path).unwrap();
        let (one, two) = (load(1), load(2));
        let expected = scored_bits(&load(1), &requests, requests.len());
        for (engine, size) in [(&one, 1), (&two, 7), (&one, 64)] {
            assert!(scored_bits(engine, &requests, size) == expected, "{model:?} {path:?} {size} at a time");
        }
        for (engine, size) in [(&two, 1), (&one, 7), (&two, 64)] {
            let got = scored_bits(engine, &mixed, size);
            let mut unshuffled = order.iter().zip(got);
            assert!(unshuffled.all(|(i, got)| got == expected[*i]), "{model:?} {path:?} {size} shuffled");
        }
    }
}

#[test]
fn two_hundred_requests_in_any_company() {
    in_any_company(&DENSE);
}

#[test]
fn two_hundred_requests_of_quantized_models_in_any_company() {
    in_any_company(&QUANTIZED);
}

/// In parts of every kind: with a scored end, scored throughout, and where the cache has room for one page only.
#[test]
fn a_request_longer_than_a_batch_has_the_bits_of_one_pass() {
    let tokens: Vec<u32> = (0..=MAX_LEN as u32).map(|i| i * i * 3 % VOCAB as u32).collect();
    let requests: Vec<ScoreRequest> = [1, 40, 70, MAX_LEN]
        .into_iter()
        .map(|context_len| ScoreRequest { tokens: tokens.clone(), context_len })
        .collect();
    let best = [KernelPath::best(ComputeDtype::F32), KernelPath::best(ComputeDtype::Bf16)];
    for (model, path) in models().into_iter().flat_map(|model| best.map(|path| (model, path))) {
        let (_dir, checkpoint) = checkpoint(model, 9);
        let whole = Engine::load_with(&checkpoint, &options(1, 4096), path).unwrap();
        let expected = scored_bits(&whole, &requests, requests.len());
        let roomy = 1 << 20;
        for (rows, prefix_cache_bytes, size) in
            [(1, roomy, 1), (7, roomy, 4), (32, roomy, 1), (50, roomy, 4), (7, 0, 4)]
        {
            let parts = EngineOptions { prefix_cache_bytes, ..options(2, rows) };
            let engine = Engine::load_with(&checkpoint, &parts, path).unwrap();
            let got = scored_bits(&engine, &requests, size);
            assert!(got == expected, "{model:?} {path:?} {rows} rows, {prefix_cache_bytes} bytes, {size}");
        }
    }
}

#[test]
fn generation_and_prompt_logprobs_have_the_bits_of_scoring() {
    for model in models() {
        let engine = engine(model);
        let prompt: Vec<u32> = (0..37).map(|i| i * 7 % VOCAB as u32).collect();
        let generated = engine.generate_greedy(&prompt, 40, &[], 2).unwrap();
        assert_eq!(generated.len(), 40);
        let tokens: Vec<u32> = prompt.iter().copied().chain(generated.iter().map(|t| t.token)).collect();
        let request = ScoreRequest { tokens: tokens.clone(), context_len: prompt.len() };
        let scored = &score(&engine, &[request])[0];
        let prompt_logprobs = engine.prompt_logprobs(&tokens, 2).unwrap();
        assert!(prompt_logprobs[0].is_none() && scored.is_greedy());
        for (i, token) in generated.iter().enumerate() {
            assert_eq!(token.logprob.to_bits(), scored.token_logprobs[i].to_bits());
            assert_eq!(Some(token), prompt_logprobs[prompt.len() + i].as_ref());
            assert_eq!(token.top[0], (token.token, token.logprob));
        }
    }
}

#[test]
fn generation_stops_at_a_stop_token_and_at_the_last_position() {
    let engine = engine(DENSE[0]);
    let free = engine.generate_greedy(&[1, 2, 3], 5, &[], 0).unwrap();
    assert!(free.iter().all(|t| t.top.is_empty()));
    let stop = free[2].token;
    let first = free.iter().position(|t| t.token == stop).unwrap();
    assert_eq!(engine.generate_greedy(&[1, 2, 3], 5, &[stop], 0).unwrap(), &free[..=first]);
    // The last position's next token is known, though it could not be fed.
    assert_eq!(engine.generate_greedy(&[5; MAX_LEN], 9, &[], 0).unwrap().len(), 1);
    assert!(engine.generate_greedy(&[5], 0, &[], 0).unwrap().is_empty());
}

#[test]
fn progress_reaches_the_number_of_requests() {
    let engine = Engine::load(&checkpoint(DENSE[0], 1).1, &options(2, 8)).unwrap();
    let requests: Vec<_> =
        (0..20).map(|i| ScoreRequest { tokens: vec![i, 1, 2, 3], context_len: 2 }).collect();
    let seen = std::sync::Mutex::new(Vec::new());
    engine.score(&requests, &|done| seen.lock().unwrap().push(done)).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted() && seen.len() > 1 && seen.last() == Some(&20));
    assert!(engine.score(&[], &|_| ()).unwrap().is_empty());
}
