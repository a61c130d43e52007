//! Quantizes the rows of a tile: scales found, elements coded and packed, errors summed.
//!
//! Rows go through in strips that stay in the first-level cache (as many rows as a block has where blocks are higher than
//! a row): extremes of all groups, from the raw bytes; scales of all groups at once; codes; packing. Each step is a loop
//! of [`super::row_kernels`]; what is decided here is decided once a strip.

use super::float_dtype::FloatDtype;
use super::kernel_path::KernelPath;
use super::quantize_weight::{Arithmetic, Preset, RowJob, Tile};
use super::row_codecs::{Bf16, Codec, DIVISIBLE, Exact, F32, Int, Quotient, Source, ToBf16, ToF16};
use super::row_kernels::{self as kernels, Groups, LANES, Rows, Sums};
use super::weight_layout::{Element, Packing, ScaleKind};
use super::{fp4, fp6, fp8};

/// Bytes of source rows in one strip: with codes and scales it stays in the first-level cache.
const STRIP_BYTES: usize = 16 << 10;

/// Quantizes the whole rows of a tile into `out`; `false` when an element is not finite.
pub(super) fn quantize_rows(
    path: KernelPath,
    job: &RowJob,
    arithmetic: Arithmetic,
    bytes: &[u8],
    out: &mut Tile,
) -> bool {
    let row_bytes = job.row_bytes().max(1);
    let code_bytes = job.row_code_bytes.max(1);
    out.codes.resize(bytes.len() / row_bytes * code_bytes, 0);
    let rows = if job.band > 1 { job.band } else { (STRIP_BYTES / row_bytes).max(1) };
    let mut strips = Strips::new(path, job, arithmetic);
    for (strip, packed) in bytes.chunks(rows * row_bytes).zip(out.codes.chunks_mut(rows * code_bytes)) {
        if !strips.find_qparams(strip, &mut out.scales, &mut out.zero_points) {
            return false;
        }
        strips.code(strip, packed);
    }
    (out.signal, out.noise) = strips.sums.total();
    true
}

/// How the strips of a tile are worked on, and the memory that each of them uses anew.
struct Strips<'a> {
    path: KernelPath,
    job: &'a RowJob,
    /// Whether quotients are rounded to the weight's type.
    rounds: bool,
    widths: Widths,
    /// Whether groups are no multiples of a block and are padded to one.
    pads: bool,
    /// Blocks of [`LANES`] elements in a row, padding included.
    blocks: usize,
    groups: Groups,
    /// Scale, reciprocal and zero point of each block, where groups are not blocks themselves.
    of_blocks: [Vec<f32>; 3],
    magnitudes: Vec<u8>,
    widened: Vec<u8>,
    padded: Vec<u8>,
    padded_codes: Vec<u8>,
    codes: Vec<u8>,
    sums: Sums,
}

impl<'a> Strips<'a> {
    fn new(path: KernelPath, job: &'a RowJob, arithmetic: Arithmetic) -> Self {
        let widths = Widths { k: job.k, columns: job.columns };
        Self {
            path,
            job,
            // NVFP4 divides by an f32 and MX formats by a power of two: there the quotient is never rounded.
            rounds: arithmetic == Arithmetic::WeightDtype && job.layout.scale == ScaleKind::Float,
            widths,
            pads: !(job.k.is_multiple_of(LANES) && job.columns.is_multiple_of(LANES)),
            blocks: widths.of_groups().map(|columns| columns.div_ceil(LANES)).sum::<usize>().max(1),
            groups: Groups::default(),
            of_blocks: Default::default(),
            magnitudes: Vec::new(),
            widened: Vec::new(),
            padded: Vec::new(),
            padded_codes: Vec::new(),
            codes: Vec::new(),
            sums: Sums::default(),
        }
    }

    /// Finds the scales of a strip and appends what is stored of them; `false` when an element is not finite.
    fn find_qparams(&mut self, strip: &[u8], scales: &mut Vec<u8>, zero_points: &mut Vec<i8>) -> bool {
        let job = self.job;
        let wide = job.dtype == FloatDtype::F32;
        let row_bytes = job.row_bytes();
        let mut rows = strip;
        if job.band > 1 {
            self.magnitudes.clear();
            self.magnitudes.resize(row_bytes, 0);
            let accumulate =
                if wide { kernels::accumulate::<[u8; 4]> } else { kernels::accumulate::<[u8; 2]> };
            for row in strip.chunks_exact(row_bytes) {
                accumulate(self.path, row, &mut self.magnitudes);
            }
            rows = &self.magnitudes;
        }
        let count = rows.len() / row_bytes * job.k.div_ceil(job.columns);
        self.groups.resize(count);
        let Groups { low, high, .. } = &mut self.groups;
        if job.layout.symmetric {
            let largest = if wide { kernels::largest::<[u8; 4]> } else { kernels::largest::<[u8; 2]> };
            largest(self.path, rows, job.k, job.columns, high);
        } else {
            let extremes = if wide { kernels::extremes::<[u8; 4]> } else { kernels::extremes::<[u8; 2]> };
            extremes(self.path, rows, job.k, job.columns, low, high);
        }
        let scale_bytes = match (job.preset, job.layout.scale) {
            (Preset::Tensor(_), _) => 0,
            (_, ScaleKind::Float) => job.dtype.size(),
            (_, ScaleKind::E8m0 | ScaleKind::E4m3UnderGlobal) => 1,
        };
        let (scale_start, zero_start) = (scales.len(), zero_points.len());
        scales.resize(scale_start + count * scale_bytes, 0);
        zero_points.resize(zero_start + if job.layout.symmetric { 0 } else { count }, 0);
        let (scales, zero_points) = (&mut scales[scale_start..], &mut zero_points[zero_start..]);
        kernels::find_qparams(self.path, job, &mut self.groups, scales, zero_points)
    }

    /// Codes and packs a strip.
    fn code(&mut self, strip: &[u8], packed: &mut [u8]) {
        let job = self.job;
        let packs = job.layout.packing != Packing::Bytes;
        let mut codes = std::mem::take(&mut self.codes);
        if packs {
            codes.resize(strip.len() / job.dtype.size(), 0);
        }
        let element = job.layout.element;
        let place = if packs { &mut *codes } else { &mut *packed };
        match element {
            Element::E4m3 => self.encode(fp8::FORMAT, strip, place),
            Element::E2m3 => self.encode(fp6::FORMAT, strip, place),
            Element::E2m1 => self.encode(fp4::FORMAT, strip, place),
            Element::Int(_) if job.layout.symmetric => self.encode(Int::<false>::new(element), strip, place),
            Element::Int(_) => self.encode(Int::<true>::new(element), strip, place),
        }
        if packs {
            kernels::pack(self.path, job, &codes, packed);
        }
        self.codes = codes;
    }

    /// The codec is known.
    fn encode<C: Codec>(&mut self, codec: C, strip: &[u8], codes: &mut [u8]) {
        match (self.job.dtype, self.rounds) {
            (FloatDtype::Bf16, false) => self.encode_as::<Bf16, C, Exact>(codec, 2, strip, codes),
            (FloatDtype::Bf16, true) => self.encode_as::<Bf16, C, ToBf16>(codec, 2, strip, codes),
            (FloatDtype::F32, _) => self.encode_as::<F32, C, Exact>(codec, 4, strip, codes),
            (FloatDtype::F16, rounds) => {
                let mut widened = std::mem::take(&mut self.widened);
                widened.resize(2 * strip.len(), 0);
                kernels::widen(self.path, strip, &mut widened);
                if rounds {
                    self.encode_as::<F32, C, ToF16>(codec, 4, &widened, codes);
                } else {
                    self.encode_as::<F32, C, Exact>(codec, 4, &widened, codes);
                }
                self.widened = widened;
            }
        }
    }

    /// Everything is known: `size` is that of an element of `bytes`.
    fn encode_as<S: Source, C: Codec, Q: Quotient>(
        &mut self,
        codec: C,
        size: usize,
        bytes: &[u8],
        codes: &mut [u8],
    ) {
        let job = self.job;
        let Groups { scale, inverse, zero_point, .. } = &self.groups;
        let divisible = scale.iter().all(|scale| DIVISIBLE.contains(scale));
        let [mut scales, mut inverses, mut zero_points] = [scale, inverse, zero_point];
        if self.pads || job.columns != LANES {
            let (widths, of_blocks) = (self.widths, &mut self.of_blocks);
            widths.spread(scales, &mut of_blocks[0]);
            if S::IS_SHORT && divisible {
                widths.spread(inverses, &mut of_blocks[1]);
            }
            if C::HAS_ZERO_POINT {
                widths.spread(zero_points, &mut of_blocks[2]);
            }
            [scales, inverses, zero_points] = of_blocks.each_ref();
        }
        let inverses = (S::IS_SHORT && divisible).then_some(inverses.as_slice());
        let mut rows = Rows { bytes, blocks: self.blocks, scales, inverses, zero_points };
        if !self.pads {
            return kernels::encode::<S, C, Q>(self.path, codec, &rows, codes, &mut self.sums);
        }
        self.widths.pad(bytes, size, &mut self.padded);
        rows.bytes = &self.padded;
        self.padded_codes.resize(self.padded.len() / size, 0);
        kernels::encode::<S, C, Q>(self.path, codec, &rows, &mut self.padded_codes, &mut self.sums);
        self.widths.strip(&self.padded_codes, codes);
    }
}

/// How rows of `k` elements are cut into groups of `columns`, which are padded with zeros to whole blocks where they are
/// none. Zeros add nothing to the sums.
#[derive(Clone, Copy)]
struct Widths {
    k: usize,
    columns: usize,
}

impl Widths {
    /// Elements of each group of a row.
    fn of_groups(self) -> impl Iterator<Item = usize> {
        (0..self.k).step_by(self.columns).map(move |first| self.columns.min(self.k - first))
    }

    /// Repeats what each group of some rows has for each of its blocks.
    fn spread(self, of_groups: &[f32], of_blocks: &mut Vec<f32>) {
        if !self.k.is_multiple_of(self.columns) {
            of_blocks.clear();
            for row in of_groups.chunks_exact(self.k.div_ceil(self.columns)) {
                for (x, columns) in row.iter().zip(self.of_groups()) {
                    of_blocks.extend(std::iter::repeat_n(*x, columns.div_ceil(LANES)));
                }
            }
            return;
        }
        let blocks = self.columns.div_ceil(LANES);
        of_blocks.resize(of_groups.len() * blocks, 0.0);
        if blocks == 2 {
            for (x, pair) in of_groups.iter().zip(of_blocks.as_chunks_mut().0) {
                *pair = [*x, *x];
            }
            return;
        }
        for (x, all) in of_groups.iter().zip(of_blocks.chunks_exact_mut(blocks)) {
            all.fill(*x);
        }
    }

    /// `elements` of so many bytes with the padding.
    fn pad(self, elements: &[u8], size: usize, padded: &mut Vec<u8>) {
        padded.clear();
        for mut row in elements.chunks_exact(self.k * size) {
            for columns in self.of_groups() {
                let (group, rest) = row.split_at(columns * size);
                row = rest;
                padded.extend_from_slice(group);
                padded.resize(padded.len() + (columns.next_multiple_of(LANES) - columns) * size, 0);
            }
        }
    }

    /// Codes without those of the padding.
    fn strip(self, padded: &[u8], mut codes: &mut [u8]) {
        let mut padded = padded;
        while !codes.is_empty() {
            for columns in self.of_groups() {
                let (group, rest) = padded.split_at(columns.next_multiple_of(LANES));
                padded = rest;
                let (place, rest) = codes.split_at_mut(columns);
                place.copy_from_slice(&group[..columns]);
                codes = rest;
            }
        }
    }
}
