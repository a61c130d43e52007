//! The inner loops of weight quantization: scales found, elements coded and packed, errors summed.
//!
//! Generic over element type, quotient and codec ([`super::row_codecs`]), so that each combination is one tight loop.
//! Work goes through arrays of [`LANES`] elements, which compilers turn into vector instructions; on x86-64 the same
//! code is compiled for AVX-512, AVX2 and the baseline. All give the same bits: every operation is exactly rounded,
//! none is fused, and the order of sums is by lane whatever the vector's width.
//!
//! A band (one row; as many rows as a block has) goes through three steps: magnitudes of all its groups, from the raw
//! bytes; scales of all groups at once; codes. The tile stays in the second-level cache in between.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::kernel_path::{Isa, KernelPath};
use super::quantize_weight::{Preset, RowJob, Tile};
use super::row_codecs::{Bits, Codec, Quotient, Raw, Source};
use super::weight_layout::{Element, Packing, ScaleKind};
use super::{e8m0, fp4, fp6, int_pack, qparams};

/// Elements worked on at once.
const LANES: usize = 16;

/// How quotients become codes.
#[derive(Clone, Copy)]
pub(super) struct Coding<C, Q> {
    pub codec: C,
    pub quotient: Q,
}

/// Quantizes the whole rows of a tile into `out`; `false` when an element is not finite.
pub(super) fn quantize_rows<S: Source, C: Codec, Q: Quotient>(
    path: KernelPath,
    job: &RowJob,
    coding: Coding<C, Q>,
    bytes: &[u8],
    out: &mut Tile,
) -> bool {
    match path.0 {
        // SAFETY: a `KernelPath` of this kind exists only where its features were detected.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { rows_avx512::<S, C, Q>(job, coding, bytes, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { rows_avx2::<S, C, Q>(job, coding, bytes, out) },
        Isa::Portable => rows::<S, C, Q>(job, coding, bytes, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn rows_avx512<S: Source, C: Codec, Q: Quotient>(
    job: &RowJob,
    coding: Coding<C, Q>,
    bytes: &[u8],
    out: &mut Tile,
) -> bool {
    rows::<S, C, Q>(job, coding, bytes, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rows_avx2<S: Source, C: Codec, Q: Quotient>(
    job: &RowJob,
    coding: Coding<C, Q>,
    bytes: &[u8],
    out: &mut Tile,
) -> bool {
    rows::<S, C, Q>(job, coding, bytes, out)
}

/// What is known of the groups of one band.
struct Groups {
    amax: Vec<f32>,
    scale: Vec<f32>,
    zero_point: Vec<f32>,
}

#[inline(always)]
fn rows<S: Source, C: Codec, Q: Quotient>(
    job: &RowJob,
    coding: Coding<C, Q>,
    bytes: &[u8],
    out: &mut Tile,
) -> bool {
    let k = job.k.max(1);
    let elements = S::Raw::elements(bytes);
    let row_bytes = job.row_code_bytes.max(1);
    let count = k.div_ceil(job.columns);
    let mut groups = Groups { amax: vec![0.0; count], scale: vec![0.0; count], zero_point: vec![0.0; count] };
    let mut row_codes = vec![0u8; if job.layout.packing == Packing::Bytes { 0 } else { k }];
    let mut sums = Sums::default();
    out.codes.resize(elements.len() / k * row_bytes, 0);
    let packed_bands = out.codes.chunks_mut(job.band * row_bytes);
    for (band, packed_band) in elements.chunks(job.band * k).zip(packed_bands) {
        find_amax::<S>(band, k, job.columns, &mut groups.amax);
        if !groups.amax.iter().fold(true, |finite, amax| finite & amax.is_finite()) {
            return false;
        }
        if C::HAS_ZERO_POINT {
            find_asymmetric::<S>(job, band, k, &mut groups, &mut out.scales, &mut out.zero_points);
        } else {
            find_scales::<S>(job, &mut groups, &mut out.scales);
        }
        for (row, packed) in band.chunks_exact(k).zip(packed_band.chunks_exact_mut(row_bytes)) {
            if job.layout.packing == Packing::Bytes {
                encode_row::<S, C, Q>(job, coding, row, &groups, packed, &mut sums);
            } else {
                encode_row::<S, C, Q>(job, coding, row, &groups, &mut row_codes, &mut sums);
                pack(job, &row_codes, packed);
            }
            sums.end_row();
        }
    }
    (out.signal, out.noise) = sums.total();
    true
}

/// The largest magnitude of each group, over all rows of the band.
#[inline(always)]
fn find_amax<S: Source>(band: &[S::Raw], k: usize, columns: usize, amax: &mut [f32]) {
    match (band.len() == k, columns) {
        (true, 16) => find_amax_of::<S, 16>(band, amax),
        (true, 32) => find_amax_of::<S, 32>(band, amax),
        (true, _) => {
            for (group, amax) in band.chunks(columns).zip(amax) {
                *amax = S::amax(largest::<S>(group));
            }
        }
        (false, _) => {
            for (group, amax) in amax.iter_mut().enumerate() {
                let columns = group * columns..((group + 1) * columns).min(k);
                let rows = band.chunks_exact(k).map(|row| &row[columns.clone()]);
                *amax = S::amax(largest_by::<S>(rows, S::Raw::magnitude));
            }
        }
    }
}

/// As [`find_amax`] for one row and a size of groups known to the compiler.
#[inline(always)]
fn find_amax_of<S: Source, const COLUMNS: usize>(row: &[S::Raw], amax: &mut [f32]) {
    let (groups, rest) = row.as_chunks::<COLUMNS>();
    let last = amax.len().saturating_sub(1);
    for (group, amax) in groups.iter().zip(&mut *amax) {
        *amax = S::amax(largest::<S>(group));
    }
    if !rest.is_empty() {
        amax[last] = S::amax(largest::<S>(rest));
    }
}

#[inline(always)]
fn largest<S: Source>(elements: &[S::Raw]) -> Bits<S> {
    largest_by::<S>(std::iter::once(elements), S::Raw::magnitude)
}

/// The largest key of the elements of some rows, at least 0. One loop for keys and one for lanes: both are vectorized.
#[inline(always)]
fn largest_by<'e, S: Source>(
    rows: impl Iterator<Item = &'e [S::Raw]>,
    key: impl Fn(S::Raw) -> Bits<S>,
) -> Bits<S> {
    let mut lanes = [Bits::<S>::default(); LANES];
    let mut largest = Bits::<S>::default();
    for row in rows {
        let (blocks, rest) = row.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] = lanes[lane].max(key(block[lane]));
            }
        }
        for raw in rest {
            largest = largest.max(key(*raw));
        }
    }
    for lane in lanes {
        largest = largest.max(lane);
    }
    largest
}

/// Symmetric scales of all groups: what elements are divided by, and the bytes to store.
#[inline(always)]
fn find_scales<S: Source>(job: &RowJob, groups: &mut Groups, stored: &mut Vec<u8>) {
    let scales = groups.amax.iter().zip(&mut groups.scale);
    let start = stored.len();
    match (job.layout.scale, job.preset) {
        (_, Preset::Tensor(tensor_scale)) => groups.scale.fill(tensor_scale),
        (ScaleKind::E4m3UnderGlobal, Preset::Global(global)) => {
            stored.resize(start + groups.amax.len(), 0);
            for ((amax, scale), byte) in scales.zip(&mut stored[start..]) {
                (*byte, *scale) = qparams::nvfp4_local_scale(*amax, global, S::DTYPE);
            }
        }
        (ScaleKind::E8m0, _) => {
            stored.resize(start + groups.amax.len(), 0);
            for ((amax, scale), byte) in scales.zip(&mut stored[start..]) {
                *byte = qparams::mx_scale(*amax, job.layout.element);
                *scale = e8m0::e8m0_to_f32(*byte);
            }
        }
        _ => {
            stored.resize(start + groups.amax.len() * size_of::<S::Raw>(), 0);
            for ((amax, scale), raw) in scales.zip(S::Raw::elements_mut(&mut stored[start..])) {
                *scale = qparams::symmetric_scale(*amax, job.layout.element, S::DTYPE);
                *raw = S::raw(*scale);
            }
        }
    }
}

/// Scales and zero points of all groups from their smallest and largest elements.
#[inline(always)]
fn find_asymmetric<S: Source>(
    job: &RowJob,
    band: &[S::Raw],
    k: usize,
    groups: &mut Groups,
    stored: &mut Vec<u8>,
    zero_points: &mut Vec<i8>,
) {
    for (group, (min, max)) in groups.scale.iter_mut().zip(&mut groups.zero_point).enumerate() {
        let columns = group * job.columns..((group + 1) * job.columns).min(k);
        let rows = || band.chunks_exact(k).map(|row| &row[columns.clone()]);
        // Flipping all bits turns the order around.
        *min = S::value(S::Raw::from_ordered(!largest_by::<S>(rows(), |raw| !raw.ordered())));
        *max = S::value(S::Raw::from_ordered(largest_by::<S>(rows(), S::Raw::ordered)));
    }
    let (scale_start, zero_start) = (stored.len(), zero_points.len());
    stored.resize(scale_start + groups.scale.len() * size_of::<S::Raw>(), 0);
    zero_points.resize(zero_start + groups.scale.len(), 0);
    let both = groups.scale.iter_mut().zip(&mut groups.zero_point);
    let places =
        S::Raw::elements_mut(&mut stored[scale_start..]).iter_mut().zip(&mut zero_points[zero_start..]);
    for ((scale, zero_point), (raw, stored_zero_point)) in both.zip(places) {
        (*scale, *stored_zero_point) =
            qparams::asymmetric_qparams(*scale, *zero_point, job.layout.element, S::DTYPE);
        *zero_point = f32::from(*stored_zero_point);
        *raw = S::raw(*scale);
    }
}

/// Sums of squares of one row, by lane: the order of additions does not depend on vector width.
#[derive(Default)]
struct Sums {
    signal: [f32; LANES],
    noise: [f32; LANES],
    signal_of_rows: [f64; LANES],
    noise_of_rows: [f64; LANES],
}

impl Sums {
    #[inline(always)]
    fn end_row(&mut self) {
        for lane in 0..LANES {
            self.signal_of_rows[lane] += f64::from(self.signal[lane]);
            self.noise_of_rows[lane] += f64::from(self.noise[lane]);
        }
        (self.signal, self.noise) = Default::default();
    }

    fn total(&self) -> (f64, f64) {
        (self.signal_of_rows.iter().sum(), self.noise_of_rows.iter().sum())
    }
}

#[inline(always)]
fn encode_row<S: Source, C: Codec, Q: Quotient>(
    job: &RowJob,
    coding: Coding<C, Q>,
    row: &[S::Raw],
    groups: &Groups,
    codes: &mut [u8],
    sums: &mut Sums,
) {
    let qparams = groups.scale.iter().zip(&groups.zero_point);
    match job.columns {
        16 if row.len().is_multiple_of(16) => {
            let segments = row.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
            for ((x, codes), (scale, zero_point)) in segments.zip(qparams) {
                encode_segment::<S, C, Q>(coding, x, *scale, *zero_point, codes, sums);
            }
        }
        32 if row.len().is_multiple_of(32) => {
            let segments = row.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0);
            for ((x, codes), (scale, zero_point)) in segments.zip(qparams) {
                encode_segment::<S, C, Q>(coding, x, *scale, *zero_point, codes, sums);
            }
        }
        columns => {
            let segments = row.chunks(columns).zip(codes.chunks_mut(columns));
            for ((x, codes), (scale, zero_point)) in segments.zip(qparams) {
                encode_segment::<S, C, Q>(coding, x, *scale, *zero_point, codes, sums);
            }
        }
    }
}

/// Codes the elements of one row that share a scale.
#[inline(always)]
fn encode_segment<S: Source, C: Codec, Q: Quotient>(
    coding: Coding<C, Q>,
    elements: &[S::Raw],
    scale: f32,
    zero_point: f32,
    codes: &mut [u8],
    sums: &mut Sums,
) {
    let (blocks, rest) = elements.as_chunks::<LANES>();
    let (code_blocks, code_rest) = codes.as_chunks_mut::<LANES>();
    for (block, codes) in blocks.iter().zip(code_blocks) {
        *codes = encode_block::<S, C, Q>(coding, *block, scale, zero_point, sums);
    }
    if !rest.is_empty() {
        // Padded with zeros, which add nothing to the sums.
        let mut block = [S::raw(0.0); LANES];
        block[..rest.len()].copy_from_slice(rest);
        let padded = encode_block::<S, C, Q>(coding, block, scale, zero_point, sums);
        code_rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Codes [`LANES`] elements. Arrays go in and out by value, so that sums can stay in registers.
#[inline(always)]
fn encode_block<S: Source, C: Codec, Q: Quotient>(
    Coding { codec, quotient }: Coding<C, Q>,
    block: [S::Raw; LANES],
    scale: f32,
    zero_point: f32,
    sums: &mut Sums,
) -> [u8; LANES] {
    let mut codes = [0; LANES];
    for lane in 0..LANES {
        let x = S::value(block[lane]);
        let q = quotient.round(x / scale, S::DTYPE);
        let q = if C::HAS_ZERO_POINT { quotient.round(q + zero_point, S::DTYPE) } else { q };
        let (code, value) = codec.encode(q, zero_point);
        let error = x - value * scale;
        codes[lane] = code;
        sums.noise[lane] += error * error;
        sums.signal[lane] += x * x;
    }
    codes
}

/// Packs the codes of one row.
#[inline(always)]
pub(super) fn pack(job: &RowJob, codes: &[u8], packed: &mut [u8]) {
    match (job.layout.packing, job.layout.element) {
        (Packing::Words, Element::Int(bits)) => int_pack::pack_row(codes, bits, packed),
        (Packing::Nibbles, _) => fp4::pack(codes, packed),
        (Packing::Sextets, _) => fp6::pack(codes, packed),
        _ => packed.copy_from_slice(codes),
    }
}
