//! The decoder over a ragged batch: x ← embed; per layer x ← x + attention(norm(x)), x ← x + mlp(norm(x)); logits from
//! norm(x). One graph for every architecture of [`super::architecture`], whose tables say which norms, factors and
//! biases there are. Source: transformers 5.17 `models/*/modeling_*.py`.
//!
//! Rows of a batch are tokens of several paths, without padding; a path may continue rows of another or the cache.
//! No row's result depends on the others.

use super::config::ModelConfig;
use super::error::ModelError;
use super::experts::ExpertWork;
use super::graph::Graph;
use super::kv_cache::{KvCache, Stored};
use super::layer::{Layer, Mlp, MlpWork, Norms};
use super::linear::LinearGroup;
use super::placement::InMemory;
use super::rope::Rope;
use crate::checkpoint::Checkpoint;
use crate::ops::attention::{self, Scores, Segment, Sequence};
use crate::ops::buffer::Buffer;
use crate::ops::elementary;
use crate::ops::kernel_path::KernelPath;
use crate::ops::log_softmax::{HeadQuery, HeadRow, log_softmax};
use crate::ops::rms_norm::{residual, rms_norm, rms_norm_parts, rms_norm_rounded};
use crate::ops::rope::{RopeTable, RotatedHeads, rope};
use crate::ops::unit_rows::RoundedRows;

/// A loaded model.
pub struct Decoder {
    graph: Graph,
    path: KernelPath,
}

/// New tokens of several paths, and what they continue.
#[derive(Debug, Default)]
pub struct RaggedBatch {
    /// Token of each row: \[T\].
    pub tokens: Vec<u32>,
    /// Position of each row: \[T\].
    pub positions: Vec<u32>,
    /// Rows by path.
    pub sequences: Vec<Sequence>,
    /// Keys of each sequence.
    pub segments: Vec<Segment>,
    /// Rows whose hidden state is returned, ascending: \[R\].
    pub logit_rows: Vec<usize>,
    /// Rows that the cache keeps; what is in its other slots stays.
    pub stored: Vec<Stored>,
    /// Whether these are inputs longer than [`ModelConfig::longest_short_input`], which rotate all positions
    /// differently: neither batch nor cache may mix them with shorter ones.
    pub long: bool,
}

/// Buffers of a forward pass, reused by the next.
#[derive(Default)]
pub struct Workspace {
    x: Buffer,
    h: Buffer,
    y: Buffer,
    qkv: Buffer,
    keys: Buffer,
    attended: Buffer,
    gate_up: Buffer,
    gated: Buffer,
    quantized: Buffer,
    experts: ExpertWork,
}

impl Decoder {
    /// Loads every tensor of the checkpoint.
    pub fn load(checkpoint: &Checkpoint, path: KernelPath) -> Result<Self, ModelError> {
        let config = ModelConfig::parse(checkpoint.config())?;
        let graph = Graph::load(checkpoint, config, path.dtype(), &InMemory)?;
        Ok(Self { graph, path })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.graph.config
    }

    /// The kernels in use.
    pub fn path(&self) -> KernelPath {
        self.path
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.graph.heads, self.graph.layers.len())
    }

    /// The group that holds the linear module `name`, e.g. `model.layers.0.mlp.up_proj`.
    pub fn linear(&self, name: &str) -> Option<&LinearGroup> {
        self.linears().find(|group| group.columns(name).is_some())
    }

    /// All linear modules, grouped.
    fn linears(&self) -> impl Iterator<Item = &LinearGroup> {
        self.graph.layers.iter().flat_map(Layer::linears).chain([&self.graph.head])
    }

    /// Begins to observe the inputs of all linear modules, or ends; see [`Decoder::take_input_amax`].
    pub fn observe_inputs(&self, is_on: bool) {
        self.linears().for_each(|group| group.observer().set(is_on));
    }

    /// Each linear module with the largest magnitude of its inputs since the last time: NaN or infinite if one of them
    /// was, `None` if there was none.
    pub fn take_input_amax(&self) -> Vec<(String, Option<f32>)> {
        let of_group = |group: &LinearGroup| {
            let amax = group.observer().take();
            group.names().map(|name| (name.to_owned(), amax)).collect::<Vec<_>>()
        };
        self.linears().flat_map(of_group).collect()
    }

    /// Hidden states after the last normalization at `batch.logit_rows`: \[R, hidden\].
    pub fn forward(&self, batch: &RaggedBatch, cache: &mut KvCache, work: &mut Workspace) -> Vec<f32> {
        let hidden = self.graph.config.hidden_size;
        let mut rows = batch.tokens.len();
        work.reserve(self, rows);
        self.embed(&batch.tokens, &mut work.x);
        let tables = self.rope_tables(batch);
        for (i, layer) in self.graph.layers.iter().enumerate() {
            let takes_rounded = layer.qkv.takes_rounded();
            let x = self.enter(layer.attention_norms.pre.as_deref(), i > 0, takes_rounded, rows, work);
            let is_last = i + 1 == self.graph.layers.len();
            let attended = self.attend(i, x.as_ref(), !is_last, batch, &tables, cache, work);
            if is_last {
                if batch.logit_rows.is_empty() {
                    // Keys and values were all that was asked for.
                    return Vec::new();
                }
                // Nobody reads the other rows from here on.
                let width = self.graph.heads.heads * self.graph.heads.head_dim;
                compact(&mut work.x, hidden, &batch.logit_rows);
                compact(&mut work.attended, width, &batch.logit_rows);
                rows = batch.logit_rows.len();
            }
            match &attended {
                Some(x) => layer.output.forward_rounded(self.path, x, rows, &mut work.y),
                None => {
                    layer.output.forward(self.path, &work.attended, rows, &mut work.quantized, &mut work.y);
                }
            }
            self.leave(&layer.attention_norms, rows, work);
            let takes_rounded = matches!(&layer.mlp, Mlp::Dense(mlp) if mlp.takes_rounded());
            let x = self.enter(layer.mlp_norms.pre.as_deref(), true, takes_rounded, rows, work);
            self.feed_forward(&layer.mlp, x.as_ref(), rows, work);
            self.leave(&layer.mlp_norms, rows, work);
        }
        self.enter(Some(&self.graph.norm), true, false, rows, work);
        let states = work.h[..rows * hidden].to_vec();
        // The head reads them in another place.
        self.graph.head.observer().see(&states, rows);
        states
    }

    /// Log-probabilities at rows of hidden states \[R, hidden\].
    pub fn log_softmax(&self, hidden: &[f32], query: &HeadQuery<'_>) -> (Vec<HeadRow>, Vec<f32>) {
        let (matrix, input) = self.graph.head.single();
        log_softmax(self.path, hidden, matrix, input, self.graph.config.logit_map, query)
    }

    /// x \[T, hidden\] ← embedding rows.
    fn embed(&self, tokens: &[u32], x: &mut [f32]) {
        let hidden = self.graph.config.hidden_size;
        for (token, row) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            let table = self.graph.embedding.as_ref().unwrap_or_else(|| self.graph.head.single().0);
            table.copy_row(*token as usize, row);
            if self.graph.config.embedding_scale != 1.0 {
                elementary::scale(self.path, row, self.graph.config.embedding_scale);
            }
        }
    }

    /// Angles of the batch's positions for each rotary embedding.
    fn rope_tables(&self, batch: &RaggedBatch) -> Vec<RopeTable> {
        let positions = batch.positions.iter().map(|p| *p as usize);
        let positions = positions.clone().min().unwrap_or(0)..positions.max().map_or(0, |p| p + 1);
        let table = |rope: &Rope| {
            RopeTable::new(&rope.inverse_frequencies(batch.long), rope.attention_factor(), positions.clone())
        };
        self.graph.config.ropes.iter().map(table).collect()
    }

    /// x ← x + y of the block before, if there is one, and the normalized x to `work.h`, or rounded for the next product.
    /// The sum is taken in the pass that reads x anyway, unless it is scaled.
    fn enter(
        &self,
        norm: Option<&[f32]>,
        add: bool,
        rounded: bool,
        rows: usize,
        work: &mut Workspace,
    ) -> Option<RoundedRows> {
        let (path, size) = (self.path, rows * self.graph.config.hidden_size);
        let (x, h, scale) = (&mut work.x[..size], &mut work.h[..size], self.graph.config.residual_scale);
        let mut y = add.then_some(&work.y[..size]);
        if let Some(scaled) = y.filter(|_| scale != 1.0 || norm.is_none()) {
            residual(path, x, scaled, scale, None);
            y = None;
        }
        match norm {
            Some(w) if rounded => {
                return Some(rms_norm_rounded(path, x, y, w, self.graph.config.rms_norm_eps));
            }
            Some(w) => rms_norm(path, x, y, w, self.graph.config.rms_norm_eps, h),
            None => h.copy_from_slice(x),
        }
        None
    }

    /// Normalizes a block's output in `work.y` where the architecture does.
    fn leave(&self, norms: &Norms, rows: usize, work: &mut Workspace) {
        if let Some(w) = &norms.post {
            let hidden = self.graph.config.hidden_size;
            let y = &mut work.y[..rows * hidden];
            rms_norm_parts(self.path, y, hidden, 0..hidden, w, self.graph.config.rms_norm_eps);
        }
    }

    /// From rounded rows, or `work.h`, to `work.y`.
    fn feed_forward(&self, mlp: &Mlp, x: Option<&RoundedRows>, rows: usize, work: &mut Workspace) {
        let Workspace { h, y, gate_up, gated, quantized, experts, .. } = work;
        let (path, activation) = (self.path, self.graph.config.activation);
        let mut room = MlpWork { path, activation, gate_up, gated, quantized };
        match (mlp, x) {
            (Mlp::Dense(mlp), Some(x)) => mlp.forward_rounded(x, rows, path, activation, y),
            (Mlp::Dense(mlp), None) => mlp.forward(h, rows, &mut room, y),
            (Mlp::Experts(block), _) => block.forward(h, rows, experts, &mut room, y),
        }
    }

    /// From rounded rows, or `work.h`, to `work.attended`, or rounded where the next product takes that and it may be;
    /// and the layer's share of the cache.
    #[expect(clippy::too_many_arguments, reason = "one step of the graph")]
    fn attend(
        &self,
        index: usize,
        x: Option<&RoundedRows>,
        may_round: bool,
        batch: &RaggedBatch,
        tables: &[RopeTable],
        cache: &mut KvCache,
        work: &mut Workspace,
    ) -> Option<RoundedRows> {
        let (layer, shape, eps) =
            (&self.graph.layers[index], self.graph.heads, self.graph.config.rms_norm_eps);
        let (rows, stride) = (batch.tokens.len(), shape.qkv_columns());
        match x {
            Some(x) => layer.qkv.forward_rounded(self.path, x, rows, &mut work.qkv),
            None => layer.qkv.forward(self.path, &work.h, rows, &mut work.quantized, &mut work.qkv),
        }
        let qkv = &mut work.qkv[..rows * stride];
        if let Some([of_queries, of_keys]) = &layer.qk_norms {
            rms_norm_parts(self.path, qkv, stride, 0..shape.key_column(), of_queries, eps);
            rms_norm_parts(self.path, qkv, stride, shape.key_column()..shape.value_column(), of_keys, eps);
        }
        if let Some(table) = layer.config.rope.and_then(|rope| tables.get(rope)) {
            let rotated =
                RotatedHeads { heads: shape.heads + shape.kv_heads, head_dim: shape.head_dim, stride };
            rope(self.path, qkv, rotated, &batch.positions, table);
        }
        attention::pack_keys(shape, &work.qkv, &batch.sequences, &mut work.keys);
        let inputs = attention::Batch {
            shape,
            scores: Scores {
                scale: self.graph.config.attention_scale,
                softcap: self.graph.config.attention_softcap,
                window: layer.config.window,
            },
            qkv: &work.qkv,
            keys: &work.keys,
            cache: cache.layer(index),
            sequences: &batch.sequences,
            segments: &batch.segments,
        };
        let rounded = if may_round && layer.output.takes_rounded() && shape.head_dim.is_multiple_of(32) {
            Some(attention::attention_rounded(self.path, &inputs))
        } else {
            attention::attention(self.path, &inputs, &mut work.attended);
            None
        };
        cache.update(index, &work.qkv, &batch.stored);
        rounded
    }
}

impl Workspace {
    fn reserve(&mut self, decoder: &Decoder, rows: usize) {
        let (hidden, inner) = (decoder.graph.config.hidden_size, decoder.graph.inner);
        let width = decoder.graph.heads.heads * decoder.graph.heads.head_dim;
        for buffer in [&mut self.x, &mut self.h, &mut self.y] {
            buffer.ensure(rows * hidden);
        }
        self.qkv.ensure(rows * decoder.graph.heads.qkv_columns());
        self.attended.ensure(rows * width);
        self.gate_up.ensure(rows * 2 * inner);
        self.gated.ensure(rows * inner);
        self.quantized.ensure(rows * hidden.max(inner).max(width));
    }
}

/// Moves rows `rows` (ascending) of x \[T, k\] to its front.
fn compact(x: &mut [f32], k: usize, rows: &[usize]) {
    for (to, from) in rows.iter().enumerate() {
        x.copy_within(from * k..(from + 1) * k, to * k);
    }
}
