//! RMS normalization with the residual addition before it: x ← x + y; h = w · x / √(mean(x²) + ε).
//!
//! x, y, h \[T, K\], w \[K\]. The mean is summed in 16 lanes. Order of roundings as transformers 5.17
//! `LlamaRMSNorm`: x times the inverse root first, then times w.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::elementary::{self, LANES, fma, sum_lanes};
use super::kernel_path::{KernelPath, per_path};
use super::linear::SharedOut;
use super::unit_rows::RoundedRows;

/// Rows per parallel task.
const ROWS: usize = 64;
/// Elements per parallel task where rows do not matter.
const CHUNK: usize = 1 << 14;

/// h = norm(x), after x ← x + y where `y` is given.
pub fn rms_norm(path: KernelPath, x: &mut [f32], y: Option<&[f32]>, w: &[f32], eps: f32, h: &mut [f32]) {
    let k = w.len();
    assert!(
        x.len() == h.len() && x.len().is_multiple_of(k) && y.is_none_or(|y| y.len() == x.len()),
        "equal shapes"
    );
    let blocks = x.par_chunks_mut(ROWS * k).zip(h.par_chunks_mut(ROWS * k)).enumerate();
    blocks.for_each(|(block, (x, h))| {
        let y = y.map(|y| &y[block * ROWS * k..][..x.len()]);
        for (i, (x, h)) in x.chunks_exact_mut(k).zip(h.chunks_exact_mut(k)).enumerate() {
            if let Some(y) = y {
                elementary::add(path, x, &y[i * k..][..k]);
            }
            row(path, x, w, eps, h);
        }
    });
}

/// The same for a bf16 product: h is rounded at once.
pub fn rms_norm_rounded(
    path: KernelPath,
    x: &mut [f32],
    y: Option<&[f32]>,
    w: &[f32],
    eps: f32,
) -> RoundedRows {
    let k = w.len();
    assert!(x.len().is_multiple_of(k) && y.is_none_or(|y| y.len() == x.len()), "equal shapes");
    let (rows, shared) = (x.len() / k, SharedOut(x.as_mut_ptr()));
    RoundedRows::new(path, rows, k, &|i, h| {
        // SAFETY: each row lies within x and is made once.
        let x = unsafe { std::slice::from_raw_parts_mut(shared.at(i * k), k) };
        if let Some(y) = y {
            elementary::add(path, x, &y[i * k..][..k]);
        }
        row(path, x, w, eps, h);
    })
}

/// Normalizes columns `parts` of each row of x \[T, stride\] in place, in adjacent parts of the width of `w`: heads, or
/// all queries of a row together.
pub fn rms_norm_parts(
    path: KernelPath,
    x: &mut [f32],
    stride: usize,
    parts: std::ops::Range<usize>,
    w: &[f32],
    eps: f32,
) {
    let k = w.len();
    assert!(parts.end <= stride && parts.len().is_multiple_of(k), "whole parts within a row");
    x.par_chunks_mut(ROWS * stride).for_each(|x| {
        let mut h = vec![0.0; k];
        for x in x.chunks_exact_mut(stride) {
            for part in x[parts.clone()].chunks_exact_mut(k) {
                row(path, part, w, eps, &mut h);
                part.copy_from_slice(&h);
            }
        }
    });
}

/// x ← x + y·factor, and h = x: the residual addition where no norm follows it, or where it is scaled.
pub fn residual(path: KernelPath, x: &mut [f32], y: &[f32], factor: f32, h: Option<&mut [f32]>) {
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
        elementary::add_scaled(path, x, y, factor);
    });
    if let Some(h) = h {
        h.copy_from_slice(x);
    }
}

#[inline(always)]
fn row_body<const FMA: bool>(x: &[f32], w: &[f32], eps: f32, h: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = fma::<FMA>(*x, *x, *lane);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = fma::<FMA>(*x, *x, *lane);
    }
    let inverse = 1.0 / (sum_lanes(lanes) / x.len() as f32 + eps).sqrt();
    for ((h, x), w) in h.iter_mut().zip(x).zip(w) {
        *h = *w * (*x * inverse);
    }
}

per_path! {
    fn row(x: &[f32], w: &[f32], eps: f32, h: &mut [f32]) = row_body
}

#[cfg(test)]
mod tests {
    use super::super::linear::tests::noise;
    use super::*;

    #[test]
    fn equals_the_formula_in_f64() {
        let (rows, k) = (70, 37);
        let (mut x, y, w) = (noise(rows * k, 1), noise(rows * k, 2), noise(k, 3));
        let before = x.clone();
        let mut h = vec![0.0; rows * k];
        rms_norm(KernelPath::detect(), &mut x, Some(&y), &w, 1e-5, &mut h);
        for r in 0..rows {
            let sum: Vec<f64> = (0..k).map(|i| f64::from(before[r * k + i] + y[r * k + i])).collect();
            let mean = sum.iter().map(|v| v * v).sum::<f64>() / k as f64;
            for i in 0..k {
                let want = f64::from(w[i]) * sum[i] / (mean + 1e-5).sqrt();
                assert!((f64::from(h[r * k + i]) - want).abs() < 1e-6, "{r} {i}");
            }
        }
    }

    /// Parts in place have the bits of whole rows, and a scaled residual those of its two steps.
    #[test]
    fn parts_and_residuals() {
        let path = KernelPath::detect();
        let (x, y, w) = (noise(70 * 40, 4), noise(70 * 40, 5), noise(8, 6));
        let mut parts = x.clone();
        rms_norm_parts(path, &mut parts, 40, 16..32, &w, 1e-5);
        for r in 0..70 {
            for (column, whole) in [(16, 16..24), (24, 24..32)] {
                let mut h = [0.0; 8];
                rms_norm(path, &mut x[r * 40..][whole].to_vec(), None, &w, 1e-5, &mut h);
                assert_eq!(parts[r * 40 + column..][..8], h);
            }
            assert_eq!((parts[r * 40], parts[r * 40 + 32]), (x[r * 40], x[r * 40 + 32]));
        }
        let (mut sum, mut h) = (x.clone(), vec![0.0; x.len()]);
        residual(path, &mut sum, &y, 0.3, Some(&mut h));
        assert!(sum == h && sum.iter().zip(&x).zip(&y).all(|((s, x), y)| *s == x + y * 0.3));
    }
}
