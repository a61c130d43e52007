//! FP8 E4M3: 1 sign, 4 exponent (bias 7) and 3 mantissa bits, no infinities, largest value 448, NaN `0x7f` and `0xff`.
//!
//! Source: Micikevicius et al., "FP8 formats for deep learning" (2022), table 1; conversion as
//! `torch.clamp(x, -448, 448).to(torch.float8_e4m3fn)`: saturating, ties to even. Branch-free, so that loops over it
//! vectorize.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use super::minifloat::Minifloat;

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// Rounding to it; 2⁻⁶ is the smallest normal value.
pub(super) const FORMAT: Minifloat = Minifloat::new(8, 3, -6, MAX, true);

/// Difference of the exponent biases of f32 (127) and E4M3 (7), in units of a code's last place.
const REBIAS: u32 = 120 << 3;

/// The code nearest to `x` and its value; ties to even, magnitudes beyond 448 (infinities too) saturate, NaN stays.
#[inline(always)]
pub fn e4m3_code_and_value(x: f32) -> (u8, f32) {
    let (code, value) = FORMAT.code_and_value(x);
    let is_nan = (x.to_bits() & 0x7fff_ffff) as i32 > f32::INFINITY.to_bits() as i32;
    (if is_nan { code | 0x7f } else { code }, if is_nan { f32::NAN.copysign(x) } else { value })
}

/// The code nearest to `x`; see [`e4m3_code_and_value`].
#[inline(always)]
pub fn e4m3_from_f32(x: f32) -> u8 {
    e4m3_code_and_value(x).0
}

/// The value of a code.
#[inline]
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3_VALUES[code as usize]
}

/// The value of every code.
pub static E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = decode(code as u8);
        code += 1;
    }
    values
};

const fn decode(code: u8) -> f32 {
    let sign = (code as u32 & 0x80) << 24;
    let magnitude = code as u32 & 0x7f;
    if magnitude == 0x7f {
        return f32::NAN;
    }
    if magnitude < 8 {
        // Subnormal: a multiple of 2⁻⁹.
        let value = magnitude as f32 * 0.001953125;
        return f32::from_bits(value.to_bits() | sign);
    }
    f32::from_bits(((magnitude + REBIAS) << 20) | sign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden;

    #[test]
    fn all_bf16_inputs_as_torch() {
        let codes: Vec<u8> =
            (0..=u16::MAX).map(|bits| e4m3_from_f32(f32::from_bits(u32::from(bits) << 16))).collect();
        assert_eq!(golden::sha256(&codes), golden::codec("e4m3_of_all_bf16"));
    }

    #[test]
    fn all_codes_as_torch() {
        let bytes: Vec<u8> =
            E4M3_VALUES.iter().filter(|v| v.is_finite()).flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(golden::sha256(&bytes), golden::codec("e4m3_values_without_nan"));
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }

    /// Reference: the float8 crate through candle, which saturates as well.
    #[test]
    fn agrees_with_candle_between_codes() {
        use candle_core::{DType, Device, Tensor};
        let mut inputs = Vec::new();
        for magnitude in 0..0x7eu8 {
            let (low, high) = (e4m3_to_f32(magnitude), e4m3_to_f32(magnitude + 1));
            let tie = f32::midpoint(low, high);
            for x in [low, tie.next_down(), tie, tie.next_up(), high] {
                inputs.extend([x, -x]);
            }
        }
        let ours: Vec<f32> = inputs.iter().map(|x| e4m3_code_and_value(*x).1).collect();
        let theirs = Tensor::new(inputs.as_slice(), &Device::Cpu)
            .and_then(|t| t.to_dtype(DType::F8E4M3))
            .and_then(|t| t.to_dtype(DType::F32))
            .and_then(|t| t.to_vec1::<f32>())
            .unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn ties_saturation_and_values() {
        let as_value = |x: f32| e4m3_to_f32(e4m3_from_f32(x));
        for (x, expected) in
            [(17.0, 16.0), (19.0, 20.0), (464.0, 448.0), (f32::INFINITY, 448.0), (-1e9, -448.0)]
        {
            assert_eq!(as_value(x), expected, "{x}");
        }
        assert_eq!(e4m3_from_f32(-0.0), 0x80);
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            let (back, rounded) = e4m3_code_and_value(value);
            assert!(value.is_nan() || (back == code && rounded == value), "{code:#x}");
        }
    }
}
