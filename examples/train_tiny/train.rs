//! Training: AdamW, linear warm-up and cosine decay, clipped gradients, data-parallel over threads.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use tokenizers::Tokenizer;

use super::corpus::{Corpus, Row};
use super::fused::CrossEntropy;
use super::model::{Config, Model};

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
/// Points of the loss curve.
const POINTS: usize = 40;

/// One point of the loss curve.
#[derive(Clone, Debug)]
pub struct Point {
    /// Steps done.
    pub step: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Mean loss in nats a token since the last point.
    pub loss: f64,
}

/// A finished run.
pub struct Trained {
    /// Weights by name, f32.
    pub weights: BTreeMap<String, Tensor>,
    /// The loss curve.
    pub curve: Vec<Point>,
    /// Wall-clock time.
    pub seconds: f64,
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

/// Trains from random weights; `progress` gets one line at a time, `look` describes the model so far.
pub fn train(
    config: &Config,
    vars: &BTreeMap<String, Var>,
    schedule: &Schedule,
    corpus: &mut Corpus<'_>,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(&str),
    look: &dyn Fn(&Model) -> Result<String>,
) -> Result<Trained> {
    let weights = vars.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
    let model = Model { config: config.clone(), weights, activations: None };
    // Norm weights are not decayed: nothing pulls them to zero for a reason.
    let (matrices, norms): (Vec<Var>, Vec<Var>) = vars.values().cloned().partition(|v| v.rank() == 2);
    let params = |weight_decay| ParamsAdamW { lr: 0.0, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay };
    let mut optimizers = [AdamW::new(matrices, params(0.02))?, AdamW::new(norms, params(0.0))?];
    let workers = Workers::new(schedule.threads)?;

    let started = Instant::now();
    let every = schedule.steps.div_ceil(POINTS);
    let (mut curve, mut sum, mut count) = (Vec::new(), 0.0, 0);
    for step in 0..schedule.steps {
        let rows = (0..schedule.batch)
            .map(|_| corpus.row(tokenizer, schedule.seq_len))
            .collect::<Result<Vec<Row>>>()?;
        let (loss, mut grads) = workers.gradients(&model, vars, &rows)?;
        ensure!(loss.is_finite(), "the loss of step {step} is {loss}; lower --lr");
        clip(vars, &mut grads)?;
        for optimizer in &mut optimizers {
            optimizer.set_learning_rate(schedule.lr_at(step));
            optimizer.step(&grads)?;
        }
        sum += loss;
        count += 1;
        if (step + 1) % every == 0 || step + 1 == schedule.steps {
            let tokens = (step + 1) * schedule.batch * schedule.seq_len;
            let point = Point { step: step + 1, tokens, loss: sum / f64::from(count) };
            let seconds = started.elapsed().as_secs_f64();
            let left = seconds / (step + 1) as f64 * (schedule.steps - step - 1) as f64;
            progress(&format!(
                "step {}/{}  loss {:.4}  {:.0} tokens/s  {left:.0} s left  {}",
                point.step,
                schedule.steps,
                point.loss,
                tokens as f64 / seconds,
                look(&model)?,
            ));
            curve.push(point);
            (sum, count) = (0.0, 0);
        }
    }
    Ok(Trained { weights: model.weights, curve, seconds: started.elapsed().as_secs_f64() })
}

/// One pool of a single thread a worker: the elementwise operations of candle run on one thread each, so
/// rows are divided among threads, and matrix products stay inside the worker's own pool.
struct Workers(Vec<rayon::ThreadPool>);

impl Workers {
    fn new(threads: usize) -> Result<Self> {
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build();
        Ok(Self((0..threads.max(1)).map(|_| pool()).collect::<Result<_, _>>()?))
    }

    /// The mean loss of all rows and its gradients.
    fn gradients(
        &self,
        model: &Model,
        vars: &BTreeMap<String, Var>,
        rows: &[Row],
    ) -> Result<(f64, GradStore)> {
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
        let (mut loss, mut total) = parts.next().context("a batch has no rows")?;
        for (part_loss, part) in parts {
            loss += part_loss;
            for var in vars.values() {
                if let (Some(a), Some(b)) = (total.get(var), part.get(var)) {
                    let sum = (a + b)?;
                    total.insert(var, sum);
                }
            }
        }
        Ok((loss, total))
    }
}

/// The part of a batch's mean loss that `rows` contribute, with gradients.
fn backward(model: &Model, rows: &[Row], batch: usize) -> Result<(f64, GradStore)> {
    let t = rows[0].starts.len();
    let inputs: Vec<u32> = rows.iter().flat_map(|row| &row.tokens[..t]).copied().collect();
    let targets: Vec<u32> = rows.iter().flat_map(|row| &row.tokens[1..]).copied().collect();
    let starts: Vec<usize> = rows.iter().flat_map(|row| &row.starts).copied().collect();
    let ids = Tensor::from_vec(inputs, (rows.len(), t), &Device::Cpu)?;
    let logits = model.logits(&model.hidden(&ids, &starts.into())?)?;
    let share = rows.len() as f64 / batch as f64;
    let loss = (logits.apply_op1(CrossEntropy { targets })? * share)?;
    Ok((f64::from(loss.to_scalar::<f32>()?), loss.backward()?))
}

/// Scales all gradients so that their common norm is at most [`MAX_GRAD_NORM`].
fn clip(vars: &BTreeMap<String, Var>, grads: &mut GradStore) -> Result<()> {
    let mut square = 0.0;
    for (name, var) in vars {
        let grad = grads.get(var).with_context(|| format!("no gradient reaches {name}"))?;
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
    Ok(())
}
