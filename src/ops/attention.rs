//! Causal attention with grouped key-value heads over ragged sequences that branch off shared prefixes.
//!
//! out_t = Σ_j softmax_j(cap(scale · q_t · k_j)) · v_j over the keys j at positions 0..=p_t of the row's own path, or
//! the last `window` of them; cap(z) = c · tanh(z / c) where scores are capped. A sequence's keys lie in segments: a
//! kept cache, rows of other sequences of the batch that it continues, its own rows.
//!
//! Scores are dot products, weights are summed in 16 lanes by absolute position, and values are accumulated by
//! ascending position. So a row's bits depend on its path alone: not on how the path is cut into segments, and not on
//! the other sequences.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::elementary;
use super::kernel_path::KernelPath;
use super::linear::SharedOut;
use super::microkernel::{self, Former, MR, NR, Tile};
use super::unit_rows::{PART, Parts, RoundedRows};

/// Query rows per parallel task.
const ROWS: usize = 64;

/// Head counts and head dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
}

impl HeadShape {
    /// Query heads per key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Columns of a row of queries, keys and values side by side.
    pub fn qkv_columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// First column of the keys in such a row.
    pub fn key_column(&self) -> usize {
        self.heads * self.head_dim
    }

    /// First column of the values in such a row.
    pub fn value_column(&self) -> usize {
        (self.heads + self.kv_heads) * self.head_dim
    }

    /// Floats of one key tile over all key-value heads.
    pub fn tile_len(&self) -> usize {
        self.kv_heads * self.head_dim * NR
    }
}

/// Where a segment's keys and values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the cache kept from before.
    Cache,
    /// Among the rows of this batch.
    Batch,
}

/// Keys at consecutive positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where they are.
    pub source: Source,
    /// First tile of their keys.
    pub first_tile: usize,
    /// First row of their values.
    pub first_row: usize,
    /// How many, counted from the first.
    pub len: usize,
}

/// Consecutive new rows of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// Position of the first of them.
    pub first_position: usize,
    /// First key tile of these rows; they have `len / 32` tiles, rounded up.
    pub first_tile: usize,
    /// Its segments in [`Batch::segments`], by position; the last one is its own rows.
    pub segments: Range<usize>,
}

/// Keys in tiles of 32 positions, transposed for the matrix kernel: \[tile\]\[kv head\]\[D\]\[32\]; values as rows.
#[derive(Clone, Copy)]
pub struct KeysValues<'a> {
    /// Key tiles.
    pub keys: &'a Buffer,
    /// Values: rows `value_stride` apart, head h of row r at `r·value_stride + value_column + h·D`.
    pub values: &'a Buffer,
    /// Distance of value rows.
    pub value_stride: usize,
    /// First value column.
    pub value_column: usize,
}

/// What becomes of a score, and which keys a row sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Factor of q · k, 1/√D in most models.
    pub scale: f32,
    /// c of c · tanh(score / c).
    pub softcap: Option<f32>,
    /// Number of keys a row sees, its own included; all before it where absent.
    pub window: Option<usize>,
}

impl Scores {
    /// First position that a row at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Everything attention reads.
pub struct Batch<'a> {
    /// Shapes.
    pub shape: HeadShape,
    /// Scale, cap and window.
    pub scores: Scores,
    /// Queries, keys and values of the new rows: \[T, (heads + 2·kv_heads)·D\], rotated.
    pub qkv: &'a Buffer,
    /// Key tiles of the new rows ([`pack_keys`]).
    pub keys: &'a Buffer,
    /// Keys and values from before.
    pub cache: KeysValues<'a>,
    /// New rows by path.
    pub sequences: &'a [Sequence],
    /// Segments of all sequences.
    pub segments: &'a [Segment],
}

/// Number of key tiles of all sequences.
pub fn tiles(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|s| s.rows.len().div_ceil(NR)).sum()
}

/// Writes the keys of the new rows to `keys`, tile by tile.
pub fn pack_keys(shape: HeadShape, qkv: &Buffer, sequences: &[Sequence], keys: &mut Buffer) {
    let (tile_len, stride) = (shape.tile_len(), shape.qkv_columns());
    keys.ensure(tiles(sequences) * tile_len);
    let out = SharedOut(keys.as_mut_ptr());
    sequences.par_iter().with_min_len(16).for_each(|sequence| {
        for (i, row) in sequence.rows.clone().enumerate() {
            let key = &qkv[row * stride + shape.key_column()..][..shape.kv_heads * shape.head_dim];
            let tile = out.at((sequence.first_tile + i / NR) * tile_len + i % NR);
            for (d, x) in key.iter().enumerate() {
                // SAFETY: tiles belong to one sequence each and lie within the size ensured above.
                unsafe { tile.add(d * NR).write(*x) };
            }
        }
    });
}

/// Writes one key to tile storage at index `position`.
pub fn write_key(shape: HeadShape, keys: &mut [f32], position: usize, key: &[f32]) {
    let tile = &mut keys[position / NR * shape.tile_len() + position % NR..];
    for (slot, x) in tile.iter_mut().step_by(NR).zip(key) {
        *slot = *x;
    }
}

/// Copies the key at index `from` of tile storage to index `to`.
pub fn copy_key(shape: HeadShape, keys: &mut [f32], from: usize, to: usize) {
    let at = |position: usize| position / NR * shape.tile_len() + position % NR;
    for d in 0..shape.kv_heads * shape.head_dim {
        keys[at(to) + d * NR] = keys[at(from) + d * NR];
    }
}

/// Tiles that hold `positions` keys.
pub fn tiles_for(positions: usize) -> usize {
    positions.div_ceil(NR)
}

/// Where results go.
#[derive(Clone, Copy)]
enum Target {
    /// \[T, heads·D\].
    Floats(SharedOut),
    /// The same, rounded for the next product.
    Rounded(Parts),
}

/// out \[T, heads·D\].
pub fn attention(path: KernelPath, batch: &Batch<'_>, out: &mut [f32]) {
    let columns = batch.shape.heads * batch.shape.head_dim;
    assert!(out.len() >= batch.rows() * columns, "a result for each row");
    run(path, batch, Target::Floats(SharedOut(out.as_mut_ptr())));
}

/// The same for a bf16 product, rounded at once; D is a multiple of 32.
pub fn attention_rounded(path: KernelPath, batch: &Batch<'_>) -> RoundedRows {
    let columns = batch.shape.heads * batch.shape.head_dim;
    assert!(batch.shape.head_dim.is_multiple_of(PART), "heads are whole parts of rows");
    let (made, parts) = RoundedRows::in_parts(path, batch.rows(), columns);
    run(path, batch, Target::Rounded(parts));
    made
}

impl Batch<'_> {
    /// T.
    fn rows(&self) -> usize {
        self.sequences.iter().map(|s| s.rows.end).max().unwrap_or(0)
    }
}

fn run(path: KernelPath, batch: &Batch<'_>, target: Target) {
    let shape = batch.shape;
    assert!(batch.qkv.len() >= batch.rows() * shape.qkv_columns(), "queries, keys and values for each row");
    check(batch);
    let tasks: Vec<(usize, usize)> = batch
        .sequences
        .iter()
        .enumerate()
        .flat_map(|(s, sequence)| (0..sequence.rows.len()).step_by(ROWS).map(move |row| (s, row)))
        .collect();
    (0..tasks.len() * shape.kv_heads).into_par_iter().for_each(|task| {
        let (sequence, first) = tasks[task / shape.kv_heads];
        let sequence = &batch.sequences[sequence];
        let rows = first..(first + ROWS).min(sequence.rows.len());
        SCRATCH.with_borrow_mut(|scratch| {
            let head = Head { path, batch, sequence, kv: task % shape.kv_heads };
            // SAFETY: each task writes its own rows and heads of the target; `check` has compared segments with storage.
            unsafe { head.run(rows, target, scratch) };
        });
    });
}

/// Compares what sequences and segments point at with what is there, once a call, so that kernels need not.
fn check(batch: &Batch<'_>) {
    let tile_len = batch.shape.tile_len();
    for sequence in batch.sequences {
        let segments = &batch.segments[sequence.segments.clone()];
        let keys: usize = segments.iter().map(|s| s.len).sum();
        assert_eq!(keys, sequence.first_position + sequence.rows.len(), "segments cover the path");
        for segment in segments {
            let (tiles, values) = match segment.source {
                Source::Cache => {
                    (batch.cache.keys.len(), batch.cache.values.len() / batch.cache.value_stride.max(1))
                }
                Source::Batch => (batch.keys.len(), batch.qkv.len() / batch.shape.qkv_columns()),
            };
            assert!((segment.first_tile + tiles_for(segment.len)) * tile_len <= tiles, "key tiles exist");
            assert!(segment.first_row + segment.len <= values, "value rows exist");
        }
    }
}

#[derive(Default)]
struct Scratch {
    /// Packed queries \[D\]\[rows\], then packed weights \[keys\]\[rows\].
    packed: Buffer,
    /// Scores \[rows\]\[keys\].
    scores: Buffer,
    /// Results \[rows\]\[D rounded up to 32\].
    result: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// One key-value head of one sequence, with the query heads of its group.
struct Head<'a> {
    path: KernelPath,
    batch: &'a Batch<'a>,
    sequence: &'a Sequence,
    kv: usize,
}

impl Head<'_> {
    /// Rows `rows` of the sequence, in tiles of up to 12 (row, head) pairs.
    ///
    /// # Safety
    /// The caller alone writes these rows and heads of the target; segments lie within their storage.
    unsafe fn run(&self, rows: Range<usize>, out: Target, scratch: &mut Scratch) {
        let group = self.batch.shape.group();
        let pairs = rows.start * group..rows.end * group;
        for first in pairs.clone().step_by(MR) {
            // SAFETY: the caller's promise.
            unsafe { self.tile(first..(first + MR).min(pairs.end), out, scratch) };
        }
    }

    /// Pair i is query head `i mod group` of row `i / group`.
    unsafe fn tile(&self, pairs: Range<usize>, out: Target, scratch: &mut Scratch) {
        let shape = self.batch.shape;
        let (d, group) = (shape.head_dim, shape.group());
        let count = pairs.len();
        let keys = self.sequence.first_position + (pairs.end - 1) / group + 1;
        // A tile of keys may reach 31 beyond the last.
        let stride = (keys + 2 * NR).next_multiple_of(NR);
        let result_stride = d.next_multiple_of(NR);
        scratch.packed.ensure(count * d.max(keys));
        scratch.scores.ensure(count * stride);
        scratch.result.ensure(MR * result_stride);

        for (i, pair) in pairs.clone().enumerate() {
            let row = self.sequence.rows.start + pair / group;
            let query =
                &self.batch.qkv[row * shape.qkv_columns() + (self.kv * group + pair % group) * d..][..d];
            for (slot, x) in scratch.packed[i..].iter_mut().step_by(count).zip(query) {
                *slot = *x;
            }
        }
        let rules = self.batch.scores;
        let position = |pair: usize| self.sequence.first_position + pair / group;
        // Rows ascend, so the first sees the earliest key.
        let from = rules.first_seen(position(pairs.start));
        // SAFETY: scratch was sized above, segments were checked.
        unsafe { self.scores(count, from..keys, stride, scratch) };

        let mut sums = [0.0; MR];
        for (i, pair) in pairs.clone().enumerate() {
            let row = &mut scratch.scores[i * stride..][..keys];
            let (before, row) = row.split_at_mut(rules.first_seen(position(pair)));
            let (seen, masked) = row.split_at_mut(position(pair) + 1 - before.len());
            elementary::scale(self.path, seen, rules.scale);
            if let Some(cap) = rules.softcap {
                elementary::softcap(self.path, seen, cap);
            }
            let max = elementary::max(self.path, seen);
            sums[i] = elementary::exp_sub_sum(self.path, seen, max);
            before.fill(0.0);
            masked.fill(0.0);
        }
        microkernel::pack_rows(&scratch.scores, stride, count, keys, &mut scratch.packed);
        // SAFETY: as above.
        unsafe { self.values(count, from..keys, result_stride, scratch) };

        for (i, pair) in pairs.enumerate() {
            let row = self.sequence.rows.start + pair / group;
            let head = self.kv * group + pair % group;
            let result = &mut scratch.result[i * result_stride..][..d];
            for x in result.iter_mut() {
                *x /= sums[i];
            }
            // SAFETY: the caller alone writes this row and head.
            unsafe {
                match out {
                    Target::Floats(out) => {
                        let to = out.at(row * shape.heads * d + head * d);
                        to.copy_from_nonoverlapping(result.as_ptr(), d);
                    }
                    Target::Rounded(parts) => parts.write(row, head * d, result),
                }
            }
        }
    }

    /// scores \[count, keys\] = packed queries · keysᵀ, segment by segment; later tiles overwrite what earlier ones
    /// wrote beyond their segment. Tiles wholly before `keys` are left out.
    unsafe fn scores(&self, count: usize, keys: Range<usize>, stride: usize, scratch: &mut Scratch) {
        let shape = self.batch.shape;
        let mut position = 0;
        for segment in &self.batch.segments[self.sequence.segments.clone()] {
            let tiles = match segment.source {
                Source::Cache => self.batch.cache.keys,
                Source::Batch => self.batch.keys,
            };
            let len = segment.len.min(keys.end.saturating_sub(position));
            let first = keys.start.saturating_sub(position) / NR;
            for tile in first..tiles_for(len) {
                let at = (segment.first_tile + tile) * shape.tile_len() + self.kv * shape.head_dim * NR;
                let tile = Tile {
                    k: shape.head_dim,
                    a: scratch.packed.as_ptr(),
                    b: tiles[at..].as_ptr(),
                    ldb: NR,
                    c: scratch.scores.as_mut_ptr().wrapping_add(position + tile * NR),
                    ldc: stride,
                    former: Former::Ignore,
                };
                // SAFETY: queries are packed [D][count], the tile is [D][32], rows of scores have 2·32 floats beyond
                // the last key.
                unsafe { microkernel::compute(self.path, count, tile) };
            }
            position += len;
        }
    }

    /// result \[count, D\] = packed weights · values, by ascending position. Weights before `keys` are 0 and left out,
    /// which changes no bits.
    unsafe fn values(&self, count: usize, keys: Range<usize>, result_stride: usize, scratch: &mut Scratch) {
        let shape = self.batch.shape;
        for column in (0..shape.head_dim).step_by(NR) {
            let mut position = 0;
            let mut former = Former::Ignore;
            for segment in &self.batch.segments[self.sequence.segments.clone()] {
                let (values, ldb, first) = match segment.source {
                    Source::Cache => (
                        self.batch.cache.values,
                        self.batch.cache.value_stride,
                        self.batch.cache.value_column,
                    ),
                    Source::Batch => (self.batch.qkv, shape.qkv_columns(), shape.value_column()),
                };
                let len = segment.len.min(keys.end - position);
                let skipped = keys.start.saturating_sub(position).min(len);
                if len > skipped {
                    let at = (segment.first_row + skipped) * ldb + first + self.kv * shape.head_dim + column;
                    let tile = Tile {
                        k: len - skipped,
                        a: scratch.packed.as_ptr().wrapping_add((position + skipped) * count),
                        b: values.as_ptr().wrapping_add(at),
                        ldb,
                        c: scratch.result.as_mut_ptr().wrapping_add(column),
                        ldc: result_stride,
                        former,
                    };
                    // SAFETY: rows of values exist (`check`); reading 32 columns may run past the last head of the last
                    // row into the slack of the buffer, whose products land in columns that nobody reads.
                    unsafe { microkernel::compute(self.path, count, tile) };
                    former = Former::Continue;
                }
                position += len;
            }
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
