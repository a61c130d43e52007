//! The llama decoder over a ragged batch: x ← embed; per layer x ← x + attention(norm(x)), x ← x + mlp(norm(x));
//! logits from norm(x). Source: transformers 5.17 `models/llama/modeling_llama.py`.
//!
//! Rows of a batch are tokens of several paths, without padding; a path may continue rows of another or the cache.
//! No row's result depends on the others.

use super::config::ModelConfig;
use super::error::ModelError;
use super::kv_cache::{KvCache, Stored};
use super::linear::LinearGroup;
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::ops::activation_quant;
use crate::ops::attention::{self, HeadShape, Segment, Sequence};
use crate::ops::buffer::Buffer;
use crate::ops::kernel_path::KernelPath;
use crate::ops::log_softmax::{HeadQuery, HeadRow, log_softmax};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rope::{RopeTable, rope};
use crate::ops::silu_mul::silu_mul;

/// A loaded model.
pub struct Decoder {
    config: ModelConfig,
    path: KernelPath,
    heads: HeadShape,
    inverse_frequencies: Vec<f32>,
    /// \[V, hidden\], or `None` when rows come from the head.
    embedding: Option<Vec<f32>>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: LinearGroup,
}

struct Layer {
    attention_norm: Vec<f32>,
    qkv: LinearGroup,
    output: LinearGroup,
    mlp_norm: Vec<f32>,
    gate_up: LinearGroup,
    down: LinearGroup,
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
}

impl Decoder {
    /// Loads every tensor of the checkpoint.
    pub fn load(checkpoint: &Checkpoint, path: KernelPath) -> Result<Self, ModelError> {
        let config = ModelConfig::parse(checkpoint.config())?;
        let weights = Weights::new(checkpoint)?;
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let table = weights.tensor("model.embed_tokens.weight", &[vocab, hidden])?;
        let (embedding, head) = if config.tie_word_embeddings {
            (None, LinearGroup::dense("lm_head", &table, hidden))
        } else {
            (Some(table), LinearGroup::load(&weights, &[("lm_head".to_owned(), vocab)], hidden)?)
        };
        let layers: Result<_, _> =
            (0..config.num_hidden_layers).map(|i| Layer::load(&weights, &config, i)).collect();
        let layers = layers?;
        let norm = weights.tensor("model.norm.weight", &[hidden])?;
        // transformers overwrites a stored head by the embedding when they are tied.
        let allowed: &[&str] = if config.tie_word_embeddings { &["lm_head.weight"] } else { &[] };
        weights.finish(&config.architecture, allowed)?;
        Ok(Self {
            heads: HeadShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            inverse_frequencies: config.rope.inverse_frequencies(config.head_dim),
            path,
            embedding,
            layers,
            norm,
            head,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The kernels in use.
    pub fn path(&self) -> KernelPath {
        self.path
    }

    /// An empty cache for this model.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.heads, self.layers.len())
    }

    /// The group that holds the linear module `name`, e.g. `model.layers.0.mlp.up_proj`.
    pub fn linear(&self, name: &str) -> Option<&LinearGroup> {
        let groups = self.layers.iter().flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        groups.chain([&self.head]).find(|group| group.columns(name).is_some())
    }

    /// Hidden states after the last normalization at `batch.logit_rows`: \[R, hidden\].
    pub fn forward(&self, batch: &RaggedBatch, cache: &mut KvCache, work: &mut Workspace) -> Vec<f32> {
        let (hidden, eps, path) = (self.config.hidden_size, self.config.rms_norm_eps, self.path);
        let mut rows = batch.tokens.len();
        work.reserve(self, rows);
        self.embed(&batch.tokens, &mut work.x);
        let positions = batch.positions.iter().map(|p| *p as usize);
        let positions = positions.clone().min().unwrap_or(0)..positions.max().map_or(0, |p| p + 1);
        let table = RopeTable::new(&self.inverse_frequencies, positions);
        for (i, layer) in self.layers.iter().enumerate() {
            // The sum of the layer before is added here, in the pass that reads x anyway.
            let y = (i > 0).then_some(&work.y[..rows * hidden]);
            rms_norm(
                path,
                &mut work.x[..rows * hidden],
                y,
                &layer.attention_norm,
                eps,
                &mut work.h[..rows * hidden],
            );
            self.attend(layer, i, batch, &table, cache, work);
            if i + 1 == self.layers.len() {
                // Nobody reads the other rows from here on.
                let width = self.heads.heads * self.heads.head_dim;
                compact(&mut work.x, hidden, &batch.logit_rows);
                compact(&mut work.attended, width, &batch.logit_rows);
                rows = batch.logit_rows.len();
            }
            layer.output.forward(path, &work.attended, rows, &mut work.quantized, &mut work.y);
            let (x, h) = (&mut work.x[..rows * hidden], &mut work.h[..rows * hidden]);
            rms_norm(path, x, Some(&work.y[..rows * hidden]), &layer.mlp_norm, eps, h);
            layer.gate_up.forward(path, &work.h, rows, &mut work.quantized, &mut work.gate_up);
            let inner = self.config.intermediate_size;
            silu_mul(path, &work.gate_up[..2 * rows * inner], inner, &mut work.gated[..rows * inner]);
            layer.down.forward(path, &work.gated, rows, &mut work.quantized, &mut work.y);
        }
        let mut out = vec![0.0; rows * hidden];
        let (x, y) = (&mut work.x[..rows * hidden], &work.y[..rows * hidden]);
        rms_norm(path, x, Some(y), &self.norm, eps, &mut out);
        out
    }

    /// Log-probabilities at rows of hidden states \[R, hidden\].
    pub fn log_softmax(&self, hidden: &[f32], query: &HeadQuery<'_>) -> (Vec<HeadRow>, Vec<f32>) {
        let (matrix, input) = self.head.single();
        match input {
            None => log_softmax(self.path, hidden, matrix, query),
            Some(kind) => {
                let mut quantized = vec![0.0; hidden.len()];
                activation_quant::fake_quantize(self.path, kind, hidden, matrix.k(), &mut quantized);
                log_softmax(self.path, &quantized, matrix, query)
            }
        }
    }

    /// x \[T, hidden\] ← embedding rows.
    fn embed(&self, tokens: &[u32], x: &mut [f32]) {
        let hidden = self.config.hidden_size;
        for (token, row) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            match &self.embedding {
                Some(table) => row.copy_from_slice(&table[*token as usize * hidden..][..hidden]),
                None => self.head.single().0.copy_row(*token as usize, row),
            }
        }
    }

    /// From `work.h` to `work.attended`, and the layer's share of the cache.
    fn attend(
        &self,
        layer: &Layer,
        index: usize,
        batch: &RaggedBatch,
        table: &RopeTable,
        cache: &mut KvCache,
        work: &mut Workspace,
    ) {
        let (rows, columns) = (batch.tokens.len(), self.heads.qkv_columns());
        layer.qkv.forward(self.path, &work.h, rows, &mut work.quantized, &mut work.qkv);
        let rotated = self.heads.heads + self.heads.kv_heads;
        rope(self.path, &mut work.qkv[..rows * columns], columns, rotated, &batch.positions, table);
        attention::pack_keys(self.heads, &work.qkv, &batch.sequences, &mut work.keys);
        let inputs = attention::Batch {
            shape: self.heads,
            qkv: &work.qkv,
            keys: &work.keys,
            cache: cache.layer(index),
            sequences: &batch.sequences,
            segments: &batch.segments,
        };
        attention::attention(self.path, &inputs, &mut work.attended);
        cache.update(index, &work.qkv, &batch.stored);
    }
}

impl Layer {
    fn load(weights: &Weights<'_>, config: &ModelConfig, index: usize) -> Result<Self, ModelError> {
        let name = |module: &str| format!("model.layers.{index}.{module}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let linear = |modules: &[(&str, usize)], k: usize| {
            let modules: Vec<_> = modules.iter().map(|(module, n)| (name(module), *n)).collect();
            LinearGroup::load(weights, &modules, k)
        };
        Ok(Self {
            attention_norm: weights.tensor(&name("input_layernorm.weight"), &[hidden])?,
            qkv: linear(
                &[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
                hidden,
            )?,
            output: linear(&[("self_attn.o_proj", hidden)], q)?,
            mlp_norm: weights.tensor(&name("post_attention_layernorm.weight"), &[hidden])?,
            gate_up: linear(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden)?,
            down: linear(&[("mlp.down_proj", hidden)], inner)?,
        })
    }
}

impl Workspace {
    fn reserve(&mut self, decoder: &Decoder, rows: usize) {
        let (hidden, inner) = (decoder.config.hidden_size, decoder.config.intermediate_size);
        let width = decoder.heads.heads * decoder.heads.head_dim;
        for buffer in [&mut self.x, &mut self.h, &mut self.y] {
            buffer.ensure(rows * hidden);
        }
        self.qkv.ensure(rows * decoder.heads.qkv_columns());
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
