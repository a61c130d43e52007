//! Family `token`: the embedded model trained from random weights, with its own tokenizer and corpus.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

use super::measure::{Runner, empty_run, finite};
use crate::base::digest::DigestBuilder;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::checkpoint::embedded;
use crate::ready::train::TrainError;
use crate::ready::train::corpus::{Corpus, Stream, stream};
use crate::ready::train::generator::World;
use crate::ready::train::model::{Config, Model};
use crate::ready::train::trainer::{Schedule, Trainer};
use crate::record::repro::{Point, SeedRun};
use crate::record::{Failure, FailureClass};

/// Rows a step and tokens a row: small enough for a build machine.
const BATCH: usize = 4;
const SEQ_LEN: usize = 64;
/// As the embedded model was trained.
const LEARNING_RATE: f64 = 3e-3;
/// Steps that are run again.
const REPEATED: u64 = 5;
/// Points of a curve at most.
const MAX_POINTS: u64 = 4000;

/// Trains.
pub struct TokenRunner {
    /// Worker threads: a training repeats exactly with the same number.
    pub threads: usize,
}

impl Runner for TokenRunner {
    fn identity(&self) -> Result<String, Failure> {
        Ok(format!("threads {} batch {BATCH} x {SEQ_LEN}", self.threads))
    }

    fn run(&self, seed: u64, steps: u64) -> Result<SeedRun, Failure> {
        let start = Instant::now();
        let tokenizer = tokenizer()?;
        let world = World::new(&mut stream(seed, Stream::World));
        let held_out = HashSet::new();
        let repeated: Vec<f64> = {
            let mut trainer = self.trainer(seed, steps, &world, &held_out, &tokenizer)?;
            (0..steps.min(REPEATED)).map(|_| trainer.step().map(|s| s.loss)).collect::<Result<_, _>>()?
        };
        let mut trainer = self.trainer(seed, steps, &world, &held_out, &tokenizer)?;
        let mut run = empty_run(seed);
        let mut setup = start.elapsed();
        let started = Instant::now();
        train(&mut trainer, &mut run, steps)?;
        run.steps_s = started.elapsed().as_secs_f64();
        let parity = Instant::now();
        let difference = save_and_load(trainer)?;
        setup += parity.elapsed();
        run.setup_s = setup.as_secs_f64();
        let difference = finite(&mut run, "save_load_max_diff", difference);
        run.finals.insert("save_load_max_diff".to_owned(), difference);
        compare_repetition(&mut run, &repeated);
        Ok(run)
    }
}

impl TokenRunner {
    fn trainer<'a>(
        &self,
        seed: u64,
        steps: u64,
        world: &'a World,
        held_out: &'a HashSet<String>,
        tokenizer: &'a Tokenizer,
    ) -> Result<Trainer<'a>, TrainError> {
        let config = Config::tiny(tokenizer.get_vocab_size(true).next_multiple_of(64));
        let schedule = Schedule {
            steps: usize::try_from(steps).unwrap_or(usize::MAX),
            batch: BATCH,
            seq_len: SEQ_LEN,
            lr: LEARNING_RATE,
            threads: self.threads,
        };
        let vars = config.initial(&mut stream(seed, Stream::Weights))?;
        let corpus = Corpus::new(world, held_out, seed);
        Trainer::new(&config, vars, &schedule, corpus, tokenizer)
    }
}

fn tokenizer() -> Result<Tokenizer, Failure> {
    let bytes = embedded::FILES.iter().find(|(name, _)| *name == "tokenizer.json").map(|(_, bytes)| *bytes);
    Tokenizer::from_bytes(bytes.unwrap_or_default())
        .map_err(|e| Failure::new(FailureClass::Unknown, format!("the embedded tokenizer: {e}")))
}

/// Every step, until the last, a value that is not finite, or a signal.
fn train(trainer: &mut Trainer<'_>, run: &mut SeedRun, steps: u64) -> Result<(), Failure> {
    let progress = Progress::new(&format!("token seed {}", run.seed), steps, "steps");
    let every = steps.div_ceil(MAX_POINTS).max(1);
    let mut curves: [(&str, Vec<Point>); 4] =
        [("loss", vec![]), ("perplexity", vec![]), ("max_abs_logit", vec![]), ("grad_norm", vec![])];
    for step in 1..=steps {
        if let Some(signal) = interrupt::received() {
            return Err(Failure::interrupted(signal));
        }
        let seen = trainer.step()?;
        let values = [seen.loss, seen.loss.exp(), seen.max_abs_logit, seen.grad_norm];
        for ((name, curve), value) in curves.iter_mut().zip(values) {
            let value = finite(run, name, value);
            if value.is_none() || step % every == 0 || step <= REPEATED || step == steps {
                curve.push(Point { step, value });
            }
        }
        progress.inc(1);
        if !seen.loss.is_finite() {
            run.error = format!("the loss of step {step} is {}", seen.loss);
            break;
        }
        run.steps_done = step;
    }
    run.curves = curves.into_iter().map(|(name, curve)| (name.to_owned(), curve)).collect();
    Ok(())
}

/// The largest difference of a logit after the weights were written to a file and read again.
fn save_and_load(trainer: Trainer<'_>) -> Result<f64, Failure> {
    let config = trainer.model().config.clone();
    let weights: HashMap<String, Tensor> =
        trainer.into_weights().into_iter().map(|(name, w)| (name, w.detach())).collect();
    let dir = tempfile::tempdir().map_err(|e| Failure::io("a temporary directory", &e))?;
    let path = dir.path().join("model.safetensors");
    candle_core::safetensors::save(&weights, &path).map_err(TrainError::from)?;
    let loaded = candle_core::safetensors::load(&path, &Device::Cpu).map_err(TrainError::from)?;
    let logits = |weights: BTreeMap<String, Tensor>| -> Result<Vec<f32>, TrainError> {
        let model = Model { config: config.clone(), weights, activations: None };
        let ids: Vec<u32> = (0..SEQ_LEN as u32).map(|i| i * 13 % config.vocab_size as u32).collect();
        let ids = Tensor::from_vec(ids, (1, SEQ_LEN), &Device::Cpu)?;
        let hidden = model.hidden(&ids, &Arc::from(vec![0; SEQ_LEN]))?;
        Ok(model.logits(&hidden)?.flatten_all()?.to_vec1::<f32>()?)
    };
    let (before, after) = (logits(weights.into_iter().collect())?, logits(loaded.into_iter().collect())?);
    // A difference of what is not a number is not a number, and must stay so.
    let larger = |largest: f64, d: f64| if d.is_nan() || d > largest { d } else { largest };
    Ok(before.iter().zip(&after).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, larger))
}

/// The first steps against their repetition.
fn compare_repetition(run: &mut SeedRun, repeated: &[f64]) {
    let digest = |losses: &mut dyn Iterator<Item = f64>| {
        let mut digest = DigestBuilder::default();
        for loss in losses {
            digest.update(&loss.to_bits().to_le_bytes());
        }
        Some(digest.finish().to_string())
    };
    let first: Vec<f64> = run
        .curves
        .get("loss")
        .into_iter()
        .flatten()
        .take(repeated.len())
        .map(|p| p.value.unwrap_or(f64::NAN))
        .collect();
    let mean = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        mean.is_finite().then_some(mean)
    };
    run.repeat_values.insert("loss".to_owned(), [mean(&first), mean(repeated)]);
    run.digest = digest(&mut first.iter().copied());
    run.repeat_digest = digest(&mut repeated.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Document 000, "Seed stability" and "Save/Load parity".
    #[test]
    fn a_training_repeats_exactly_and_is_saved_without_a_difference() {
        let runner = TokenRunner { threads: 2 };
        let run = runner.run(1, 6).unwrap();
        assert_eq!((run.steps_done, run.error.as_str()), (6, ""));
        assert_eq!(run.digest, run.repeat_digest);
        assert_eq!(run.finals["save_load_max_diff"], Some(0.0));
        assert!(run.non_finite.is_empty() && run.curves["max_abs_logit"].len() == 6);
        let loss = |run: &SeedRun, i: usize| run.curves["loss"][i].value.unwrap();
        assert!(loss(&run, 5) < loss(&run, 0));
        // Another seed is another training.
        let other = runner.run(2, 1).unwrap();
        assert_ne!(loss(&other, 0), loss(&run, 0));
    }
}
