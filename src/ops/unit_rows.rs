//! Inputs of linear layers as the kernels of narrow numbers read them: rows of x rounded to bf16, or quantized to int8
//! with a scale for each row.
//!
//! Rows consist of units of 4 bytes as panels do ([`super::packed`]), padded with zeros. For matrix tiles they lie in tiles
//! of 16 rows, \[T/16\]\[units/16\]\[16\]\[16\]; else in groups of as many rows R as a kernel takes at once,
//! \[T/R\]\[units\]\[R\].

use std::cell::RefCell;

use half::bf16;
use rayon::prelude::*;

use super::activation_quant::{self, ActivationQuant};
use super::amx::TILE_ROWS;
use super::buffer::{Buffer, Scratch};
use super::kernel_path::KernelPath;
use super::microkernel;
use super::packed::{UNIT_PAD, padded_units};
use super::unit_kernels::UnitDot;

/// Rows of x for one product.
pub(super) struct UnitRows {
    pub data: Scratch,
    pub dot: UnitDot,
    /// Units of a row.
    pub units: usize,
    /// What the codes of each row are multiplied by: \[T\]; empty for bf16.
    pub scales: Vec<f32>,
}

/// Inputs of bf16 products \[T, K\] that were made row by row and never stored in f32: an op rounds what it computes at
/// once, which gives the bits of rounding later.
pub struct RoundedRows(pub(super) UnitRows);

impl RoundedRows {
    /// Rows of `k` numbers; `row(i, out)` computes row i.
    pub fn new(path: KernelPath, rows: usize, k: usize, row: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Self {
        let dot = UnitDot::bf16(path);
        let mut made = UnitRows::new(dot, rows, padded_units(k, 2));
        made.fill(rows, &|i, units| {
            NUMBERS.with_borrow_mut(|numbers| {
                numbers.ensure(k);
                row(i, &mut numbers[..k]);
                bf16_units(dot, &numbers[..k], units);
            });
        });
        Self(made)
    }

    /// Room for rows whose parts are written one by one ([`Parts`]).
    pub(super) fn in_parts(path: KernelPath, rows: usize, k: usize) -> (Self, Parts) {
        assert!(k.is_multiple_of(PART), "whole parts");
        let mut made = UnitRows::new(UnitDot::bf16(path), rows, k / 2);
        let parts = Parts { to: made.data.units_mut().as_mut_ptr(), dot: made.dot, units: made.units };
        (Self(made), parts)
    }

    /// T, rounded up to whole tiles.
    pub(super) fn capacity(&self) -> usize {
        self.0.data.len() / self.0.units
    }
}

/// Numbers of a part of a row: one step of a matrix tile.
pub(super) const PART: usize = 2 * UNIT_PAD;

/// Where parts of rows go.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    to: *mut u32,
    dot: UnitDot,
    units: usize,
}

// SAFETY: users write disjoint parts, as each use states.
unsafe impl Sync for Parts {}
// SAFETY: as above.
unsafe impl Send for Parts {}

impl Parts {
    /// Rounds numbers to the part of row `row` from column `first` on, a multiple of [`PART`] as is their count.
    ///
    /// # Safety
    /// The part lies within the rows that were made, and this thread alone writes it.
    pub unsafe fn write(self, row: usize, first: usize, numbers: &[f32]) {
        for (i, numbers) in numbers.as_chunks::<PART>().0.iter().enumerate() {
            let mut units = [0; UNIT_PAD];
            bf16_units(self.dot, numbers, &mut units);
            let (step, group) = (first / PART + i, self.dot.group_rows());
            let at = (row / group * self.units + step * UNIT_PAD) * group;
            // SAFETY: the caller's promise.
            unsafe {
                if self.dot.is_tiled() {
                    let to = self.to.add(at + row % group * UNIT_PAD);
                    to.copy_from_nonoverlapping(units.as_ptr(), UNIT_PAD);
                } else {
                    for (unit, bits) in units.into_iter().enumerate() {
                        self.to.add(at + unit * group + row % group).write(bits);
                    }
                }
            }
        }
    }
}

thread_local! {
    /// One row.
    static NUMBERS: RefCell<Buffer> = RefCell::default();
    /// Codes of one row.
    static CODES: RefCell<Buffer> = RefCell::default();
}

impl UnitRows {
    /// x \[rows, K\] rounded to bf16.
    pub fn bf16(dot: UnitDot, x: &[f32], k: usize) -> Self {
        let mut rows = Self::new(dot, x.len() / k, padded_units(k, 2));
        rows.fill(x.len() / k, &|i, units| bf16_units(dot, &x[i * k..][..k], units));
        rows
    }

    /// x \[rows, K\] quantized row by row, to int8 or to FP8 as `dot` multiplies.
    pub fn codes(path: KernelPath, dot: UnitDot, quant: ActivationQuant, x: &[f32], k: usize) -> Self {
        let mut scales = vec![0.0f32; x.len() / k];
        scales.par_chunks_mut(TILE_ROWS).zip(x.par_chunks(TILE_ROWS * k)).for_each(|(scales, x)| {
            for (scale, x) in scales.iter_mut().zip(x.chunks_exact(k)) {
                *scale = activation_quant::row_scale(path, quant, x);
                // What is no number has no code: its whole row is none, as where codes are floats.
                if dot.is_int8() && !x.iter().fold(true, |finite, x| finite & x.is_finite()) {
                    *scale = f32::NAN;
                }
            }
        });
        let mut rows;
        if dot.is_int8() {
            rows = Self::new(dot, scales.len(), padded_units(k, 4));
            rows.fill(scales.len(), &|i, units| int8_units(path, dot, scales[i], &x[i * k..][..k], units));
        } else {
            rows = Self::new(dot, scales.len(), padded_units(k, 2));
            rows.fill(scales.len(), &|i, units| {
                fp8_units(path, dot, quant, scales[i], &x[i * k..][..k], units);
            });
        }
        rows.scales = scales;
        rows
    }

    fn new(dot: UnitDot, rows: usize, units: usize) -> Self {
        let data = Scratch::of(rows.next_multiple_of(dot.group_rows()) * units);
        Self { data, dot, units, scales: Vec::new() }
    }

    /// Has every row made and puts it in its place.
    fn fill(&mut self, rows: usize, make: &(dyn Fn(usize, &mut [u32]) + Sync)) {
        let (units, group_rows, is_tiled) = (self.units, self.dot.group_rows(), self.dot.is_tiled());
        let groups = self.data.units_mut().par_chunks_mut(group_rows * units);
        groups.take(rows.div_ceil(group_rows)).enumerate().for_each_init(
            || vec![0u32; group_rows * units],
            |made, (group, to)| {
                let count = group_rows.min(rows - group * group_rows);
                let made = &mut made[..count * units];
                for (i, row) in made.chunks_exact_mut(units).enumerate() {
                    make(group * group_rows + i, row);
                }
                if is_tiled {
                    for (i, row) in made.chunks_exact(units).enumerate() {
                        for (step, part) in row.chunks_exact(UNIT_PAD).enumerate() {
                            to[(step * TILE_ROWS + i) * UNIT_PAD..][..UNIT_PAD].copy_from_slice(part);
                        }
                    }
                } else {
                    microkernel::interleave(made, units, count, units, group_rows, to);
                }
            },
        );
    }
}

/// Rounds a row to bf16, two in a unit; what is beyond it becomes 0.
fn bf16_units(dot: UnitDot, x: &[f32], units: &mut [u32]) {
    let (pairs, last) = x.as_chunks::<2>();
    let used = x.len().div_ceil(2);
    units[used..].fill(0);
    #[cfg(target_arch = "x86_64")]
    if matches!(dot, UnitDot::Bf16Avx512 | UnitDot::Bf16Amx) {
        // SAFETY: these kernels exist only where the features were detected.
        unsafe { bf16_units_avx512(x, &mut units[..used]) };
        return;
    }
    let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    for (unit, [low, high]) in units.iter_mut().zip(pairs) {
        *unit = bits(*low) | bits(*high) << 16;
    }
    if let ([low], Some(unit)) = (last, units[..used].last_mut()) {
        *unit = bits(*low);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn bf16_units_avx512(x: &[f32], units: &mut [u32]) {
    use std::arch::x86_64::{__m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_storeu_si512};
    let convert = |x: &[f32; 32]| -> [u32; 16] {
        let mut out = [0; 16];
        // SAFETY: 32 floats are read and 64 bytes written; the two vector types hold the same bytes.
        unsafe {
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x[16..].as_ptr()), _mm512_loadu_ps(x.as_ptr()));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(pairs));
        }
        out
    };
    let (blocks, tail) = x.as_chunks::<32>();
    for (x, units) in blocks.iter().zip(units.chunks_mut(16)) {
        units.copy_from_slice(&convert(x));
    }
    if !tail.is_empty() {
        let mut last = [0.0; 32];
        last[..tail.len()].copy_from_slice(tail);
        let to = &mut units[blocks.len() * 16..];
        let len = to.len();
        to.copy_from_slice(&convert(&last)[..len]);
    }
}

/// Quantizes a row to FP8, two codes in a unit, each exactly a bf16 number.
fn fp8_units(
    path: KernelPath,
    dot: UnitDot,
    quant: ActivationQuant,
    scale: f32,
    x: &[f32],
    units: &mut [u32],
) {
    CODES.with_borrow_mut(|codes| {
        codes.resize(x.len());
        activation_quant::row_codes(path, quant, x, scale, codes);
        bf16_units(dot, codes, units);
    });
}

/// Quantizes a row to int8, four in a unit; what is beyond it becomes the code of 0.
fn int8_units(path: KernelPath, dot: UnitDot, scale: f32, x: &[f32], units: &mut [u32]) {
    // SAFETY: any bytes are units, and bytes have no alignment.
    let bytes = unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast::<i8>(), units.len() * 4) };
    let (used, rest) = bytes.split_at_mut(x.len());
    activation_quant::int8_codes(path, x, scale, used);
    rest.fill(0);
    if dot.moves_inputs() {
        // c + 128 in 0..=255.
        for unit in units {
            *unit ^= 0x8080_8080;
        }
    }
}
