//! bf16 mode against transformers in float32, for every architecture and kernel path.
//!
//! Rounding is relative. So models are compared twice: with near-uniform logits, as random small models have them by
//! transformers' own initialization, in nats; and with the logits that the golden models have, differences in units of
//! the logits' spread, the standard deviation of log-probabilities: 0.3 to 8.4 nats.

use super::fixture::{Tensor, options};
use super::golden::{Case, Golden, alone, largest, shared};
use crate::engine::Engine;
use crate::ops::kernel_path::KernelPath;

/// Largest difference of a log-probability of near-uniform logits, in nats.
const NATS: f32 = 2e-2;
/// Largest spread of a row of near-uniform logits, in nats.
const NEAR_UNIFORM: f64 = 0.25;
/// Mean difference of a log-probability in units of the spread, over all tokens of all rows.
const MEAN: f32 = 1e-2;
/// Largest difference in units of the spread.
const LARGEST: f32 = 5e-2;

fn spread(row: &[f32]) -> f64 {
    let count = row.len() as f64;
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    (row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// ln softmax(c · row); of a row of log-probabilities as of its logits, because a shift does not change it.
fn log_softmax(row: &[f32], c: f32) -> impl Iterator<Item = f32> {
    let scaled: Vec<f64> = row.iter().map(|x| f64::from(*x) * f64::from(c)).collect();
    let max = scaled.iter().copied().fold(f64::MIN, f64::max);
    let log_sum = max + scaled.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    scaled.into_iter().map(move |x| (x - log_sum) as f32)
}

/// The power of two, at most 1, that makes every row of the case near-uniform.
fn near_uniform(golden: &Golden, case: &Case) -> f32 {
    let widest = case.rows.chunks(golden.vocab).map(spread).fold(0.0, f64::max);
    (-(widest / NEAR_UNIFORM).log2().ceil().max(0.0)).exp2() as f32
}

/// The model with its logits multiplied by `c`, a power of two: the last norm's weight is, and the cap of the logits.
/// Rounding to bf16 commutes with it.
fn quiet(golden: &Golden, case: &mut Case, c: f32) {
    // gemma stores what is added to 1.
    let stored_less =
        if case.config["model_type"].as_str().unwrap().starts_with("gemma") { 1.0 } else { 0.0 };
    let norm: &mut Tensor = case.tensors.iter_mut().find(|t| t.0 == "model.norm.weight").unwrap();
    for bytes in norm.3.as_chunks_mut::<4>().0 {
        let weight = (f32::from_le_bytes(*bytes) + stored_less) * c - stored_less;
        *bytes = weight.to_le_bytes();
    }
    if let Some(cap) = case.config["final_logit_softcapping"].as_f64() {
        case.config["final_logit_softcapping"] = (cap * f64::from(c)).into();
    }
    case.rows = case.rows.chunks(golden.vocab).flat_map(|row| log_softmax(row, c)).collect();
}

/// Mean and largest difference in units of the spread.
fn relative(golden: &Golden, case: &Case, engine: &Engine) -> [f32; 2] {
    let mut differences = Vec::new();
    for (i, length) in golden.lengths.iter().enumerate() {
        let got = engine.prompt_logprobs(&golden.tokens[..=*length], golden.vocab).unwrap();
        for (position, last) in [(length / 2, false), (length - 1, true)] {
            let want = case.row(golden, i, last);
            let spread = spread(want) as f32;
            let top = &got[position + 1].as_ref().unwrap().top;
            differences.extend(top.iter().map(|(t, logprob)| (logprob - want[*t as usize]).abs() / spread));
        }
    }
    [differences.iter().sum::<f32>() / differences.len() as f32, largest(differences.into_iter())]
}

#[test]
fn logprobs_of_transformers() {
    let golden = Golden::load();
    let mut wrong = Vec::new();
    for mut case in golden.cases() {
        let (_loud, loud) = case.checkpoint(&case.config);
        let load = |checkpoint, rows, path| Engine::load_with(checkpoint, &options(2, rows), path).unwrap();
        let of_spread: Vec<[f32; 2]> = KernelPath::available_bf16()
            .into_iter()
            .map(|path| relative(&golden, &case, &load(&loud, 512, path)))
            .collect();
        let c = near_uniform(&golden, &case);
        quiet(&golden, &mut case, c);
        let (_quiet, checkpoint) = case.checkpoint(&case.config);
        for (path, [mean, worst]) in KernelPath::available_bf16().into_iter().zip(of_spread) {
            let (large, small) = (load(&checkpoint, 512, path), load(&checkpoint, 8, path));
            let nats = [
                alone(&golden, &case, &large),
                shared(&golden, &case, &large),
                shared(&golden, &case, &small),
            ];
            let line = format!(
                "{:28} {:20} {nats:.5?} nats; mean {mean:.4} largest {worst:.4}",
                case.name,
                path.name()
            );
            println!("{line}");
            // NaN must not pass.
            if !(nats.iter().all(|d| *d <= NATS) && mean <= MEAN && worst <= LARGEST) {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
