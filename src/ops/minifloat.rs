//! Rounding to floats of few bits, branch-free, so that loops over it vectorize.
//!
//! With M mantissa bits and a smallest normal exponent e₀, the values within [2ᵉ, 2ᵉ⁺¹) are multiples of 2^(e−M), and
//! those below 2^e₀ of 2^(e₀−M). f32 has that very spacing within [2^(e+23−M), 2^(e+24−M)): adding the lower end of
//! that range rounds to a multiple, ties to even, and leaves the multiple in the low bits of the sum.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

/// Exponent field of f32.
const EXPONENT: u32 = 0x7f80_0000;

/// The code of a magnitude (no sign bit) and its value; `magnitude` is the bits of an f32 of at most the type's largest
/// value. `MIN_NORMAL` is the biased f32 exponent of the smallest normal value.
#[inline(always)]
pub(super) fn round_magnitude<const MANTISSA_BITS: u32, const MIN_NORMAL: u32>(magnitude: u32) -> (u32, f32) {
    // As signed numbers, whose maximum and minimum every instruction set has; both are positive.
    let exponent = ((magnitude & EXPONENT) as i32).max((MIN_NORMAL << 23) as i32) as u32;
    let shift = exponent + ((23 - MANTISSA_BITS) << 23);
    let sum = f32::from_bits(magnitude) + f32::from_bits(shift);
    // A multiple of 2^M and more is the next exponent's: the carry adds up to the right code.
    let code = sum.to_bits() - shift + ((exponent >> (23 - MANTISSA_BITS)) - (MIN_NORMAL << MANTISSA_BITS));
    (code, sum - f32::from_bits(shift))
}
