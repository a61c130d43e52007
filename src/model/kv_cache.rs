//! Keys and values kept between forward passes, by slot: one path's slots are its positions, or slots come in pages of
//! one key tile that paths are given as they grow.

use std::ops::Range;

use super::session::Slots;
use crate::ops::attention::{HeadShape, KeysValues, copy_key, tiles_for, write_key};
use crate::ops::buffer::Buffer;

/// Keys and values at slots 0.., for every layer.
pub struct KvCache {
    shape: HeadShape,
    layers: Vec<Layer>,
}

#[derive(Default)]
struct Layer {
    /// Key tiles, \[tile\]\[kv head\]\[D\]\[32\].
    keys: Buffer,
    /// \[slots, kv_heads·D\].
    values: Buffer,
}

/// Rows of a batch whose keys and values are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The rows.
    pub rows: Range<usize>,
    /// Slot of the first of them.
    pub first_slot: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: HeadShape, layers: usize) -> Self {
        Self { shape, layers: (0..layers).map(|_| Layer::default()).collect() }
    }

    fn columns(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    /// What attention reads of layer `layer`.
    pub fn layer(&self, layer: usize) -> KeysValues<'_> {
        let Layer { keys, values } = &self.layers[layer];
        KeysValues { keys, values, value_stride: self.columns(), value_column: 0 }
    }

    /// Copies layer `layer` of `stored` rows of qkv \[T, qkv_columns\] to their slots.
    pub fn update(&mut self, layer: usize, qkv: &Buffer, stored: &[Stored]) {
        let (shape, columns) = (self.shape, self.columns());
        let Layer { keys, values } = &mut self.layers[layer];
        let slots = stored.iter().map(|s| s.first_slot + s.rows.len()).max().unwrap_or(0);
        grow(keys, tiles_for(slots) * shape.tile_len());
        grow(values, slots * columns);
        for (slot, row) in stored.iter().flat_map(|s| (s.first_slot..).zip(s.rows.clone())) {
            let row = &qkv[row * shape.qkv_columns()..][..shape.qkv_columns()];
            write_key(shape, keys, slot, &row[shape.key_column()..][..columns]);
            values[slot * columns..][..columns].copy_from_slice(&row[shape.value_column()..][..columns]);
        }
    }
}

impl Slots for KvCache {
    fn slot_bytes(&self) -> usize {
        2 * self.layers.len() * self.columns() * size_of::<f32>()
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) {
        let (shape, columns) = (self.shape, self.columns());
        for Layer { keys, values } in &mut self.layers {
            grow(keys, tiles_for(to + len) * shape.tile_len());
            grow(values, (to + len) * columns);
            for i in 0..len {
                copy_key(shape, keys, from + i, to + i);
            }
            values.copy_within(from * columns..(from + len) * columns, to * columns);
        }
    }
}

/// Makes room for `len` floats, with a reserve so that appending one slot at a time stays linear.
fn grow(buffer: &mut Buffer, len: usize) {
    if buffer.len() < len {
        buffer.resize(len + len / 4);
    }
}
