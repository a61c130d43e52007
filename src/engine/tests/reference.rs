//! Agreement with transformers on real models. Reference values: ../shared/data/README.md (transformers 5.17, float32).

use super::fixture::{options, outside};
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::model::tokenizer::Tokenizer;
use crate::record::score::ScoreRequest;

fn load(dir: &std::path::Path) -> (Engine, Tokenizer) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    (Engine::load(&checkpoint, &options(2, 2048)).unwrap(), Tokenizer::load(dir).unwrap())
}

/// Mean negative log-likelihood of all scored tokens.
fn mean_nll(engine: &Engine, requests: &[ScoreRequest]) -> (f64, usize) {
    let results = engine.score(requests, &|_| ()).unwrap();
    let count = results.iter().map(|r| r.token_logprobs.len()).sum();
    (-results.iter().map(crate::record::score::ScoreResult::loglikelihood).sum::<f64>() / count as f64, count)
}

#[test]
fn stories260k_mean_nll() {
    let Some(model) = outside("../shared/models/stories260k") else { return };
    let Some(text) = outside("../shared/data/calibration/tiny.utf8") else { return };
    let (engine, tokenizer) = load(&model);
    let text = std::fs::read_to_string(text).unwrap();
    let stories = text.split("<|endoftext|>").map(str::trim).filter(|s| s.chars().count() > 100);
    let requests: Vec<ScoreRequest> = stories
        .take(60)
        .map(|story| {
            let mut tokens = vec![1];
            tokens.extend(tokenizer.encode(story, false).unwrap());
            tokens.truncate(512);
            ScoreRequest { tokens, context_len: 1 }
        })
        .collect();
    let (nll, count) = mean_nll(&engine, &requests);
    println!("stories260k: mean NLL {nll:.6} over {count} tokens");
    assert_eq!(count, 20_416);
    assert!((nll - 1.2960).abs() < 5e-4, "{nll}");
}

#[test]
fn stories260k_greedy_text() {
    let Some(model) = outside("../shared/models/stories260k") else { return };
    let (engine, tokenizer) = load(&model);
    let generated = engine.generate_greedy(&[1], 60, &[2], 0).unwrap();
    let ids: Vec<u32> = generated.iter().map(|t| t.token).collect();
    let text = tokenizer.decode(&ids).unwrap();
    let expected = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
                    One day, she saw a big, r";
    assert!(text.trim_start().starts_with(expected), "{text}");
}
