//! Dynamic per-token quantization of activations, as transformers runs compressed-tensors models in f32.
//!
//! For each row x \[K\]: scale = max|x| / R (R = 448 for FP8 E4M3, 127.5 for INT8; 2^−23 for a row of zeros),
//! q = round(clamp(x / scale)), x ≈ q · scale. FP8 rounds to E4M3, ties to even; INT8 to integers, ties to even, in
//! −128..=127. Source: compressed-tensors 0.19 `quantization/utils/helpers.py` (`compute_dynamic_scales_and_zp`,
//! `calculate_qparams`) and `quantization/lifecycle/forward_helpers.py` (`_quantize_dequantize`).

use rayon::prelude::*;

use super::elementary::LANES;
use super::fp8;
use super::kernel_path::{KernelPath, per_path};

/// Element type of quantized activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationQuant {
    /// FP8 E4M3, one scale per token.
    Fp8Token,
    /// INT8 symmetric, one scale per token.
    Int8Token,
}

/// Rows per parallel task.
const ROWS: usize = 64;

impl ActivationQuant {
    /// Largest magnitude that the scale maps to.
    fn range(self) -> f32 {
        match self {
            Self::Fp8Token => 448.0,
            // (127 − (−128)) / 2: compressed-tensors halves the whole range.
            Self::Int8Token => 127.5,
        }
    }
}

/// out \[T, K\] = dequantized quantization of x \[T, K\], row by row.
pub fn fake_quantize(path: KernelPath, kind: ActivationQuant, x: &[f32], k: usize, out: &mut [f32]) {
    assert!(k > 0 && x.len() == out.len() && x.len() % k == 0, "equal shapes");
    out.par_chunks_mut(ROWS * k).zip(x.par_chunks(ROWS * k)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(k).zip(x.chunks_exact(k)) {
            let scale = scale_of(kind, max_abs(path, x));
            match kind {
                ActivationQuant::Fp8Token => fp8_row(path, x, scale, scale, out),
                ActivationQuant::Int8Token => int8_row(path, x, scale, scale, out),
            }
        }
    });
}

/// The quantized values of one row before they are multiplied by the scale, and the scale.
pub fn codes(path: KernelPath, kind: ActivationQuant, x: &[f32]) -> (Vec<f32>, f32) {
    let mut out = vec![0.0; x.len()];
    let scale = scale_of(kind, max_abs(path, x));
    match kind {
        ActivationQuant::Fp8Token => fp8_row(path, x, scale, 1.0, &mut out),
        ActivationQuant::Int8Token => int8_row(path, x, scale, 1.0, &mut out),
    }
    (out, scale)
}

fn scale_of(kind: ActivationQuant, max_abs: f32) -> f32 {
    let scale = max_abs / kind.range();
    if scale == 0.0 { f32::EPSILON } else { scale }
}

#[inline(always)]
fn max_abs_body<const FMA: bool>(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(x.abs());
        }
    }
    tail.iter().map(|x| x.abs()).chain(lanes).fold(0.0, f32::max)
}

per_path! {
    fn max_abs(x: &[f32]) -> f32 = max_abs_body
}

#[inline(always)]
fn fp8_row_body<const FMA: bool>(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = fp8::e4m3_code_and_value(*x / scale).1 * multiplier;
    }
}

per_path! {
    fn fp8_row(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) = fp8_row_body
}

#[inline(always)]
fn int8_row_body<const FMA: bool>(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) {
    /// 1.5·2^23: adding it rounds to the nearest integer, ties to even.
    const INTEGER: f32 = 12_582_912.0;
    for (out, x) in out.iter_mut().zip(x) {
        let v = (*x / scale).clamp(-128.0, 127.0);
        *out = ((v + INTEGER) - INTEGER) * multiplier;
    }
}

per_path! {
    fn int8_row(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) = int8_row_body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: `tests/oracle/activation_quant.py` (compressed-tensors 0.19 `fake_quantize`, torch 2.10).
    #[test]
    fn golden_int8() {
        let x = [-1.0, 0.25, 0.5, 2.0, -0.007, 1.999, 0.0, 0.015];
        for path in KernelPath::available() {
            let (q, scale) = codes(path, ActivationQuant::Int8Token, &x);
            assert_eq!(scale.to_bits(), (2.0f32 / 127.5).to_bits());
            assert_eq!(q, [-64.0, 16.0, 32.0, 127.0, 0.0, 127.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn golden_fp8() {
        // max 448, so the scale is 1: values are rounded as they stand.
        let x = [448.0, -300.0, 17.0, 19.0, 0.3, 0.001, 0.000_976_562_5, 0.002_929_687_5, -0.014];
        for path in KernelPath::available() {
            let (q, scale) = codes(path, ActivationQuant::Fp8Token, &x);
            assert_eq!(scale, 1.0);
            let want = [448.0, -288.0, 16.0, 20.0, 0.3125, 0.001_953_125, 0.0, 0.003_906_25, -0.013_671_875];
            assert_eq!(q, want, "{path:?}");
        }
    }

    #[test]
    fn zeros_and_nan() {
        for path in KernelPath::available() {
            for kind in [ActivationQuant::Fp8Token, ActivationQuant::Int8Token] {
                assert_eq!(codes(path, kind, &[0.0; 3]), (vec![0.0; 3], f32::EPSILON));
                let mut out = [0.0; 2];
                fake_quantize(path, kind, &[f32::NAN, 1.0], 2, &mut out);
                assert!(out[0].is_nan());
            }
        }
    }
}
