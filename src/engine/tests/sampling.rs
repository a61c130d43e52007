//! Sampling against transformers' logits processors (golden/sampling.py), and its own rules.

use serde_json::Value;

use crate::engine::{Sampler, Sampling};

fn frequencies(sampling: &Sampling, prompt: &[u32], logits: &[f32], draws: u32) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    let mut sampler = Sampler::new(sampling, 0, prompt);
    for _ in 0..draws {
        counts[sampler.choose(logits, &[]) as usize] += 1.0 / f64::from(draws);
    }
    counts
}

#[test]
fn draws_as_often_as_transformers_says() {
    const DRAWS: u32 = 20_000;
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/sampling.json")).unwrap();
    for case in cases {
        let floats = |name: &str| -> Vec<f64> { serde_json::from_value(case[name].clone()).unwrap() };
        let sampling = Sampling {
            temperature: case["temperature"].as_f64().unwrap(),
            top_p: case["top_p"].as_f64(),
            top_k: case["top_k"].as_u64().map(|k| k as usize),
            min_p: case["min_p"].as_f64().unwrap(),
            repetition_penalty: case["repetition_penalty"].as_f64(),
            seed: 3,
            ..Sampling::default()
        };
        let prompt: Vec<u32> = serde_json::from_value(case["prompt"].clone()).unwrap();
        let logits: Vec<f32> = floats("logits").iter().map(|l| *l as f32).collect();
        let seen = frequencies(&sampling, &prompt, &logits, DRAWS);
        for (token, (seen, expected)) in seen.iter().zip(floats("probabilities")).enumerate() {
            // Five standard errors; what transformers cuts is never drawn.
            let error = 5.0 * (expected * (1.0 - expected) / f64::from(DRAWS)).sqrt();
            assert!(
                (seen - expected).abs() <= error + 1e-9,
                "{sampling:?} token {token}: {seen}, {expected}"
            );
        }
    }
}

#[test]
fn penalties_bias_and_forbidden_tokens() {
    let choose = |sampling: Sampling, given: &[u32], forbidden: &[u32]| {
        let mut sampler = Sampler::new(&sampling, 0, &[]);
        for token in given {
            sampler.accept(*token);
        }
        assert!(!sampling.is_greedy() || sampling == Sampling::default());
        sampler.choose(&[1.0, 2.0, f32::NAN, 1.5], forbidden)
    };
    let plain = Sampling::default;
    assert_eq!(choose(plain(), &[1, 1], &[]), 1);
    assert_eq!(choose(plain(), &[], &[1]), 3);
    assert_eq!(choose(Sampling { presence_penalty: 0.6, ..plain() }, &[1], &[]), 3);
    assert_eq!(choose(Sampling { frequency_penalty: 0.3, ..plain() }, &[1], &[]), 1);
    assert_eq!(choose(Sampling { frequency_penalty: 0.3, ..plain() }, &[1, 1], &[]), 3);
    assert_eq!(choose(Sampling { repetition_penalty: Some(1.5), ..plain() }, &[1], &[]), 3);
    assert_eq!(choose(Sampling { logit_bias: vec![(0, 5.0), (99, 9.0)], ..plain() }, &[], &[]), 0);
    assert_eq!(choose(Sampling { logit_bias: vec![(1, -100.0)], ..plain() }, &[], &[]), 3);
}

#[test]
fn a_seed_and_a_choice_fix_the_draws() {
    let logits = vec![0.0; 50];
    let draw = |seed, choice| {
        let mut sampler =
            Sampler::new(&Sampling { temperature: 1.0, seed, ..Sampling::default() }, choice, &[]);
        (0..20).map(|_| sampler.choose(&logits, &[])).collect::<Vec<_>>()
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(1, 1));
    assert_ne!(draw(1, 0), draw(2, 0));
}
