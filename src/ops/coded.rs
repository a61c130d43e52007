//! Weight-only schemes in bf16 mode: panels keep the codes, and the kernel decodes the few panels it is about to
//! multiply, w = bf16((code − zero_point) · scale), to the bf16 panels of [`super::packed`].
//!
//! Codes lie as they are needed, \[N/32\]\[K/2\]\[32\], a pair of consecutive k together: two nibbles in a byte, or two rows of
//! 32 bytes. Numbers below a scale are looked up (nibbles), converted (int8), or, for E4M3, moved to the place of an f16,
//! whose value is then 2^−8 of theirs. The product with the scale is rounded to f32, then to bf16, as where the whole
//! weight is dequantized before it is packed.

use std::ops::Range;

use half::bf16;

use super::buffer::Buffer;
use super::kernel_path::{Dot, KernelPath};
use super::microkernel::NR;
use super::packed::{fill_panels, padded_units};
use crate::checkpoint::CheckpointError;

/// What codes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeGrid {
    /// Integers of at most 4 bits: −8..=7.
    Int4,
    /// Integers of at most 8 bits.
    Int8,
    /// FP4 E2M1.
    E2m1,
    /// FP6 E2M3: integers in −60..=60 below an eighth of their scale.
    E2m3,
    /// FP8 E4M3 without NaN.
    E4m3,
}

/// Rows of w\[n, k\] = (code\[n, k\] − zero_point) · scale, one scale for `group` consecutive k.
pub trait GroupedRows: Sync {
    /// N.
    fn count(&self) -> usize;

    /// What codes stand for.
    fn grid(&self) -> CodeGrid;

    /// k that share a scale; even, unless it is all of them.
    fn group(&self) -> usize;

    /// Writes the codes of `rows` as numbers into `out` \[rows, K\].
    fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError>;

    /// Scale and zero point of each group of a row: \[K/group\].
    fn scales(&self, row: usize, out: &mut [(f32, f32)]) -> Result<(), CheckpointError>;
}

/// Codes and scales of a weight.
pub(super) struct CodedPanels {
    grid: CodeGrid,
    codes: Vec<u8>,
    /// \[N/32\]\[groups\]\[32\].
    scales: Buffer,
    /// As scales, where any is not 0.
    zero_points: Option<Buffer>,
    group: usize,
    k: usize,
}

/// FP4 E2M1 by code.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// Integers by their nibble, moved by 8.
const INT4: [f32; 16] =
    [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];

impl CodeGrid {
    /// The numbers of nibbles, for grids that need no more.
    fn table(self) -> Option<&'static [f32; 16]> {
        match self {
            Self::Int4 => Some(&INT4),
            Self::E2m1 => Some(&E2M1),
            Self::Int8 | Self::E2m3 | Self::E4m3 => None,
        }
    }

    /// The code kept for a number of the grid.
    fn code(self, x: f32) -> u8 {
        match self {
            Self::Int4 => (x as i8 + 8) as u8,
            Self::Int8 => x as i8 as u8,
            Self::E2m3 => (x * 8.0) as i8 as u8,
            Self::E2m1 => super::fp4::e2m1_code_and_value(x).0,
            Self::E4m3 => super::fp8::e4m3_from_f32(x),
        }
    }

    /// What the kept code's value is multiplied by besides the scale.
    fn factor(self) -> f32 {
        match self {
            Self::E2m3 => 0.125,
            Self::E4m3 => 256.0,
            Self::Int4 | Self::Int8 | Self::E2m1 => 1.0,
        }
    }

    /// The value of a kept code before [`Self::factor`].
    fn value(self, code: u8) -> f32 {
        match self {
            Self::Int4 | Self::E2m1 => self.table().map_or(0.0, |table| table[usize::from(code & 15)]),
            Self::Int8 | Self::E2m3 => f32::from(code as i8),
            Self::E4m3 => super::fp8::e4m3_to_f32(code) / 256.0,
        }
    }
}

impl CodedPanels {
    /// Packs matrices \[N_i, K\], one below the other, that have the same grid and groups; K is even. `None` if a code is no
    /// number.
    pub fn pack(parts: &[&dyn GroupedRows], k: usize) -> Result<Option<Self>, CheckpointError> {
        let (grid, group) = (parts[0].grid(), parts[0].group().min(k));
        assert!(k.is_multiple_of(2) && (group.is_multiple_of(2) || group == k), "pairs share a scale");
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let (panels, groups) = (counts.iter().sum::<usize>().div_ceil(NR), k.div_ceil(group));
        let panel_bytes = if grid.table().is_some() { k / 2 * NR } else { k * NR };
        let mut codes = vec![0u8; panels * panel_bytes];
        let read = |part: usize, rows: Range<usize>, out: &mut [f32]| parts[part].codes(rows, out);
        let is_broken = std::sync::atomic::AtomicBool::new(false);
        fill_panels(&mut codes, panel_bytes, &counts, k, &read, &|panel, column, row| {
            if row.iter().any(|x| x.is_nan()) {
                is_broken.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            if grid.table().is_some() {
                for (slot, pair) in panel[column..].iter_mut().step_by(NR).zip(row.as_chunks::<2>().0) {
                    *slot = grid.code(pair[0]) | grid.code(pair[1]) << 4;
                }
            } else {
                for (slot, x) in panel[column..].iter_mut().step_by(NR).zip(row) {
                    *slot = grid.code(*x);
                }
            }
        })?;
        if is_broken.into_inner() {
            return Ok(None);
        }
        let mut scales = Buffer::zeros(panels * groups * NR);
        let mut zero_points = Buffer::zeros(panels * groups * NR);
        let (mut of_row, mut n) = (vec![(0.0, 0.0); groups], 0);
        for (part, count) in parts.iter().zip(counts) {
            for row in 0..count {
                part.scales(row, &mut of_row)?;
                for (g, (scale, zero_point)) in of_row.iter().enumerate() {
                    let at = (n / NR * groups + g) * NR + n % NR;
                    scales[at] = scale * grid.factor();
                    zero_points[at] = *zero_point;
                }
                n += 1;
            }
        }
        let zero_points = zero_points.iter().any(|z| *z != 0.0).then_some(zero_points);
        Ok(Some(Self { grid, codes, scales, zero_points, group, k }))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let zero_points = self.zero_points.as_ref().map_or(0, Buffer::readable);
        self.codes.len() + (self.scales.readable() + zero_points) * size_of::<f32>()
    }

    fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// Codes, scales and zero points of a panel.
    fn panel(&self, panel: usize) -> (&[u8], &[f32], Option<&[f32]>) {
        let size = if self.grid.table().is_some() { self.k / 2 * NR } else { self.k * NR };
        let of_scales = panel * self.groups() * NR..(panel + 1) * self.groups() * NR;
        let zero_points = self.zero_points.as_ref().map(|z| &z[of_scales.clone()]);
        (&self.codes[panel * size..(panel + 1) * size], &self.scales[of_scales], zero_points)
    }

    /// Decodes panels to bf16, \[panels\]\[units\]\[32\].
    pub fn decode(&self, path: KernelPath, panels: Range<usize>, out: &mut Buffer) {
        let units = padded_units(self.k, 2);
        out.ensure(panels.len() * units * NR);
        for (panel, out) in panels.zip(out.units_mut().chunks_exact_mut(units * NR)) {
            let (used, rest) = out.split_at_mut(self.k / 2 * NR);
            rest.fill(0);
            let (codes, scales, zero_points) = self.panel(panel);
            let groups = used.chunks_mut(self.group / 2 * NR).zip(scales.as_chunks::<NR>().0).enumerate();
            for (g, (out, scales)) in groups {
                let zero_points = zero_points.map(|z| &z.as_chunks::<NR>().0[g]);
                let bytes = if self.grid.table().is_some() { 1 } else { 2 };
                let codes = &codes[g * (self.group / 2) * NR * bytes..][..out.len() * bytes];
                self.decode_group(path, codes, scales, zero_points, out);
            }
        }
    }

    fn decode_group(
        &self,
        path: KernelPath,
        codes: &[u8],
        scales: &[f32; NR],
        zero_points: Option<&[f32; NR]>,
        out: &mut [u32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if matches!(path.dot, Dot::Bf16Avx512 | Dot::Bf16Amx) {
            // SAFETY: these paths exist only where the features were detected; sizes are checked there.
            unsafe { avx512::decode(self.grid, codes, scales, zero_points, out) };
            return;
        }
        let zero = |c: usize| zero_points.map_or(0.0, |z| z[c]);
        let bits = |code: u8, c: usize| {
            u32::from(bf16::from_f32((self.grid.value(code) - zero(c)) * scales[c]).to_bits())
        };
        if self.grid.table().is_some() {
            for (i, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                *out = bits(*code, i % NR) | bits(code >> 4, i % NR) << 16;
            }
        } else {
            let rows = codes.chunks_exact(2 * NR).zip(out.chunks_exact_mut(NR));
            for (codes, out) in rows {
                for (c, out) in out.iter_mut().enumerate() {
                    *out = bits(codes[c], c) | bits(codes[NR + c], c) << 16;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm_loadu_si128, _mm256_and_si256, _mm256_cvtepi8_epi16,
        _mm256_set1_epi16, _mm256_slli_epi16, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
        _mm512_cvtne2ps_pbh, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
        _mm512_permutexvar_epi16, _mm512_permutexvar_ps, _mm512_srli_epi32, _mm512_storeu_si512,
        _mm512_sub_ps,
    };

    use super::{CodeGrid, NR};

    /// One group of all 32 columns: \[units\]\[32\].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub fn decode(
        grid: CodeGrid,
        codes: &[u8],
        scales: &[f32; NR],
        zero_points: Option<&[f32; NR]>,
        out: &mut [u32],
    ) {
        let per_pair = if grid.table().is_some() { 1 } else { 2 };
        assert!(codes.len() == out.len() * per_pair && out.len().is_multiple_of(NR), "whole units");
        let table = grid.table().copied().unwrap_or_default();
        let nothing = [0.0; NR];
        let zeros = zero_points.unwrap_or(&nothing);
        for half in [0, 16] {
            // SAFETY: 16 of 32 columns of every row, each within the lengths asserted above; tables hold 16 floats.
            unsafe {
                let scale = _mm512_loadu_ps(scales[half..].as_ptr());
                let zero = _mm512_loadu_ps(zeros[half..].as_ptr());
                let table = _mm512_loadu_ps(table.as_ptr());
                for unit in 0..out.len() / NR {
                    let at = codes.as_ptr().add(unit * NR * per_pair + half);
                    let (low, high) = match grid {
                        CodeGrid::Int4 | CodeGrid::E2m1 => {
                            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
                            // The lookup reads the low four bits.
                            let look_up = |i| _mm512_permutexvar_ps(i, table);
                            (look_up(bytes), look_up(_mm512_srli_epi32::<4>(bytes)))
                        }
                        CodeGrid::Int8 | CodeGrid::E2m3 => (int8(at), int8(at.add(NR))),
                        CodeGrid::E4m3 => (e4m3(at), e4m3(at.add(NR))),
                    };
                    let value = |x| _mm512_mul_ps(_mm512_sub_ps(x, zero), scale);
                    // 16 low numbers, then 16 high ones; pairs are wanted.
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(
                        value(high),
                        value(low),
                    ));
                    let pairs = _mm512_permutexvar_epi16(interleave(), both);
                    _mm512_storeu_si512(out.as_mut_ptr().add(unit * NR + half).cast(), pairs);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn interleave() -> __m512i {
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 16 {
                order[2 * i] = i as u16;
                order[2 * i + 1] = 16 + i as u16;
                i += 1;
            }
            order
        };
        // SAFETY: 64 bytes are read.
        unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn int8(at: *const u8) -> __m512 {
        // SAFETY: the caller promises 16 bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    /// Sign, exponent and mantissa at the place of an f16's, whose exponent bias is 8 more.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn e4m3(at: *const u8) -> __m512 {
        // SAFETY: the caller promises 16 bytes.
        unsafe {
            let words = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())));
            _mm512_cvtph_ps(_mm256_and_si256(words, _mm256_set1_epi16(0xBFFFu16.cast_signed())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel_path::ComputeDtype;
    use super::super::linear::tests::noise;
    use super::super::linear::{Columns, linear};
    use super::super::packed::PackedMatrix;
    use super::super::{fp4, fp6, fp8};
    use super::*;

    struct Grouped {
        grid: CodeGrid,
        group: usize,
        k: usize,
        codes: Vec<f32>,
        /// \[N\]\[groups\].
        scales: Vec<(f32, f32)>,
    }

    impl GroupedRows for Grouped {
        fn count(&self) -> usize {
            self.codes.len() / self.k
        }

        fn grid(&self) -> CodeGrid {
            self.grid
        }

        fn group(&self) -> usize {
            self.group
        }

        fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
            out.copy_from_slice(&self.codes[rows.start * self.k..rows.end * self.k]);
            Ok(())
        }

        fn scales(&self, row: usize, out: &mut [(f32, f32)]) -> Result<(), CheckpointError> {
            out.copy_from_slice(&self.scales[row * out.len()..][..out.len()]);
            Ok(())
        }
    }

    impl Grouped {
        fn new(grid: CodeGrid, n: usize, k: usize, group: usize, zero_point: f32) -> Self {
            let number = |x: f32| match grid {
                CodeGrid::Int4 => (x * 8.5).round().clamp(-8.0, 7.0),
                CodeGrid::Int8 => (x * 130.0).round().clamp(-128.0, 127.0),
                CodeGrid::E2m1 => fp4::e2m1_code_and_value(x * 6.0).1,
                CodeGrid::E2m3 => fp6::e2m3_to_f32((x.abs() * 63.0) as u8),
                CodeGrid::E4m3 => fp8::e4m3_to_f32(fp8::e4m3_from_f32(x * x * x * 448.0)),
            };
            let codes = noise(n * k, 21).into_iter().map(number).collect();
            let scales =
                noise(n * k.div_ceil(group), 22).into_iter().map(|s| (s * 0.01, zero_point)).collect();
            Self { grid, group, k, codes, scales }
        }

        fn dense(&self) -> Vec<f32> {
            let groups = self.k.div_ceil(self.group);
            let scale = |i: usize| self.scales[i / self.k * groups + i % self.k / self.group];
            self.codes.iter().enumerate().map(|(i, code)| (code - scale(i).1) * scale(i).0).collect()
        }
    }

    const GRIDS: [CodeGrid; 5] =
        [CodeGrid::Int4, CodeGrid::Int8, CodeGrid::E2m1, CodeGrid::E2m3, CodeGrid::E4m3];

    /// The bits of the dequantized weight, for every grid, group and ragged size.
    #[test]
    fn products_have_the_bits_of_the_dense_weight() {
        let shapes = [(70, 64, 16, 0.0), (33, 90, 32, 0.0), (64, 130, 130, 0.0), (40, 96, 32, 3.0)];
        for (grid, (n, k, group, zero_point)) in GRIDS.into_iter().flat_map(|g| shapes.map(|s| (g, s))) {
            // Floats have none.
            let zero_point = if matches!(grid, CodeGrid::Int4 | CodeGrid::Int8) { zero_point } else { 0.0 };
            let rows = Grouped::new(grid, n, k, group, zero_point);
            let packed = PackedMatrix::pack_grouped(&[&rows], k).unwrap().unwrap();
            let dense = PackedMatrix::dense(ComputeDtype::Bf16, &[&rows.dense()], k);
            assert!(packed.bytes() < dense.bytes() || group == 16, "{grid:?}");
            let x = noise(50 * k, 23);
            for path in KernelPath::available_bf16() {
                let product = |w: &PackedMatrix| {
                    let mut out = vec![f32::NAN; 50 * n];
                    linear(path, &x, 50, w, &mut Columns { data: &mut out, stride: n, first: 0 });
                    out
                };
                assert!(product(&packed) == product(&dense), "{grid:?} {n} {k} {group} {path:?}");
            }
            let mut row = vec![0.0; k];
            let mut want = vec![0.0; k];
            packed.copy_row(n - 1, &mut row);
            dense.copy_row(n - 1, &mut want);
            assert_eq!(row, want);
        }
    }

    #[test]
    fn a_code_that_is_no_number_is_left_to_dense_weights() {
        let mut rows = Grouped::new(CodeGrid::E4m3, 5, 32, 32, 0.0);
        rows.codes[7] = f32::NAN;
        assert!(PackedMatrix::pack_grouped(&[&rows], 32).unwrap().is_none());
    }
}
