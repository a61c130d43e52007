//! y = x · Wᵀ: x \[T, K\] in f32, W \[N, K\] packed once at load ([`super::packed`]), y \[T, N\] in f32.
//!
//! f32: each output is a sum over fixed blocks of k, each a chain of multiply-adds ([`super::microkernel`]). bf16: inputs
//! are rounded to bf16, each output is one chain (`unit_kernels`, `amx`). Codes of quantized inputs and weights:
//! y = (Σ q_x · q_w) · s_x · s_w; sums of int8 codes are exact in 32 bits, FP8 codes are exactly bf16. All are
//! batch-invariant by construction.
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::activation_quant::ActivationQuant;
use super::buffer::{Buffer, Scratch};
use super::kernel_path::KernelPath;
use super::microkernel::{self, Former, MR, NR, Tile};
use super::packed::{CodeKind, PackedMatrix, Panels};
use super::unit_kernels::UnitDot;
use super::unit_product::{multiply_units, scale_sums};
use super::unit_rows::{RoundedRows, UnitRows};

/// Rows of x in one f32 task: enough to use each loaded panel of W eight times.
const ROW_BLOCK: usize = 8 * MR;
/// Inner block of f32: 96 rows of 256 floats are 96 KiB, a fraction of a second-level cache. Blocks are summed apart,
/// which keeps rounding errors of long sums down; they begin at multiples of this size, whatever the batch.
const K_BLOCK: usize = 256;

/// Bytes of W's panels in one task of a narrow kernel.
const TASK_BYTES: usize = 512 << 10;
/// Rows of x in one task of a narrow kernel, about.
const UNIT_ROWS: usize = 256;

/// Where a product goes: columns of a row-major matrix that several products may share.
pub struct Columns<'a> {
    /// The whole matrix \[T, stride\].
    pub data: &'a mut [f32],
    /// Its row length.
    pub stride: usize,
    /// First column of this product.
    pub first: usize,
}

/// out\[:, first..first + N\] = x · Wᵀ for x \[rows, K\] and W of f32 or bf16 numbers.
///
/// # Panics
/// If W holds codes: those take quantized inputs ([`linear_codes`]).
pub fn linear(path: KernelPath, x: &[f32], rows: usize, w: &PackedMatrix, out: &mut Columns<'_>) {
    let x = &x[..rows * w.k()];
    let input = Input::new(path, x, w);
    multiply(path, &input, rows, w, out);
}

/// The same for a W of codes: each row of x is quantized first, with one scale.
pub fn linear_codes(
    path: KernelPath,
    quant: ActivationQuant,
    x: &[f32],
    rows: usize,
    w: &PackedMatrix,
    out: &mut Columns<'_>,
) {
    let input = Input::quantized(path, quant, &x[..rows * w.k()], w);
    multiply(path, &input, rows, w, out);
}

/// The same for rows that are rounded already and a W that takes them ([`PackedMatrix::takes_rounded`]).
pub fn linear_rounded(
    path: KernelPath,
    x: &RoundedRows,
    rows: usize,
    w: &PackedMatrix,
    out: &mut Columns<'_>,
) {
    multiply(path, &Input::rounded(x, rows, w), rows, w, out);
}

/// Inputs as the kernels of a matrix read them.
pub(super) enum Input<'a> {
    /// Block after block of K, and in it tile after tile of up to [`MR`] rows, each \[k\]\[rows\].
    F32 {
        packed: Scratch,
        rows: usize,
    },
    Units(UnitRows),
    Rounded(&'a UnitRows),
}

impl<'a> Input<'a> {
    /// x \[T, K\] for products with `w`, which holds no codes.
    pub fn new(path: KernelPath, x: &[f32], w: &PackedMatrix) -> Self {
        match &w.panels {
            Panels::F32(_) => Self::F32 { packed: pack_tiles(x, w.k()), rows: x.len() / w.k() },
            Panels::Bf16(_) | Panels::Coded(_) => Self::Units(UnitRows::bf16(UnitDot::bf16(path), x, w.k())),
            Panels::Codes(_) => unreachable!("codes take quantized inputs"),
        }
    }

    /// Rows that are rounded already.
    pub fn rounded(x: &'a RoundedRows, rows: usize, w: &PackedMatrix) -> Self {
        assert!(
            w.takes_rounded() && x.0.units == w.units() && rows <= x.capacity(),
            "rows were made for this matrix"
        );
        Self::Rounded(&x.0)
    }

    /// x \[T, K\] quantized row by row for products with `w`, which holds codes.
    pub fn quantized(path: KernelPath, quant: ActivationQuant, x: &[f32], w: &PackedMatrix) -> Self {
        let Panels::Codes(codes) = &w.panels else { unreachable!("only codes take quantized inputs") };
        let dot = match codes.kind {
            CodeKind::Int8 => UnitDot::int8(path)[0],
            CodeKind::Fp8 => UnitDot::bf16(path),
        };
        Self::Units(UnitRows::codes(path, dot, quant, x, w.k()))
    }

    /// Rows of one task: whole tiles, all `rows` where W's panels are decoded for each task.
    pub fn row_block(&self, rows: usize, w: &PackedMatrix) -> usize {
        let dot = match self {
            Self::F32 { .. } => return ROW_BLOCK,
            Self::Units(x) => x.dot,
            Self::Rounded(x) => x.dot,
        };
        if w.is_decoded() {
            return rows.max(1);
        }
        // Blocks of about equal size: a small rest would read as much of W as the others.
        let blocks = rows.div_ceil(UNIT_ROWS).max(1);
        rows.div_ceil(blocks).next_multiple_of(dot.tile_rows()).max(1)
    }
}

/// x \[T, K\] as the f32 kernel reads it.
fn pack_tiles(x: &[f32], width: usize) -> Scratch {
    let mut packed = Scratch::of(x.len());
    let rows = x.len() / width;
    for k0 in (0..width).step_by(K_BLOCK) {
        let k = K_BLOCK.min(width - k0);
        let tiles = packed[k0 * rows..][..k * rows].par_chunks_mut(MR * k);
        tiles.zip(x.par_chunks(MR * width)).for_each(|(to, x)| {
            microkernel::pack_rows(&x[k0..], width, x.len() / width, k, to);
        });
    }
    packed
}

/// All rows times all panels, as tasks.
fn multiply(path: KernelPath, input: &Input<'_>, rows: usize, w: &PackedMatrix, out: &mut Columns<'_>) {
    assert!(
        out.data.len() >= rows * out.stride && out.first + w.n() <= out.stride,
        "the product fits its columns"
    );
    let threads = rayon::current_num_threads();
    let row_block = input.row_block(rows, w);
    let blocks = rows.div_ceil(row_block);
    let panels = match input {
        // Few rows (decoding) are split over W instead.
        Input::F32 { .. } if blocks >= 4 * threads => w.panels(),
        Input::F32 { .. } => 8,
        Input::Units(_) | Input::Rounded(_) => {
            let tasks = (4 * threads).div_ceil(blocks.max(1));
            let of_cache = TASK_BYTES / (w.units() * NR * size_of::<u32>());
            of_cache.min(w.panels().div_ceil(tasks)).max(1)
        }
    };
    let parts = w.panels().div_ceil(panels.max(1));
    let target = SharedOut(out.data.as_mut_ptr());
    (0..blocks * parts).into_par_iter().for_each(|task| {
        let (block, part) = (task / parts, task % parts);
        let of_block = block * row_block..((block + 1) * row_block).min(rows);
        let of_part = part * panels..((part + 1) * panels).min(w.panels());
        let c = target.at(of_block.start * out.stride + out.first);
        // SAFETY: tasks cover disjoint rows or panels of `out`, whose size was checked above.
        unsafe { multiply_block(path, input, of_block, w, of_part, c, out.stride) };
    });
}

/// The start of an output that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct SharedOut(pub *mut f32);

// SAFETY: users write disjoint elements, as each use states.
unsafe impl Sync for SharedOut {}
// SAFETY: as above.
unsafe impl Send for SharedOut {}

impl SharedOut {
    pub(super) fn at(self, offset: usize) -> *mut f32 {
        // `wrapping_add` needs no promise; users state theirs where they write.
        self.0.wrapping_add(offset)
    }
}

thread_local! {
    /// Panels of a weight-only scheme.
    static DECODED: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// Rows `rows` of the input times `panels`. c\[0..rows, 32·p − 32·panels.start\] is not shifted: panel p goes to columns
/// 32·p.. of `c`.
///
/// # Safety
/// `c` must be writable for `rows` rows `ldc` apart in the columns of `panels`, cut at N, by this thread alone.
pub(super) unsafe fn multiply_block(
    path: KernelPath,
    input: &Input<'_>,
    rows: Range<usize>,
    w: &PackedMatrix,
    panels: Range<usize>,
    c: *mut f32,
    ldc: usize,
) {
    let x = match input {
        Input::F32 { packed, rows: all } => {
            let Panels::F32(data) = &w.panels else { unreachable!("inputs were made for this matrix") };
            // SAFETY: the caller's promise.
            unsafe { multiply_f32(path, (packed, *all), rows, w, data, panels, c, ldc) };
            return;
        }
        Input::Units(x) => x,
        Input::Rounded(x) => *x,
    };
    // SAFETY: the caller's promise.
    unsafe {
        match &w.panels {
            Panels::Bf16(data) => {
                let b = &data.units()[panels.start * NR * x.units..];
                multiply_units(x, rows, w.n(), b, panels, c, ldc);
            }
            Panels::Coded(codes) => DECODED.with_borrow_mut(|decoded| {
                codes.decode(path, panels.clone(), decoded);
                multiply_units(x, rows, w.n(), decoded.units(), panels, c, ldc);
            }),
            Panels::Codes(codes) => {
                let b = &codes.codes.units()[panels.start * NR * x.units..];
                multiply_units(x, rows.clone(), w.n(), b, panels.clone(), c, ldc);
                scale_sums(path, x, rows, codes, panels, c, ldc);
            }
            Panels::F32(_) => unreachable!("inputs were made for this matrix"),
        }
    }
}

/// x as [`pack_tiles`] leaves it, of which `rows` begin at a whole tile.
///
/// # Safety
/// As for [`multiply_block`].
#[expect(clippy::too_many_arguments, reason = "one block of one product")]
unsafe fn multiply_f32(
    path: KernelPath,
    (x, all_rows): (&[f32], usize),
    rows: Range<usize>,
    w: &PackedMatrix,
    data: &Buffer,
    panels: Range<usize>,
    c: *mut f32,
    ldc: usize,
) {
    assert!(rows.start.is_multiple_of(MR), "blocks begin at whole tiles");
    for k0 in (0..w.k()).step_by(K_BLOCK) {
        let k = K_BLOCK.min(w.k() - k0);
        let former = if k0 > 0 { Former::Add } else { Former::Ignore };
        for panel in panels.clone() {
            let b = data[panel * NR * w.k() + k0 * NR..].as_ptr();
            let columns = NR.min(w.n() - panel * NR);
            for row in rows.clone().step_by(MR) {
                let count = MR.min(rows.end - row);
                let a = x[k0 * all_rows + row * k..].as_ptr();
                // SAFETY: x holds k·count floats from there, the panel k rows of 32; C as promised, or the local tile
                // where the last panel is cut.
                unsafe {
                    let c = c.add((row - rows.start) * ldc + panel * NR);
                    let tile = Tile { k, a, b, ldb: NR, c, ldc, former };
                    if columns == NR {
                        microkernel::compute(path, count, tile);
                    } else {
                        cut_tile(path, count, columns, tile);
                    }
                }
            }
        }
    }
}

/// A tile of which only the first `columns` columns exist in C.
///
/// # Safety
/// As for [`microkernel::compute`], with C cut to `columns`.
unsafe fn cut_tile(path: KernelPath, rows: usize, columns: usize, tile: Tile) {
    let mut local = [0.0f32; MR * NR];
    // SAFETY: the local tile is large enough; C is touched in `columns` columns only.
    unsafe {
        if tile.former != Former::Ignore {
            for r in 0..rows {
                std::ptr::copy_nonoverlapping(
                    tile.c.add(r * tile.ldc),
                    local[r * NR..].as_mut_ptr(),
                    columns,
                );
            }
        }
        microkernel::compute(path, rows, Tile { c: local.as_mut_ptr(), ldc: NR, ..tile });
        for r in 0..rows {
            std::ptr::copy_nonoverlapping(local[r * NR..].as_ptr(), tile.c.add(r * tile.ldc), columns);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::kernel_path::ComputeDtype;
    use super::*;

    /// Numbers of mixed sign and size, from a linear congruential generator (Numerical Recipes).
    pub(in crate::ops) fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn product(path: KernelPath, x: &[f32], rows: usize, w: &PackedMatrix) -> Vec<f32> {
        let mut out = vec![f32::NAN; rows * w.n()];
        linear(path, x, rows, w, &mut Columns { data: &mut out, stride: w.n(), first: 0 });
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn equals_the_f64_product_and_each_row_alone(
            rows in 1usize..120, n in 1usize..100, k in 1usize..1100, seed: u32,
        ) {
            let (x, w) = (noise(rows * k, seed), noise(n * k, !seed));
            let packed = PackedMatrix::dense(ComputeDtype::F32, &[&w], k);
            for path in KernelPath::available() {
                let out = product(path, &x, rows, &packed);
                for r in [0, rows / 2, rows - 1] {
                    let row = &x[r * k..][..k];
                    prop_assert_eq!(&product(path, row, 1, &packed), &out[r * n..][..n]);
                    for c in [0, n - 1] {
                        let exact: f64 =
                            row.iter().zip(&w[c * k..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let got = f64::from(out[r * n + c]);
                        prop_assert!((got - exact).abs() < 1e-5 * (k as f64).sqrt(), "{} {}", got, exact);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_stand_below_each_other_and_rows_come_back() {
        let (a, b) = (noise(3 * 40, 1), noise(50 * 40, 2));
        let both = PackedMatrix::dense(ComputeDtype::F32, &[&a, &b], 40);
        assert_eq!((both.n(), both.k(), both.panels()), (53, 40, 2));
        let mut row = vec![0.0; 40];
        both.copy_row(2, &mut row);
        assert_eq!(row, &a[80..]);
        both.copy_row(52, &mut row);
        assert_eq!(row, &b[49 * 40..]);
    }

    #[test]
    fn thread_count_does_not_change_bits() {
        let (x, w) = (noise(200 * 70, 3), noise(130 * 70, 4));
        let packed = PackedMatrix::dense(ComputeDtype::F32, &[&w], 70);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| product(KernelPath::detect(), &x, 200, &packed))
        };
        assert_eq!(with(1), with(3));
    }
}
