//! Round-to-nearest quantization of one weight [N, K] under any [`WeightLayout`].
//!
//! `code = round(clamp(x / scale + zero_point))`, ties to even. Rows are cut into tiles; what a tile yields depends on
//! nothing but its rows, so that tiles may be worked on anywhere in any order, and the output has the same bytes for any
//! number of threads. Source of the arithmetic: compressed-tensors, `forward_helpers.py` (`_quantize`) and its
//! Triton kernel, which differ in one rounding ([`Arithmetic`]).

use std::io;
use std::ops::Range;

use rayon::prelude::*;
use safetensors::Dtype;

use super::float_dtype::FloatDtype;
use super::kernel_path::KernelPath;
use super::quantize_rows::quantize_rows;
use super::weight_layout::{Element, ScaleKind, WeightLayout};
use super::{int_pack, qparams};
use crate::checkpoint::quant_args::Strategy;

/// In which precision an element is divided by its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
pub enum Arithmetic {
    /// In f32, as compressed-tensors does on GPUs. Smaller errors.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// In f32 with the quotient rounded to the weight's type, as llm-compressor does on CPUs.
    #[serde(rename = "bf16")]
    WeightDtype,
}

/// A weight as it lies in its file.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a> {
    /// Row-major little-endian elements.
    pub data: &'a [u8],
    /// Their type.
    pub dtype: FloatDtype,
    /// [N, K].
    pub shape: [usize; 2],
}

/// What follows the codes: the other tensors of the module, and the error made.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Suffix and bytes of each tensor, in the order of [`WeightLayout::tensors`] without the codes.
    pub tensors: Vec<(&'static str, Vec<u8>)>,
    /// Σ w².
    pub signal: f64,
    /// Σ (w − ŵ)².
    pub noise: f64,
}

impl Quantized {
    /// 10·log₁₀(Σw² / Σ(w − ŵ)²) in dB; `None` when lossless or all zero.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.signal > 0.0 && self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

/// A weight that cannot be quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeWeightError {
    /// An element is NaN or infinite.
    #[error("element [{row}, {column}] is {value}")]
    NonFinite {
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// NaN or ±inf.
        value: f32,
    },
    /// The sink of codes failed.
    #[error("codes cannot be written")]
    Sink(#[from] io::Error),
}

/// Bytes of source rows in one tile: with its codes it stays in a core's own second-level cache.
pub const TILE_BYTES: usize = 512 << 10;
/// Tiles quantized before their codes are handed to the sink; bounds the memory.
pub(super) const TILES_PER_BATCH: usize = 64;

/// The largest magnitude of a weight; refuses NaN and infinity.
pub fn amax(weight: Weight<'_>) -> Result<f32, QuantizeWeightError> {
    let block = TILE_BYTES / weight.dtype.size() * weight.dtype.size();
    let largest = weight
        .data
        .par_chunks(block)
        .map(|bytes| weight.dtype.amax(bytes))
        // Not f32::max, which drops NaN; magnitudes are ordered as their bits are.
        .reduce(|| 0.0, |a, b| if a.to_bits() > b.to_bits() { a } else { b });
    if largest.is_finite() { Ok(largest) } else { Err(first_non_finite(weight, 0)) }
}

/// Quantizes a weight in memory; `sink` gets the packed codes in order.
///
/// `shared_amax` is the largest magnitude of the tensor (strategy `tensor`) or of its fused set (NVFP4); it is not
/// used by other layouts ([`WeightLayout::needs_tensor_amax`]).
pub fn quantize_weight(
    weight: Weight<'_>,
    layout: &WeightLayout,
    arithmetic: Arithmetic,
    shared_amax: f32,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Quantized, QuantizeWeightError> {
    let quantizer = WeightQuantizer::new(weight.shape, weight.dtype, layout, arithmetic, shared_amax);
    let mut collected = Collected::default();
    for batch in tiles(&quantizer.job, weight.shape[0]).chunks(TILES_PER_BATCH) {
        let done: Vec<Tile> = batch
            .par_iter()
            .map(|rows| {
                let mut tile = Tile::default();
                let bytes = rows.start * quantizer.row_bytes()..rows.end * quantizer.row_bytes();
                quantizer.quantize(rows.start, &weight.data[bytes], &mut tile)?;
                Ok::<_, QuantizeWeightError>(tile)
            })
            .collect::<Result<_, _>>()?;
        for tile in done {
            collected.add(&tile);
            sink(&tile.codes)?;
        }
    }
    Ok(quantizer.finish(collected))
}

/// What is to be done to one weight, known before any of its rows but for the amax it shares with others.
#[derive(Debug, Clone, Copy)]
pub struct WeightQuantizer {
    job: RowJob,
    arithmetic: Arithmetic,
    shape: [usize; 2],
    path: KernelPath,
}

/// What one tile yields. Meant to be used again: its buffers keep their memory.
#[derive(Debug, Default)]
pub struct Tile {
    /// Packed codes.
    pub codes: Vec<u8>,
    pub(super) scales: Vec<u8>,
    pub(super) zero_points: Vec<i8>,
    pub(super) signal: f64,
    pub(super) noise: f64,
}

/// What the tiles of one weight yield besides codes, in their order.
#[derive(Debug, Default)]
pub struct Collected {
    scales: Vec<u8>,
    zero_points: Vec<i8>,
    signal: f64,
    noise: f64,
}

impl Tile {
    /// Forgets everything but the memory.
    pub fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.zero_points.clear();
        (self.signal, self.noise) = (0.0, 0.0);
    }
}

impl Collected {
    /// Adds the next tile.
    pub fn add(&mut self, tile: &Tile) {
        self.scales.extend_from_slice(&tile.scales);
        self.zero_points.extend_from_slice(&tile.zero_points);
        self.signal += tile.signal;
        self.noise += tile.noise;
    }
}

impl WeightQuantizer {
    /// See [`quantize_weight`].
    pub fn new(
        shape: [usize; 2],
        dtype: FloatDtype,
        layout: &WeightLayout,
        arithmetic: Arithmetic,
        shared_amax: f32,
    ) -> Self {
        let job = job_of(shape, dtype, layout, shared_amax);
        Self { job, arithmetic, shape, path: KernelPath::detect() }
    }

    /// What all tiles have in common.
    pub(super) fn job(&self) -> &RowJob {
        &self.job
    }

    /// In which precision elements are divided.
    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Bytes of one row of the source.
    pub fn row_bytes(&self) -> usize {
        self.job.row_bytes()
    }

    /// Quantizes the whole rows of one tile, which begins at `first_row`.
    pub fn quantize(
        &self,
        first_row: usize,
        bytes: &[u8],
        out: &mut Tile,
    ) -> Result<(), QuantizeWeightError> {
        out.scales.clear();
        out.zero_points.clear();
        if quantize_rows(self.path, &self.job, self.arithmetic, bytes, out) {
            return Ok(());
        }
        let weight = Weight { data: bytes, dtype: self.job.dtype, shape: self.shape };
        Err(first_non_finite(weight, first_row))
    }

    /// Turns the collected scales and zero points into the module's remaining tensors.
    pub fn finish(&self, rest: Collected) -> Quantized {
        finish(rest, &self.job, self.shape)
    }
}

/// The rows of each tile of a weight with N rows: whole bands.
pub(super) fn tiles(job: &RowJob, n: usize) -> Vec<Range<usize>> {
    let rows = tile_rows(TILE_BYTES, job.row_bytes(), job.band);
    (0..n).step_by(rows).map(|start| start..(start + rows).min(n)).collect()
}

/// Rows of about `tile_bytes`, a multiple of `multiple`.
pub fn tile_rows(tile_bytes: usize, row_bytes: usize, multiple: usize) -> usize {
    (tile_bytes / row_bytes.max(1)).max(1).next_multiple_of(multiple)
}

/// The least common multiple of two positive numbers.
pub fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// What all tiles of a weight have in common.
pub(super) fn job_of(
    shape: [usize; 2],
    dtype: FloatDtype,
    layout: &WeightLayout,
    shared_amax: f32,
) -> RowJob {
    let [band, columns] = layout.block(shape);
    RowJob {
        layout: *layout,
        dtype,
        k: shape[1],
        columns,
        // With one scale a tensor, rows are independent once it is known.
        band: if layout.strategy == Strategy::Tensor { 1 } else { band },
        row_code_bytes: layout.codes([1, shape[1]]).num_bytes() as usize,
        preset: preset(layout, shared_amax, dtype),
    }
}

/// A scale known before any row is seen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Preset {
    /// None: every block has its own.
    None,
    /// The only scale.
    Tensor(f32),
    /// NVFP4's divisor.
    Global(f32),
}

fn preset(layout: &WeightLayout, shared_amax: f32, dtype: FloatDtype) -> Preset {
    match (layout.scale, layout.strategy) {
        (ScaleKind::E4m3UnderGlobal, _) => Preset::Global(qparams::nvfp4_global_scale(shared_amax, dtype)),
        (_, Strategy::Tensor) => Preset::Tensor(qparams::symmetric_scale(shared_amax, layout.element, dtype)),
        _ => Preset::None,
    }
}

/// What all tiles of a weight have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowJob {
    pub layout: WeightLayout,
    pub dtype: FloatDtype,
    /// Columns of the weight.
    pub k: usize,
    /// Columns that share a scale.
    pub columns: usize,
    /// Rows that share a scale.
    pub band: usize,
    /// Bytes of one row of packed codes.
    pub row_code_bytes: usize,
    pub preset: Preset,
}

impl RowJob {
    /// Bytes of one row of the source.
    pub(super) fn row_bytes(&self) -> usize {
        self.k * self.dtype.size()
    }
}

/// Turns the collected scales and zero points into the module's remaining tensors.
pub(super) fn finish(rest: Collected, job: &RowJob, shape: [usize; 2]) -> Quantized {
    let layout = &job.layout;
    let scales = match job.preset {
        Preset::Tensor(scale) => {
            let mut bytes = Vec::new();
            job.dtype.write(scale, &mut bytes);
            bytes
        }
        Preset::None | Preset::Global(_) => rest.scales,
    };
    let mut scales = Some(scales);
    let tensors = layout
        .tensors(shape, job.dtype.dtype())
        .into_iter()
        .skip(1)
        .map(|spec| {
            let bytes = match (spec.suffix, job.preset, layout.element) {
                ("weight_scale", ..) => {
                    widened(scales.take().unwrap_or_default(), job.dtype, layout.scale, spec.dtype)
                }
                ("weight_global_scale", Preset::Global(global), _) => global.to_le_bytes().to_vec(),
                ("weight_scale_2", Preset::Global(global), _) => (1.0 / global).to_le_bytes().to_vec(),
                ("weight_zero_point", _, Element::Int(bits)) if layout.is_packed_in_words() => {
                    int_pack::pack_columns(&rest.zero_points, spec.shape[1], bits)
                }
                ("weight_zero_point", ..) => rest.zero_points.iter().map(|z| *z as u8).collect(),
                // weight_shape
                _ => shape.iter().flat_map(|d| (*d as i64).to_le_bytes()).collect(),
            };
            (spec.suffix, bytes)
        })
        .collect();
    Quantized { tensors, signal: rest.signal, noise: rest.noise }
}

/// Float scales as the layout stores them: ModelOpt's are f32, of the same values.
fn widened(scales: Vec<u8>, from: FloatDtype, kind: ScaleKind, to: Dtype) -> Vec<u8> {
    if kind != ScaleKind::Float || to == from.dtype() {
        return scales;
    }
    let mut values = vec![0.0; scales.len() / from.size()];
    from.decode(&scales, &mut values);
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Finds the element that made rows from `first_row` on non-finite; `rows.data` holds these rows.
fn first_non_finite(rows: Weight<'_>, first_row: usize) -> QuantizeWeightError {
    let k = rows.shape[1].max(1);
    let mut row = vec![0.0; k];
    for (i, bytes) in rows.data.chunks_exact(k * rows.dtype.size()).enumerate() {
        rows.dtype.decode(bytes, &mut row);
        if let Some(column) = row.iter().position(|x| !x.is_finite()) {
            return QuantizeWeightError::NonFinite { row: first_row + i, column, value: row[column] };
        }
    }
    // Unreachable unless the data changed meanwhile (a file being written).
    QuantizeWeightError::NonFinite { row: first_row, column: 0, value: f32::NAN }
}

#[cfg(test)]
#[path = "quantize_weight_tests.rs"]
pub(crate) mod tests;
