//! The inner loops of weight quantization, each compiled for AVX-512, AVX2 and the baseline.
//!
//! Work goes through arrays of [`LANES`] elements, which compilers turn into vector instructions. All paths give the
//! same bits: every operation is exactly rounded, none is fused, and the order of sums is by lane whatever the vector's
//! width. Only [`largest`], [`extremes`] and [`encode`] know the type of elements; the rest works on groups.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::float_dtype::FloatDtype;
use super::kernel_path::per_path;
use super::quantize_weight::{Preset, RowJob};
use super::row_codecs::{self, Codec, Quotient, Raw, Source, f16_value};
#[cfg(target_arch = "x86_64")]
use super::row_extremes;
use super::weight_layout::{Element, Packing, ScaleKind};
use super::{e8m0, fp4, fp6, int_pack, qparams};

/// Elements worked on at once.
pub(super) const LANES: usize = 16;

/// What is known of some groups, each of which shares a scale.
#[derive(Default)]
pub(super) struct Groups {
    /// Bits of the largest magnitude of negative elements, where there are zero points.
    pub low: Vec<i32>,
    /// Bits of the largest magnitude of positive elements, or of all where there are none.
    pub high: Vec<i32>,
    /// What elements are divided by.
    pub scale: Vec<f32>,
    /// Its reciprocal.
    pub inverse: Vec<f32>,
    /// What is added to the quotient.
    pub zero_point: Vec<f32>,
}

impl Groups {
    /// Makes room for `count` groups.
    pub(super) fn resize(&mut self, count: usize) {
        self.low.resize(count, 0);
        self.high.resize(count, 0);
        self.scale.resize(count, 0.0);
        self.inverse.resize(count, 0.0);
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
    /// The bits of the largest magnitudes of negative and of positive elements of each group.
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
        #[cfg(target_arch = "x86_64")]
        if FMA && size_of::<R>() == 2 && std::arch::is_x86_feature_detected!("avx2") {
            for (group, (low, high)) in bytes.as_chunks::<64>().0.iter().zip(places) {
                // SAFETY: AVX2 was just detected.
                (*low, *high) = unsafe { row_extremes::extremes_of_32(group) };
            }
            return;
        }
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
            lows[lane] = lows[lane].max(block[lane].negated());
            highs[lane] = highs[lane].max(block[lane].bits());
        }
    }
    let (mut lowest, mut highest) = (R::Bits::default(), R::Bits::default());
    for raw in rest {
        lowest = lowest.max(raw.negated());
        highest = highest.max(raw.bits());
    }
    for low in lows {
        lowest = lowest.max(low);
    }
    for high in highs {
        highest = highest.max(high);
    }
    (lowest.into(), highest.into())
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
        *value = -dtype.value_of_bits(*bits);
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
            for (scale, zero_point) in groups.scale.iter_mut().zip(&mut groups.zero_point) {
                (*scale, *zero_point) = qparams::asymmetric_qparams(*zero_point, *scale, element, dtype);
            }
            for (zero_point, stored) in groups.zero_point.iter().zip(zero_points) {
                *stored = *zero_point as i8;
            }
            dtype.encode(&groups.scale, scales);
        }
    }
    for (inverse, scale) in groups.inverse.iter_mut().zip(&groups.scale) {
        *inverse = 1.0 / scale;
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
    /// The reciprocals of the scales, where they may be used ([`row_codecs::DIVISIBLE`]).
    pub inverses: Option<&'a [f32]>,
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
    match rows.inverses {
        Some(inverses) if FMA && S::IS_SHORT => {
            let divide = |x, scale, inverse| row_codecs::divide(x, scale, inverse);
            encode_with::<S, C, Q>(codec, rows, inverses, divide, codes, sums);
        }
        _ => encode_with::<S, C, Q>(codec, rows, rows.scales, |x, scale, _| x / scale, codes, sums),
    }
}

/// `divide` gets an element, its scale and the number that goes with it in `helps`.
#[inline(always)]
fn encode_with<S: Source, C: Codec, Q: Quotient>(
    codec: C,
    rows: &Rows<'_>,
    helps: &[f32],
    divide: impl Fn(f32, f32, f32) -> f32 + Copy,
    codes: &mut [u8],
    sums: &mut Sums,
) {
    let per_row = rows.blocks;
    let blocks = S::Raw::elements(rows.bytes).as_chunks::<LANES>().0;
    let code_blocks = codes.as_chunks_mut::<LANES>().0;
    let mut at = 0;
    for (row, codes) in blocks.chunks_exact(per_row).zip(code_blocks.chunks_exact_mut(per_row)) {
        let (scales, helps) = (&rows.scales[at..][..per_row], &helps[at..][..per_row]);
        let zero_points = if C::HAS_ZERO_POINT { &rows.zero_points[at..][..per_row] } else { scales };
        // All rows of a band share one row of scales.
        at += if rows.scales.len() > per_row { per_row } else { 0 };
        let (mut signal, mut noise) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..per_row {
            let scale = scales[i];
            let quotient = |x| {
                let q = Q::round(divide(x, scale, helps[i]));
                if C::HAS_ZERO_POINT { Q::round(q + zero_points[i]) } else { q }
            };
            let coded = encode_block::<S, C>(codec, row[i], scale, zero_points[i], quotient, [signal, noise]);
            (codes[i], [signal, noise]) = coded;
        }
        sums.add_row(signal, noise);
    }
}

/// Codes [`LANES`] elements. Arrays go in and out by value and are added to in loops of their own, so that sums stay in
/// registers.
#[inline(always)]
fn encode_block<S: Source, C: Codec>(
    codec: C,
    block: [S::Raw; LANES],
    scale: f32,
    zero_point: f32,
    quotient: impl Fn(f32) -> f32,
    [mut signal, mut noise]: [[f32; LANES]; 2],
) -> ([u8; LANES], [[f32; LANES]; 2]) {
    let mut codes = [0; LANES];
    let (mut squares, mut errors) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let x = S::value(block[lane]);
        let (code, value) = codec.encode(quotient(x), zero_point);
        let error = x - value * scale;
        codes[lane] = code;
        errors[lane] = error * error;
        squares[lane] = x * x;
    }
    for lane in 0..LANES {
        noise[lane] += errors[lane];
    }
    for lane in 0..LANES {
        signal[lane] += squares[lane];
    }
    (codes, [signal, noise])
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
