//! One pass over a batch: the twin of [`super::super::decoder`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::super::config::ModelConfig;
use super::super::decoder::RaggedBatch;
use super::super::layer::{Layer, Mlp, Norms};
use super::CudaDecoder;
use super::experts::{ExpertRoom, MlpRoom};
use super::linear::On;
use super::place::OnDevice;
use super::session::{DeviceCache, row_bytes};
use crate::device::cuda::{CudaError, Device, DeviceBuffer, Products, Stream};
use crate::ops::attention::{HeadShape, Scores, Source};
use crate::ops::cuda::{
    Act, AttentionInputs, AttentionLists, DeviceSequence, Normalized, RotatedColumns, attention, embed,
    gather_rows, rms_norm, rms_norm_parts, rope, store_cache,
};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::rope::RopeTable;

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
    lists: AttentionLists,
    /// Words that describe the batch.
    tokens: DeviceBuffer,
    positions: DeviceBuffer,
    logit_rows: DeviceBuffer,
    stored: [DeviceBuffer; 2],
    /// Angles of positions from 0 on, by the kind of input and the rotary embedding: how many positions, and \[P, R\].
    angles: HashMap<(bool, usize), (usize, DeviceBuffer)>,
}

/// What the operations of one pass share.
#[derive(Clone, Copy)]
struct Step<'a> {
    on: On<'a>,
    config: &'a ModelConfig,
    heads: HeadShape,
    batch: &'a RaggedBatch,
    /// Rows that are stored.
    stored: usize,
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
            lists: AttentionLists::new(device)?,
            tokens: empty()?,
            positions: empty()?,
            logit_rows: empty()?,
            stored: [empty()?, empty()?],
            angles: HashMap::new(),
        })
    }

    /// Hidden states after the last normalization at the batch's logit rows: \[R, hidden\] of activations.
    pub fn states(&self) -> &DeviceBuffer {
        &self.h
    }

    /// Queues the pass.
    pub fn run(
        &mut self,
        decoder: &CudaDecoder,
        (stream, products): (&Stream, &Products),
        cache: &DeviceCache,
        batch: &RaggedBatch,
    ) -> Result<(), CudaError> {
        let (graph, act) = (&decoder.graph, decoder.act);
        let stored = self.describe(stream, (act, graph.heads.head_dim), batch)?;
        let on = On { stream, products, act };
        let step = Step { on, config: &graph.config, heads: graph.heads, batch, stored };
        self.reserve(step)?;
        for index in 0..graph.config.ropes.len() {
            self.prepare_angles(step, index)?;
        }
        let (mut rows, hidden) = (batch.tokens.len(), graph.config.hidden_size);
        let Some(table) = graph.embedding.as_ref().or_else(|| graph.head.table()) else {
            unreachable!("a head that is the embedding is one dense matrix (Graph::load)")
        };
        let dtype = if act == Act::Bf16 { FloatDtype::Bf16 } else { FloatDtype::F32 };
        let scale = graph.config.embedding_scale;
        // SAFETY: buffers are the session's, which waits for its stream before it frees them, and every operation that uses
        // one again is queued behind those before; tokens are below V, as the engine checks.
        unsafe {
            embed(stream, &self.tokens, (table, dtype), scale, &self.x[0], [rows, hidden])?;
            for (index, layer) in graph.layers.iter().enumerate() {
                self.enter(step, layer.attention_norms.pre.as_ref(), index > 0, rows)?;
                self.attend(step, layer, &cache.layers[index])?;
                if index + 1 == graph.layers.len() {
                    if batch.logit_rows.is_empty() {
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

    /// Uploads what describes the batch. Returns the number of rows to store.
    fn describe(
        &mut self,
        stream: &Stream,
        of: (Act, usize),
        batch: &RaggedBatch,
    ) -> Result<usize, CudaError> {
        let words = |rows: &mut dyn Iterator<Item = usize>| rows.map(|row| row as u32).collect::<Vec<_>>();
        stream.replace(&mut self.tokens, &batch.tokens)?;
        stream.replace(&mut self.positions, &batch.positions)?;
        stream.replace(&mut self.logit_rows, &words(&mut batch.logit_rows.iter().copied()))?;
        let rows = words(&mut batch.stored.iter().flat_map(|s| s.rows.clone()));
        let slots = words(&mut batch.stored.iter().flat_map(|s| s.first_slot..s.first_slot + s.rows.len()));
        stream.replace(&mut self.stored[0], &rows)?;
        stream.replace(&mut self.stored[1], &slots)?;
        let (sequences, key_rows) = paths(batch);
        self.lists.set(stream, of, &sequences, &key_rows)?;
        Ok(rows.len())
    }

    fn reserve(&mut self, step: Step<'_>) -> Result<(), CudaError> {
        let (rows, act, heads) = (step.batch.tokens.len(), step.on.act, step.heads);
        let hidden = step.config.hidden_size;
        self.x[0].ensure(rows * hidden * 4)?;
        self.x[1].ensure(rows * hidden * 4)?;
        let widths = [
            (&mut self.h, hidden),
            (&mut self.y, hidden),
            (&mut self.qkv, heads.qkv_columns()),
            (&mut self.attended, heads.heads * heads.head_dim),
        ];
        for (buffer, width) in widths {
            buffer.ensure(row_bytes(act, rows, width))?;
        }
        Ok(())
    }

    /// Angles of all positions of the batch for one rotary embedding.
    fn prepare_angles(&mut self, step: Step<'_>, index: usize) -> Result<(), CudaError> {
        let needed = step.batch.positions.iter().max().map_or(0, |p| *p as usize + 1);
        let rope = &step.config.ropes[index];
        let make = |positions: usize| {
            let frequencies = rope.inverse_frequencies(step.batch.long);
            let table = RopeTable::new(&frequencies, rope.attention_factor(), 0..positions);
            let bytes: Vec<u8> = table.data().iter().flat_map(|x| x.to_le_bytes()).collect();
            Ok::<_, CudaError>((positions, step.on.stream.upload(&bytes)?))
        };
        let positions = needed.next_power_of_two();
        match self.angles.entry((step.batch.long, index)) {
            Entry::Occupied(known) if known.get().0 >= needed => {}
            Entry::Occupied(mut known) => drop(known.insert(make(positions)?)),
            Entry::Vacant(place) => drop(place.insert(make(positions)?)),
        }
        Ok(())
    }

    /// x ← x + y of the block before, if there is one, and the normalized x to `h`.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn enter(
        &self,
        step: Step<'_>,
        norm: Option<&DeviceBuffer>,
        add: bool,
        rows: usize,
    ) -> Result<(), CudaError> {
        let config = step.config;
        let of = Normalized {
            act: step.on.act,
            rows,
            k: config.hidden_size,
            weight: norm,
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
    unsafe fn leave(&self, step: Step<'_>, norms: &Norms<OnDevice>, rows: usize) -> Result<(), CudaError> {
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
        layer: &Layer<OnDevice>,
        cache: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let Step { on, config, heads, batch, .. } = step;
        let (rows, stride) = (batch.tokens.len(), heads.qkv_columns());
        // SAFETY: the caller's promise; the tables have every position, rows and slots exist.
        unsafe {
            layer.qkv.forward(on, &self.h, rows, &mut self.room.linear, &self.qkv)?;
            if let Some([of_queries, of_keys]) = &layer.qk_norms {
                let qkv = (&self.qkv, rows, stride);
                normalize_parts(step, qkv, 0..heads.key_column(), of_queries)?;
                normalize_parts(step, qkv, heads.key_column()..heads.value_column(), of_keys)?;
            }
            let rotary = layer.config.rope.and_then(|i| Some((config.ropes.get(i)?, batch.long, i)));
            if let Some((of, long, index)) = rotary {
                let columns = RotatedColumns {
                    rows,
                    heads: heads.heads + heads.kv_heads,
                    head_dim: heads.head_dim,
                    rotary_dim: of.rotary_dim,
                    stride,
                    first_position: 0,
                };
                let table = &self.angles[&(long, index)].1;
                rope(on.stream, on.act, &self.qkv, columns, &self.positions, table)?;
            }
            let inputs = AttentionInputs {
                act: on.act,
                shape: heads,
                scores: Scores {
                    scale: config.attention_scale,
                    softcap: config.attention_softcap,
                    window: layer.config.window,
                },
                qkv: &self.qkv,
                cache,
                lists: &self.lists,
            };
            attention(on.stream, &inputs, &self.attended)?;
            let [rows, slots] = &self.stored;
            store_cache(on.stream, (on.act, heads), &self.qkv, cache, (rows, slots), step.stored)
        }
    }

    /// Moves the logit rows of `x` and `attended` to their fronts: nobody reads the others from here on. Returns how many
    /// there are.
    ///
    /// # Safety
    /// As for the operations.
    unsafe fn compact(&mut self, step: Step<'_>) -> Result<usize, CudaError> {
        let (stream, heads) = (step.on.stream, step.heads);
        let (count, hidden) = (step.batch.logit_rows.len(), step.config.hidden_size);
        let (width, size) = (heads.heads * heads.head_dim, step.on.act.size());
        let [x, kept] = &self.x;
        // SAFETY: the caller's promise; queries, keys and values are no longer needed, and are wider.
        unsafe {
            gather_rows(stream, x, &self.logit_rows, kept, [count, hidden], 4)?;
            gather_rows(stream, &self.attended, &self.logit_rows, &self.qkv, [count, width], size)?;
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
        mlp: &Mlp<OnDevice>,
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
    weight: &DeviceBuffer,
) -> Result<(), CudaError> {
    let of = Normalized {
        act: step.on.act,
        rows,
        k: weight.len() / size_of::<f32>(),
        weight: Some(weight),
        eps: step.config.rms_norm_eps,
    };
    // SAFETY: the caller's promise.
    unsafe { rms_norm_parts(step.on.stream, of, x, stride, columns) }
}

/// New rows by path, and for each position of each path where its key and value lie: rows of the batch, or −1 − s in slot
/// s of the cache.
fn paths(batch: &RaggedBatch) -> (Vec<DeviceSequence>, Vec<i32>) {
    let mut key_rows: Vec<i32> = Vec::new();
    let sequences = batch.sequences.iter().map(|sequence| {
        let keys = key_rows.len() as u32;
        for segment in &batch.segments[sequence.segments.clone()] {
            let rows = segment.first_row as i32..(segment.first_row + segment.len) as i32;
            match segment.source {
                Source::Batch => key_rows.extend(rows),
                Source::Cache => key_rows.extend(rows.map(|slot| -1 - slot)),
            }
        }
        DeviceSequence {
            first_row: sequence.rows.start as u32,
            rows: sequence.rows.len() as u32,
            first_position: sequence.first_position as u32,
            keys,
        }
    });
    let sequences = sequences.collect();
    (sequences, key_rows)
}
