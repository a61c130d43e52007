//! E8M0, the scale of MX formats: 8 exponent bits, `scale = 2^(byte − 127)`, 255 is NaN.
//!
//! Source: OCP Microscaling Formats v1.0 §5.4.1; which power of two a group gets is compressed-tensors'
//! `generate_mx_scales`, neither OCP's floor nor its ceiling.

/// Exponent of FP4's largest value, 6 = 1.5 · 2².
pub const FP4_EXPONENT: i32 = 2;

/// Byte that stands for NaN.
pub const NAN: u8 = 255;

/// The value of a byte; 255 is NaN.
#[inline]
pub fn e8m0_to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        NAN => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The byte of a group whose largest magnitude is `amax`, for elements whose largest value has `element_exponent`.
///
/// floor(log₂ amax) − element_exponent, where a mantissa of 1.75 or more counts as the next power of two
/// (`round_to_power_2`): values up to 7 · 2ᵉ then saturate at 6 · 2ᵉ instead of halving every other element's
/// precision. Zero and subnormal groups get byte 0.
#[inline]
pub fn shared_exponent(amax: f32, element_exponent: i32) -> u8 {
    const QUARTER: u32 = 1 << 21;
    let exponent = ((amax.to_bits() & 0x7fff_ffff) + QUARTER) >> 23;
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
            .map(|bits| shared_exponent(f32::from_bits(u32::from(bits) << 16), FP4_EXPONENT))
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
        assert_eq!(shared_exponent(6.0, FP4_EXPONENT), 127);
        assert_eq!(shared_exponent(6.99, FP4_EXPONENT), 127);
        assert_eq!(shared_exponent(7.0, FP4_EXPONENT), 128);
        assert_eq!(shared_exponent(0.0, FP4_EXPONENT), 0);
    }
}
