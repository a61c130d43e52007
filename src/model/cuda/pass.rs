//! One pass over a batch: the twin of [`super::super::decoder`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::super::config::ModelConfig;
use super::super::decoder::RaggedBatch;
use super::super::layer::{Layer, Mlp, Norms};
use super::super::rope::Rope;
use super::CudaDecoder;
use super::batch::{DeviceBatch, List};
use super::experts::{ExpertRoom, MlpRoom};
use super::linear::On;
use super::place::{OnDevices, Replicated};
use super::session::{DeviceCache, row_bytes};
use super::steps::StepShape;
use crate::device::cuda::{CudaError, Device, DeviceBuffer, Products, Stream};
use crate::ops::attention::{HeadShape, Scores};
use crate::ops::cuda::{
    Act, AttentionInputs, Normalized, RotatedColumns, attention, embed, gather_rows, rms_norm,
    rms_norm_parts, rope, store_cache,
};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::rope::RopeTable;

/// Positions whose angles are uploaded at first, so that a generation seldom needs more.
const FEWEST_ANGLES: usize = 512;

/// Buffers of a pass, reused by the next.
pub(super) struct Pass {
    /// The residual stream, f32, and room for its rows that go on.
    x: [DeviceBuffer; 2],
    h: DeviceBuffer,
    y: DeviceBuffer,
    qkv: DeviceBuffer,
    attended: DeviceBuffer,
    room: MlpRoom,
    experts: ExpertRoom,
    batch: DeviceBatch,
    /// Angles of positions from 0 on, by the kind of input and the rotary embedding: how many positions, and \[P, R\].
    angles: HashMap<(bool, usize), (usize, DeviceBuffer)>,
}

/// What the operations of one pass share.
#[derive(Clone, Copy)]
struct Step<'a> {
    on: On<'a>,
    config: &'a ModelConfig,
    heads: HeadShape,
}

impl Pass {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let empty = || DeviceBuffer::new(device, 1);
        Ok(Self {
            x: [empty()?, empty()?],
            h: empty()?,
            y: empty()?,
            qkv: empty()?,
            attended: empty()?,
            room: MlpRoom::new(device)?,
            experts: ExpertRoom::new(device)?,
            batch: DeviceBatch::new(device)?,
            angles: HashMap::new(),
        })
    }

    /// Hidden states after the last normalization at the batch's logit rows: \[R, hidden\] of activations.
    pub fn states(&self) -> &DeviceBuffer {
        &self.h
    }

    /// Uploads what describes a batch and makes room for it. Returns its shape where it is a generation step whose launches
    /// depend on nothing else.
    pub fn prepare(
        &mut self,
        decoder: &CudaDecoder,
        stream: &Stream,
        cache: &DeviceCache,
        batch: &RaggedBatch,
    ) -> Result<Option<StepShape>, CudaError> {
        let (graph, act) = (&decoder.graph, decoder.act);
        // Experts are chosen in memory in the middle of a pass.
        let has_experts = graph.layers.iter().any(|layer| matches!(layer.mlp, Mlp::Experts(_)));
        let step = StepShape::of(batch).filter(|_| decoder.records_steps && !has_experts);
        self.batch.set(stream, (act, graph.heads.head_dim), batch, step)?;
        self.reserve(&graph.config, act, graph.heads)?;
        for (index, rope) in graph.config.ropes.iter().enumerate() {
            self.prepare_angles(stream, index, rope)?;
        }
        for (layer, cache) in graph.layers.iter().zip(&cache.layers) {
            let scores = scores(&graph.config, layer);
            self.attention_inputs(act, graph.heads, scores, cache).check(&self.attended)?;
        }
        Ok(step)
    }

    /// Queues the pass over the batch that was prepared. Waits for nothing, but for routers of experts.
    pub fn queue(
        &mut self,
        decoder: &CudaDecoder,
        (stream, products): (&Stream, &Products),
        cache: &DeviceCache,
    ) -> Result<(), CudaError> {
        let (graph, act) = (&decoder.graph, decoder.act);
        let on = On { replica: decoder.replica, stream, products, act };
        let step = Step { on, config: &graph.config, heads: graph.heads };
        let (mut rows, hidden) = (self.batch.rows, graph.config.hidden_size);
        let Some(table) = graph.embedding.as_ref().or_else(|| graph.head.table()) else {
            unreachable!("a head that is the embedding is one dense matrix (Graph::load)")
        };
        let dtype = if act == Act::Bf16 { FloatDtype::Bf16 } else { FloatDtype::F32 };
        let scale = graph.config.embedding_scale;
        // SAFETY: buffers are the session's, which waits for its stream before it frees them, and every operation that uses
        // one again is queued behind those before; tokens are below V, as the engine checks.
        unsafe {
            let tokens = self.batch.list(List::Tokens);
            embed(stream, tokens, (table.of(on.replica), dtype), scale, &self.x[0], [rows, hidden])?;
            for (index, layer) in graph.layers.iter().enumerate() {
                self.enter(step, layer.attention_norms.pre.as_ref(), index > 0, rows)?;
                self.attend(step, layer, &cache.layers[index])?;
                if index + 1 == graph.layers.len() {
                    if self.batch.logit_rows == 0 {
                        // Keys and values were all that was asked for.
                        return Ok(());
                    }
                    rows = self.compact(step)?;
                }
                layer.output.forward(on, &self.attended, rows, &mut self.room.linear, &self.y)?;
                self.leave(step, &layer.attention_norms, rows)?;
                self.enter(step, layer.mlp_norms.pre.as_ref(), true, rows)?;
                self.feed_forward(step, &layer.mlp, rows)?;
                self.leave(step, &layer.mlp_norms, rows)?;
            }
            self.enter(step, Some(&graph.norm), true, rows)
        }
    }

    fn reserve(&mut self, config: &ModelConfig, act: Act, heads: HeadShape) -> Result<(), CudaError> {
        let (rows, hidden) = (self.batch.rows, config.hidden_size);
        self.x[0].ensure(rows * hidden * 4)?;
        self.x[1].ensure(rows * hidden * 4)?;
        let widths = [
            (&mut self.h, hidden),
            (&mut self.y, hidden),
            (&mut self.qkv, heads.qkv_columns()),
            // As wide, because the two change places.
            (&mut self.attended, heads.qkv_columns()),
        ];
        for (buffer, width) in widths {
            buffer.ensure(row_bytes(act, rows, width))?;
        }
        Ok(())
    }

    /// Angles of all positions of the batch for one rotary embedding.
    fn prepare_angles(&mut self, stream: &Stream, index: usize, rope: &Rope) -> Result<(), CudaError> {
        let (needed, long) = (self.batch.positions, self.batch.long);
        let make = |positions: usize| {
            let frequencies = rope.inverse_frequencies(long);
            let table = RopeTable::new(&frequencies, rope.attention_factor(), 0..positions);
            let bytes: Vec<u8> = table.data().iter().flat_map(|x| x.to_le_bytes()).collect();
            Ok::<_, CudaError>((positions, stream.upload(&bytes)?))
        };
        let positions = needed.max(FEWEST_ANGLES).next_power_of_two();
        match self.angles.entry((long, index)) {
            Entry::Occupied(known) if known.get().0 >= needed => {}
            Entry::Occupied(mut known) => drop(known.insert(make(positions)?)),
            Entry::Vacant(place) => drop(place.insert(make(positions)?)),
        }
        Ok(())
    }

    /// What the attention of a layer reads.
    fn attention_inputs<'a>(
        &'a self,
        act: Act,
        shape: HeadShape,
        scores: Scores,
        cache: &'a DeviceBuffer,
    ) -> AttentionInputs<'a> {
        let words = [List::Sequences, List::Tasks, List::KeyRows].map(|list| self.batch.list(list));
        AttentionInputs { act, shape, scores, qkv: &self.qkv, cache, lists: &self.batch.paths, words }
    }

    /// x ← x + y of the block before, if there is one, and the normalized x to `h`.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn enter(
        &self,
        step: Step<'_>,
        norm: Option<&Replicated>,
        add: bool,
        rows: usize,
    ) -> Result<(), CudaError> {
        let config = step.config;
        let of = Normalized {
            act: step.on.act,
            rows,
            k: config.hidden_size,
            weight: norm.map(|norm| norm.of(step.on.replica)),
            eps: config.rms_norm_eps,
        };
        let y = add.then_some((&self.y, config.residual_scale));
        // SAFETY: the caller's promise.
        unsafe { rms_norm(step.on.stream, of, &self.x[0], y, Some(&self.h)) }
    }

    /// Normalizes a block's output in `y` where the architecture does.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn leave(&self, step: Step<'_>, norms: &Norms<OnDevices>, rows: usize) -> Result<(), CudaError> {
        let Some(weight) = &norms.post else { return Ok(()) };
        let hidden = step.config.hidden_size;
        // SAFETY: the caller's promise.
        unsafe { normalize_parts(step, (&self.y, rows, hidden), 0..hidden, weight) }
    }

    /// From `h` to `attended`, and the layer's share of the cache.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn attend(
        &mut self,
        step: Step<'_>,
        layer: &Layer<OnDevices>,
        cache: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let Step { on, config, heads } = step;
        let (rows, stride, long) = (self.batch.rows, heads.qkv_columns(), self.batch.long);
        // SAFETY: the caller's promise; the tables have every position, rows and slots exist.
        unsafe {
            layer.qkv.forward(on, &self.h, rows, &mut self.room.linear, &self.qkv)?;
            if let Some([of_queries, of_keys]) = &layer.qk_norms {
                let qkv = (&self.qkv, rows, stride);
                normalize_parts(step, qkv, 0..heads.key_column(), of_queries)?;
                normalize_parts(step, qkv, heads.key_column()..heads.value_column(), of_keys)?;
            }
            let rotary = layer.config.rope.and_then(|i| Some((config.ropes.get(i)?, i)));
            if let Some((of, index)) = rotary {
                let columns = RotatedColumns {
                    rows,
                    heads: heads.heads + heads.kv_heads,
                    head_dim: heads.head_dim,
                    rotary_dim: of.rotary_dim,
                    stride,
                    first_position: 0,
                };
                let table = &self.angles[&(long, index)].1;
                let positions = self.batch.list(List::Positions);
                rope(on.stream, on.act, &self.qkv, columns, positions, table)?;
            }
            let inputs = self.attention_inputs(on.act, heads, scores(config, layer), cache);
            attention(on.stream, &inputs, &self.attended)?;
            let stored = [List::StoredRows, List::StoredSlots].map(|list| self.batch.list(list));
            store_cache(on.stream, (on.act, heads), &self.qkv, cache, stored, self.batch.stored)
        }
    }

    /// Moves the logit rows of `x` and `attended` to their fronts: nobody reads the others from here on. Returns how many
    /// there are. In a step these are all rows, where they are.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn compact(&mut self, step: Step<'_>) -> Result<usize, CudaError> {
        let (stream, heads) = (step.on.stream, step.heads);
        if self.batch.step.is_some() {
            return Ok(self.batch.rows);
        }
        let (count, hidden) = (self.batch.logit_rows, step.config.hidden_size);
        let logit_rows = self.batch.list(List::LogitRows);
        let (width, size) = (heads.heads * heads.head_dim, step.on.act.size());
        let [x, kept] = &self.x;
        // SAFETY: the caller's promise; queries, keys and values are no longer needed, and are wider.
        unsafe {
            gather_rows(stream, x, logit_rows, kept, [count, hidden], 4)?;
            gather_rows(stream, &self.attended, logit_rows, &self.qkv, [count, width], size)?;
        }
        self.x.swap(0, 1);
        std::mem::swap(&mut self.attended, &mut self.qkv);
        Ok(count)
    }

    /// From `h` to `y`.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn feed_forward(
        &mut self,
        step: Step<'_>,
        mlp: &Mlp<OnDevices>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let how = (step.on, step.config.activation);
        // SAFETY: the caller's promise.
        unsafe {
            match mlp {
                Mlp::Dense(mlp) => self.room.forward(how, mlp, (&self.h, rows), &self.y),
                Mlp::Experts(block) => {
                    let h = (&self.h, rows, step.config.hidden_size);
                    self.experts.forward(how, block, h, &mut self.room, &self.y)
                }
            }
        }
    }
}

/// Normalizes columns of rows \[rows, stride\] of activations in parts as wide as the weight.
///
/// # Safety
/// As for the operation.
unsafe fn normalize_parts(
    step: Step<'_>,
    (x, rows, stride): (&DeviceBuffer, usize, usize),
    columns: std::ops::Range<usize>,
    weight: &Replicated,
) -> Result<(), CudaError> {
    let of = Normalized {
        act: step.on.act,
        rows,
        k: weight.len() / size_of::<f32>(),
        weight: Some(weight.of(step.on.replica)),
        eps: step.config.rms_norm_eps,
    };
    // SAFETY: the caller's promise.
    unsafe { rms_norm_parts(step.on.stream, of, x, stride, columns) }
}

/// How a layer's scores are taken.
fn scores(config: &ModelConfig, layer: &Layer<OnDevices>) -> Scores {
    Scores { scale: config.attention_scale, softcap: config.attention_softcap, window: layer.config.window }
}
