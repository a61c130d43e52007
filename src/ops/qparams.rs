//! Scales and zero points of round-to-nearest quantization, in the arithmetic of compressed-tensors'
//! `calculate_qparams`: computed in the weight's own float type on every device (checkpoint-formats §1.4).
//!
//! `x ≈ (q − zero_point) · scale`.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use crate::ops::e8m0;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::fp8;
use crate::ops::weight_layout::Element;

/// From 1.5 · 2²³ on, f32 has spacing 1: adding this rounds to integers, ties to even, and leaves the integer in the low
/// bits.
pub(super) const ROUNDING_MAGIC: f32 = 12_582_912.0;
/// NVFP4: largest E4M3 value times largest E2M1 value, what the largest magnitude of a tensor is mapped to.
const NVFP4_RANGE: f32 = 448.0 * 6.0;
/// Code and value of the local NVFP4 scale that replaces zero, as `_get_dtype_eps` has it for E4M3.
const E4M3_EPSILON: (u8, f32) = (0x20, 0.125);

/// `scale = amax / half_range`, rounded to `dtype`; zero becomes the type's epsilon, so that nothing divides by it.
#[inline(always)]
pub fn symmetric_scale(amax: f32, element: Element, dtype: FloatDtype) -> f32 {
    let scale = dtype.round(amax / element.half_range());
    if scale == 0.0 { dtype.epsilon() } else { scale }
}

/// Scale and zero point for values in [min, max], widened to contain 0. The zero point is a whole number.
///
/// `scale = (max − min) / (2^b − 1)`, `zero_point = q_min − min / scale`, each step rounded to `dtype`.
#[inline(always)]
pub fn asymmetric_qparams(min: f32, max: f32, element: Element, dtype: FloatDtype) -> (f32, f32) {
    let (min, max) = (min.min(0.0), max.max(0.0));
    let (q_min, q_max) = element.range();
    let scale = dtype.round(dtype.round(max - min) / (q_max - q_min));
    let zero_point = dtype.round(q_min - dtype.round(min / scale));
    // Not f32::clamp, whose panic path would keep loops from being vectorized. NaN, of a zero scale, is replaced below.
    let clamped = if zero_point < q_min { q_min } else { zero_point };
    let clamped = if clamped > q_max { q_max } else { clamped };
    let rounded = (clamped + ROUNDING_MAGIC) - ROUNDING_MAGIC;
    let is_zero = scale == 0.0;
    (if is_zero { dtype.epsilon() } else { scale }, if is_zero { 0.0 } else { rounded })
}

/// NVFP4's global scale, a divisor: 2688 · (1 / amax) over the whole fused set.
///
/// Reciprocal and product are each rounded to the weight's type, because that is how torch divides a number by a
/// tensor. In f16 the product would overflow to infinity, and so to 1, for every amax below 0.041; there both stay in
/// f32. An all-zero set gets 1.
pub fn nvfp4_global_scale(amax: f32, dtype: FloatDtype) -> f32 {
    let dtype = if dtype == FloatDtype::F16 { FloatDtype::F32 } else { dtype };
    let reciprocal = dtype.round(1.0 / amax.max(f32::MIN_POSITIVE));
    let global = dtype.round(reciprocal * NVFP4_RANGE);
    if global.is_finite() { global } else { 1.0 }
}

/// NVFP4's local scale of 16 values as an E4M3 code, and what the group's elements are divided by: local / global, in
/// f32. The local scale is `global · amax / 6`, where `amax / 6` is rounded to `dtype`.
#[inline(always)]
pub fn nvfp4_local_scale(amax: f32, global_scale: f32, dtype: FloatDtype) -> (u8, f32) {
    let scaled = global_scale * dtype.round(amax / crate::ops::fp4::MAX);
    let (code, value) = fp8::FORMAT.code_and_value(scaled);
    let (code, value) = if code == 0 { E4M3_EPSILON } else { (code, value) };
    (code, value / global_scale)
}

/// The scale of 32 values of an MX format as an E8M0 byte.
#[inline(always)]
pub fn mx_scale(amax: f32, element: Element) -> u8 {
    match element {
        Element::E4m3 => e8m0::shared_exponent(amax, e8m0::FP8_EXPONENT, e8m0::FROM_1_75),
        Element::E2m3 => e8m0::shared_exponent(amax, e8m0::FP6_EXPONENT, e8m0::FROM_1_9375),
        Element::E2m1 | Element::Int(_) => e8m0::shared_exponent(amax, e8m0::FP4_EXPONENT, e8m0::FROM_1_75),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of checkpoint-formats §1.4.3–6, made with compressed-tensors 0.20 (CPU).
    #[test]
    fn reference_values() {
        let int4 = Element::Int(4);
        let zero_point = |min, max| asymmetric_qparams(min, max, int4, FloatDtype::Bf16).1;
        assert_eq!((zero_point(-1.0, 2.0), zero_point(0.5, 2.0), zero_point(-3.0, -1.0)), (-3.0, -8.0, 7.0));
        assert_eq!(asymmetric_qparams(-1.0, 2.0, int4, FloatDtype::F32).0, 0.2);
        assert_eq!(symmetric_scale(0.0, Element::E4m3, FloatDtype::Bf16), 0.0078125);
        assert_eq!(nvfp4_global_scale(0.091_308_594, FloatDtype::Bf16), 29440.0);
        // 537.6, which one rounding would make 536.
        assert_eq!(nvfp4_global_scale(5.0, FloatDtype::Bf16), 540.0);
        assert_eq!(nvfp4_global_scale(0.0, FloatDtype::Bf16), 1.0);
        assert_eq!(nvfp4_local_scale(0.0, 2.0, FloatDtype::Bf16), (0x20, 0.0625));
        assert_eq!(fp8::e4m3_to_f32(0x20), 0.125);
        assert_eq!(mx_scale(0.0, Element::E2m1), 0);
    }

    #[test]
    fn global_scale_in_f16_does_not_overflow() {
        assert!((nvfp4_global_scale(0.02, FloatDtype::F16) - 134_400.0).abs() < 1.0);
    }
}
