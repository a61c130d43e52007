//! Quantization of activations, as transformers runs compressed-tensors models in f32.
//!
//! For each row x \[K\], or each group of a row: scale = max|x| / R (R = 448 for FP8 E4M3, 127.5 for INT8; 2^−23 if all
//! are 0), q = round(clamp(x / scale)), x ≈ q · scale. FP8 rounds to E4M3, ties to even; INT8 to integers, ties to even,
//! in −128..=127. Source: compressed-tensors 0.19 `quantization/utils/helpers.py` (`compute_dynamic_scales_and_zp`,
//! `calculate_qparams`) and `quantization/lifecycle/forward_helpers.py` (`_quantize_dequantize`).
//!
//! A static scale replaces the one found at run time. NVFP4 inputs have one scale for 16 values: the E4M3 number nearest
//! to `global · max|x| / 6` (0.125 for zeros), divided by the stored global scale; codes are FP4 E2M1. MX inputs have a
//! power of two for 32 values of FP8 E4M3 or FP4 E2M1 ([`super::e8m0`]).

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use rayon::prelude::*;

use super::elementary::LANES;
use super::float_dtype::FloatDtype;
use super::kernel_path::{KernelPath, per_path};
use super::{e8m0, fp4, fp8, qparams};
use crate::checkpoint::quant_args::Amax;

/// How activations are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActivationQuant {
    /// Element type.
    pub element: ActivationElement,
    /// Elements that share a scale; `None`: a whole row (token).
    pub group_size: Option<usize>,
    /// Whether scales are powers of two, as MX formats have them; of floats only.
    pub mx: bool,
    /// A stored number: the scale itself, or for NVFP4 the global scale, which divides.
    pub stored: Option<Amax>,
}

/// Element type of quantized activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationElement {
    /// FP8 E4M3.
    Fp8,
    /// INT8, symmetric.
    Int8,
    /// FP4 E2M1.
    Fp4,
}

/// Rows per parallel task.
const ROWS: usize = 64;

impl ActivationElement {
    /// Largest magnitude that the scale maps to.
    fn range(self) -> f32 {
        match self {
            Self::Fp8 => 448.0,
            // (127 − (−128)) / 2: compressed-tensors halves the whole range.
            Self::Int8 => 127.5,
            Self::Fp4 => fp4::MAX,
        }
    }
}

/// out \[T, K\] = dequantized quantization of x \[T, K\], row by row. K is a multiple of the group size.
pub fn fake_quantize(path: KernelPath, quant: ActivationQuant, x: &[f32], k: usize, out: &mut [f32]) {
    let group = quant.group_size.unwrap_or(k);
    assert!(
        group > 0 && k.is_multiple_of(group) && x.len() == out.len() && x.len().is_multiple_of(k),
        "whole rows of whole groups"
    );
    out.par_chunks_mut(ROWS * k).zip(x.par_chunks(ROWS * k)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(group).zip(x.chunks_exact(group)) {
            let scale = scale_of(path, quant, x);
            round(path, quant.element, x, scale, scale, out);
        }
    });
}

/// The quantized values of one row before they are multiplied by their scales, and the scales.
pub fn codes(path: KernelPath, quant: ActivationQuant, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; x.len()];
    let group = quant.group_size.unwrap_or(x.len()).max(1);
    let scales = out.chunks_mut(group).zip(x.chunks(group)).map(|(out, x)| {
        let scale = scale_of(path, quant, x);
        round(path, quant.element, x, scale, 1.0, out);
        scale
    });
    let scales = scales.collect();
    (out, scales)
}

/// The scale of a row that has one.
pub(super) fn row_scale(path: KernelPath, quant: ActivationQuant, x: &[f32]) -> f32 {
    scale_of(path, quant, x)
}

/// The codes of a row below `scale`, as numbers.
pub(super) fn row_codes(path: KernelPath, quant: ActivationQuant, x: &[f32], scale: f32, out: &mut [f32]) {
    round(path, quant.element, x, scale, 1.0, out);
}

/// out = round(clamp(x / scale)) · multiplier.
fn round(
    path: KernelPath,
    element: ActivationElement,
    x: &[f32],
    scale: f32,
    multiplier: f32,
    out: &mut [f32],
) {
    match element {
        ActivationElement::Fp8 => fp8_row(path, x, scale, multiplier, out),
        ActivationElement::Int8 => int8_row(path, x, scale, multiplier, out),
        ActivationElement::Fp4 => fp4_row(path, x, scale, multiplier, out),
    }
}

/// What the values of one group are divided by.
fn scale_of(path: KernelPath, quant: ActivationQuant, x: &[f32]) -> f32 {
    match (quant.element, quant.stored) {
        (ActivationElement::Fp4, Some(global)) => {
            qparams::nvfp4_local_scale(max_abs(path, x), global.get(), FloatDtype::F32).1
        }
        (_, Some(scale)) => scale.get(),
        (ActivationElement::Fp8, None) if quant.mx => mx_scale(max_abs(path, x), e8m0::FP8_EXPONENT),
        (ActivationElement::Fp4, None) if quant.mx => mx_scale(max_abs(path, x), e8m0::FP4_EXPONENT),
        (element, None) => {
            let scale = max_abs(path, x) / element.range();
            if scale == 0.0 { f32::EPSILON } else { scale }
        }
    }
}

/// The power of two for values up to `amax`. Beside an infinity nothing stays a number, as in compressed-tensors.
fn mx_scale(amax: f32, element_exponent: i32) -> f32 {
    if amax.is_infinite() {
        return amax;
    }
    e8m0::e8m0_to_f32(e8m0::shared_exponent(amax, element_exponent, e8m0::FROM_1_75))
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
fn fp4_row_body<const FMA: bool>(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        let value = fp4::e2m1_code_and_value(*x / scale).1 * multiplier;
        // The code has no NaN.
        *out = if x.is_nan() { *x } else { value };
    }
}

per_path! {
    fn fp4_row(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) = fp4_row_body
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

#[inline(always)]
fn int8_codes_body<const FMA: bool>(x: &[f32], scale: f32, out: &mut [i8]) {
    const INTEGER: f32 = 12_582_912.0;
    for (out, x) in out.iter_mut().zip(x) {
        let v = (*x / scale).clamp(-128.0, 127.0);
        // The integer stands in the low bits.
        *out = (v + INTEGER).to_bits() as i8;
    }
}

per_path! {
    /// The INT8 codes of a row; what is no number gets some code.
    pub(super) fn int8_codes(x: &[f32], scale: f32, out: &mut [i8]) = int8_codes_body
}

per_path! {
    fn int8_row(x: &[f32], scale: f32, multiplier: f32, out: &mut [f32]) = int8_row_body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(element: ActivationElement) -> ActivationQuant {
        ActivationQuant { element, group_size: None, mx: false, stored: None }
    }

    /// Reference: `tests/oracle/activation_quant.py` (compressed-tensors 0.19 `fake_quantize`, torch 2.10).
    #[test]
    fn golden_int8() {
        let x = [-1.0, 0.25, 0.5, 2.0, -0.007, 1.999, 0.0, 0.015];
        for path in KernelPath::available() {
            let (q, scale) = codes(path, token(ActivationElement::Int8), &x);
            assert_eq!(scale, [2.0 / 127.5]);
            assert_eq!(q, [-64.0, 16.0, 32.0, 127.0, 0.0, 127.0, 0.0, 1.0]);
        }
    }

    #[test]
    fn golden_fp8() {
        // max 448, so the scale is 1: values are rounded as they stand.
        let x = [448.0, -300.0, 17.0, 19.0, 0.3, 0.001, 0.000_976_562_5, 0.002_929_687_5, -0.014];
        for path in KernelPath::available() {
            let (q, scale) = codes(path, token(ActivationElement::Fp8), &x);
            assert_eq!(scale, [1.0]);
            let want = [448.0, -288.0, 16.0, 20.0, 0.3125, 0.001_953_125, 0.0, 0.003_906_25, -0.013_671_875];
            assert_eq!(q, want, "{path:?}");
        }
    }

    const GOLDEN_NVFP4_SCALES: [f32; 2] = [0.64, 0.0375];
    #[rustfmt::skip]
    const GOLDEN_NVFP4: [f32; 32] = [
        -6.0, -6.0, -6.0, -4.0, -4.0, -3.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0,
        1.5, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 6.0, 6.0, 6.0,
    ];
    const GOLDEN_STATIC_FP8: [f32; 9] =
        [-416.0, -384.0, -320.0, -288.0, -256.0, -224.0, -192.0, -144.0, -112.0];

    /// Reference: `tests/oracle/activation_quant.py`; global scale 100 over two groups, static FP8 scale 0.01.
    #[test]
    fn golden_nvfp4_and_static_fp8() {
        let x: Vec<f32> = (0..32).map(|i| (i as f32 - 11.0) * if i < 16 { 0.37 } else { 0.011 }).collect();
        let stored = |value: f32| Some(Amax::try_from(value).unwrap());
        for path in KernelPath::available() {
            let fp4 = ActivationQuant {
                element: ActivationElement::Fp4,
                group_size: Some(16),
                mx: false,
                stored: stored(100.0),
            };
            let (q, scales) = codes(path, fp4, &x);
            assert_eq!(scales, GOLDEN_NVFP4_SCALES, "{path:?}");
            assert_eq!(q, GOLDEN_NVFP4, "{path:?}");
            let fp8 = ActivationQuant { stored: stored(0.01), ..token(ActivationElement::Fp8) };
            let (q, scales) = codes(path, fp8, &x[..9]);
            assert_eq!((q.as_slice(), scales.as_slice()), (&GOLDEN_STATIC_FP8[..], &[0.01][..]), "{path:?}");
        }
    }

    const GOLDEN_MXFP8_SCALES: [f32; 2] = [0.03125, 1.0 / 4096.0];
    #[rustfmt::skip]
    const GOLDEN_MXFP8: [f32; 64] = [
        -256.0, -240.0, -224.0, -208.0, -208.0, -192.0, -176.0, -160.0, -160.0, -144.0, -128.0, -120.0, -104.0, -96.0, -80.0, -72.0,
        -60.0, -48.0, -36.0, -24.0, -12.0, 0.0, 12.0, 24.0, 36.0, 48.0, 60.0, 72.0, 80.0, 96.0, 104.0, 120.0,
        60.0, 64.0, 72.0, 80.0, 88.0, 88.0, 96.0, 104.0, 104.0, 112.0, 120.0, 120.0, 128.0, 128.0, 144.0, 144.0,
        144.0, 160.0, 160.0, 176.0, 176.0, 176.0, 192.0, 192.0, 192.0, 208.0, 208.0, 208.0, 224.0, 224.0, 224.0, 240.0,
    ];
    const GOLDEN_MXFP4_SCALES: [f32; 2] = [2.0, 0.015_625];
    #[rustfmt::skip]
    const GOLDEN_MXFP4: [f32; 64] = [
        -4.0, -4.0, -4.0, -3.0, -3.0, -3.0, -3.0, -3.0, -2.0, -2.0, -2.0, -2.0, -1.5, -1.5, -1.5, -1.0,
        -1.0, -0.5, -0.5, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 1.5, 2.0,
        1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0,
        2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0,
    ];

    fn mx(element: ActivationElement) -> ActivationQuant {
        ActivationQuant { element, group_size: Some(32), mx: true, stored: None }
    }

    /// Reference: `tests/oracle/activation_quant.py`; after two groups of numbers one of zeros and one of 2⁻¹²⁹.
    #[test]
    fn golden_mx() {
        let mut x: Vec<f32> =
            (0..64).map(|i| (i as f32 - 21.0) * if i < 32 { 0.37 } else { 0.001_37 }).collect();
        x.extend([0.0; 32]);
        x.extend([f32::MIN_POSITIVE / 8.0; 32]);
        let smallest = f32::MIN_POSITIVE / 2.0;
        for path in KernelPath::available() {
            for (element, codes_of, scales_of, tiny) in [
                (ActivationElement::Fp8, GOLDEN_MXFP8, GOLDEN_MXFP8_SCALES, 0.25),
                (ActivationElement::Fp4, GOLDEN_MXFP4, GOLDEN_MXFP4_SCALES, 0.0),
            ] {
                let (q, scales) = codes(path, mx(element), &x);
                assert_eq!(scales, [scales_of[0], scales_of[1], smallest, smallest], "{path:?}");
                assert_eq!(q[..64], codes_of, "{path:?}");
                assert_eq!(q[64..], [[0.0; 32], [tiny; 32]].concat(), "{path:?}");
            }
        }
    }

    #[test]
    fn beside_an_infinity_nothing_is_a_number() {
        for path in KernelPath::available() {
            let mut x = [1.0; 32];
            x[3] = f32::INFINITY;
            let mut out = [0.0; 32];
            fake_quantize(path, mx(ActivationElement::Fp8), &x, 32, &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{path:?}");
        }
    }

    #[test]
    fn zeros_and_nan() {
        for path in KernelPath::available() {
            for kind in [ActivationElement::Fp8, ActivationElement::Int8].map(token) {
                assert_eq!(codes(path, kind, &[0.0; 3]), (vec![0.0; 3], vec![f32::EPSILON]));
                let mut out = [0.0; 2];
                fake_quantize(path, kind, &[f32::NAN, 1.0], 2, &mut out);
                assert!(out[0].is_nan());
            }
        }
    }

    #[test]
    fn groups_are_quantized_apart() {
        let x: Vec<f32> = (0..12).map(|i| (i as f32 - 4.0) * 1.7).collect();
        for path in KernelPath::available() {
            let quant = ActivationQuant { group_size: Some(4), ..token(ActivationElement::Fp8) };
            let mut out = vec![0.0; 12];
            fake_quantize(path, quant, &x, 6 * 2, &mut out);
            for (out, x) in out.chunks(4).zip(x.chunks(4)) {
                let mut alone = vec![0.0; 4];
                fake_quantize(path, token(ActivationElement::Fp8), x, 4, &mut alone);
                assert_eq!(out, alone);
            }
            assert_eq!(codes(path, quant, &x).1.len(), 3);
        }
    }
}
