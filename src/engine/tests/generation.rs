//! Continuous batching: what a request gets does not depend on the others, on the room there is, or on when it joins.

use std::collections::BTreeMap;

use super::fixture::{MAX_LEN, Model, VOCAB, checkpoint, engine, options};
use crate::engine::{Engine, GenerateRequest, Generated, GeneratorOptions, Sampling, TokenLogprobs};

const MODEL: Model = Model { tied: true, quantized: None, wide: false };

type Answers = BTreeMap<(u64, usize), Vec<TokenLogprobs>>;

fn requests() -> Vec<GenerateRequest> {
    (0..9u32)
        .map(|i| GenerateRequest {
            prompt: (0..=i * 7).map(|j| (i + j * 3) % VOCAB as u32).collect(),
            n: 1 + i as usize % 3,
            max_tokens: 5 + 3 * i as usize,
            stop_ids: if i % 2 == 0 { vec![7] } else { Vec::new() },
            min_tokens: if i % 4 == 0 { 4 } else { 0 },
            sampling: Sampling {
                temperature: if i % 3 == 0 { 0.0 } else { 0.8 },
                top_p: (i % 2 == 0).then_some(0.9),
                presence_penalty: if i > 5 { 0.5 } else { 0.0 },
                seed: u64::from(i),
                ..Sampling::default()
            },
            top_n: i as usize % 4,
        })
        .collect()
}

fn collect(answers: &mut Answers, generated: Vec<Generated>) {
    for token in generated {
        answers.entry((token.request, token.choice)).or_default().push(token.token);
    }
}

fn run(engine: &Engine, requests: &[GenerateRequest], room: GeneratorOptions, join_every: usize) -> Answers {
    let mut generator = engine.generator(room);
    let (mut answers, mut steps, mut next) = (Answers::new(), 0, 0);
    while next < requests.len() || !generator.is_idle() {
        if steps % join_every.max(1) == 0 {
            let until = if join_every == 0 { requests.len() } else { requests.len().min(next + 1) };
            for (id, request) in requests.iter().enumerate().take(until).skip(next) {
                generator.add(id as u64, request.clone()).unwrap();
            }
            next = next.max(until);
        }
        collect(&mut answers, generator.step().unwrap());
        steps += 1;
    }
    assert_eq!(generator.load(), crate::engine::GeneratorLoad::default(), "every page was given back");
    answers
}

#[test]
fn tokens_do_not_depend_on_batch_room_or_arrival() {
    let (_dir, checkpoint) = checkpoint(MODEL, 4);
    let load = |rows| Engine::load(&checkpoint, &options(2, rows)).unwrap();
    let engine = load(512);
    let requests = requests();
    let mut alone = Answers::new();
    for (id, request) in requests.iter().enumerate() {
        let answer = run(&engine, std::slice::from_ref(request), GeneratorOptions::default(), 0);
        alone.extend(answer.into_iter().map(|((_, choice), tokens)| ((id as u64, choice), tokens)));
    }
    for (id, request) in requests.iter().enumerate() {
        for choice in 0..request.n {
            let tokens = &alone[&(id as u64, choice)];
            assert!(tokens.len() == request.max_tokens || tokens.last().unwrap().token == 7);
            assert!(tokens.iter().take(request.min_tokens).all(|t| !request.stop_ids.contains(&t.token)));
            assert!(tokens.iter().all(|t| t.top.len() == request.top_n));
        }
    }
    let roomy = GeneratorOptions::default();
    // Room for one sequence of full length only: the others are preempted and start over.
    let tight = GeneratorOptions { kv_cache_bytes: 0, ..roomy };
    let few = GeneratorOptions { max_num_seqs: 2, ..roomy };
    for (room, join_every, rows) in
        [(roomy, 0, 512), (tight, 0, 512), (few, 2, 512), (tight, 3, 7), (roomy, 1, 5)]
    {
        assert_eq!(run(&load(rows), &requests, room, join_every), alone, "{room:?} {join_every} {rows}");
    }
}

#[test]
fn cancelled_choices_give_their_room_back() {
    let engine = engine(MODEL);
    let request =
        |n| GenerateRequest { prompt: vec![1; 40], n, max_tokens: 50, ..GenerateRequest::default() };
    let mut generator = engine.generator(GeneratorOptions::default());
    for id in 0..3 {
        generator.add(id, request(2)).unwrap();
    }
    generator.cancel(2, None);
    generator.step().unwrap();
    generator.cancel(0, Some(1));
    let generated = generator.step().unwrap();
    let who: Vec<_> = generated.iter().map(|g| (g.request, g.choice)).collect();
    assert_eq!(who, [(0, 0), (1, 0), (1, 1)]);
    generator.cancel(0, None);
    generator.cancel(1, None);
    assert!(generator.is_idle() && generator.step().unwrap().is_empty());
    assert_eq!(generator.load().kv_cache_bytes, 0);
}

#[test]
fn the_last_position_ends_a_choice() {
    let engine = engine(MODEL);
    let mut generator = engine.generator(GeneratorOptions::default());
    let request = GenerateRequest { prompt: vec![3; MAX_LEN - 1], n: 1, max_tokens: 9, ..Default::default() };
    generator.add(0, request).unwrap();
    let mut ends = Vec::new();
    while !generator.is_idle() {
        ends.extend(generator.step().unwrap().iter().map(|g| g.is_last));
    }
    assert_eq!(ends, [false, true]);
}
