//! Blocks of products of narrow numbers: rows of x ([`super::unit_rows`]) times panels of W, tile by tile.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use std::ops::Range;

use super::amx::{self, Block, TILE_ROWS, Tiles};
use super::kernel_path::{KernelPath, per_path};
use super::microkernel::NR;
use super::packed::{CodeKind, CodePanels, UNIT_PAD};
use super::unit_kernels::{self, UnitTile};
use super::unit_rows::UnitRows;

/// Inner block in units: rows of a tile stay in the first-level cache, panels of a task in the second-level cache.
const UNIT_BLOCK: usize = 512;
/// The same for matrix tiles.
const TILED_BLOCK: usize = 1024;

/// Rows `rows` of x, from whole tiles on, times `panels`, which begin at the start of `data`, cut at `n` columns: f32 for
/// bf16 panels, i32 for int8 ones.
///
/// # Safety
/// As for [`super::linear::multiply_block`].
pub(super) unsafe fn multiply_units(
    x: &UnitRows,
    rows: Range<usize>,
    n: usize,
    data: &[u32],
    panels: Range<usize>,
    c: *mut f32,
    ldc: usize,
) {
    let tiles = x.dot.is_tiled().then(Tiles::configure);
    let (tile_rows, group) = (x.dot.tile_rows(), x.dot.group_rows());
    assert!(rows.start.is_multiple_of(tile_rows), "blocks begin at whole tiles");
    // C of rows and columns that exist only in part.
    let mut spare = [0u32; 2 * TILE_ROWS * NR];
    let unit_block = if x.dot.is_tiled() { TILED_BLOCK } else { UNIT_BLOCK };
    for first in (0..x.units).step_by(unit_block) {
        let units = unit_block.min(x.units - first);
        for row in rows.clone().step_by(tile_rows) {
            let count = tile_rows.min(rows.end - row);
            for panel in panels.clone() {
                let b = data[((panel - panels.start) * x.units + first) * NR..].as_ptr();
                let columns = NR.min(n - panel * NR);
                let is_whole = columns == NR && (!x.dot.is_tiled() || count.is_multiple_of(TILE_ROWS));
                // SAFETY: A and B were made for this depth; C as promised, or the spare tile.
                unsafe {
                    let target = c.add((row - rows.start) * ldc + panel * NR).cast::<u32>();
                    let (to, ld) = if is_whole { (target, ldc) } else { (spare.as_mut_ptr(), NR) };
                    if !is_whole && first > 0 {
                        copy_rows(target, ldc, to, NR, count, columns);
                    }
                    if let Some(tiles) = &tiles {
                        matrix_tile(tiles, x, row..row + count, first..first + units, b, to, ld);
                    } else {
                        let a = x.data.units()[(row / group * x.units + first) * group..].as_ptr();
                        let tile = UnitTile { units, a, lda: group, b, c: to, ldc: ld, continues: first > 0 };
                        unit_kernels::compute(x.dot, count, tile);
                    }
                    if !is_whole {
                        copy_rows(to, NR, target, ldc, count, columns);
                    }
                }
            }
        }
    }
}

/// Up to 32 rows of matrix tiles.
///
/// # Safety
/// As for [`amx::bf16`], with the rows of C rounded up to 16.
unsafe fn matrix_tile(
    tiles: &Tiles,
    x: &UnitRows,
    rows: Range<usize>,
    units: Range<usize>,
    b: *const u32,
    c: *mut u32,
    ldc: usize,
) {
    let a_rows = TILE_ROWS * x.units;
    let block = Block {
        steps: units.len() / UNIT_PAD,
        a: x.data.units()[rows.start / TILE_ROWS * a_rows + units.start * TILE_ROWS..].as_ptr().cast(),
        a_rows: a_rows * size_of::<u32>(),
        b: b.cast(),
        c: c.cast(),
        ldc: ldc * size_of::<u32>(),
        continues: units.start > 0,
    };
    // SAFETY: rows of x are padded to 16 and units to whole tiles; C as promised.
    unsafe {
        match (x.dot.is_int8(), rows.len() > TILE_ROWS) {
            (true, true) => amx::int8::<2>(tiles, block),
            (true, false) => amx::int8::<1>(tiles, block),
            (false, true) => amx::bf16::<2>(tiles, block),
            (false, false) => amx::bf16::<1>(tiles, block),
        }
    }
}

/// Copies `rows` × `columns` numbers.
///
/// # Safety
/// They are readable and writable, `ld` numbers between rows, and do not overlap.
unsafe fn copy_rows(from: *const u32, ld: usize, to: *mut u32, ld_to: usize, rows: usize, columns: usize) {
    for r in 0..rows {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.add(r * ld), to.add(r * ld_to), columns) };
    }
}

/// Turns sums of products of codes in place into numbers.
///
/// # Safety
/// As for [`super::linear::multiply_block`], whose C holds the sums.
pub(super) unsafe fn scale_sums(
    path: KernelPath,
    x: &UnitRows,
    rows: Range<usize>,
    w: &CodePanels,
    panels: Range<usize>,
    c: *mut f32,
    ldc: usize,
) {
    let columns = panels.start * NR..(panels.end * NR).min(w.scales.len());
    let (scales, sums) = (&w.scales[columns.clone()], &w.sums[columns.clone()]);
    let moved = if x.dot.moves_inputs() { 128 } else { 0 };
    for (i, row) in rows.enumerate() {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc + columns.start), columns.len()) };
        match w.kind {
            CodeKind::Int8 => scale_int8(path, out, moved, sums, x.scales[row], scales),
            CodeKind::Fp8 => scale_floats(path, out, x.scales[row], scales),
        }
    }
}

#[inline(always)]
fn scale_int8_body<const FMA: bool>(out: &mut [f32], moved: i32, sums: &[i32], scale: f32, scales: &[f32]) {
    for ((out, sum), weight_scale) in out.iter_mut().zip(sums).zip(scales) {
        let exact = out.to_bits().cast_signed() - moved * sum;
        *out = exact as f32 * scale * weight_scale;
    }
}

per_path! {
    /// Bits of i32 sums to numbers, `moved` times Σ_k W taken off.
    fn scale_int8(out: &mut [f32], moved: i32, sums: &[i32], scale: f32, scales: &[f32]) = scale_int8_body
}

#[inline(always)]
fn scale_floats_body<const FMA: bool>(out: &mut [f32], scale: f32, scales: &[f32]) {
    for (out, weight_scale) in out.iter_mut().zip(scales) {
        *out = *out * scale * weight_scale;
    }
}

per_path! {
    fn scale_floats(out: &mut [f32], scale: f32, scales: &[f32]) = scale_floats_body
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::super::activation_quant::{self, ActivationElement, ActivationQuant};
    use super::super::kernel_path::ComputeDtype;
    use super::super::linear::tests::noise;
    use super::super::linear::{Columns, linear, linear_codes};
    use super::super::packed::{CodeRows, PackedMatrix, Panels};
    use super::super::unit_kernels::UnitDot;
    use super::*;
    use crate::checkpoint::CheckpointError;

    fn rounded(x: f32) -> f64 {
        f64::from(bf16::from_f32(x).to_f32())
    }

    fn product(path: KernelPath, x: &[f32], rows: usize, w: &PackedMatrix) -> Vec<f32> {
        let mut out = vec![f32::NAN; rows * w.n()];
        linear(path, x, rows, w, &mut Columns { data: &mut out, stride: w.n(), first: 0 });
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// The sum of exact products of rounded numbers in f32, and each row the bits it has alone.
        #[test]
        fn bf16_equals_the_f64_product_of_rounded_numbers(
            rows in 1usize..120, n in 1usize..100, k in 1usize..2600, seed: u32,
        ) {
            let (x, w) = (noise(rows * k, seed), noise(n * k, !seed));
            let packed = PackedMatrix::dense(ComputeDtype::Bf16, &[&w], k);
            for path in KernelPath::available_bf16() {
                let out = product(path, &x, rows, &packed);
                for r in [0, rows / 2, rows - 1] {
                    let row = &x[r * k..][..k];
                    prop_assert_eq!(&product(path, row, 1, &packed), &out[r * n..][..n]);
                    for c in [0, n - 1] {
                        let exact: f64 =
                            row.iter().zip(&w[c * k..]).map(|(a, b)| rounded(*a) * rounded(*b)).sum();
                        let got = f64::from(out[r * n + c]);
                        prop_assert!((got - exact).abs() < 1e-5 * (k as f64).sqrt(), "{:?} {} {}", path, got, exact);
                    }
                }
            }
        }
    }

    struct Codes {
        numbers: Vec<f32>,
        k: usize,
        scales: Vec<f32>,
    }

    impl CodeRows for Codes {
        fn count(&self) -> usize {
            self.scales.len()
        }

        fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
            out.copy_from_slice(&self.numbers[rows.start * self.k..rows.end * self.k]);
            Ok(())
        }

        fn scales(&self) -> Result<Vec<f32>, CheckpointError> {
            Ok(self.scales.clone())
        }
    }

    fn token(element: ActivationElement) -> ActivationQuant {
        ActivationQuant { element, group_size: None, mx: false, stored: None }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Exactly the integer product, on every kernel, scaled in two steps.
        #[test]
        fn int8_is_exact(rows in 1usize..70, n in 1usize..100, k in 1usize..2600, seed: u32) {
            let x: Vec<f32> = noise(rows * k, seed).iter().map(|x| x * 3.0).collect();
            // −128 and 127 are among them.
            let codes = noise(n * k, !seed).iter().map(|x| (x * 140.0).round().clamp(-128.0, 127.0)).collect();
            let scales = (0..n).map(|i| 0.01 + 0.001 * i as f32).collect();
            let w = Codes { numbers: codes, k, scales };
            let packed = PackedMatrix::pack_codes(CodeKind::Int8, &[&w], k).unwrap();
            let quant = token(ActivationElement::Int8);
            for path in KernelPath::available() {
                let mut got = vec![f32::NAN; rows * n];
                linear_codes(path, quant, &x, rows, &packed, &mut Columns { data: &mut got, stride: n, first: 0 });
                for dot in UnitDot::int8(path) {
                    let units = UnitRows::codes(path, dot, quant, &x, k);
                    let mut out = vec![f32::NAN; rows * n];
                    let Panels::Codes(panels) = &packed.panels else { unreachable!() };
                    // SAFETY: `out` holds rows of n numbers.
                    unsafe {
                        let all = 0..packed.panels();
                        multiply_units(&units, 0..rows, n, panels.codes.units(), all.clone(), out.as_mut_ptr(), n);
                        scale_sums(path, &units, 0..rows, panels, all, out.as_mut_ptr(), n);
                    }
                    for r in 0..rows {
                        let (q, s) = activation_quant::codes(path, quant, &x[r * k..][..k]);
                        for c in 0..n {
                            let sum: i64 = q.iter().zip(&w.numbers[c * k..]).map(|(a, b)| *a as i64 * *b as i64).sum();
                            prop_assert_eq!(out[r * n + c], sum as i32 as f32 * s[0] * w.scales[c], "{:?}", dot);
                        }
                    }
                    prop_assert_eq!(&out, &got);
                }
            }
        }
    }

    #[test]
    fn fp8_codes_are_multiplied_before_their_scales() {
        let (rows, n, k) = (37, 45, 130);
        let x = noise(rows * k, 3);
        let codes: Vec<f32> = noise(n * k, 4)
            .iter()
            .map(|x| super::super::fp8::e4m3_to_f32(super::super::fp8::e4m3_from_f32(x * 400.0)))
            .collect();
        let w = Codes { numbers: codes, k, scales: (0..n).map(|i| 0.001 + 0.0001 * i as f32).collect() };
        let packed = PackedMatrix::pack_codes(CodeKind::Fp8, &[&w], k).unwrap();
        let quant = token(ActivationElement::Fp8);
        for path in KernelPath::available_bf16() {
            let mut out = vec![f32::NAN; rows * n];
            linear_codes(
                path,
                quant,
                &x,
                rows,
                &packed,
                &mut Columns { data: &mut out, stride: n, first: 0 },
            );
            for r in 0..rows {
                let (q, s) = activation_quant::codes(path, quant, &x[r * k..][..k]);
                for c in 0..n {
                    let terms = q.iter().zip(&w.numbers[c * k..]).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    let scale = f64::from(s[0]) * f64::from(w.scales[c]);
                    let got = f64::from(out[r * n + c]);
                    assert!(
                        (got - sum * scale).abs() <= 2e-6 * size * scale,
                        "{path:?} {got} {}",
                        sum * scale
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let w = Codes { numbers: vec![1.0; 3 * 5], k: 5, scales: vec![1.0; 3] };
        let packed = PackedMatrix::pack_codes(CodeKind::Int8, &[&w], 5).unwrap();
        let mut x = vec![1.0; 3 * 5];
        (x[2], x[9]) = (f32::NAN, f32::INFINITY);
        let mut out = [0.0; 9];
        let mut columns = Columns { data: &mut out, stride: 3, first: 0 };
        linear_codes(KernelPath::detect(), token(ActivationElement::Int8), &x, 3, &packed, &mut columns);
        assert!(
            out[..6].iter().all(|y| y.is_nan()) && out[6..].iter().all(|y| (y - 5.0).abs() < 0.05),
            "{out:?}"
        );
    }
}
