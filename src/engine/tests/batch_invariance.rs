//! On one kernel path a request's numbers have the same bits whatever else is asked, in whatever batches and threads.

use proptest::prelude::*;

use super::fixture::{MAX_LEN, Model, VOCAB, checkpoint, engine, options};
use crate::engine::Engine;
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::score::{ScoreRequest, ScoreResult};

const MODELS: [Model; 4] = [
    Model { tied: true, quantized: None },
    Model { tied: false, quantized: None },
    Model { tied: true, quantized: Some("float") },
    Model { tied: false, quantized: Some("int") },
];

fn bits(results: &[ScoreResult]) -> Vec<Vec<u32>> {
    results.iter().map(|r| r.token_logprobs.iter().map(|l| l.to_bits()).collect()).collect()
}

fn score(engine: &Engine, requests: &[ScoreRequest]) -> Vec<ScoreResult> {
    engine.score(requests, &|_| ()).unwrap()
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
        model in prop::sample::select(&MODELS[..]),
        seed: u32,
        max_rows in 1usize..200,
        shuffle: u64,
    ) {
        let (_dir, checkpoint) = checkpoint(model, seed);
        for path in KernelPath::all() {
            let load = |threads, rows| Engine::load_with(&checkpoint, &options(threads, rows), path).unwrap();
            let together = bits(&score(&load(1, 4096), &requests));
            let small = load(3, max_rows);
            prop_assert_eq!(&bits(&score(&small, &requests)), &together);
            let alone: Vec<_> =
                requests.iter().flat_map(|r| bits(&score(&small, std::slice::from_ref(r)))).collect();
            prop_assert_eq!(&alone, &together);
            let mut order: Vec<usize> = (0..requests.len()).collect();
            order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(shuffle | 1));
            let shuffled: Vec<_> = order.iter().map(|i| requests[*i].clone()).collect();
            let results = bits(&score(&small, &shuffled));
            for (i, result) in order.iter().zip(results) {
                prop_assert_eq!(&result, &together[*i]);
            }
        }
    }
}

/// 200 requests of a few-shot task: one header, contexts of several lengths, four continuations each.
fn two_hundred() -> Vec<ScoreRequest> {
    let token = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % VOCAB as u32;
    let header: Vec<u32> = (0..33).map(token).collect();
    (0..50)
        .flat_map(|item| {
            let context: Vec<u32> = (0..3 + item % 23).map(|i| token(1000 + item * 50 + i)).collect();
            let tokens = [header.clone(), context].concat();
            (0..4).map(move |choice| {
                let continuation =
                    (0..=(item + choice) % 6).map(|i| token(9000 + item * 40 + choice * 10 + i));
                let context_len = tokens.len();
                ScoreRequest { tokens: tokens.iter().copied().chain(continuation).collect(), context_len }
            })
        })
        .collect()
}

/// Alone, 7 and 64 at a time, shuffled, on one thread and on two: the same bits on every kernel path.
#[test]
fn two_hundred_requests_in_any_company() {
    let requests = two_hundred();
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|i| (*i as u32 + 1).wrapping_mul(2_654_435_769));
    let shuffled: Vec<ScoreRequest> = order.iter().map(|i| requests[*i].clone()).collect();
    for model in MODELS {
        let (_dir, checkpoint) = checkpoint(model, 7);
        // Codes are multiplied on the best paths only: plain kernels are slow, and proptests cover them.
        let best = [KernelPath::detect(), KernelPath::best(ComputeDtype::Bf16)];
        let all = KernelPath::all();
        for path in all.into_iter().filter(|p| model.quantized.is_none() && model.tied || best.contains(p)) {
            let load = |threads| Engine::load_with(&checkpoint, &options(threads, 128), path).unwrap();
            let expected = bits(&score(&load(1), &requests));
            for (engine, sizes) in [(load(1), &[7, 64][..]), (load(2), &[1, 7, 64][..])] {
                for &size in sizes {
                    let got: Vec<_> = requests.chunks(size).flat_map(|r| bits(&score(&engine, r))).collect();
                    assert!(got == expected, "{model:?} {path:?} {size} at a time");
                    let got: Vec<_> = shuffled.chunks(size).flat_map(|r| bits(&score(&engine, r))).collect();
                    let unshuffled = order.iter().zip(got);
                    assert!(
                        unshuffled.into_iter().all(|(i, got)| got == expected[*i]),
                        "{model:?} {path:?} {size}"
                    );
                }
            }
        }
    }
}

#[test]
fn generation_and_prompt_logprobs_have_the_bits_of_scoring() {
    for model in MODELS {
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
    let engine = engine(MODELS[0]);
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
    let engine = Engine::load(&checkpoint(MODELS[0], 1).1, &options(2, 8)).unwrap();
    let requests: Vec<_> =
        (0..20).map(|i| ScoreRequest { tokens: vec![i, 1, 2, 3], context_len: 2 }).collect();
    let seen = std::sync::Mutex::new(Vec::new());
    engine.score(&requests, &|done| seen.lock().unwrap().push(done)).unwrap();
    let seen = seen.into_inner().unwrap();
    assert!(seen.is_sorted() && seen.len() > 1 && seen.last() == Some(&20));
    assert!(engine.score(&[], &|_| ()).unwrap().is_empty());
}
