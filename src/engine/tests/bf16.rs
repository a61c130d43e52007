//! bf16 mode against transformers in float32, for every architecture and kernel path.
//!
//! Rounding is relative, so differences are measured in the spread of the model's logits: the standard deviation of its
//! log-probabilities, 1 to 4 nats for most of these random models.

use super::fixture::options;
use super::golden::{Case, Golden};
use crate::engine::Engine;
use crate::ops::kernel_path::KernelPath;

/// Mean difference of a log-probability, over all tokens of all rows.
const MEAN: f64 = 1e-2;
/// Largest difference.
const LARGEST: f64 = 5e-2;

/// Mean and largest difference in units of the spread.
fn differences(golden: &Golden, case: &Case, engine: &Engine) -> [f64; 2] {
    let (mut sum, mut largest, mut count) = (0.0, 0.0f64, 0);
    for (i, length) in golden.lengths.iter().enumerate() {
        let got = engine.prompt_logprobs(&golden.tokens[..=*length], golden.vocab).unwrap();
        for (position, last) in [(length / 2, false), (length - 1, true)] {
            let want = case.row(golden, i, last);
            let mean = want.iter().map(|x| f64::from(*x)).sum::<f64>() / want.len() as f64;
            let variance =
                want.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / want.len() as f64;
            for (token, logprob) in &got[position + 1].as_ref().unwrap().top {
                let difference = f64::from((logprob - want[*token as usize]).abs()) / variance.sqrt();
                // NaN must not pass.
                largest = if difference <= largest { largest } else { difference };
                sum += difference;
                count += 1;
            }
        }
    }
    [sum / f64::from(count), largest]
}

#[test]
fn logprobs_of_transformers() {
    let golden = Golden::load();
    let mut wrong = Vec::new();
    for case in golden.cases() {
        let (_dir, checkpoint) = case.checkpoint(&case.config);
        for path in KernelPath::available_bf16() {
            let engine = Engine::load_with(&checkpoint, &options(2, 512), path).unwrap();
            let [mean, largest] = differences(&golden, &case, &engine);
            println!("{:28} {:20} mean {mean:.4} largest {largest:.4}", case.name, path.name());
            if !(mean <= MEAN && largest <= LARGEST) {
                wrong.push(format!("{} {}: {mean} {largest}", case.name, path.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
