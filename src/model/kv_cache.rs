//! Keys and values of one path, kept between forward passes.

use crate::ops::attention::{HeadShape, KeysValues, tiles_for, write_key};
use crate::ops::buffer::Buffer;

/// Keys and values of positions 0..len, for every layer.
pub struct KvCache {
    shape: HeadShape,
    layers: Vec<Layer>,
    len: usize,
}

#[derive(Default)]
struct Layer {
    /// Key tiles, \[tile\]\[kv head\]\[D\]\[32\].
    keys: Buffer,
    /// \[len, kv_heads·D\].
    values: Buffer,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: HeadShape, layers: usize) -> Self {
        Self { shape, layers: (0..layers).map(|_| Layer::default()).collect(), len: 0 }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn columns(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    /// What attention reads of layer `layer`.
    pub fn layer(&self, layer: usize) -> KeysValues<'_> {
        let Layer { keys, values } = &self.layers[layer];
        KeysValues { keys, values, value_stride: self.columns(), value_column: 0 }
    }

    /// Keeps positions 0..`kept` of layer `layer` and appends those of `rows` of qkv \[T, qkv_columns\].
    pub fn update(
        &mut self,
        layer: usize,
        kept: usize,
        qkv: &Buffer,
        rows: impl Iterator<Item = usize> + Clone,
    ) {
        let (shape, columns) = (self.shape, self.columns());
        let Layer { keys, values } = &mut self.layers[layer];
        let len = kept + rows.clone().count();
        grow(keys, tiles_for(len) * shape.tile_len());
        grow(values, len * columns);
        for (position, row) in (kept..).zip(rows) {
            let row = &qkv[row * shape.qkv_columns()..][..shape.qkv_columns()];
            write_key(shape, keys, position, &row[shape.key_column()..][..columns]);
            values[position * columns..][..columns].copy_from_slice(&row[shape.value_column()..][..columns]);
        }
    }

    /// Sets the number of positions after every layer was updated.
    pub fn set_len(&mut self, len: usize) {
        self.len = len;
    }
}

/// Makes room for `len` floats, with a reserve so that appending one position at a time stays linear.
fn grow(buffer: &mut Buffer, len: usize) {
    if buffer.len() < len {
        buffer.resize(len + len / 4);
    }
}
