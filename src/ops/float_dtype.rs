//! The float types weights are stored in: decoding rows, rounding, and the constants that quantization needs of them.

#![expect(clippy::inline_always, reason = "inlined into loops that are compiled once more for wider vectors")]

use half::{bf16, f16};
use safetensors::Dtype;

use super::kernel_path::KernelPath;
use super::row_kernels::largest;

/// Storage type of an unquantized weight, and of the scales made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatDtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl FloatDtype {
    /// The type of a tensor, if it is one of the three.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            Dtype::F32 => Some(Self::F32),
            _ => None,
        }
    }

    /// The same type as safetensors names it.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The spacing at 1: what `torch.finfo(dtype).eps` gives.
    pub fn epsilon(self) -> f32 {
        match self {
            Self::Bf16 => 0.0078125,
            Self::F16 => 0.0009765625,
            Self::F32 => f32::EPSILON,
        }
    }

    /// `x` rounded to this type, ties to even.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::Bf16 => round_bf16(x),
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::F32 => x,
        }
    }

    /// Appends `x` (already of this type) as little-endian bytes.
    pub fn write(self, x: f32, bytes: &mut Vec<u8>) {
        match self {
            Self::Bf16 => bytes.extend_from_slice(&bf16::from_f32(x).to_le_bytes()),
            Self::F16 => bytes.extend_from_slice(&f16::from_f32(x).to_le_bytes()),
            Self::F32 => bytes.extend_from_slice(&x.to_le_bytes()),
        }
    }

    /// Decodes little-endian elements; `bytes` holds `out.len()` of them.
    #[inline(always)]
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Bf16 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            Self::F16 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *x = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::F32 => {
                for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*b);
                }
            }
        }
    }

    /// Values (already of this type) as little-endian bytes; `bytes` holds `values.len()` of them.
    #[inline(always)]
    pub fn encode(self, values: &[f32], bytes: &mut [u8]) {
        match self {
            Self::Bf16 => {
                for (x, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
                    *b = ((x.to_bits() >> 16) as u16).to_le_bytes();
                }
            }
            Self::F16 => {
                for (x, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
                    *b = f16::from_f32(*x).to_le_bytes();
                }
            }
            Self::F32 => {
                for (x, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    *b = x.to_le_bytes();
                }
            }
        }
    }

    /// The value of one element's bits, of which 16-bit types have the low 16.
    #[inline(always)]
    pub fn value_of_bits(self, bits: i32) -> f32 {
        match self {
            Self::Bf16 => f32::from_bits((bits as u32) << 16),
            Self::F16 => f16::from_bits(bits as u16).to_f32(),
            Self::F32 => f32::from_bits(bits as u32),
        }
    }

    /// The largest magnitude of little-endian elements; infinite or NaN when any element is.
    pub fn amax(self, bytes: &[u8]) -> f32 {
        let count = bytes.len() / self.size();
        if count == 0 {
            return 0.0;
        }
        let mut high = [0];
        let largest = if self == Self::F32 { largest::<[u8; 4]> } else { largest::<[u8; 2]> };
        largest(KernelPath::detect(), &bytes[..count * self.size()], count, count, &mut high);
        self.value_of_bits(high[0])
    }
}

/// `x` rounded to bfloat16, ties to even; not for NaN.
#[inline(always)]
pub fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
           #[test]
           fn bf16_rounding_as_half(x in any::<f32>().prop_filter("no NaN", |x| !x.is_nan())) {
               prop_assert_eq!(round_bf16(x).to_bits(), bf16::from_f32(x).to_f32().to_bits());
           }

           #[test]
           fn amax_is_the_largest_magnitude(values in proptest::collection::vec(-1e4f32..1e4, 0..200)) {
               for dtype in [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32] {
                   let mut bytes = Vec::new();
                   for x in &values {
    dtype.write(*x, &mut bytes);
    }
                   let mut decoded = vec![0.0; values.len()];
                   dtype.decode(&bytes, &mut decoded);
                   let mut encoded = vec![0; bytes.len()];
                   dtype.encode(&decoded, &mut encoded);
                   prop_assert_eq!(&encoded, &bytes);
                   let expected = decoded.iter().fold(0f32, |a, x| a.max(x.abs()));
                   prop_assert_eq!(dtype.amax(&bytes), expected);
               }
           }
       }

    #[test]
    fn amax_shows_non_finite_elements() {
        for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY] {
            let mut bytes = Vec::new();
            for x in [1.0, bad, -2.0] {
                FloatDtype::Bf16.write(x, &mut bytes);
            }
            assert!(!FloatDtype::Bf16.amax(&bytes).is_finite());
        }
    }
}
