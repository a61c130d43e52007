//! The inner loops of weight quantization: rows decoded, scales found, elements coded, errors summed.
//!
//! Generic over codec and quotient, so that each combination is one tight loop. Work goes through arrays of
//! [`LANES`] elements, which compilers turn into vector instructions; on x86-64 the same code is compiled a second
//! time for AVX2. Both give the same bits: no operation is fused or reordered.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::float_dtype::{FloatDtype, round_bf16};
use super::quantize_weight::{Preset, RowJob, TileOut};
use super::weight_layout::{Element, Packing, ScaleKind};
use super::{e8m0, fp4, fp6, fp8, int_pack, qparams};

/// Elements worked on at once.
const LANES: usize = 16;

/// Turns a quotient into a code.
pub(super) trait Codec: Copy {
    /// The code, and what it stands for in units of the scale (without the zero point).
    fn encode(self, quotient: f32, zero_point: f32) -> (u8, f32);
}

/// Rounds `x / scale` to the precision of the arithmetic.
pub(super) trait Quotient: Copy {
    /// The rounded quotient.
    fn round(self, x: f32) -> f32;
}

/// The quotient as f32 division gives it.
#[derive(Clone, Copy)]
pub(super) struct Exact;

impl Quotient for Exact {
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        x
    }
}

/// Rounded to bfloat16.
#[derive(Clone, Copy)]
pub(super) struct ToBf16;

impl Quotient for ToBf16 {
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        round_bf16(x)
    }
}

/// Rounded to half precision.
#[derive(Clone, Copy)]
pub(super) struct ToF16;

impl Quotient for ToF16 {
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        FloatDtype::F16.round(x)
    }
}

/// FP8 E4M3.
#[derive(Clone, Copy)]
pub(super) struct E4m3;

impl Codec for E4m3 {
    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        fp8::e4m3_code_and_value(quotient)
    }
}

/// FP6 E2M3.
#[derive(Clone, Copy)]
pub(super) struct E2m3;

impl Codec for E2m3 {
    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        fp6::e2m3_code_and_value(quotient)
    }
}

/// FP4 E2M1.
#[derive(Clone, Copy)]
pub(super) struct E2m1;

impl Codec for E2m1 {
    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        fp4::e2m1_code_and_value(quotient)
    }
}

/// Two's-complement integers.
#[derive(Clone, Copy)]
pub(super) struct Int {
    min: f32,
    max: f32,
}

impl Int {
    pub(super) fn new(element: Element) -> Self {
        let (min, max) = element.range();
        Self { min, max }
    }
}

impl Codec for Int {
    #[inline(always)]
    fn encode(self, quotient: f32, zero_point: f32) -> (u8, f32) {
        // From 1.5 · 2²³ on, f32 has spacing 1: the addition rounds to integers, ties to even, and leaves the integer
        // in the low bits.
        const MAGIC: f32 = 12_582_912.0;
        let shifted = clamp(quotient, self.min, self.max) + MAGIC;
        (shifted.to_bits() as u8, (shifted - MAGIC) - zero_point)
    }
}

/// `f32::clamp` without its panic path, which would keep loops from being vectorized.
#[inline(always)]
fn clamp(x: f32, min: f32, max: f32) -> f32 {
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

/// Quantizes whole rows of K elements; `None` when an element is not finite.
pub(super) fn quantize_rows<C: Codec, Q: Quotient>(
    job: &RowJob,
    codec: C,
    quotient: Q,
    bytes: &[u8],
    k: usize,
) -> Option<TileOut> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has the features the function is compiled for.
        return unsafe { quantize_rows_avx2(job, codec, quotient, bytes, k) };
    }
    rows(job, codec, quotient, bytes, k)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn quantize_rows_avx2<C: Codec, Q: Quotient>(
    job: &RowJob,
    codec: C,
    quotient: Q,
    bytes: &[u8],
    k: usize,
) -> Option<TileOut> {
    rows(job, codec, quotient, bytes, k)
}

#[inline(always)]
fn rows<C: Codec, Q: Quotient>(
    job: &RowJob,
    codec: C,
    quotient: Q,
    bytes: &[u8],
    k: usize,
) -> Option<TileOut> {
    let row_bytes = k * job.dtype.size();
    let mut out = TileOut::default();
    let mut band = vec![0.0f32; job.band * k];
    let mut codes = vec![0u8; k];
    let groups = k.div_ceil(job.columns);
    let mut qparams = vec![(0.0f32, 0.0f32); groups];
    for band_bytes in bytes.chunks((job.band * row_bytes).max(1)) {
        let rows = band_bytes.len() / row_bytes.max(1);
        let band = &mut band[..rows * k];
        job.dtype.decode(band_bytes, band);
        for (group, qparam) in qparams.iter_mut().enumerate() {
            let columns = group * job.columns..((group + 1) * job.columns).min(k);
            *qparam = find_qparams(job, band, k, columns, &mut out)?;
        }
        for row in band.chunks_exact(k.max(1)) {
            let mut sums = Sums::default();
            let segments = row.chunks(job.columns).zip(codes.chunks_mut(job.columns));
            for ((x, codes), (scale, zero_point)) in segments.zip(&qparams) {
                encode_segment(codec, quotient, x, *scale, *zero_point, codes, &mut sums);
            }
            sums.flush(&mut out);
            append_codes(job, &codes, &mut out.codes);
        }
    }
    Some(out)
}

/// Scale and zero point of one block, appended to the output; the returned scale is what elements are divided by.
#[inline(always)]
fn find_qparams(
    job: &RowJob,
    band: &[f32],
    k: usize,
    columns: std::ops::Range<usize>,
    out: &mut TileOut,
) -> Option<(f32, f32)> {
    let element = job.layout.element;
    let segments = || band.chunks_exact(k.max(1)).map(|row| &row[columns.clone()]);
    let mut largest = 0;
    for x in segments() {
        largest = largest.max(largest_magnitude_bits(x));
    }
    let amax = f32::from_bits(largest as u32);
    if !amax.is_finite() {
        return None;
    }
    match (job.layout.scale, job.preset) {
        (ScaleKind::E4m3UnderGlobal, Preset::Global(global)) => {
            let code = qparams::nvfp4_local_scale(amax, global, job.dtype);
            out.scales.push(code);
            return Some((qparams::nvfp4_effective_scale(code, global), 0.0));
        }
        (ScaleKind::E8m0, _) => {
            let byte = qparams::mx_scale(amax, element);
            out.scales.push(byte);
            return Some((e8m0::e8m0_to_f32(byte), 0.0));
        }
        (_, Preset::Tensor(scale)) => return Some((scale, 0.0)),
        _ => {}
    }
    if job.layout.symmetric {
        let scale = qparams::symmetric_scale(amax, element, job.dtype);
        job.dtype.write(scale, &mut out.scales);
        return Some((scale, 0.0));
    }
    let (mut min, mut max) = (0.0f32, 0.0f32);
    for x in segments().flatten() {
        min = min.min(*x);
        max = max.max(*x);
    }
    let (scale, zero_point) = qparams::asymmetric_qparams(min, max, element, job.dtype);
    job.dtype.write(scale, &mut out.scales);
    out.zero_points.push(zero_point);
    Some((scale, f32::from(zero_point)))
}

/// The bits of the largest magnitude; those of infinity and NaN are larger than any finite one's.
#[inline(always)]
fn largest_magnitude_bits(x: &[f32]) -> i32 {
    let mut lanes = [0i32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = (*lane).max((x.to_bits() & 0x7fff_ffff) as i32);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = (*lane).max((x.to_bits() & 0x7fff_ffff) as i32);
    }
    let mut largest = 0;
    for lane in lanes {
        largest = largest.max(lane);
    }
    largest
}

/// Sums of squares of one row, by lane: the order of additions does not depend on vector width.
#[derive(Default)]
struct Sums {
    signal: [f32; LANES],
    noise: [f32; LANES],
}

impl Sums {
    #[inline(always)]
    fn flush(&self, out: &mut TileOut) {
        out.signal += self.signal.iter().map(|x| f64::from(*x)).sum::<f64>();
        out.noise += self.noise.iter().map(|x| f64::from(*x)).sum::<f64>();
    }
}

#[inline(always)]
fn encode_segment<C: Codec, Q: Quotient>(
    codec: C,
    quotient: Q,
    x: &[f32],
    scale: f32,
    zero_point: f32,
    codes: &mut [u8],
    sums: &mut Sums,
) {
    let one = |x: f32| {
        // Adding a zero point of 0 changes nothing but the sign of −0, so it is left out of the rounding there.
        let q = quotient.round(x / scale);
        let q = if zero_point == 0.0 { q } else { quotient.round(q + zero_point) };
        let (code, value) = codec.encode(q, zero_point);
        let error = x - value * scale;
        (code, error * error)
    };
    let (blocks, rest) = x.as_chunks::<LANES>();
    let (code_blocks, code_rest) = codes.as_chunks_mut::<LANES>();
    for (x, codes) in blocks.iter().zip(code_blocks) {
        for lane in 0..LANES {
            let (code, noise) = one(x[lane]);
            codes[lane] = code;
            sums.noise[lane] += noise;
            sums.signal[lane] += x[lane] * x[lane];
        }
    }
    for (lane, (x, code)) in rest.iter().zip(code_rest).enumerate() {
        let (c, noise) = one(*x);
        *code = c;
        sums.noise[lane] += noise;
        sums.signal[lane] += x * x;
    }
}

#[inline(always)]
pub(super) fn append_codes(job: &RowJob, codes: &[u8], packed: &mut Vec<u8>) {
    match (job.layout.packing, job.layout.element) {
        (Packing::Words, Element::Int(bits)) => int_pack::pack_row(codes, bits, packed),
        (Packing::Nibbles, _) => fp4::pack(codes, packed),
        (Packing::Sextets, _) => fp6::pack(codes, packed),
        _ => packed.extend_from_slice(codes),
    }
}

/// The path of processors without the vector instructions, for comparison.
#[cfg(test)]
pub(super) fn portable(job: &RowJob, bytes: &[u8], k: usize) -> Option<TileOut> {
    match job.layout.element {
        Element::Int(_) => rows(job, Int::new(job.layout.element), Exact, bytes, k),
        Element::E4m3 => rows(job, E4m3, Exact, bytes, k),
        Element::E2m3 => rows(job, E2m3, Exact, bytes, k),
        Element::E2m1 => rows(job, E2m1, Exact, bytes, k),
    }
}
