//! Mixture of experts: y = Σ_e p_e · expert_e(x) over the `per_token` experts with the largest router probability,
//! p = softmax(x · Rᵀ), perhaps divided by the sum of the chosen ones; a shared expert s is added as
//! σ(x · gᵀ) · s(x). Sources: transformers 5.17 `modeling_mixtral.py`, `modeling_qwen2_moe.py`, `modeling_qwen3_moe.py`.
//!
//! The rows of an expert are gathered and multiplied together. A row's products do not depend on the other rows
//! ([`crate::ops::linear`]), and its experts are added in ascending order, so neither does its result.

use super::architecture::Experts;
use super::config::{ExpertsConfig, ModelConfig};
use super::error::ModelError;
use super::layer::{GatedMlp, MlpWork};
use super::linear::LinearGroup;
use super::placement::{InMemory, Placement};
use super::weights::Weights;
use crate::ops::buffer::Buffer;
use crate::ops::elementary;
use crate::ops::kernel_path::KernelPath;

/// Experts of one layer.
pub(super) struct ExpertBlock<P: Placement = InMemory> {
    pub config: ExpertsConfig,
    hidden: usize,
    pub router: P::Linear,
    pub experts: Vec<GatedMlp<P>>,
    /// The gate of the expert that every row goes through, and that expert.
    pub shared: Option<(P::Linear, GatedMlp<P>)>,
}

/// Buffers of a forward pass.
#[derive(Default)]
pub(super) struct ExpertWork {
    /// Router logits \[T, E\].
    logits: Buffer,
    /// Inputs of one expert.
    gathered: Buffer,
    /// Outputs of one expert.
    outputs: Buffer,
    /// For each expert, the rows that chose it and the weight of their choice.
    chosen: Vec<Vec<(usize, f32)>>,
}

impl<P: Placement> ExpertBlock<P> {
    pub fn load(
        place: &P,
        weights: &Weights<'_>,
        config: &ModelConfig,
        experts: &ExpertsConfig,
        names: &Experts,
        layer: usize,
    ) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        // transformers 5 has one name for the block in memory, and files with stacked experts have that.
        let stacked = format!("model.layers.{layer}.mlp.experts");
        let is_stacked = weights.has(&format!("{stacked}.gate_up_proj"));
        let parent = if is_stacked { "mlp" } else { names.block };
        let parent = format!("model.layers.{layer}.{parent}");
        let single =
            |name: &str, n: usize| place.linear(weights, &[(format!("{parent}.{name}"), n)], hidden, false);
        let shared = experts.shared_width.map(|width| {
            let shared = GatedMlp::load(place, weights, config, &format!("{parent}.shared_expert"), width)?;
            Ok::<_, ModelError>((single("shared_expert_gate", 1)?, shared))
        });
        Ok(Self {
            config: *experts,
            hidden,
            router: single("gate", experts.count)?,
            experts: if is_stacked {
                load_stacked(place, weights, &stacked, experts, hidden)?
            } else {
                (0..experts.count)
                    .map(|i| {
                        let parent = format!("{parent}.experts.{i}");
                        load_expert(place, weights, &parent, names, experts.width, hidden)
                    })
                    .collect::<Result<_, _>>()?
            },
            shared: shared.transpose()?,
        })
    }

    /// The largest inner width.
    pub fn inner(&self) -> usize {
        self.config.width.max(self.config.shared_width.unwrap_or(0))
    }
}

impl ExpertBlock {
    /// Its linear modules, grouped.
    pub fn linears(&self) -> impl Iterator<Item = &LinearGroup> {
        let shared = self.shared.iter().flat_map(|(gate, mlp)| [gate, &mlp.gate_up, &mlp.down]);
        let experts = self.experts.iter().flat_map(|mlp| [&mlp.gate_up, &mlp.down]);
        std::iter::once(&self.router).chain(shared).chain(experts)
    }

    /// y \[rows, hidden\] from x \[rows, hidden\].
    pub fn forward(
        &self,
        x: &[f32],
        rows: usize,
        work: &mut ExpertWork,
        mlp: &mut MlpWork<'_>,
        y: &mut [f32],
    ) {
        let (hidden, path) = (self.hidden, mlp.path);
        self.route(x, rows, work, mlp);
        let y = &mut y[..rows * hidden];
        y.fill(0.0);
        work.gathered.ensure(rows * hidden);
        work.outputs.ensure(rows * hidden);
        for (expert, chosen) in self.experts.iter().zip(&work.chosen) {
            if chosen.is_empty() {
                continue;
            }
            for (to, (row, _)) in work.gathered.chunks_exact_mut(hidden).zip(chosen) {
                to.copy_from_slice(&x[row * hidden..][..hidden]);
            }
            expert.forward(&work.gathered, chosen.len(), mlp, &mut work.outputs);
            for (out, (row, weight)) in work.outputs.chunks_exact(hidden).zip(chosen) {
                elementary::add_scaled(path, &mut y[row * hidden..][..hidden], out, *weight);
            }
        }
        let Some((gate, shared)) = &self.shared else { return };
        gate.forward(path, x, rows, mlp.quantized, &mut work.logits);
        shared.forward(x, rows, mlp, &mut work.outputs);
        for ((y, out), z) in
            y.chunks_exact_mut(hidden).zip(work.outputs.chunks_exact(hidden)).zip(work.logits.iter())
        {
            let sigmoid = (1.0 / (1.0 + (-f64::from(*z)).exp())) as f32;
            elementary::add_scaled(path, y, out, sigmoid);
        }
    }

    /// Fills `work.chosen`.
    fn route(&self, x: &[f32], rows: usize, work: &mut ExpertWork, mlp: &mut MlpWork<'_>) {
        let path = mlp.path;
        let count = self.config.count;
        work.logits.ensure(rows * count);
        work.chosen.resize_with(count, Vec::new);
        work.chosen.iter_mut().for_each(Vec::clear);
        self.router.forward(path, x, rows, mlp.quantized, &mut work.logits);
        for (row, logits) in work.logits.chunks_exact_mut(count).take(rows).enumerate() {
            for (expert, p) in choose(path, self.config, logits) {
                work.chosen[expert].push((row, p));
            }
        }
    }
}

/// The experts of a row with these router logits, which become probabilities, and their weights; the likeliest first.
pub(super) fn choose(path: KernelPath, config: ExpertsConfig, logits: &mut [f32]) -> Vec<(usize, f32)> {
    let max = elementary::max(path, logits);
    let sum = elementary::exp_sub_sum(path, logits, max);
    for p in logits.iter_mut() {
        *p /= sum;
    }
    let mut chosen = largest(logits, config.per_token);
    let total: f32 = if config.normalized { chosen.iter().map(|(_, p)| p).sum() } else { 1.0 };
    for (_, p) in &mut chosen {
        *p /= total;
    }
    chosen
}

/// The `n` largest probabilities with their experts, largest first; the first of equals.
fn largest(probabilities: &[f32], n: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<(usize, f32)> = probabilities.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    order.truncate(n);
    order
}

/// One expert's modules, each a tensor of its own.
fn load_expert<P: Placement>(
    place: &P,
    weights: &Weights<'_>,
    parent: &str,
    names: &Experts,
    width: usize,
    hidden: usize,
) -> Result<GatedMlp<P>, ModelError> {
    let [gate, up, down] = names.parts.map(|part| format!("{parent}.{part}"));
    Ok(GatedMlp {
        gate_up: place.linear(weights, &[(gate, width), (up, width)], hidden, false)?,
        down: place.linear(weights, &[(down, hidden)], width, false)?,
        inner: width,
    })
}

/// All experts from two tensors: `gate_up_proj` \[E, 2·width, hidden\], gate above up, and `down_proj`
/// \[E, hidden, width\].
fn load_stacked<P: Placement>(
    place: &P,
    weights: &Weights<'_>,
    parent: &str,
    experts: &ExpertsConfig,
    hidden: usize,
) -> Result<Vec<GatedMlp<P>>, ModelError> {
    let ExpertsConfig { count, width, .. } = *experts;
    let module = |i: usize, part: &str, n: usize, k: usize| {
        let rows = weights.rows(&format!("{parent}.{part}"), &[count, n, k], i * n..(i + 1) * n)?;
        place.module(weights, &format!("{parent}.{i}.{part}"), &rows, k)
    };
    (0..count)
        .map(|i| {
            let gate_up = module(i, "gate_up_proj", 2 * width, hidden)?;
            Ok(GatedMlp { gate_up, down: module(i, "down_proj", hidden, width)?, inner: width })
        })
        .collect()
}
