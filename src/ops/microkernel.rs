//! The one matrix kernel: C\[MR, 32\] (+)= A\[MR, K\] · B\[K, 32\], for linear layers and for both products of attention.
//!
//! Every element of C is a chain of multiply-adds in ascending k. So its bits depend on its row of A and its column of
//! B alone, not on the other rows of the tile.

use super::kernel_path::{Isa, KernelPath};

/// Columns of a tile: the width of a packed panel.
pub const NR: usize = 32;
/// Largest number of rows of a tile: 24 accumulators, 2 columns of B and 1 broadcast fill 27 of AVX-512's 32 registers.
pub const MR: usize = 12;

/// Operands of one tile.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Length of the inner dimension.
    pub k: usize,
    /// A as \[k\]\[rows\].
    pub a: *const f32,
    /// B as \[k\]\[NR\] with `ldb` floats between rows.
    pub b: *const f32,
    /// Distance of B's rows in floats.
    pub ldb: usize,
    /// C as \[rows\]\[NR\] with `ldc` floats between rows.
    pub c: *mut f32,
    /// Distance of C's rows in floats.
    pub ldc: usize,
    /// What C's former content does.
    pub former: Former,
}

/// What happens to the former content of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// It is overwritten.
    Ignore,
    /// The chain of multiply-adds continues from it: cutting K anywhere gives the same bits.
    Continue,
    /// The product is added to it at the end: shorter chains round less, and bits depend on where K is cut.
    Add,
}

/// Computes a tile of `rows` ≤ [`MR`] rows.
///
/// # Safety
/// All of A, B and C as described by `tile` must be readable, and C writable and not shared with other threads.
pub unsafe fn compute(path: KernelPath, rows: usize, tile: Tile) {
    macro_rules! rows {
        ($kernel:ident) => {
            // SAFETY: the caller's promise; the features were detected when `path` was made.
            unsafe {
                match rows {
                    1 => $kernel::<1>(tile),
                    2 => $kernel::<2>(tile),
                    3 => $kernel::<3>(tile),
                    4 => $kernel::<4>(tile),
                    5 => $kernel::<5>(tile),
                    6 => $kernel::<6>(tile),
                    7 => $kernel::<7>(tile),
                    8 => $kernel::<8>(tile),
                    9 => $kernel::<9>(tile),
                    10 => $kernel::<10>(tile),
                    11 => $kernel::<11>(tile),
                    12 => $kernel::<12>(tile),
                    _ => unreachable!("tiles have 1 to {MR} rows"),
                }
            }
        };
    }
    match path.isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => rows!(avx512),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => rows!(avx2),
        Isa::Portable => rows!(portable),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize>(t: Tile) {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    // SAFETY: the caller promises k rows of A and B and ROWS rows of C.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
        if t.former == Former::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                let c = t.c.add(r * t.ldc);
                *acc = [_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16))];
            }
        }
        for i in 0..t.k {
            let b = t.b.add(i * t.ldb);
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*t.a.add(i * ROWS + r));
                acc[0] = _mm512_fmadd_ps(a, b0, acc[0]);
                acc[1] = _mm512_fmadd_ps(a, b1, acc[1]);
            }
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let c = t.c.add(r * t.ldc);
            if t.former == Former::Add {
                acc[0] = _mm512_add_ps(_mm512_loadu_ps(c), acc[0]);
                acc[1] = _mm512_add_ps(_mm512_loadu_ps(c.add(16)), acc[1]);
            }
            _mm512_storeu_ps(c, acc[0]);
            _mm512_storeu_ps(c.add(16), acc[1]);
        }
    }
}

/// Rows and columns are done 6 by 16 at a time: 12 accumulators of AVX2's 16 registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const ROWS: usize>(t: Tile) {
    // SAFETY: the caller's promise, passed on for parts of the tile.
    unsafe {
        for half in 0..2 {
            let mut row = 0;
            while row < ROWS {
                let part =
                    Tile { a: t.a.add(row), b: t.b.add(half * 16), c: t.c.add(row * t.ldc + half * 16), ..t };
                let lda = ROWS;
                match ROWS - row {
                    1 => avx2_part::<1>(part, lda),
                    2 => avx2_part::<2>(part, lda),
                    3 => avx2_part::<3>(part, lda),
                    4 => avx2_part::<4>(part, lda),
                    5 => avx2_part::<5>(part, lda),
                    _ => avx2_part::<6>(part, lda),
                }
                row += 6;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_part<const ROWS: usize>(t: Tile, lda: usize) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    // SAFETY: the caller promises k rows of A and B and ROWS rows of 16 columns of C.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; ROWS];
        if t.former == Former::Continue {
            for (r, acc) in acc.iter_mut().enumerate() {
                let c = t.c.add(r * t.ldc);
                *acc = [_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(8))];
            }
        }
        for i in 0..t.k {
            let b = t.b.add(i * t.ldb);
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*t.a.add(i * lda + r));
                acc[0] = _mm256_fmadd_ps(a, b0, acc[0]);
                acc[1] = _mm256_fmadd_ps(a, b1, acc[1]);
            }
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let c = t.c.add(r * t.ldc);
            if t.former == Former::Add {
                acc[0] = _mm256_add_ps(_mm256_loadu_ps(c), acc[0]);
                acc[1] = _mm256_add_ps(_mm256_loadu_ps(c.add(8)), acc[1]);
            }
            _mm256_storeu_ps(c, acc[0]);
            _mm256_storeu_ps(c.add(8), acc[1]);
        }
    }
}

/// One row at a time over 32 columns, which 16 registers of 4 floats cannot hold: about a tenth of AVX-512's speed.
unsafe fn portable<const ROWS: usize>(t: Tile) {
    // SAFETY: the caller promises k rows of A and B and ROWS rows of C.
    unsafe {
        for r in 0..ROWS {
            let c = t.c.add(r * t.ldc).cast::<[f32; NR]>();
            let mut acc = if t.former == Former::Continue { c.read_unaligned() } else { [0.0; NR] };
            for i in 0..t.k {
                let a = *t.a.add(i * ROWS + r);
                let b = t.b.add(i * t.ldb).cast::<[f32; NR]>().read_unaligned();
                for (acc, b) in acc.iter_mut().zip(b) {
                    *acc = if cfg!(target_arch = "aarch64") { a.mul_add(b, *acc) } else { *acc + a * b };
                }
            }
            if t.former == Former::Add {
                for (acc, c) in acc.iter_mut().zip(c.read_unaligned()) {
                    *acc += c;
                }
            }
            c.write_unaligned(acc);
        }
    }
}

/// Copies `rows` rows of `k` floats, `ld` apart, to the kernel's layout \[k\]\[rows\].
pub fn pack_rows(src: &[f32], ld: usize, rows: usize, k: usize, dst: &mut [f32]) {
    interleave(src, ld, rows, k, rows, dst);
}

/// Copies `rows` ≤ [`MR`] rows of `k` values, `ld` apart, to the layout \[k\]\[group\], of whose groups the first `rows`
/// are written.
pub fn interleave<T: Copy>(src: &[T], ld: usize, rows: usize, k: usize, group: usize, dst: &mut [T]) {
    if rows == MR && group == MR {
        let rows: [&[T]; MR] = std::array::from_fn(|r| &src[r * ld..][..k]);
        for (i, to) in dst.as_chunks_mut::<MR>().0.iter_mut().take(k).enumerate() {
            *to = rows.map(|row| row[i]);
        }
        return;
    }
    for r in 0..rows {
        let row = &src[r * ld..][..k];
        for (slot, x) in dst[r..].iter_mut().step_by(group).zip(row) {
            *slot = *x;
        }
    }
}
