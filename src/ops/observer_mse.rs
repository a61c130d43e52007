//! Weight quantization with a searched range: each scale covers p · \[min, max\] with the p of 1, 0.99, … 0.81 whose
//! error Σ |w − ŵ|^2.4 is the smallest.
//!
//! Source: llm-compressor 0.14 `observers/mse_quant.py` (`_grid_search_mse`, eager path; defaults of `memoryless_mse`:
//! maxshrink 0.2, grid 100, norm 2.4, patience 5). The search ends after five steps that improve no block of the
//! tensor. With [`Arithmetic::WeightDtype`] candidates, errors and their sums are rounded to the weight's type as there;
//! else errors are f32. The CUDA path of llm-compressor searches with another patience and chooses other scales.

#![expect(clippy::inline_always, reason = "inlined into the loop over elements, which vectorizes")]

use std::io;
use std::ops::Range;

use rayon::prelude::*;

use super::float_dtype::FloatDtype;
use super::kernel_path::KernelPath;
use super::quantize_weight::{
    Arithmetic, Collected, Preset, QuantizeWeightError, Quantized, RowJob, TILES_PER_BATCH, Tile, Weight,
    amax, finish, job_of, tiles,
};
use super::row_codecs::{Codec, Int};
use super::row_kernels::pack;
use super::weight_layout::{Element, ScaleKind, WeightLayout};
use super::{e8m0, fp4, fp6, fp8, qparams};

/// Candidates: maxshrink · grid.
const STEPS: u8 = 20;
/// Steps per unit of the range.
const GRID: f64 = 100.0;
/// Exponent of the error.
const NORM: f32 = 2.4;
/// Steps without any improvement after which the search ends.
const PATIENCE: u8 = 5;

/// As [`super::quantize_weight::quantize_weight`], with searched ranges. `shared` is what [`shared_amax`] finds.
pub fn quantize_weight(
    weight: Weight<'_>,
    layout: &WeightLayout,
    arithmetic: Arithmetic,
    shared: f32,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<Quantized, QuantizeWeightError> {
    let job = job_of(weight.shape, weight.dtype, layout, shared);
    match layout.element {
        Element::Int(_) => {
            Search { job, arithmetic, codec: Int::<true>::new(layout.element) }.quantize(weight, sink)
        }
        Element::E4m3 => Search { job, arithmetic, codec: fp8::FORMAT }.quantize(weight, sink),
        Element::E2m3 => Search { job, arithmetic, codec: fp6::FORMAT }.quantize(weight, sink),
        Element::E2m1 => Search { job, arithmetic, codec: fp4::FORMAT }.quantize(weight, sink),
    }
}

/// The largest magnitude that the searched ranges of an NVFP4 weight cover: what its global scale goes by.
pub fn shared_amax(
    weight: Weight<'_>,
    layout: &WeightLayout,
    arithmetic: Arithmetic,
) -> Result<f32, QuantizeWeightError> {
    // NaN and infinity are refused by name before any search.
    amax(weight)?;
    let search =
        Search { job: job_of(weight.shape, weight.dtype, layout, 0.0), arithmetic, codec: fp4::FORMAT };
    let steps = search.best_steps(weight);
    let mut largest = 0f32;
    for (tile, steps) in search.with_steps(weight, &steps) {
        search.for_blocks(weight, tile, |i, values| {
            largest = largest.max(Bounds::of(values).shrunk(steps[i], search.job.dtype).amax());
        });
    }
    Ok(largest)
}

/// Smallest and largest value of a block, both sides of zero.
#[derive(Clone, Copy)]
struct Bounds {
    min: f32,
    max: f32,
}

impl Bounds {
    fn of(values: &[f32]) -> Self {
        let (min, max) = values.iter().fold((0f32, 0f32), |(min, max), x| (min.min(*x), max.max(*x)));
        Self { min, max }
    }

    /// Times 1 − step/100, in the weight's type.
    fn shrunk(self, step: u8, dtype: FloatDtype) -> Self {
        let p = (1.0 - f64::from(step) / GRID) as f32;
        Self { min: dtype.round(self.min * p), max: dtype.round(self.max * p) }
    }

    fn amax(self) -> f32 {
        self.max.max(-self.min)
    }
}

/// A block's scale: what elements are divided by, the zero point, and the byte that is stored where it is no float.
#[derive(Clone, Copy)]
struct Scale {
    divisor: f32,
    zero_point: i8,
    byte: Option<u8>,
}

/// What the search of one weight needs.
struct Search<C> {
    job: RowJob,
    arithmetic: Arithmetic,
    codec: C,
}

impl<C: Codec + Sync> Search<C> {
    fn quantize(
        &self,
        weight: Weight<'_>,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Quantized, QuantizeWeightError> {
        amax(weight)?;
        let steps = self.best_steps(weight);
        let mut rest = Collected::default();
        let work: Vec<(Range<usize>, &[u8])> = self.with_steps(weight, &steps).collect();
        for batch in work.chunks(TILES_PER_BATCH) {
            let done: Vec<Tile> =
                batch.par_iter().map(|(tile, steps)| self.code(weight, tile.clone(), steps)).collect();
            for tile in done {
                rest.add(&tile);
                sink(&tile.codes)?;
            }
        }
        Ok(finish(rest, &self.job, weight.shape))
    }

    /// Each tile of rows with the steps of its blocks.
    fn with_steps<'s>(
        &self,
        weight: Weight<'_>,
        steps: &'s [u8],
    ) -> impl Iterator<Item = (Range<usize>, &'s [u8])> + use<'s, C> {
        let (band, blocks) = (self.job.band, weight.shape[1].div_ceil(self.job.columns));
        tiles(&self.job, weight.shape[0]).into_iter().map(move |tile| {
            let first = tile.start / band * blocks;
            (tile, &steps[first..])
        })
    }

    /// Calls `f` with the number and the values of each block of a tile, row band by row band.
    fn for_blocks(&self, weight: Weight<'_>, tile: Range<usize>, mut f: impl FnMut(usize, &[f32])) {
        let k = weight.shape[1];
        let row_bytes = k * weight.dtype.size();
        let mut rows = vec![0.0f32; tile.len() * k];
        weight.dtype.decode(&weight.data[tile.start * row_bytes..tile.end * row_bytes], &mut rows);
        let mut values = Vec::new();
        let mut number = 0;
        for band in rows.chunks(self.job.band * k.max(1)) {
            for first in (0..k).step_by(self.job.columns) {
                let columns = first..(first + self.job.columns).min(k);
                values.clear();
                for row in band.chunks_exact(k) {
                    values.extend_from_slice(&row[columns.clone()]);
                }
                f(number, &values);
                number += 1;
            }
        }
    }

    /// The best step of every block.
    fn best_steps(&self, weight: Weight<'_>) -> Vec<u8> {
        let improving: Vec<u32> = tiles(&self.job, weight.shape[0])
            .into_par_iter()
            .flat_map_iter(|tile| {
                let mut masks = Vec::new();
                self.for_blocks(weight, tile, |_, values| masks.push(self.improving_steps(values)));
                masks
            })
            .collect();
        let taken = taken_steps(improving.iter().fold(0, |all, mask| all | mask));
        improving.iter().map(|mask| (mask & taken).checked_ilog2().unwrap_or(0) as u8).collect()
    }

    /// One bit for each step whose error is below that of all steps before it.
    fn improving_steps(&self, values: &[f32]) -> u32 {
        let bounds = Bounds::of(values);
        let mut best = f32::INFINITY;
        let mut mask = 0;
        for step in 0..STEPS {
            let error = self.error(values, self.scale(bounds.shrunk(step, self.job.dtype), true));
            if error < best {
                best = error;
                mask |= 1 << step;
            }
        }
        mask
    }

    /// The scale that covers a range. While searching, NVFP4 groups have plain scales: the global one is not known yet.
    fn scale(&self, range: Bounds, searching: bool) -> Scale {
        let (job, element) = (&self.job, self.job.layout.element);
        match (job.layout.scale, job.preset) {
            (ScaleKind::E8m0, _) => {
                let byte = qparams::mx_scale(range.amax(), element);
                Scale { divisor: e8m0::e8m0_to_f32(byte), zero_point: 0, byte: Some(byte) }
            }
            (ScaleKind::E4m3UnderGlobal, Preset::Global(global)) if !searching => {
                let (byte, divisor) = qparams::nvfp4_local_scale(range.amax(), global, job.dtype);
                Scale { divisor, zero_point: 0, byte: Some(byte) }
            }
            _ if job.layout.symmetric => {
                let divisor = qparams::symmetric_scale(range.amax(), element, job.dtype);
                Scale { divisor, zero_point: 0, byte: None }
            }
            _ => {
                let (divisor, zero_point) =
                    qparams::asymmetric_qparams(range.min, range.max, element, job.dtype);
                Scale { divisor, zero_point: zero_point as i8, byte: None }
            }
        }
    }

    /// In which type quotients are rounded; by an f32 or a power of two they are not.
    fn quotient_dtype(&self, searching: bool) -> FloatDtype {
        let by_float = match self.job.layout.scale {
            ScaleKind::Float => true,
            ScaleKind::E4m3UnderGlobal => searching,
            ScaleKind::E8m0 => false,
        };
        if by_float && self.arithmetic == Arithmetic::WeightDtype { self.job.dtype } else { FloatDtype::F32 }
    }

    /// Code of one element, and its value without the zero point.
    #[inline(always)]
    fn encode(&self, x: f32, scale: Scale, quotient: FloatDtype) -> (u8, f32) {
        let zero_point = f32::from(scale.zero_point);
        let q = quotient.round(x / scale.divisor);
        let q = if zero_point == 0.0 { q } else { quotient.round(q + zero_point) };
        self.codec.encode(q, zero_point)
    }

    /// Σ |w − ŵ|^2.4.
    fn error(&self, values: &[f32], scale: Scale) -> f32 {
        let quotient = self.quotient_dtype(true);
        let mut sum = 0.0f32;
        if self.arithmetic == Arithmetic::F32 {
            let mut lanes = [0.0f32; 16];
            for chunk in values.chunks(16) {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    let value = self.encode(*x, scale, quotient).1;
                    *lane += power((value * scale.divisor - x).abs());
                }
            }
            return lanes.iter().sum();
        }
        let round = |x| self.job.dtype.round(x);
        // torch rounds a number that it raises a tensor to as well: 2.40625 in bf16.
        let norm = round(NORM);
        for x in values {
            let back = round(self.encode(*x, scale, quotient).1 * scale.divisor);
            sum += round(round(back - x).abs().powf(norm));
        }
        round(sum)
    }

    /// Codes a tile with the steps of its blocks.
    fn code(&self, weight: Weight<'_>, tile: Range<usize>, steps: &[u8]) -> Tile {
        let k = weight.shape[1];
        let quotient = self.quotient_dtype(false);
        let mut out = Tile::default();
        let mut codes = vec![0u8; tile.len() * k];
        let blocks = k.div_ceil(self.job.columns);
        self.for_blocks(weight, tile, |i, values| {
            let scale = self.scale(Bounds::of(values).shrunk(steps[i], self.job.dtype), false);
            match scale.byte {
                Some(byte) => out.scales.push(byte),
                None => self.job.dtype.write(scale.divisor, &mut out.scales),
            }
            if !self.job.layout.symmetric {
                out.zero_points.push(scale.zero_point);
            }
            let (row, first) = (i / blocks * self.job.band, i % blocks * self.job.columns);
            let width = self.job.columns.min(k - first);
            for (r, values) in values.chunks(width).enumerate() {
                for (c, x) in values.iter().enumerate() {
                    let (code, value) = self.encode(*x, scale, quotient);
                    codes[(row + r) * k + first + c] = code;
                    let error = f64::from(x - value * scale.divisor);
                    out.noise += error * error;
                    out.signal += f64::from(*x) * f64::from(*x);
                }
            }
        });
        out.codes.resize(codes.len() / k.max(1) * self.job.row_code_bytes, 0);
        pack(KernelPath::detect(), &self.job, &codes, &mut out.codes);
        out
    }
}

/// The steps that the search takes, as bits: it ends when [`PATIENCE`] steps in a row improve nothing.
fn taken_steps(improving: u32) -> u32 {
    let mut idle = 0;
    for step in 0..STEPS {
        idle = if improving & (1 << step) == 0 { idle + 1 } else { 0 };
        if idle == PATIENCE {
            return (1 << step) - 1;
        }
    }
    u32::MAX
}

/// x^2.4 for x ≥ 0 to 2⁻¹⁸ or better, as 2^(2.4 · log₂ x) by polynomials, which vectorizes where `powf` does not.
#[inline(always)]
fn power(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let bits = x.to_bits();
    // x = 2^e · m with m in [1/√2, √2).
    let e = ((bits.wrapping_sub(0x3f35_04f3)) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((e << 23) as u32));
    let t = (m - 1.0) / (m + 1.0);
    let tt = t * t;
    // ln m = 2 · artanh t.
    let series = 1.0 + tt * (1.0 / 3.0 + tt * (0.2 + tt * (1.0 / 7.0 + tt * (1.0 / 9.0))));
    let whole = e as f32 * NORM;
    let whole_part = (whole + MAGIC) - MAGIC;
    let y = (whole - whole_part) + t * series * (2.0 * NORM * std::f32::consts::LOG2_E);
    let part = (y + MAGIC) - MAGIC;
    let f = (y - part) * std::f32::consts::LN_2;
    let exp =
        1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f / 720.0)))));
    let exponent = (whole_part + part) as i32;
    let scale = f32::from_bits(((exponent.clamp(-126, 127) + 127) as u32) << 23);
    if exponent < -126 { 0.0 } else { exp * scale }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden;
    use crate::ops::quantize_weight::tests::{layout, tensors_of};

    #[test]
    fn power_is_x_to_the_norm() {
        assert_eq!(power(0.0), 0.0);
        for i in 1..4000 {
            let x = (i as f32 * 0.37) * 10f32.powi(i % 9 - 7);
            let exact = f64::from(x).powf(2.4);
            assert!((f64::from(power(x)) / exact - 1.0).abs() < 4e-6, "{x}: {} {exact}", power(x));
        }
    }

    #[test]
    fn search_ends_after_five_idle_steps() {
        assert_eq!(taken_steps(0b1) & 0xfffff, 0b11111);
        assert_eq!(taken_steps(0b10_0001), (1 << 10) - 1);
        assert_eq!(taken_steps(0x8_4210 | 1), u32::MAX);
    }

    /// Every scheme against llm-compressor's own observer (`golden/weights.py`), in its arithmetic.
    #[test]
    fn every_scheme_as_llm_compressor() {
        let mut compared = 0;
        for (dtype, key) in [(FloatDtype::Bf16, "bfloat16"), (FloatDtype::F32, "float32")] {
            let all = golden::weights();
            let data = golden::from_hex(all[key]["weight"].as_str().unwrap());
            let weight = Weight { data: &data, dtype, shape: [40, 96] };
            for (name, expected) in all[key].as_object().unwrap() {
                let Some(scheme) = name.strip_suffix("_mse") else { continue };
                let layout = layout(scheme);
                let arithmetic = Arithmetic::WeightDtype;
                let shared = match layout.scale {
                    ScaleKind::E4m3UnderGlobal => shared_amax(weight, &layout, arithmetic).unwrap(),
                    _ => 0.0,
                };
                let tensors = tensors_of(weight, &layout, |sink| {
                    quantize_weight(weight, &layout, arithmetic, shared, sink)
                });
                for (suffix, bytes) in tensors {
                    assert_eq!(golden::sha256(&bytes), expected[suffix], "{key} {name} {suffix}");
                    compared += 1;
                }
            }
        }
        assert!(compared >= 20, "{compared}");
    }

    /// Searching lowers the error it searches by, and is the same for any number of threads.
    #[test]
    fn error_is_smaller_than_that_of_the_whole_range() {
        let all = golden::weights();
        let data = golden::from_hex(all["bfloat16"]["weight"].as_str().unwrap());
        let weight = Weight { data: &data, dtype: FloatDtype::Bf16, shape: [40, 96] };
        for name in ["int4_g32", "int4_g32_asym", "int3_g32", "fp8_channel", "fp8_block"] {
            let layout = layout(name);
            let whole = super::super::quantize_weight::quantize_weight(
                weight,
                &layout,
                Arithmetic::F32,
                0.0,
                &mut |_| Ok(()),
            );
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    quantize_weight(weight, &layout, Arithmetic::F32, 0.0, &mut |_| Ok(())).unwrap()
                })
            };
            let searched = run(1);
            assert_eq!(searched, run(3));
            assert!(searched.noise <= whole.unwrap().noise * 1.02, "{name}");
        }
    }
}
