//! What the loops of [`super::row_kernels`] are generic over: where elements come from, how a quotient is rounded, and
//! which code it gets. What does not change a loop's shape (a float's format, an integer's width) is data instead.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::float_dtype::round_bf16;
use super::minifloat::Minifloat;
use super::qparams::ROUNDING_MAGIC;
use super::weight_layout::Element;

/// The little-endian bytes of one float, whose bits order as magnitudes whatever the exponent's width.
pub(super) trait Raw: Copy + 'static {
    /// The bits as a signed integer: those of positive numbers are positive.
    type Bits: Copy + Ord + Default + Into<i32>;

    /// The elements of some rows.
    fn elements(bytes: &[u8]) -> &[Self];
    /// The same, to be written.
    fn elements_mut(bytes: &mut [u8]) -> &mut [Self];
    /// The bits.
    fn bits(self) -> Self::Bits;
    /// What has these bits.
    fn from_bits(bits: Self::Bits) -> Self;
    /// The bits without the sign.
    fn magnitude(self) -> Self::Bits;
    /// The bits of the negated number.
    fn negated(self) -> Self::Bits;
}

macro_rules! raw {
    ($bytes:literal, $bits:ty) => {
        impl Raw for [u8; $bytes] {
            type Bits = $bits;

            #[inline(always)]
            fn elements(bytes: &[u8]) -> &[Self] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn elements_mut(bytes: &mut [u8]) -> &mut [Self] {
                bytes.as_chunks_mut().0
            }

            #[inline(always)]
            fn bits(self) -> $bits {
                <$bits>::from_le_bytes(self)
            }

            #[inline(always)]
            fn from_bits(bits: $bits) -> Self {
                bits.to_le_bytes()
            }

            #[inline(always)]
            fn magnitude(self) -> $bits {
                self.bits() & <$bits>::MAX
            }

            #[inline(always)]
            fn negated(self) -> $bits {
                self.bits() ^ <$bits>::MIN
            }
        }
    };
}

raw!(2, i16);
raw!(4, i32);

/// A float type that elements are coded from. Half precision is widened to f32 before.
pub(super) trait Source: Copy {
    /// One element's bytes.
    type Raw: Raw;
    /// Whether elements have so few bits that [`divide`] is exact.
    const IS_SHORT: bool;

    /// The value.
    fn value(raw: Self::Raw) -> f32;
}

/// bfloat16.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

impl Source for Bf16 {
    type Raw = [u8; 2];
    const IS_SHORT: bool = true;

    #[inline(always)]
    fn value(raw: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
    }
}

/// Single precision.
#[derive(Clone, Copy)]
pub(super) struct F32;

impl Source for F32 {
    type Raw = [u8; 4];
    const IS_SHORT: bool = false;

    #[inline(always)]
    fn value(raw: [u8; 4]) -> f32 {
        f32::from_le_bytes(raw)
    }
}

/// The value of a finite half-precision float: exponent and mantissa moved into place make 2⁻¹¹² of it, subnormals
/// included; the product is exact.
#[inline(always)]
pub(super) fn f16_value(raw: [u8; 2]) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(u16::from_le_bytes(raw));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * TWO_TO_112;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Scales for which [`divide`] neither overflows nor loses bits that a code could depend on.
pub(super) const DIVISIBLE: std::ops::RangeInclusive<f32> =
    f32::from_bits((127 - 60) << 23)..=f32::from_bits((127 + 60) << 23);

/// `x / scale` to the last bit from `inverse = 1 / scale`, where `x` has the eight significant bits of bfloat16: the
/// product, corrected once by its exact remainder. It takes a quarter of the time of a division.
///
/// That one correction is enough was found by trying all 2^7 significands of `x` with all 2^23 of `scale`; exponents do
/// not matter while nothing under- or overflows ([`DIVISIBLE`]). Quotients of numbers below 2⁻¹⁰⁰ may be inexact, but they
/// are below 2⁻⁴⁰ then, which is 0 in every code.
#[inline(always)]
pub(super) fn divide(x: f32, scale: f32, inverse: f32) -> f32 {
    let q = x * inverse;
    let corrected = (-q).mul_add(scale, x).mul_add(inverse, q);
    // The sum loses the sign of −0.
    f32::from_bits(corrected.to_bits() & !SIGN | x.to_bits() & SIGN)
}

/// Sign of f32.
const SIGN: u32 = 1 << 31;

/// Rounds `x / scale` to the precision of the arithmetic.
pub(super) trait Quotient: Copy {
    /// The rounded quotient.
    fn round(x: f32) -> f32;
}

/// The quotient as f32 division gives it.
#[derive(Clone, Copy)]
pub(super) struct Exact;

impl Quotient for Exact {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
}

/// Rounded to bfloat16.
#[derive(Clone, Copy)]
pub(super) struct ToBf16;

impl Quotient for ToBf16 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        round_bf16(x)
    }
}

/// Rounded to half precision.
#[derive(Clone, Copy)]
pub(super) struct ToF16;

impl Quotient for ToF16 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        half::f16::from_f32(x).to_f32()
    }
}

/// Turns a quotient into a code.
pub(super) trait Codec: Copy {
    /// Whether codes are shifted by a zero point.
    const HAS_ZERO_POINT: bool;

    /// The code, and what it stands for in units of the scale (without the zero point).
    fn encode(self, quotient: f32, zero_point: f32) -> (u8, f32);
}

/// FP8, FP6, FP4.
impl Codec for Minifloat {
    const HAS_ZERO_POINT: bool = false;

    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        self.code_and_value(quotient)
    }
}

/// Two's-complement integers, with or without a zero point.
#[derive(Clone, Copy)]
pub(super) struct Int<const ASYMMETRIC: bool> {
    min: f32,
    max: f32,
}

impl<const ASYMMETRIC: bool> Int<ASYMMETRIC> {
    pub(super) fn new(element: Element) -> Self {
        let (min, max) = element.range();
        Self { min, max }
    }
}

impl<const ASYMMETRIC: bool> Codec for Int<ASYMMETRIC> {
    const HAS_ZERO_POINT: bool = ASYMMETRIC;

    #[inline(always)]
    fn encode(self, quotient: f32, zero_point: f32) -> (u8, f32) {
        let shifted = clamp(quotient, self.min, self.max) + ROUNDING_MAGIC;
        let value = shifted - ROUNDING_MAGIC;
        (shifted.to_bits() as u8, if ASYMMETRIC { value - zero_point } else { value })
    }
}

/// `f32::clamp` without its panic path, which would keep loops from being vectorized.
#[inline(always)]
fn clamp(x: f32, min: f32, max: f32) -> f32 {
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All significands of bfloat16 by many of f32, among them the longest and the shortest; both signs, zeros.
    #[test]
    fn quotients_are_those_of_a_division() {
        let mut state = 1u32;
        for i in 0..20_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let significand = match i {
                0..64 => i,
                64..128 => (1 << 23) - 1 - (i - 64),
                128..256 => (i - 128) << 16,
                _ => state >> 9,
            };
            let scale = f32::from_bits(((127 - 60 + i % 120) << 23) | significand);
            for x in (0..128u32).map(|m| f32::from_bits((100 + i % 50) << 23 | m << 16)).chain([0.0]) {
                for x in [x, -x] {
                    assert_eq!(
                        divide(x, scale, 1.0 / scale).to_bits(),
                        (x / scale).to_bits(),
                        "{x:e} {scale:e}"
                    );
                }
            }
        }
    }

    /// Where a quotient is inexact, it is too small for any code to tell.
    #[test]
    fn tiny_numbers_stay_tiny() {
        for bits in 0..(27u32 << 7) {
            let x = f32::from_bits(bits << 16);
            for scale in [*DIVISIBLE.start(), 3e-18, 1e-3, 1.1, *DIVISIBLE.end()] {
                let (found, exact) = (divide(x, scale, 1.0 / scale), x / scale);
                assert!(
                    found == exact || (found < 2f32.powi(-39) && exact < 2f32.powi(-39)),
                    "{x:e} {scale:e}"
                );
            }
        }
    }
}
