//! FP4 E2M1: 1 sign, 2 exponent (bias 1) and 1 mantissa bit; the magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4, 6.
//!
//! Source: OCP Microscaling Formats v1.0 §5.3.3; conversion as compressed-tensors' `cast_to_fp4` after a clamp to ±6:
//! ties to even. Two codes share a byte, the even column in the low nibble.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::minifloat::Minifloat;

/// Largest value.
pub const MAX: f32 = 6.0;

/// Rounding to it.
pub(super) const FORMAT: Minifloat = Minifloat::new(4, 1, 0, MAX, false);

/// The magnitudes in the order of their codes.
pub const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The code nearest to `x` and its value; ties to even, magnitudes beyond 6 saturate.
///
/// Negative values that round to zero keep their sign (code 8); negative zero itself becomes code 0, because
/// `cast_to_fp4` multiplies by `sign(x)`. There is no NaN: callers refuse it before.
#[inline(always)]
pub fn e2m1_code_and_value(x: f32) -> (u8, f32) {
    FORMAT.code_and_value(x)
}

/// The code nearest to `x`; see [`e2m1_code_and_value`].
#[inline(always)]
pub fn e2m1_from_f32(x: f32) -> u8 {
    e2m1_code_and_value(x).0
}

/// The value of the low four bits of `code`.
#[inline]
pub fn e2m1_to_f32(code: u8) -> f32 {
    let magnitude = MAGNITUDES[(code & 7) as usize];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Packs codes, two a byte, the first in the low nibble; `packed` has half as many bytes.
#[inline(always)]
pub fn pack(codes: &[u8], packed: &mut [u8]) {
    for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
        let pair = u16::from_le_bytes(*pair);
        *byte = (pair | (pair >> 4)) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden;

    #[test]
    fn all_finite_bf16_inputs_as_compressed_tensors() {
        let codes: Vec<u8> = (0..=u16::MAX)
            .map(|bits| f32::from_bits(u32::from(bits) << 16))
            .filter(|x| x.is_finite())
            .map(e2m1_from_f32)
            .collect();
        assert_eq!(golden::sha256(&codes), golden::codec("e2m1_of_finite_bf16"));
    }

    /// Ties of reference §1.4.7, in checkpoint-formats.
    #[test]
    fn ties_to_even_and_signs() {
        for (x, expected) in [
            (0.25, 0.0),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
            (9.0, 6.0),
        ] {
            assert_eq!(e2m1_code_and_value(x).1, expected, "{x}");
            assert_eq!(e2m1_code_and_value(-x).1, -expected, "-{x}");
        }
        assert_eq!((e2m1_from_f32(-0.25), e2m1_from_f32(-0.0), e2m1_from_f32(0.0)), (8, 0, 0));
        for code in (0..16).filter(|c| *c != 8) {
            assert_eq!(e2m1_code_and_value(e2m1_to_f32(code)), (code, e2m1_to_f32(code)));
        }
    }

    /// Golden bytes of compressed-tensors 0.20.
    #[test]
    fn packing() {
        let mut packed = [0; 4];
        pack(&MAGNITUDES.map(e2m1_from_f32), &mut packed);
        assert_eq!(packed, [0x10, 0x32, 0x54, 0x76]);
    }
}
