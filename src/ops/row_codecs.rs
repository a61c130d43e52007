//! What the loops of [`super::quantize_rows`] are generic over: where elements come from, how a quotient is rounded,
//! and which code it gets.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::float_dtype::{FloatDtype, round_bf16};
use super::qparams::ROUNDING_MAGIC;
use super::weight_layout::Element;
use super::{fp4, fp6, fp8};

/// The little-endian bytes of one float, which order as magnitudes and as values whatever their exponent's width.
pub(super) trait Raw: Copy + 'static {
    /// The bits as a signed integer.
    type Bits: Copy + Ord + Default + std::ops::Not<Output = Self::Bits>;

    /// The elements of a row.
    fn elements(bytes: &[u8]) -> &[Self];
    /// The same, to be written.
    fn elements_mut(bytes: &mut [u8]) -> &mut [Self];
    /// The bits without the sign, ordered as magnitudes are.
    fn magnitude(self) -> Self::Bits;
    /// The bits, changed so that they are ordered as values are: those below the sign are flipped where it is set.
    fn ordered(self) -> Self::Bits;
    /// What was turned into `bits`.
    fn from_ordered(bits: Self::Bits) -> Self;
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
            fn magnitude(self) -> $bits {
                <$bits>::from_le_bytes(self) & <$bits>::MAX
            }

            #[inline(always)]
            fn ordered(self) -> $bits {
                let bits = <$bits>::from_le_bytes(self);
                bits ^ ((bits >> (<$bits>::BITS - 1)) & <$bits>::MAX)
            }

            #[inline(always)]
            fn from_ordered(bits: $bits) -> Self {
                (bits ^ ((bits >> (<$bits>::BITS - 1)) & <$bits>::MAX)).to_le_bytes()
            }
        }
    };
}

raw!(2, i16);
raw!(4, i32);

/// Bits of an element.
pub(super) type Bits<S> = <<S as Source>::Raw as Raw>::Bits;

/// A float type as its bytes lie in a file. Elements are finite by the time they are decoded.
pub(super) trait Source: Copy {
    /// One element's bytes.
    type Raw: Raw;
    /// The type.
    const DTYPE: FloatDtype;

    /// The value.
    fn value(raw: Self::Raw) -> f32;
    /// The bytes of a value of this type.
    fn raw(value: f32) -> Self::Raw;
    /// The value of a magnitude; infinite or NaN if the element was.
    fn amax(magnitude: Bits<Self>) -> f32;
}

/// bfloat16.
#[derive(Clone, Copy)]
pub(super) struct Bf16;

impl Source for Bf16 {
    type Raw = [u8; 2];
    const DTYPE: FloatDtype = FloatDtype::Bf16;

    #[inline(always)]
    fn value(raw: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
    }

    #[inline(always)]
    fn raw(value: f32) -> [u8; 2] {
        ((value.to_bits() >> 16) as u16).to_le_bytes()
    }

    #[inline(always)]
    fn amax(magnitude: i16) -> f32 {
        f32::from_bits((magnitude as u32) << 16)
    }
}

/// Half precision.
#[derive(Clone, Copy)]
pub(super) struct F16;

impl Source for F16 {
    type Raw = [u8; 2];
    const DTYPE: FloatDtype = FloatDtype::F16;

    /// Exponent and mantissa moved into place make 2⁻¹¹² of the value, subnormals included; the product is exact.
    #[inline(always)]
    fn value(raw: [u8; 2]) -> f32 {
        const TWO_TO_112: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(u16::from_le_bytes(raw));
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * TWO_TO_112;
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn raw(value: f32) -> [u8; 2] {
        half::f16::from_f32(value).to_le_bytes()
    }

    #[inline(always)]
    fn amax(magnitude: i16) -> f32 {
        half::f16::from_bits(magnitude as u16).to_f32()
    }
}

/// Single precision.
#[derive(Clone, Copy)]
pub(super) struct F32;

impl Source for F32 {
    type Raw = [u8; 4];
    const DTYPE: FloatDtype = FloatDtype::F32;

    #[inline(always)]
    fn value(raw: [u8; 4]) -> f32 {
        f32::from_le_bytes(raw)
    }

    #[inline(always)]
    fn raw(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }

    #[inline(always)]
    fn amax(magnitude: i32) -> f32 {
        f32::from_bits(magnitude as u32)
    }
}

/// Rounds `x / scale` to the precision of the arithmetic.
pub(super) trait Quotient: Copy {
    /// The rounded quotient of elements of type `dtype`.
    fn round(self, x: f32, dtype: FloatDtype) -> f32;
}

/// The quotient as f32 division gives it.
#[derive(Clone, Copy)]
pub(super) struct Exact;

impl Quotient for Exact {
    #[inline(always)]
    fn round(self, x: f32, _: FloatDtype) -> f32 {
        x
    }
}

/// Rounded to the weight's own type.
#[derive(Clone, Copy)]
pub(super) struct Rounded;

impl Quotient for Rounded {
    #[inline(always)]
    fn round(self, x: f32, dtype: FloatDtype) -> f32 {
        match dtype {
            FloatDtype::Bf16 => round_bf16(x),
            other => other.round(x),
        }
    }
}

/// Turns a quotient into a code.
pub(super) trait Codec: Copy {
    /// Whether codes are shifted by a zero point.
    const HAS_ZERO_POINT: bool = false;

    /// The code, and what it stands for in units of the scale (without the zero point).
    fn encode(self, quotient: f32, zero_point: f32) -> (u8, f32);
}

/// FP8 E4M3.
#[derive(Clone, Copy)]
pub(super) struct E4m3;

impl Codec for E4m3 {
    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        fp8::e4m3_code_and_value_of_number(quotient)
    }
}

/// FP6 E2M3.
#[derive(Clone, Copy)]
pub(super) struct E2m3;

impl Codec for E2m3 {
    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        fp6::e2m3_code_and_value(quotient)
    }
}

/// FP4 E2M1.
#[derive(Clone, Copy)]
pub(super) struct E2m1;

impl Codec for E2m1 {
    #[inline(always)]
    fn encode(self, quotient: f32, _: f32) -> (u8, f32) {
        fp4::e2m1_code_and_value(quotient)
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
