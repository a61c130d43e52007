//! The inner loops of weight quantization, each compiled for AVX-512, AVX2 and the baseline.
//!
//! Work goes through arrays of [`LANES`] elements, which compilers turn into vector instructions. All paths give the
//! same bits: every operation is exactly rounded, none is fused, and the order of sums is by lane whatever the vector's
//! width. Only [`largest`], [`extremes`] and [`encode`] know the type of elements; the rest works on groups.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::float_dtype::FloatDtype;
use super::kernel_path::per_path;
use super::quantize_weight::{Preset, RowJob};
use super::row_codecs::{Codec, Quotient, Raw, Source, f16_value};
use super::weight_layout::{Element, Packing, ScaleKind};
use super::{e8m0, fp4, fp6, int_pack, qparams};

/// Elements worked on at once.
pub(super) const LANES: usize = 16;

/// What is known of some groups, each of which shares a scale.
#[derive(Default)]
pub(super) struct Groups {
    /// Bits of the smallest element, where there are zero points.
    pub low: Vec<i32>,
    /// Bits of the largest element, or the largest magnitude where there are none.
    pub high: Vec<i32>,
    /// What elements are divided by.
    pub scale: Vec<f32>,
    /// What is added to the quotient.
    pub zero_point: Vec<f32>,
}

impl Groups {
    /// Makes room for `count` groups.
    pub(super) fn resize(&mut self, count: usize) {
        self.low.resize(count, 0);
        self.high.resize(count, 0);
        self.scale.resize(count, 0.0);
        self.zero_point.resize(count, 0.0);
    }
}

per_path! {
    /// The bits of the largest magnitude of each group of `columns` elements in rows of `k`.
    pub(super) fn largest<R: Raw>(bytes: &[u8], k: usize, columns: usize, high: &mut [i32]) = largest_body
}

#[inline(always)]
fn largest_body<const FMA: bool, R: Raw>(bytes: &[u8], k: usize, columns: usize, high: &mut [i32]) {
    let rows = R::elements(bytes);
    match columns {
        // Sizes known to the compiler.
        16 if k.is_multiple_of(16) => {
            for (group, high) in rows.as_chunks::<16>().0.iter().zip(high) {
                *high = largest_of(group);
            }
        }
        32 if k.is_multiple_of(32) => {
            for (group, high) in rows.as_chunks::<32>().0.iter().zip(high) {
                *high = largest_of(group);
            }
        }
        _ => {
            for (row, high) in rows.chunks_exact(k).zip(high.chunks_exact_mut(k.div_ceil(columns))) {
                for (group, high) in row.chunks(columns).zip(high) {
                    *high = largest_of(group);
                }
            }
        }
    }
}

#[inline(always)]
fn largest_of<R: Raw>(group: &[R]) -> i32 {
    let (blocks, rest) = group.as_chunks::<LANES>();
    let mut lanes = [R::Bits::default(); LANES];
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = lanes[lane].max(block[lane].magnitude());
        }
    }
    let mut largest = R::Bits::default();
    for raw in rest {
        largest = largest.max(raw.magnitude());
    }
    for lane in lanes {
        largest = largest.max(lane);
    }
    largest.into()
}

per_path! {
    /// The bits of the smallest and the largest element of each group, both sides of zero.
    pub(super) fn extremes<R: Raw>(
        bytes: &[u8],
        k: usize,
        columns: usize,
        low: &mut [i32],
        high: &mut [i32],
    ) = extremes_body
}

#[inline(always)]
fn extremes_body<const FMA: bool, R: Raw>(
    bytes: &[u8],
    k: usize,
    columns: usize,
    low: &mut [i32],
    high: &mut [i32],
) {
    let rows = R::elements(bytes);
    let places = low.iter_mut().zip(&mut *high);
    if columns == 32 && k.is_multiple_of(32) {
        for (group, (low, high)) in rows.as_chunks::<32>().0.iter().zip(places) {
            (*low, *high) = extremes_of(group);
        }
        return;
    }
    let groups = k.div_ceil(columns);
    let places = low.chunks_exact_mut(groups).zip(high.chunks_exact_mut(groups));
    for (row, (low, high)) in rows.chunks_exact(k).zip(places) {
        for ((group, low), high) in row.chunks(columns).zip(low).zip(high) {
            (*low, *high) = extremes_of(group);
        }
    }
}

#[inline(always)]
fn extremes_of<R: Raw>(group: &[R]) -> (i32, i32) {
    let (blocks, rest) = group.as_chunks::<LANES>();
    let (mut lows, mut highs) = ([R::Bits::default(); LANES], [R::Bits::default(); LANES]);
    for block in blocks {
        for lane in 0..LANES {
            let key = block[lane].ordered();
            lows[lane] = lows[lane].min(key);
            highs[lane] = highs[lane].max(key);
        }
    }
    let (mut smallest, mut largest) = (R::Bits::default(), R::Bits::default());
    for raw in rest {
        smallest = smallest.min(raw.ordered());
        largest = largest.max(raw.ordered());
    }
    for lane in 0..LANES {
        smallest = smallest.min(lows[lane]);
        largest = largest.max(highs[lane]);
    }
    (R::from_ordered(smallest).bits().into(), R::from_ordered(largest).bits().into())
}

per_path! {
    /// The largest magnitude of each column so far, with that of one more row.
    pub(super) fn accumulate<R: Raw>(row: &[u8], magnitudes: &mut [u8]) = accumulate_body
}

#[inline(always)]
fn accumulate_body<const FMA: bool, R: Raw>(row: &[u8], magnitudes: &mut [u8]) {
    for (so_far, raw) in R::elements_mut(magnitudes).iter_mut().zip(R::elements(row)) {
        *so_far = R::from_bits(so_far.bits().max(raw.magnitude()));
    }
}

per_path! {
    /// Half-precision elements as f32.
    pub(super) fn widen(halves: &[u8], floats: &mut [u8]) = widen_body
}

#[inline(always)]
fn widen_body<const FMA: bool>(halves: &[u8], floats: &mut [u8]) {
    for (float, half) in floats.as_chunks_mut().0.iter_mut().zip(halves.as_chunks().0) {
        *float = f16_value(*half).to_le_bytes();
    }
}

per_path! {
    /// Scales (and zero points) of groups whose extreme elements are known, and the bytes to store: as many of `scales`
    /// a group as the layout has, none where the weight has one scale. `false` when an element is not finite.
    pub(super) fn find_qparams(
        job: &RowJob,
        groups: &mut Groups,
        scales: &mut [u8],
        zero_points: &mut [i8],
    ) -> bool = find_qparams_body
}

#[inline(always)]
fn find_qparams_body<const FMA: bool>(
    job: &RowJob,
    groups: &mut Groups,
    scales: &mut [u8],
    zero_points: &mut [i8],
) -> bool {
    match job.dtype {
        // The common type is known to the compiler, so that rounding to it is vectorized.
        FloatDtype::Bf16 => find_qparams_of(FloatDtype::Bf16, job, groups, scales, zero_points),
        other => find_qparams_of(other, job, groups, scales, zero_points),
    }
}

#[inline(always)]
fn find_qparams_of(
    dtype: FloatDtype,
    job: &RowJob,
    groups: &mut Groups,
    scales: &mut [u8],
    zero_points: &mut [i8],
) -> bool {
    let element = job.layout.element;
    for (value, bits) in groups.scale.iter_mut().zip(&groups.high) {
        *value = dtype.value_of_bits(*bits);
    }
    for (value, bits) in groups.zero_point.iter_mut().zip(&groups.low) {
        *value = dtype.value_of_bits(*bits);
    }
    let finite = |values: &[f32]| values.iter().fold(true, |finite, x| finite & x.is_finite());
    if !(finite(&groups.scale) && finite(&groups.zero_point)) {
        return false;
    }
    match (job.layout.scale, job.preset) {
        (_, Preset::Tensor(scale)) => groups.scale.fill(scale),
        (ScaleKind::E4m3UnderGlobal, Preset::Global(global)) => {
            for (scale, byte) in groups.scale.iter_mut().zip(scales) {
                (*byte, *scale) = qparams::nvfp4_local_scale(*scale, global, dtype);
            }
        }
        (ScaleKind::E8m0, _) => {
            for (scale, byte) in groups.scale.iter_mut().zip(scales) {
                *byte = qparams::mx_scale(*scale, element);
                *scale = e8m0::e8m0_to_f32(*byte);
            }
        }
        _ if job.layout.symmetric => {
            for scale in &mut groups.scale {
                *scale = qparams::symmetric_scale(*scale, element, dtype);
            }
            dtype.encode(&groups.scale, scales);
        }
        _ => {
            let both = groups.scale.iter_mut().zip(&mut groups.zero_point);
            for ((scale, zero_point), stored) in both.zip(zero_points) {
                (*scale, *stored) = qparams::asymmetric_qparams(*zero_point, *scale, element, dtype);
                *zero_point = f32::from(*stored);
            }
            dtype.encode(&groups.scale, scales);
        }
    }
    true
}

/// Rows to be coded, in blocks of [`LANES`] elements that share a scale.
pub(super) struct Rows<'a> {
    /// The elements.
    pub bytes: &'a [u8],
    /// Blocks of one row.
    pub blocks: usize,
    /// The scale of each block; of one row only where all rows share it.
    pub scales: &'a [f32],
    /// The zero points that go with the scales; any where codes have none.
    pub zero_points: &'a [f32],
}

/// Sums of squares by lane: the order of additions does not depend on vector width.
#[derive(Default)]
pub(super) struct Sums {
    signal: [f64; LANES],
    noise: [f64; LANES],
}

impl Sums {
    #[inline(always)]
    fn add_row(&mut self, signal: [f32; LANES], noise: [f32; LANES]) {
        for lane in 0..LANES {
            self.signal[lane] += f64::from(signal[lane]);
            self.noise[lane] += f64::from(noise[lane]);
        }
    }

    /// Σ w² and Σ (w − ŵ)².
    pub(super) fn total(&self) -> (f64, f64) {
        (self.signal.iter().sum(), self.noise.iter().sum())
    }
}

per_path! {
    /// Codes rows: one byte an element.
    pub(super) fn encode<S: Source, C: Codec, Q: Quotient>(
        codec: C,
        rows: &Rows<'_>,
        codes: &mut [u8],
        sums: &mut Sums,
    ) = encode_body
}

#[inline(always)]
fn encode_body<const FMA: bool, S: Source, C: Codec, Q: Quotient>(
    codec: C,
    rows: &Rows<'_>,
    codes: &mut [u8],
    sums: &mut Sums,
) {
    let blocks = S::Raw::elements(rows.bytes).as_chunks::<LANES>().0.chunks_exact(rows.blocks);
    let code_rows = codes.as_chunks_mut::<LANES>().0.chunks_exact_mut(rows.blocks);
    let mut scale_rows = rows.scales.chunks_exact(rows.blocks).cycle();
    let zero_points = if C::HAS_ZERO_POINT { rows.zero_points } else { rows.scales };
    let mut zero_point_rows = zero_points.chunks_exact(rows.blocks).cycle();
    for (row, codes) in blocks.zip(code_rows) {
        let (Some(scales), Some(zero_points)) = (scale_rows.next(), zero_point_rows.next()) else { return };
        let (mut signal, mut noise) = ([0.0; LANES], [0.0; LANES]);
        let qparams = scales.iter().zip(zero_points);
        for ((block, codes), (scale, zero_point)) in row.iter().zip(codes).zip(qparams) {
            for lane in 0..LANES {
                let x = S::value(block[lane]);
                let q = Q::round(x / scale);
                let q = if C::HAS_ZERO_POINT { Q::round(q + zero_point) } else { q };
                let (code, value) = codec.encode(q, *zero_point);
                let error = x - value * scale;
                codes[lane] = code;
                noise[lane] += error * error;
                signal[lane] += x * x;
            }
        }
        sums.add_row(signal, noise);
    }
}

per_path! {
    /// Packs the codes of whole rows of the job.
    pub(super) fn pack(job: &RowJob, codes: &[u8], packed: &mut [u8]) = pack_body
}

#[inline(always)]
fn pack_body<const FMA: bool>(job: &RowJob, codes: &[u8], packed: &mut [u8]) {
    let rows = codes.chunks_exact(job.k.max(1)).zip(packed.chunks_exact_mut(job.row_code_bytes.max(1)));
    match (job.layout.packing, job.layout.element) {
        (Packing::Words, Element::Int(bits)) => {
            rows.for_each(|(codes, packed)| int_pack::pack_row(codes, bits, packed));
        }
        (Packing::Nibbles, _) => rows.for_each(|(codes, packed)| fp4::pack(codes, packed)),
        (Packing::Sextets, _) => rows.for_each(|(codes, packed)| fp6::pack(codes, packed)),
        _ => packed.copy_from_slice(codes),
    }
}
