//! Matrix kernels of narrow numbers: C\[rows, 32\] (+)= A\[rows, K\] · B\[K, 32\] with bf16 products summed in f32, or int8
//! products summed in i32, over units of 4 bytes ([`super::packed`]).
//!
//! Every element of C is a chain over ascending units, so its bits depend on its row of A and its column of B alone; it
//! goes on where a former block of K ended. Sums of integers are exact: all int8 kernels give the same bits. `vpdpbusd`
//! multiplies unsigned by signed bytes: its inputs are moved by 128, and 128 · Σ_k B is taken off at the end.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_si512,
};

use super::amx;
use super::kernel_path::{Dot, Isa, KernelPath};
use super::microkernel::NR;

/// How products of narrow numbers are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnitDot {
    /// bf16 by f32 multiply-adds.
    Bf16(Isa),
    /// `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Bf16Avx512,
    /// `tdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Bf16Amx,
    /// int8 by 32-bit multiply-adds.
    Int8(Isa),
    /// `vpdpbusd`.
    #[cfg(target_arch = "x86_64")]
    Int8Vnni,
    /// `tdpbssd`.
    #[cfg(target_arch = "x86_64")]
    Int8Amx,
}

impl UnitDot {
    /// The bf16 products of this path; those of an f32 path, which needs none, are plain.
    pub fn bf16(path: KernelPath) -> Self {
        match path.dot {
            Dot::F32 | Dot::Bf16 => Self::Bf16(path.isa),
            #[cfg(target_arch = "x86_64")]
            Dot::Bf16Avx512 => Self::Bf16Avx512,
            #[cfg(target_arch = "x86_64")]
            Dot::Bf16Amx => Self::Bf16Amx,
        }
    }

    /// The int8 products of this path's instruction set, best first.
    pub fn int8(path: KernelPath) -> Vec<Self> {
        let mut dots = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if path.isa == Isa::Avx512 {
            if amx::available().int8 {
                dots.push(Self::Int8Amx);
            }
            if std::arch::is_x86_feature_detected!("avx512vnni") {
                dots.push(Self::Int8Vnni);
            }
        }
        dots.push(Self::Int8(path.isa));
        dots
    }

    /// Whether A lies in matrix tiles.
    pub fn is_tiled(self) -> bool {
        self.tile_rows() == 2 * amx::TILE_ROWS
    }

    /// Whether products are of integers.
    pub fn is_int8(self) -> bool {
        match self {
            Self::Int8(_) => true,
            #[cfg(target_arch = "x86_64")]
            Self::Int8Vnni | Self::Int8Amx => true,
            _ => false,
        }
    }

    /// Whether codes of A are moved by 128.
    pub fn moves_inputs(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Int8Vnni => true,
            _ => false,
        }
    }

    /// Rows of A that lie together ([`super::unit_rows`]).
    pub fn group_rows(self) -> usize {
        if self.is_tiled() { amx::TILE_ROWS } else { self.tile_rows() }
    }

    /// Most rows of C that are computed at once.
    pub fn tile_rows(self) -> usize {
        match self {
            Self::Bf16(_) | Self::Int8(_) => 4,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Avx512 | Self::Int8Vnni => 12,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Amx | Self::Int8Amx => 2 * amx::TILE_ROWS,
        }
    }
}

/// Operands of one tile of a vector kernel.
#[derive(Clone, Copy)]
pub(super) struct UnitTile {
    /// Depth in units.
    pub units: usize,
    /// A as \[units\]\[rows\], `lda` units between those of one row.
    pub a: *const u32,
    /// Distance of A's units.
    pub lda: usize,
    /// B as \[units\]\[32\].
    pub b: *const u32,
    /// C as \[rows\]\[32\], `ldc` numbers between rows: f32, or i32 for int8.
    pub c: *mut u32,
    /// Distance of C's rows.
    pub ldc: usize,
    /// Whether the chain goes on from what C holds.
    pub continues: bool,
}

/// Computes a tile of `rows` ≤ [`UnitDot::tile_rows`] rows; not for matrix tiles.
///
/// # Safety
/// All of A, B and C as described by `tile` must be readable, and C writable and not shared with other threads.
pub(super) unsafe fn compute(dot: UnitDot, rows: usize, tile: UnitTile) {
    #[cfg(target_arch = "x86_64")]
    macro_rules! rows {
        ($kernel:ident) => {
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
                _ => unreachable!("vector tiles have 1 to 12 rows"),
            }
        };
    }
    // SAFETY: the caller's promise; a `UnitDot` exists only where its features were detected.
    unsafe {
        match dot {
            #[cfg(target_arch = "x86_64")]
            UnitDot::Bf16Avx512 => rows!(bf16_avx512),
            #[cfg(target_arch = "x86_64")]
            UnitDot::Int8Vnni => rows!(int8_vnni),
            UnitDot::Bf16(isa) => plain(isa, rows, tile, false),
            UnitDot::Int8(isa) => plain(isa, rows, tile, true),
            #[cfg(target_arch = "x86_64")]
            UnitDot::Bf16Amx | UnitDot::Int8Amx => unreachable!("matrix tiles are not vector tiles"),
        }
    }
}

/// The same loop around one instruction: 24 accumulators, two vectors of B, one broadcast unit of A.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_kernel {
    ($name:ident, $features:literal, $vector:ident, $zero:expr, $dot:expr) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::useless_transmute, reason = "one of the vector types is the integers'")]
        unsafe fn $name<const ROWS: usize>(t: UnitTile) {
            // SAFETY: the caller promises `units` rows of A and B and ROWS rows of C; vectors of one size hold any bytes.
            unsafe {
                let load =
                    |at: *const u32| std::mem::transmute::<__m512i, $vector>(_mm512_loadu_si512(at.cast()));
                let mut acc = [[$zero; 2]; ROWS];
                if t.continues {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let c = t.c.add(r * t.ldc);
                        *acc = [load(c), load(c.add(16))];
                    }
                }
                for i in 0..t.units {
                    let b = t.b.add(i * NR);
                    let (b0, b1) = (_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast()));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let a = _mm512_set1_epi32((*t.a.add(i * t.lda + r)).cast_signed());
                        acc[0] = $dot(acc[0], a, b0);
                        acc[1] = $dot(acc[1], a, b1);
                    }
                }
                for (r, acc) in acc.iter().enumerate() {
                    let c = t.c.add(r * t.ldc);
                    let bytes = |v| std::mem::transmute::<$vector, __m512i>(v);
                    _mm512_storeu_si512(c.cast(), bytes(acc[0]));
                    _mm512_storeu_si512(c.add(16).cast(), bytes(acc[1]));
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
vector_kernel!(bf16_avx512, "avx512f,avx512bw,avx512bf16", __m512, _mm512_setzero_ps(), |c, a, b| {
    let numbers = |v| std::mem::transmute::<__m512i, __m512bh>(v);
    _mm512_dpbf16_ps(c, numbers(a), numbers(b))
});
#[cfg(target_arch = "x86_64")]
vector_kernel!(int8_vnni, "avx512f,avx512bw,avx512vnni", __m512i, _mm512_setzero_si512(), |c, a, b| {
    _mm512_dpbusd_epi32(c, a, b)
});

/// Plain Rust, compiled for the path's vectors.
unsafe fn plain(isa: Isa, rows: usize, tile: UnitTile, is_int8: bool) {
    let path = KernelPath { isa, dot: Dot::F32 };
    for row in 0..rows {
        // SAFETY: the caller promises `units` rows of A, each of `lda` units, and of B, each of 32, and rows of C.
        let (a, b, c) = unsafe {
            (
                std::slice::from_raw_parts(tile.a, tile.units * tile.lda),
                std::slice::from_raw_parts(tile.b.cast::<[u32; NR]>(), tile.units),
                &mut *tile.c.add(row * tile.ldc).cast::<[u32; NR]>(),
            )
        };
        if is_int8 {
            int8_row(path, &a[row..], tile.lda, b, c, tile.continues);
        } else {
            bf16_row(path, &a[row..], tile.lda, b, c, tile.continues);
        }
    }
}

#[inline(always)]
fn bf16_row_body<const FMA: bool>(
    a: &[u32],
    lda: usize,
    b: &[[u32; NR]],
    c: &mut [u32; NR],
    continues: bool,
) {
    use super::elementary::fma;
    let mut acc = if continues { c.map(f32::from_bits) } else { [0.0; NR] };
    for (a, b) in a.iter().step_by(lda).zip(b) {
        let (low, high) = (f32::from_bits(a << 16), f32::from_bits(a & 0xFFFF_0000));
        for (acc, b) in acc.iter_mut().zip(b) {
            *acc = fma::<FMA>(low, f32::from_bits(b << 16), *acc);
            *acc = fma::<FMA>(high, f32::from_bits(b & 0xFFFF_0000), *acc);
        }
    }
    *c = acc.map(f32::to_bits);
}

super::kernel_path::per_path! {
    fn bf16_row(a: &[u32], lda: usize, b: &[[u32; NR]], c: &mut [u32; NR], continues: bool) = bf16_row_body
}

#[inline(always)]
fn int8_row_body<const FMA: bool>(
    a: &[u32],
    lda: usize,
    b: &[[u32; NR]],
    c: &mut [u32; NR],
    continues: bool,
) {
    let mut acc = if continues { c.map(u32::cast_signed) } else { [0; NR] };
    for (a, b) in a.iter().step_by(lda).zip(b) {
        for shift in [0, 8, 16, 24] {
            let byte = |unit: u32| i32::from((unit >> shift) as i8);
            let a = byte(*a);
            for (acc, b) in acc.iter_mut().zip(b) {
                *acc += a * byte(*b);
            }
        }
    }
    *c = acc.map(i32::cast_unsigned);
}

super::kernel_path::per_path! {
    fn int8_row(a: &[u32], lda: usize, b: &[[u32; NR]], c: &mut [u32; NR], continues: bool) = int8_row_body
}
