//! y = x · Wᵀ in f32: x \[T, K\], W \[N, K\], y \[T, N\], with W packed once at load.
//!
//! Each output is a sum over fixed blocks of k, each a chain of multiply-adds ([`super::microkernel`]): batch-invariant
//! by construction.
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with the packed
//! block of x in the second-level cache and panels of W streaming by.

use std::cell::RefCell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::kernel_path::KernelPath;
use super::microkernel::{self, Former, MR, NR, Tile};

/// Rows of x in one task: enough to use each loaded panel of W eight times.
const ROW_BLOCK: usize = 8 * MR;
/// Inner block: 96 rows of 256 floats are 96 KiB, a fraction of a second-level cache. Blocks are summed apart, which
/// keeps rounding errors of long sums down; they begin at multiples of this size, whatever the batch.
const K_BLOCK: usize = 256;

/// W in panels of 32 rows (output features): \[N/32\]\[K\]\[32\], the last panel padded with zeros.
pub struct PackedMatrix {
    data: Buffer,
    n: usize,
    k: usize,
}

impl PackedMatrix {
    /// Packs matrices \[N_i, K\], row-major, one below the other.
    ///
    /// # Panics
    /// If the length of a part is no multiple of `k`.
    pub fn pack(parts: &[&[f32]], k: usize) -> Self {
        assert!(k > 0 && parts.iter().all(|part| part.len() % k == 0), "every part has rows of {k}");
        let rows: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks_exact(k)).collect();
        let n = rows.len();
        let mut data = Buffer::zeros(n.div_ceil(NR) * NR * k);
        data.par_chunks_mut(NR * k).zip(rows.par_chunks(NR)).for_each(|(panel, rows)| {
            for (column, row) in rows.iter().enumerate() {
                for (slot, w) in panel[column..].iter_mut().step_by(NR).zip(*row) {
                    *slot = *w;
                }
            }
        });
        Self { data, n, k }
    }

    /// Output features N.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(NR)
    }

    /// Copies row `n` of W \[K\]: the embedding of a tied model.
    pub fn copy_row(&self, n: usize, out: &mut [f32]) {
        let panel = &self.data[(n / NR) * NR * self.k..][..NR * self.k];
        for (slot, w) in out.iter_mut().zip(panel[n % NR..].iter().step_by(NR)) {
            *slot = *w;
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.readable() * size_of::<f32>()
    }
}

/// Where a product goes: columns of a row-major matrix that several products may share.
pub struct Columns<'a> {
    /// The whole matrix \[T, stride\].
    pub data: &'a mut [f32],
    /// Its row length.
    pub stride: usize,
    /// First column of this product.
    pub first: usize,
}

/// out\[:, first..first + N\] = x · Wᵀ for x \[rows, K\].
pub fn linear(path: KernelPath, x: &[f32], rows: usize, w: &PackedMatrix, out: &mut Columns<'_>) {
    assert!(x.len() >= rows * w.k, "x has {rows} rows of {}", w.k);
    assert!(
        out.data.len() >= rows * out.stride && out.first + w.n <= out.stride,
        "the product fits its columns"
    );
    let blocks = rows.div_ceil(ROW_BLOCK);
    // Few rows (decoding) are split over W instead.
    let parts = if blocks >= 4 * rayon::current_num_threads() { 1 } else { w.panels().div_ceil(8) };
    let panels = w.panels().div_ceil(parts.max(1)).max(1);
    let target = SharedOut(out.data.as_mut_ptr());
    (0..blocks * parts).into_par_iter().for_each(|task| {
        let (block, part) = (task / parts, task % parts);
        let first = block * ROW_BLOCK;
        let count = ROW_BLOCK.min(rows - first);
        let c = target.at(first * out.stride + out.first);
        // SAFETY: tasks cover disjoint rows or panels of `out`, whose size was checked above.
        unsafe {
            multiply_block(
                path,
                &x[first * w.k..(first + count) * w.k],
                count,
                w,
                part * panels..((part + 1) * panels).min(w.panels()),
                c,
                out.stride,
            );
        }
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
    static PACKED_ROWS: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// c\[0..rows, 32·p − 32·panels.start\] is not shifted: panel p goes to columns 32·p.. of `c`. x \[rows, K\].
///
/// # Safety
/// `c` must be writable for `rows` rows `ldc` apart in the columns of `panels`, cut at N, by this thread alone.
pub(super) unsafe fn multiply_block(
    path: KernelPath,
    x: &[f32],
    rows: usize,
    w: &PackedMatrix,
    panels: std::ops::Range<usize>,
    c: *mut f32,
    ldc: usize,
) {
    PACKED_ROWS.with_borrow_mut(|packed| {
        packed.ensure(rows * K_BLOCK.min(w.k));
        for k0 in (0..w.k).step_by(K_BLOCK) {
            let k = K_BLOCK.min(w.k - k0);
            let former = if k0 > 0 { Former::Add } else { Former::Ignore };
            for row in (0..rows).step_by(MR) {
                let count = MR.min(rows - row);
                microkernel::pack_rows(&x[row * w.k + k0..], w.k, count, k, &mut packed[row * k..]);
            }
            for panel in panels.clone() {
                let b = w.data[panel * NR * w.k + k0 * NR..].as_ptr();
                let columns = NR.min(w.n - panel * NR);
                for row in (0..rows).step_by(MR) {
                    let count = MR.min(rows - row);
                    let a = packed[row * k..].as_ptr();
                    // SAFETY: `packed` holds k·count floats from there, the panel k rows of 32; C as promised, or the
                    // local tile where the last panel is cut.
                    unsafe {
                        let c = c.add(row * ldc + panel * NR);
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
    });
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
            let packed = PackedMatrix::pack(&[&w], k);
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
        let both = PackedMatrix::pack(&[&a, &b], 40);
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
        let packed = PackedMatrix::pack(&[&w], 70);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| product(KernelPath::detect(), &x, 200, &packed))
        };
        assert_eq!(with(1), with(3));
    }
}
