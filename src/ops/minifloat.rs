//! Floats of few bits: rounding to them, branch-free, so that loops over it vectorize.
//!
//! With M mantissa bits and a smallest normal exponent e₀, the values within [2ᵉ, 2ᵉ⁺¹) are multiples of 2^(e−M), and
//! those below 2^e₀ of 2^(e₀−M). f32 has that very spacing within [2^(e+23−M), 2^(e+24−M)): adding the lower end of
//! that range rounds to a multiple, ties to even, and leaves the multiple in the low bits of the sum.
//!
//! A format is data, not a type: loops over elements are compiled once for all formats, with its numbers in registers.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

/// Exponent field of f32.
const EXPONENT: u32 = 0x7f80_0000;
/// Sign of f32.
const SIGN: u32 = 0x8000_0000;

/// A float format of at most eight bits: sign, exponent, mantissa; finite values only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Minifloat {
    /// Bits of the largest value as f32.
    max: i32,
    /// f32's mantissa bits that have no place in this format.
    dropped_bits: u32,
    /// f32's exponent field of the smallest normal value.
    min_normal: i32,
    /// From f32's sign to the code's.
    sign_shift: u32,
    /// The sign of a code for negative zero.
    zero_sign: u32,
}

impl Minifloat {
    /// A format of so many bits with so many of mantissa, whose smallest normal value is 2^`min_normal_exponent` and
    /// whose largest value is `max`. `has_negative_zero` says whether −0 keeps its sign.
    pub(super) const fn new(
        num_bits: u32,
        mantissa_bits: u32,
        min_normal_exponent: i32,
        max: f32,
        has_negative_zero: bool,
    ) -> Self {
        Self {
            max: max.to_bits() as i32,
            dropped_bits: 23 - mantissa_bits,
            min_normal: (127 + min_normal_exponent) << 23,
            sign_shift: 32 - num_bits,
            zero_sign: if has_negative_zero { SIGN } else { 0 },
        }
    }

    /// The code nearest to `x` and its value; ties to even, magnitudes beyond the largest saturate. Negative values that
    /// round to zero keep their sign. For NaN the code is any.
    #[inline(always)]
    pub(super) fn code_and_value(self, x: f32) -> (u8, f32) {
        let bits = x.to_bits();
        let magnitude = bits & !SIGN;
        let sign = bits & if magnitude == 0 { self.zero_sign } else { SIGN };
        // As signed numbers, whose maximum and minimum every instruction set has; both are positive.
        let clamped = (magnitude as i32).min(self.max) as u32;
        let exponent = ((clamped & EXPONENT) as i32).max(self.min_normal) as u32;
        // None of these sums overflows; unchecked, they vectorize in every profile.
        let shift = exponent.wrapping_add(self.dropped_bits << 23);
        let sum = f32::from_bits(clamped) + f32::from_bits(shift);
        let multiple = sum.to_bits().wrapping_sub(shift);
        // A multiple of 2^M and more is the next exponent's: the carry adds up to the right code.
        let code = multiple.wrapping_add(exponent.wrapping_sub(self.min_normal as u32) >> self.dropped_bits);
        let value = (sum - f32::from_bits(shift)).to_bits() | sign;
        ((code | (sign >> self.sign_shift)) as u8, f32::from_bits(value))
    }
}
