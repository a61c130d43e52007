//! The error that quantizing made, tensor by tensor, from the bytes on disk: the source's weight minus what the stored
//! codes and scales stand for.
//!
//! | figure | meaning |
//! |---|---|
//! | MSE | Σ(w − ŵ)² / (N·K) |
//! | SQNR | 10·log₁₀(Σw² / Σ(w − ŵ)²) dB |
//! | saturated group | an element beyond the largest code by more than half the step there: clipped, not rounded |
//! | zeroed group | an element of the source is not zero, and all of ŵ are |
//! | underflowed scale | the scale of a group that is not all zero is zero or subnormal in its own type, or was replaced |
//!
//! It is a pass of its own and not a by-product of quantizing: it verifies packing, scales and codes as a loader would
//! read them. Memory is one dense weight, rows of the source, and one byte a group.

use rayon::prelude::*;
use safetensors::Dtype;

use super::ScanError;
use super::modules::{Declared, Module};
use super::opened::Opened;
use super::table::{Table, Values};
use crate::base::progress::Progress;
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, QuantizationConfig};
use crate::ops::dequantize::dense_weight;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::weight_layout::{Element, ScaleKind};
use crate::ops::{e8m0, fp8};
use crate::record::scan::TensorError;

/// Rows of the source read at once, in bytes of f32.
const TILE_BYTES: usize = 256 << 10;
/// Lanes of sums, so that compilers use vector instructions.
const LANES: usize = 16;

/// Flags of one group.
const HAS_VALUES: u8 = 1;
const KEEPS_VALUES: u8 = 2;
const IS_CLIPPED: u8 = 4;

/// A quantized checkpoint and what it was made from.
pub(super) struct Pair<'a> {
    pub source: &'a Opened,
    pub before: &'a Table<'a>,
    pub output: &'a Checkpoint,
    pub after: &'a Table<'a>,
    pub config: &'a QuantizationConfig,
}

/// One weight in both.
struct Weight<'a> {
    name: String,
    module: &'a str,
    declared: &'a Declared,
    shape: [usize; 2],
    dtype: FloatDtype,
}

impl Pair<'_> {
    /// Measures every quantized weight that the source has as floats of the same shape, in the order of `modules`.
    pub(super) fn errors(&self, modules: &[Module<'_>]) -> Result<Vec<TensorError>, ScanError> {
        let weights: Vec<Weight<'_>> = modules.iter().filter_map(|m| self.weight(m)).collect();
        let bytes = |w: &Weight<'_>| (w.shape[0] * w.shape[1] * w.dtype.size()) as u64;
        let progress = Progress::new("errors", weights.iter().map(bytes).sum(), "B");
        weights
            .iter()
            .filter_map(|weight| {
                let error = self.of_weight(weight).transpose();
                progress.inc(bytes(weight));
                error
            })
            .collect()
    }

    fn weight<'m>(&self, module: &'m Module<'_>) -> Option<Weight<'m>> {
        let name = format!("{}.weight", module.name);
        let info = self.before.tensors.get(name.as_str())?;
        let shape = module.shape.filter(|shape| info.shape == shape)?;
        let dtype = FloatDtype::of(info.dtype)?;
        Some(Weight { name, module: module.name, declared: module.declared.as_ref()?, shape, dtype })
    }

    /// `None` where the tensors are defective, which is reported already.
    fn of_weight(&self, weight: &Weight<'_>) -> Result<Option<TensorError>, ScanError> {
        let [n, k] = weight.shape;
        let layout = &weight.declared.layout;
        let group = self.config.groups.iter().find(|g| g.name == weight.declared.group);
        let Some(dense) = group.and_then(|g| dense_weight(self.output, weight.module, g).ok()) else {
            return Ok(None);
        };
        let Some((scales, stored)) = self.scales(weight) else { return Ok(None) };
        let [band, columns] = layout.block(weight.shape);
        let shape =
            Groups { band, columns, per_row: k.div_ceil(columns), half_step: half_top_step(layout.element) };
        let rows = (TILE_BYTES / (4 * k.max(1))).max(1);
        let starts: Vec<usize> = (0..n).step_by(rows).collect();
        let tiles = starts.par_iter().map(|start| {
            let range = *start..(start + rows).min(n);
            let row_bytes = k * weight.dtype.size();
            let mut bytes = vec![0; range.len() * row_bytes];
            self.source.read(&weight.name, (range.start * row_bytes) as u64, &mut bytes)?;
            let mut w = vec![0.0; range.len() * k];
            weight.dtype.decode(&bytes, &mut w);
            Ok(shape.tile(range.start, &w, &dense.data[range.start * k..range.end * k], k, &scales))
        });
        let tiles: Vec<Tile> = tiles.collect::<Result<_, ScanError>>()?;
        let total = Tile::all(tiles, n.div_ceil(band) * shape.per_row);
        self.output.release(&format!("{}.{}", weight.module, layout.codes(weight.shape).suffix));
        Ok(Some(total.report(weight, &stored)))
    }

    /// What codes are multiplied with, and the tensor it was read from.
    fn scales(&self, weight: &Weight<'_>) -> Option<(Vec<f32>, Values)> {
        let values = |suffix: &str| self.after.values(&format!("{}.{suffix}", weight.module));
        let stored = values("weight_scale")?;
        let scales = match weight.declared.layout.scale {
            ScaleKind::Float => stored.view().to_f32().ok()?,
            ScaleKind::E8m0 => stored.data.iter().map(|byte| e8m0::e8m0_to_f32(*byte)).collect(),
            ScaleKind::E4m3UnderGlobal => {
                let of = |suffix| values(suffix)?.view().to_f32().ok()?.first().copied();
                // ModelOpt's multiplies where that of compressed-tensors divides.
                let effective = |local: f32| match weight.declared.layout.dialect {
                    Dialect::CompressedTensors => of("weight_global_scale").map(|global| local / global),
                    Dialect::Modelopt => of("weight_scale_2").map(|global| local * global),
                };
                let one = effective(1.0)?;
                stored.data.iter().map(|code| fp8::e4m3_to_f32(*code) * one).collect()
            }
        };
        Some((scales, stored))
    }
}

/// The `count` worst, worst first; tensors without an error are never among them.
pub fn worst(errors: &[TensorError], count: usize) -> Vec<&TensorError> {
    let mut sorted: Vec<&TensorError> = errors.iter().filter(|e| e.mse > 0.0).collect();
    // No signal but an error: worse than any ratio.
    let ratio = |e: &TensorError| e.sqnr_db.unwrap_or(f64::NEG_INFINITY);
    sorted.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)).then_with(|| a.module.cmp(&b.module)));
    sorted.truncate(count);
    sorted
}

/// How elements share scales.
#[derive(Clone, Copy)]
struct Groups {
    band: usize,
    columns: usize,
    per_row: usize,
    /// Half the distance of the two largest codes, in units of the scale.
    half_step: f32,
}

/// What some rows add.
#[derive(Default)]
struct Tile {
    signal: f64,
    noise: f64,
    largest: f32,
    /// First group, and the flags of groups from there on.
    first: usize,
    flags: Vec<u8>,
}

impl Groups {
    /// Rows from `start` on: `w` and `q` are [rows, K].
    fn tile(self, start: usize, w: &[f32], q: &[f32], k: usize, scales: &[f32]) -> Tile {
        let rows = w.len() / k.max(1);
        let first = start / self.band * self.per_row;
        let last = (start + rows).div_ceil(self.band) * self.per_row;
        let mut tile = Tile { first, flags: vec![0; last - first], ..Tile::default() };
        for (i, (w, q)) in w.chunks_exact(k.max(1)).zip(q.chunks_exact(k.max(1))).enumerate() {
            let at = (start + i) / self.band * self.per_row;
            for (group, (w, q)) in w.chunks(self.columns).zip(q.chunks(self.columns)).enumerate() {
                // One scale for all, where there is only one.
                let scale = scales.get(at + group).or(scales.first()).copied().unwrap_or(0.0);
                let flags = tile.add(w, q, self.half_step * scale);
                tile.flags[at + group - first] |= flags;
            }
        }
        tile
    }
}

impl Tile {
    /// Adds elements of one group in one row and returns the group's flags.
    fn add(&mut self, w: &[f32], q: &[f32], half_step: f32) -> u8 {
        let mut sums = Sums::default();
        let (blocks, rest) = w.as_chunks::<LANES>();
        let (q_blocks, q_rest) = q.as_chunks::<LANES>();
        for (w, q) in blocks.iter().zip(q_blocks) {
            sums.add(w, q);
        }
        if !rest.is_empty() {
            let (mut w_last, mut q_last) = ([0.0; LANES], [0.0; LANES]);
            w_last[..rest.len()].copy_from_slice(rest);
            q_last[..rest.len()].copy_from_slice(q_rest);
            sums.add(&w_last, &q_last);
        }
        let sum = |lanes: &[f32; LANES]| lanes.iter().map(|x| f64::from(*x)).sum::<f64>();
        let max = |lanes: &[f32; LANES]| lanes.iter().copied().fold(0f32, f32::max);
        self.signal += sum(&sums.signal);
        self.noise += sum(&sums.noise);
        let error = max(&sums.error);
        self.largest = self.largest.max(error);
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        // Rounding never errs by more than half a step, and the step at the largest code is the widest; the product in
        // f32 may be off in its last bits.
        flag(max(&sums.w) > 0.0, HAS_VALUES)
            | flag(max(&sums.q) > 0.0, KEEPS_VALUES)
            | flag(error > half_step * (1.0 + 1e-5), IS_CLIPPED)
    }

    /// The sum of tiles over so many groups.
    fn all(tiles: Vec<Self>, groups: usize) -> Self {
        let mut all = Self { flags: vec![0; groups], ..Self::default() };
        for tile in tiles {
            all.signal += tile.signal;
            all.noise += tile.noise;
            all.largest = all.largest.max(tile.largest);
            for (flag, more) in all.flags[tile.first..].iter_mut().zip(&tile.flags) {
                *flag |= more;
            }
        }
        all
    }

    fn report(&self, weight: &Weight<'_>, scales: &Values) -> TensorError {
        let elements = (weight.shape[0] * weight.shape[1]) as u64;
        let count = |test: &dyn Fn(u8) -> bool| self.flags.iter().filter(|f| test(**f)).count();
        let has_values = |f: u8| f & HAS_VALUES != 0;
        let is_zeroed = |f: u8| has_values(f) && f & KEEPS_VALUES == 0;
        // A local NVFP4 scale that rounds to zero is replaced when it is written, and only that zeroes a group.
        let is_replaced = |f: u8| is_zeroed(f) && weight.declared.layout.scale == ScaleKind::E4m3UnderGlobal;
        let is_lost =
            |(i, f): &(usize, &u8)| has_values(**f) && (is_underflowed(scales, *i) || is_replaced(**f));
        TensorError {
            module: weight.module.to_owned(),
            precision: weight.declared.layout.precision(),
            elements,
            mse: if elements == 0 { 0.0 } else { self.noise / elements as f64 },
            sqnr_db: (self.signal > 0.0 && self.noise > 0.0)
                .then(|| 10.0 * (self.signal / self.noise).log10()),
            max_error: self.largest,
            groups: self.flags.len(),
            saturated_groups: count(&|f| f & IS_CLIPPED != 0),
            zeroed_groups: count(&is_zeroed),
            underflowed_scales: self.flags.iter().enumerate().filter(is_lost).count(),
        }
    }
}

/// Sums by lane.
#[derive(Default)]
struct Sums {
    signal: [f32; LANES],
    noise: [f32; LANES],
    error: [f32; LANES],
    w: [f32; LANES],
    q: [f32; LANES],
}

impl Sums {
    #[inline]
    fn add(&mut self, w: &[f32; LANES], q: &[f32; LANES]) {
        let max = |a: f32, b: f32| if b > a { b } else { a };
        for lane in 0..LANES {
            let error = w[lane] - q[lane];
            self.signal[lane] += w[lane] * w[lane];
            self.noise[lane] += error * error;
            self.error[lane] = max(self.error[lane], error.abs());
            self.w[lane] = max(self.w[lane], w[lane].abs());
            self.q[lane] = max(self.q[lane], q[lane].abs());
        }
    }
}

/// Half the distance of the two largest codes, in units of the scale: 448 and 416 of E4M3, 6 and 4 of E2M1, 7.5 and 7
/// of E2M3.
fn half_top_step(element: Element) -> f32 {
    match element {
        Element::Int(_) => 0.5,
        Element::E4m3 => 16.0,
        Element::E2m1 => 1.0,
        Element::E2m3 => 0.25,
    }
}

/// Whether the scale at `index` is zero or subnormal in its type.
fn is_underflowed(scales: &Values, index: usize) -> bool {
    let bits16 = || scales.data.as_chunks::<2>().0.get(index).map(|b| u16::from_le_bytes(*b));
    match scales.dtype {
        Dtype::F8_E4M3 => scales.data.get(index).is_some_and(|code| code & 0x78 == 0),
        Dtype::U8 | Dtype::F8_E8M0 => scales.data.get(index) == Some(&0),
        Dtype::BF16 => bits16().is_some_and(|bits| bits & 0x7f80 == 0),
        Dtype::F16 => bits16().is_some_and(|bits| bits & 0x7c00 == 0),
        Dtype::F32 => {
            let bits = scales.data.as_chunks::<4>().0.get(index).map(|b| u32::from_le_bytes(*b));
            bits.is_some_and(|bits| bits & 0x7f80_0000 == 0)
        }
        _ => false,
    }
}
