//! RMS normalization with the residual addition before it: x ← x + y; h = w · x / √(mean(x²) + ε).
//!
//! x, y, h \[T, K\], w \[K\]. The mean is summed in 16 lanes. Order of roundings as transformers 5.17
//! `LlamaRMSNorm`: x times the inverse root first, then times w.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::elementary::{LANES, fma, sum_lanes};
use super::kernel_path::{KernelPath, per_path};

/// Rows per parallel task.
const ROWS: usize = 64;

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
                add(path, x, &y[i * k..][..k]);
            }
            row(path, x, w, eps, h);
        }
    });
}

#[inline(always)]
fn add_body<const FMA: bool>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += *y;
    }
}

per_path! {
    fn add(x: &mut [f32], y: &[f32]) = add_body
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
}
