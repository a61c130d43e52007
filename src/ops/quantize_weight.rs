//! Round-to-nearest quantization of one weight [N, K] under any [`WeightLayout`].
//!
//! `code = round(clamp(x / scale + zero_point))`, ties to even. Rows are cut into tiles that are worked on in parallel
//! and delivered in order; what a tile yields depends on nothing but its rows, so the output has the same bytes for
//! any number of threads. Source of the arithmetic: compressed-tensors, `forward_helpers.py` (`_quantize`) and its
//! Triton kernel, which differ in one rounding ([`Arithmetic`]).

use std::io;
use std::ops::Range;

use rayon::prelude::*;
use safetensors::Dtype;

use super::float_dtype::FloatDtype;
use super::quantize_rows::{Codec, E2m1, E2m3, E4m3, Exact, Int, ToBf16, ToF16, quantize_rows};
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

/// Bytes of source rows in one tile: input, decoded row and output stay in a core's own cache.
const TILE_BYTES: usize = 256 << 10;
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
    if largest.is_finite() { Ok(largest) } else { Err(first_non_finite(weight, 0..weight.shape[0])) }
}

/// Quantizes a weight; `sink` gets the packed codes in order.
///
/// `shared_amax` is the largest magnitude of the tensor (strategy `tensor`) or of its fused set (NVFP4); it is not
/// used by other layouts ([`WeightLayout::needs_tensor_amax`]).
pub fn quantize_weight(
    weight: Weight<'_>,
    layout: &WeightLayout,
    arithmetic: Arithmetic,
    shared_amax: f32,
    sink: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<Quantized, QuantizeWeightError> {
    let k = weight.shape[1];
    let job = job_of(weight, layout, shared_amax);
    let row_bytes = k * weight.dtype.size();
    let mut rest = Rest::default();
    for batch in tiles(&job, weight).chunks(TILES_PER_BATCH) {
        let done: Vec<TileOut> = batch
            .par_iter()
            .map(|rows| {
                let bytes = &weight.data[rows.start * row_bytes..rows.end * row_bytes];
                quantize_tile(&job, arithmetic, bytes, k)
                    .ok_or_else(|| first_non_finite(weight, rows.clone()))
            })
            .collect::<Result<_, _>>()?;
        for tile in done {
            sink(rest.absorb(tile))?;
        }
    }
    Ok(finish(rest, &job, weight.shape))
}

/// What all tiles of a weight have in common.
pub(super) fn job_of(weight: Weight<'_>, layout: &WeightLayout, shared_amax: f32) -> RowJob {
    let [band, columns] = layout.block(weight.shape);
    RowJob {
        layout: *layout,
        dtype: weight.dtype,
        columns,
        // With one scale a tensor, rows are independent once it is known.
        band: if layout.strategy == Strategy::Tensor { 1 } else { band },
        preset: preset(layout, shared_amax, weight.dtype),
    }
}

/// Rows of each tile: whole bands.
pub(super) fn tiles(job: &RowJob, weight: Weight<'_>) -> Vec<Range<usize>> {
    let [n, k] = weight.shape;
    let tile_rows = (TILE_BYTES / (k * weight.dtype.size()).max(1)).max(1).next_multiple_of(job.band);
    (0..n).step_by(tile_rows).map(|r| r..(r + tile_rows).min(n)).collect()
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
    /// Columns that share a scale.
    pub columns: usize,
    /// Rows that share a scale.
    pub band: usize,
    pub preset: Preset,
}

/// What one tile yields.
#[derive(Debug, Default)]
pub(super) struct TileOut {
    pub codes: Vec<u8>,
    pub scales: Vec<u8>,
    pub zero_points: Vec<i8>,
    pub signal: f64,
    pub noise: f64,
}

#[derive(Default)]
pub(super) struct Rest {
    scales: Vec<u8>,
    zero_points: Vec<i8>,
    signal: f64,
    noise: f64,
}

impl Rest {
    /// Keeps everything but the codes.
    pub(super) fn absorb(&mut self, tile: TileOut) -> Vec<u8> {
        self.scales.extend_from_slice(&tile.scales);
        self.zero_points.extend_from_slice(&tile.zero_points);
        self.signal += tile.signal;
        self.noise += tile.noise;
        tile.codes
    }
}

/// Chooses the monomorphic loop; `None` when an element is not finite.
fn quantize_tile(job: &RowJob, arithmetic: Arithmetic, bytes: &[u8], k: usize) -> Option<TileOut> {
    fn by_quotient<C: Codec>(
        job: &RowJob,
        codec: C,
        quotient: FloatDtype,
        bytes: &[u8],
        k: usize,
    ) -> Option<TileOut> {
        match quotient {
            FloatDtype::F32 => quantize_rows(job, codec, Exact, bytes, k),
            FloatDtype::Bf16 => quantize_rows(job, codec, ToBf16, bytes, k),
            FloatDtype::F16 => quantize_rows(job, codec, ToF16, bytes, k),
        }
    }
    // NVFP4 divides by an f32 and MX formats by a power of two: there the quotient is never rounded.
    let quotient = match (arithmetic, job.layout.scale) {
        (Arithmetic::WeightDtype, ScaleKind::Float) => job.dtype,
        _ => FloatDtype::F32,
    };
    match job.layout.element {
        Element::Int(_) => by_quotient(job, Int::new(job.layout.element), quotient, bytes, k),
        Element::E4m3 => by_quotient(job, E4m3, quotient, bytes, k),
        Element::E2m3 => by_quotient(job, E2m3, quotient, bytes, k),
        Element::E2m1 => by_quotient(job, E2m1, quotient, bytes, k),
    }
}

/// Turns the collected scales and zero points into the module's remaining tensors.
pub(super) fn finish(rest: Rest, job: &RowJob, shape: [usize; 2]) -> Quantized {
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

/// Finds the element that made a whole tile non-finite.
fn first_non_finite(weight: Weight<'_>, rows: Range<usize>) -> QuantizeWeightError {
    let k = weight.shape[1];
    let size = weight.dtype.size();
    let mut row_values = vec![0.0; k];
    for row in rows {
        weight.dtype.decode(&weight.data[row * k * size..(row + 1) * k * size], &mut row_values);
        if let Some(column) = row_values.iter().position(|x| !x.is_finite()) {
            return QuantizeWeightError::NonFinite { row, column, value: row_values[column] };
        }
    }
    // Only reached if the data changed between two looks at it (a mapped file that is being written).
    QuantizeWeightError::NonFinite { row: 0, column: 0, value: f32::NAN }
}

#[cfg(test)]
#[path = "quantize_weight_tests.rs"]
pub(crate) mod tests;
