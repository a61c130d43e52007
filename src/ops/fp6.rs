//! FP6 E2M3: 1 sign, 2 exponent (bias 1) and 3 mantissa bits; the magnitudes are 0 to 1.875 in steps of 0.125, 2 to
//! 3.75 in steps of 0.25, 4 to 7.5 in steps of 0.5.
//!
//! Source: OCP Microscaling Formats v1.0 §5.3.2; saturating, ties to even, as compressed-tensors 0.20 packs MXFP6: four
//! codes of 6 bits are one little-endian number of 24 bits, the first column in its lowest bits.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::minifloat::Minifloat;

/// Largest value.
pub const MAX: f32 = 7.5;

/// Rounding to it.
pub(super) const FORMAT: Minifloat = Minifloat::new(6, 3, 0, MAX, false);

/// The code nearest to `x` and its value; ties to even, magnitudes beyond 7.5 saturate. Negative values that round to
/// zero keep their sign, negative zero does not, as in [`super::fp4`]. There is no NaN: callers refuse it before.
#[inline(always)]
pub fn e2m3_code_and_value(x: f32) -> (u8, f32) {
    FORMAT.code_and_value(x)
}

/// The value of the low six bits of `code`.
#[inline]
pub fn e2m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3) & 3, f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0,
        e => (1.0 + mantissa / 8.0) * f32::from(1u8 << (e - 1)),
    };
    if code & 0x20 == 0 { magnitude } else { -magnitude }
}

/// Packs codes, four in three bytes; their number is a multiple of four, and `packed` has the bytes they take.
#[inline(always)]
pub fn pack(codes: &[u8], packed: &mut [u8]) {
    for ([a, b, c, d], bytes) in codes.as_chunks::<4>().0.iter().zip(packed.as_chunks_mut::<3>().0) {
        *bytes = [a | (b << 6), (b >> 2) | (c << 4), (c >> 4) | (d << 2)];
    }
}

/// The codes of [`pack`].
pub fn unpack(packed: &[u8], codes: &mut [u8]) {
    for (four, [x, y, z]) in codes.chunks_mut(4).zip(packed.as_chunks::<3>().0) {
        let unpacked = [x & 63, (x >> 6) | ((y & 15) << 2), (y >> 4) | ((z & 3) << 4), z >> 2];
        for (code, from) in four.iter_mut().zip(unpacked) {
            *code = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every magnitude by its definition, and every tie and its neighbours by exact search.
    #[test]
    fn nearest_code_ties_to_even() {
        let values: Vec<f32> = (0..32).map(e2m3_to_f32).collect();
        assert_eq!(&values[..4], [0.0, 0.125, 0.25, 0.375]);
        assert_eq!((values[8], values[15], values[16], values[24], values[31]), (1.0, 1.875, 2.0, 4.0, MAX));
        for (low, pair) in values.windows(2).enumerate() {
            let tie = f32::midpoint(pair[0], pair[1]);
            let even = low + low % 2;
            for (x, expected) in
                [(pair[0], low), (tie.next_down(), low), (tie, even), (tie.next_up(), low + 1)]
            {
                assert_eq!(e2m3_code_and_value(x), (expected as u8, values[expected]), "{x}");
                let negative = if x == 0.0 { 0 } else { 0x20 };
                assert_eq!(e2m3_code_and_value(-x).0, expected as u8 | negative, "-{x}");
            }
        }
        assert_eq!(e2m3_code_and_value(1e9), (31, MAX));
    }

    /// The code of 0.99 rounds up into the normal numbers.
    #[test]
    fn subnormals_carry_over() {
        assert_eq!(e2m3_code_and_value(0.99), (8, 1.0));
    }

    #[test]
    fn four_codes_are_a_little_endian_number_of_24_bits() {
        let codes = [0x3f, 0x01, 0x20, 0x15];
        let number = 0x3fu32 | (0x01 << 6) | (0x20 << 12) | (0x15 << 18);
        let mut packed = [0; 3];
        pack(&codes, &mut packed);
        assert_eq!(packed, number.to_le_bytes()[..3]);
        let mut back = [0; 4];
        unpack(&packed, &mut back);
        assert_eq!(back, codes);
    }
}
