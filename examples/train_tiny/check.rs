//! Measures what the tasks say about the model: accuracy, flips under simulated schemes, bits per byte.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use super::fused::log_sum_exp;
use super::model::{Config, Model};
use super::schemes::SCHEMES;
use super::tasks::{Document, Item, Suite, TASKS};
use super::tokenizer::{END_OF_TEXT_ID, choice_id, encode};

/// The margin of accuracy in the default policy.
pub const MARGIN: f64 = 0.01;
/// One-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.645;
/// Rows a forward pass.
const ROWS: usize = 64;

/// One task under one scheme.
pub struct TaskRow {
    /// Task.
    pub task: &'static str,
    /// Items.
    pub n: usize,
    /// Baseline accuracy.
    pub baseline: f64,
    /// Accuracy under the scheme.
    pub candidate: f64,
    /// Share of items whose correctness differs, ψ.
    pub flip_rate: f64,
    /// Share of items whose chosen answer differs.
    pub changed: f64,
}

impl TaskRow {
    /// Upper 95 % bound of the drop: `drop + z · √(ψ/n)`.
    pub fn drop_upper(&self) -> f64 {
        self.baseline - self.candidate + Z * (self.flip_rate / self.n as f64).sqrt()
    }

    /// Items that the flip rate asks for: 16 · ψ / margin².
    pub fn n_needed(&self) -> f64 {
        (16.0 * self.flip_rate / (MARGIN * MARGIN)).ceil()
    }
}

/// One scheme against the baseline.
pub struct SchemeReport {
    /// Recipe name.
    pub scheme: &'static str,
    /// Multiple choice.
    pub rows: Vec<TaskRow>,
    /// Bits per byte under the scheme.
    pub bits_per_byte: f64,
    /// Relative change of bits per byte.
    pub relative_change: f64,
    /// Its upper 95 % bound, paired per document.
    pub relative_upper: f64,
}

/// Everything measured.
pub struct Report {
    /// Tokens one arm forwards.
    pub tokens_per_arm: usize,
    /// Baseline bits per byte.
    pub bits_per_byte: f64,
    /// One entry a scheme.
    pub schemes: Vec<SchemeReport>,
}

/// Scores the stored weights and every simulated scheme.
pub fn check(
    config: &Config,
    weights: &std::collections::BTreeMap<String, Tensor>,
    tokenizer: &Tokenizer,
    suite: &Suite,
) -> Result<Report> {
    let tokens_per_arm = suite.check(tokenizer)?;
    let baseline = Model { config: config.clone(), weights: weights.clone(), activations: None };
    let baseline = Scores::of(&baseline, tokenizer, suite)?;
    let schemes = SCHEMES
        .iter()
        .map(|scheme| {
            let candidate = Scores::of(&scheme.apply(config, weights)?, tokenizer, suite)?;
            Ok(compare(scheme.name, suite, &baseline, &candidate))
        })
        .collect::<Result<_>>()?;
    Ok(Report { tokens_per_arm, bits_per_byte: baseline.bits_per_byte(suite), schemes })
}

/// Accuracies in per cent, in the order of the tasks.
pub fn glance(model: &Model, tokenizer: &Tokenizer, suite: &Suite) -> Result<String> {
    let mut text = String::from("acc");
    for items in &suite.tasks {
        let chosen = choose(model, tokenizer, items)?;
        let right = chosen.iter().zip(items).filter(|(choice, item)| **choice == item.label).count();
        let _ = write!(text, " {:.0}", 100.0 * right as f64 / items.len() as f64);
    }
    Ok(text)
}

/// One arm: the chosen answers, and the bits of each document.
struct Scores {
    chosen: Vec<Vec<usize>>,
    bits: Vec<f64>,
}

impl Scores {
    fn of(model: &Model, tokenizer: &Tokenizer, suite: &Suite) -> Result<Self> {
        let chosen =
            suite.tasks.iter().map(|items| choose(model, tokenizer, items)).collect::<Result<_>>()?;
        let bits =
            suite.documents.par_iter().map(|d| document_bits(model, tokenizer, d)).collect::<Result<_>>()?;
        Ok(Self { chosen, bits })
    }

    fn bits_per_byte(&self, suite: &Suite) -> f64 {
        let bytes: usize = suite.documents.iter().map(|d| d.page.len()).sum();
        self.bits.iter().sum::<f64>() / bytes as f64
    }
}

fn compare(scheme: &'static str, suite: &Suite, baseline: &Scores, candidate: &Scores) -> SchemeReport {
    let rows = TASKS
        .iter()
        .zip(&suite.tasks)
        .zip(baseline.chosen.iter().zip(&candidate.chosen))
        .map(|((task, items), (a, b))| {
            let share = |hit: &dyn Fn(usize) -> bool| {
                (0..items.len()).filter(|&i| hit(i)).count() as f64 / items.len() as f64
            };
            let right = |chosen: &[usize], i: usize| chosen[i] == items[i].label;
            TaskRow {
                task: task.name,
                n: items.len(),
                baseline: share(&|i| right(a, i)),
                candidate: share(&|i| right(b, i)),
                flip_rate: share(&|i| right(a, i) != right(b, i)),
                changed: share(&|i| a[i] != b[i]),
            }
        })
        .collect();
    // Ratio of totals; its error from the paired residuals of the documents.
    let n = baseline.bits.len() as f64;
    let mean = baseline.bits.iter().sum::<f64>() / n;
    let ratio = candidate.bits.iter().sum::<f64>() / n / mean;
    let residuals = baseline.bits.iter().zip(&candidate.bits).map(|(a, b)| (b - ratio * a).powi(2));
    let error = (residuals.sum::<f64>() / (n - 1.0) / n).sqrt() / mean;
    SchemeReport {
        scheme,
        rows,
        bits_per_byte: candidate.bits_per_byte(suite),
        relative_change: ratio - 1.0,
        relative_upper: ratio - 1.0 + Z * error,
    }
}

/// The choice with the highest log-likelihood for each item: one row of logits, since a choice is one token.
fn choose(model: &Model, tokenizer: &Tokenizer, items: &[Item]) -> Result<Vec<usize>> {
    let mut contexts = items
        .iter()
        .enumerate()
        .map(|(i, item)| Ok((i, encode(tokenizer, &item.context)?)))
        .collect::<Result<Vec<_>>>()?;
    contexts.sort_by_key(|(_, ids)| ids.len());
    let batches: Vec<&[(usize, Vec<u32>)]> =
        contexts.chunk_by(|a, b| a.1.len() == b.1.len()).flat_map(|same| same.chunks(ROWS)).collect();
    let chosen = batches
        .par_iter()
        .map(|batch| {
            let (b, t) = (batch.len(), batch[0].1.len());
            let ids: Vec<u32> = batch.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
            let hidden = model.hidden(&Tensor::from_vec(ids, (b, t), &Device::Cpu)?, &Arc::default())?;
            let last = hidden.reshape((b, t, model.config.hidden_size))?.narrow(1, t - 1, 1)?;
            let logits = model.logits(&last.squeeze(1)?.contiguous()?)?.to_vec2::<f32>()?;
            batch
                .iter()
                .zip(&logits)
                .map(|((i, _), row)| Ok((*i, best(tokenizer, &items[*i].choices, row)?)))
                .collect::<Result<Vec<_>>>()
        })
        .collect::<Result<Vec<_>>>()?;
    let mut chosen = chosen.concat();
    chosen.sort_unstable();
    Ok(chosen.into_iter().map(|(_, choice)| choice).collect())
}

fn best(tokenizer: &Tokenizer, choices: &[String], row: &[f32]) -> Result<usize> {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, choice) in choices.iter().enumerate() {
        let logit = row[choice_id(tokenizer, choice)? as usize];
        if logit > best.1 {
            best = (i, logit);
        }
    }
    Ok(best.0)
}

fn document_bits(model: &Model, tokenizer: &Tokenizer, document: &Document) -> Result<f64> {
    let targets = encode(tokenizer, &document.page)?;
    let mut ids = vec![END_OF_TEXT_ID];
    ids.extend(&targets[..targets.len() - 1]);
    let t = ids.len();
    let logits =
        model.logits(&model.hidden(&Tensor::from_vec(ids, (1, t), &Device::Cpu)?, &Arc::default())?)?;
    let rows = logits.to_vec2::<f32>()?;
    let nats = rows.iter().zip(&targets).map(|(row, &id)| f64::from(log_sum_exp(row) - row[id as usize]));
    Ok(nats.sum::<f64>() / std::f64::consts::LN_2)
}
