//! E8M0, the scale of MX formats: 8 exponent bits, `scale = 2^(byte − 127)`, 255 is NaN.
//!
//! Source: OCP Microscaling Formats v1.0 §5.4.1; which power of two a group gets is compressed-tensors'
//! `generate_mx_scales`, neither OCP's floor nor its ceiling.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

/// Exponent of FP4's largest value, 6 = 1.5 · 2².
pub const FP4_EXPONENT: i32 = 2;
/// Exponent of FP6 E2M3's largest value, 7.5 = 1.875 · 2².
pub const FP6_EXPONENT: i32 = 2;
/// Exponent of FP8 E4M3's largest value, 448 = 1.75 · 2⁸.
pub const FP8_EXPONENT: i32 = 8;

/// From which mantissa on the largest magnitude counts as the next power of two, as what is missing to 2 in units of
/// f32's last place.
pub const FROM_1_75: u32 = 1 << 21;
/// As above, for FP6.
pub const FROM_1_9375: u32 = 1 << 19;

/// Byte that stands for NaN.
pub const NAN: u8 = 255;

/// The value of a byte; 255 is NaN.
#[inline(always)]
pub fn e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        NAN => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The byte of a group whose largest magnitude is `amax`, for elements whose largest value has `element_exponent`.
///
/// floor(log₂ amax) − element_exponent, where a large mantissa counts as the next power of two (`round_to_power_2`:
/// from 1.75 on for FP4 and FP8, from 1.9375 on for FP6, [`FROM_1_75`] and [`FROM_1_9375`]): with FP4, values up to
/// 7 · 2ᵉ then saturate at 6 · 2ᵉ instead of halving every other element's precision. Zero and subnormal groups get
/// byte 0.
#[inline(always)]
pub fn shared_exponent(amax: f32, element_exponent: i32, round_up_from: u32) -> u8 {
    let exponent = ((amax.to_bits() & 0x7fff_ffff) + round_up_from) >> 23;
    if exponent == 0 { 0 } else { (exponent as i32 - element_exponent).clamp(0, 254) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden;

    /// All below 1.75 · 2¹²⁷, from where on compressed-tensors overflows to byte 255, NaN.
    #[test]
    fn all_positive_bf16_inputs_as_compressed_tensors() {
        let bytes: Vec<u8> = (0..0x7f60u16)
            .map(|bits| shared_exponent(f32::from_bits(u32::from(bits) << 16), FP4_EXPONENT, FROM_1_75))
            .collect();
        assert_eq!(golden::sha256(&bytes), golden::codec("mxfp4_exponent_of_positive_bf16"));
    }

    #[test]
    fn values() {
        assert_eq!(e8m0_to_f32(127), 1.0);
        assert_eq!(e8m0_to_f32(0), 2f32.powi(-126) / 2.0);
        assert_eq!(e8m0_to_f32(254), 2f32.powi(127));
        assert!(e8m0_to_f32(255).is_nan());
    }

    #[test]
    fn mantissa_decides_the_exponent() {
        assert_eq!(shared_exponent(7.74, FP6_EXPONENT, FROM_1_9375), 127);
        assert_eq!(shared_exponent(7.75, FP6_EXPONENT, FROM_1_9375), 128);
        assert_eq!(shared_exponent(447.0, FP8_EXPONENT, FROM_1_75), 127);
        assert_eq!(shared_exponent(448.0, FP8_EXPONENT, FROM_1_75), 128);
        assert_eq!(shared_exponent(6.0, FP4_EXPONENT, FROM_1_75), 127);
        assert_eq!(shared_exponent(6.99, FP4_EXPONENT, FROM_1_75), 127);
        assert_eq!(shared_exponent(7.0, FP4_EXPONENT, FROM_1_75), 128);
        assert_eq!(shared_exponent(0.0, FP4_EXPONENT, FROM_1_75), 0);
    }
}
