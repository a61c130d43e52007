//! Training: AdamW, linear warm-up and cosine decay, clipped gradients, data-parallel over threads.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use tokenizers::Tokenizer;

use super::corpus::{Corpus, Row};
use super::fused::CrossEntropy;
use super::model::{Config, Model};
use super::{Result, TrainError};

/// What a run may choose.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Optimizer steps.
    pub steps: usize,
    /// Rows a step.
    pub batch: usize,
    /// Predicted tokens a row.
    pub seq_len: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Workers, each with its share of the rows.
    pub threads: usize,
}

/// Gradients above this norm are scaled down to it.
const MAX_GRAD_NORM: f64 = 1.0;
/// The decay ends at this share of the peak learning rate.
const FINAL_LR: f64 = 0.05;

/// What one optimizer step saw.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Mean loss in nats a token.
    pub loss: f64,
    /// Largest magnitude of a logit; not a number where one is not finite.
    pub max_abs_logit: f64,
    /// Norm of all gradients before it is cut.
    pub grad_norm: f64,
}

impl Schedule {
    /// Warm-up over 4 % of the steps, then a cosine.
    fn lr_at(&self, step: usize) -> f64 {
        let warm_up = (self.steps as f64 * 0.04).max(1.0);
        let step = step as f64 + 1.0;
        if step <= warm_up {
            return self.lr * step / warm_up;
        }
        let done = (step - warm_up) / (self.steps as f64 - warm_up).max(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.lr * (FINAL_LR + (1.0 - FINAL_LR) * cosine)
    }
}

/// A training under way. It repeats exactly with the same seeds and the same number of threads.
pub struct Trainer<'a> {
    model: Model,
    vars: BTreeMap<String, Var>,
    optimizers: [AdamW; 2],
    workers: Workers,
    schedule: Schedule,
    corpus: Corpus<'a>,
    tokenizer: &'a Tokenizer,
    done: usize,
}

impl<'a> Trainer<'a> {
    /// A training of `vars` from where they are.
    pub fn new(
        config: &Config,
        vars: BTreeMap<String, Var>,
        schedule: &Schedule,
        corpus: Corpus<'a>,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self> {
        let weights = vars.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
        let model = Model { config: config.clone(), weights, activations: None };
        // Norm weights are not decayed: nothing pulls them to zero for a reason.
        let (matrices, norms): (Vec<Var>, Vec<Var>) = vars.values().cloned().partition(|v| v.rank() == 2);
        let params = |weight_decay| ParamsAdamW { lr: 0.0, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay };
        let optimizers = [AdamW::new(matrices, params(0.02))?, AdamW::new(norms, params(0.0))?];
        let workers = Workers::new(schedule.threads)?;
        Ok(Self { model, vars, optimizers, workers, schedule: schedule.clone(), corpus, tokenizer, done: 0 })
    }

    /// The model so far.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The weights so far, f32, by name.
    pub fn into_weights(self) -> BTreeMap<String, Tensor> {
        self.model.weights
    }

    /// One optimizer step. A loss that is not finite is returned, and changes nothing.
    pub fn step(&mut self) -> Result<Step> {
        let rows = (0..self.schedule.batch)
            .map(|_| self.corpus.row(self.tokenizer, self.schedule.seq_len))
            .collect::<Result<Vec<Row>>>()?;
        let (loss, max_abs_logit, mut grads) = self.workers.gradients(&self.model, &self.vars, &rows)?;
        if !loss.is_finite() {
            return Ok(Step { loss, max_abs_logit, grad_norm: f64::NAN });
        }
        let grad_norm = clip(&self.vars, &mut grads)?;
        for optimizer in &mut self.optimizers {
            optimizer.set_learning_rate(self.schedule.lr_at(self.done));
            optimizer.step(&grads)?;
        }
        self.done += 1;
        Ok(Step { loss, max_abs_logit, grad_norm })
    }
}

/// One pool of a single thread a worker: the elementwise operations of candle run on one thread each, so
/// rows are divided among threads, and matrix products stay inside the worker's own pool.
struct Workers(Vec<rayon::ThreadPool>);

impl Workers {
    fn new(threads: usize) -> Result<Self> {
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build();
        Ok(Self((0..threads.max(1)).map(|_| pool()).collect::<std::result::Result<_, _>>()?))
    }

    /// The mean loss of all rows and its gradients.
    fn gradients(
        &self,
        model: &Model,
        vars: &BTreeMap<String, Var>,
        rows: &[Row],
    ) -> Result<(f64, f64, GradStore)> {
        let share = rows.len().div_ceil(self.0.len());
        let parts = std::thread::scope(|scope| {
            let running: Vec<_> = rows
                .chunks(share)
                .zip(&self.0)
                .map(|(part, pool)| scope.spawn(move || pool.install(|| backward(model, part, rows.len()))))
                .collect();
            running
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()
        })?;
        // Summed in the order of the rows, so that a run repeats exactly with the same number of threads.
        let mut parts = parts.into_iter();
        let (mut loss, mut max_abs_logit, mut total) = parts.next().ok_or(TrainError::NoRows)?;
        for (part_loss, part_logit, part) in parts {
            loss += part_loss;
            max_abs_logit = larger(max_abs_logit, part_logit);
            for var in vars.values() {
                if let (Some(a), Some(b)) = (total.get(var), part.get(var)) {
                    let sum = (a + b)?;
                    total.insert(var, sum);
                }
            }
        }
        Ok((loss, max_abs_logit, total))
    }
}

/// The larger of two, or not a number where one is not finite.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_finite() && b.is_finite() { a.max(b) } else { f64::NAN }
}

/// The part of a batch's mean loss that `rows` contribute, with its largest logit and gradients.
fn backward(model: &Model, rows: &[Row], batch: usize) -> Result<(f64, f64, GradStore)> {
    let t = rows[0].starts.len();
    let inputs: Vec<u32> = rows.iter().flat_map(|row| &row.tokens[..t]).copied().collect();
    let targets: Vec<u32> = rows.iter().flat_map(|row| &row.tokens[1..]).copied().collect();
    let starts: Vec<usize> = rows.iter().flat_map(|row| &row.starts).copied().collect();
    let ids = Tensor::from_vec(inputs, (rows.len(), t), &Device::Cpu)?;
    let logits = model.logits(&model.hidden(&ids, &starts.into())?)?;
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    let max_abs_logit = values.iter().fold(0.0, |largest, v| larger(largest, f64::from(v.abs())));
    let share = rows.len() as f64 / batch as f64;
    let loss = (logits.apply_op1(CrossEntropy { targets })? * share)?;
    Ok((f64::from(loss.to_scalar::<f32>()?), max_abs_logit, loss.backward()?))
}

/// Scales all gradients so that their common norm is at most [`MAX_GRAD_NORM`]; returns the norm before.
fn clip(vars: &BTreeMap<String, Var>, grads: &mut GradStore) -> Result<f64> {
    let mut square = 0.0;
    for (name, var) in vars {
        let grad = grads.get(var).ok_or_else(|| TrainError::NoGradient { name: name.clone() })?;
        square += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let norm = square.sqrt();
    if norm > MAX_GRAD_NORM {
        for var in vars.values() {
            if let Some(grad) = grads.remove(var) {
                grads.insert(var, (grad * (MAX_GRAD_NORM / norm))?);
            }
        }
    }
    Ok(norm)
}
