//! One tensor of an opened checkpoint: dtype, shape and the mapped bytes.

use half::{bf16, f16};
use safetensors::Dtype;

use super::error::CheckpointError;

/// A tensor as it lies in its file: row-major, little-endian, at any alignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The data.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values as f32: exact for F32, F16 and BF16, rounded for F64. Other dtypes are codes, not values.
    pub fn to_f32(&self) -> Result<Vec<f32>, CheckpointError> {
        Ok(match self.dtype {
            Dtype::F32 => self.map(|b: [u8; 4]| f32::from_le_bytes(b)),
            Dtype::BF16 => self.map(|b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => self.map(|b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.map(|b: [u8; 8]| f64::from_le_bytes(b) as f32),
            found => return Err(CheckpointError::NotFloat { found, shape: self.shape.clone() }),
        })
    }

    /// Decodes values from element `first` on into `out`, as [`Self::to_f32`] does.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let size = self.dtype.bitsize() / 8;
        let data = &self.data[first * size..(first + out.len()) * size];
        match self.dtype {
            Dtype::F32 => fill(data, out, f32::from_le_bytes),
            Dtype::BF16 => fill(data, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => fill(data, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Dtype::F64 => fill(data, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
            found => return Err(CheckpointError::NotFloat { found, shape: self.shape.clone() }),
        }
        Ok(())
    }

    /// The values as i64, for shapes and zero points; only integer dtypes.
    pub fn to_i64(&self) -> Result<Vec<i64>, CheckpointError> {
        Ok(match self.dtype {
            Dtype::I64 => self.map(|b: [u8; 8]| i64::from_le_bytes(b)),
            Dtype::I32 => self.map(|b: [u8; 4]| i64::from(i32::from_le_bytes(b))),
            Dtype::U32 => self.map(|b: [u8; 4]| i64::from(u32::from_le_bytes(b))),
            Dtype::I16 => self.map(|b: [u8; 2]| i64::from(i16::from_le_bytes(b))),
            Dtype::I8 => self.map(|b: [u8; 1]| i64::from(i8::from_le_bytes(b))),
            Dtype::U8 => self.map(|b: [u8; 1]| i64::from(b[0])),
            found => return Err(CheckpointError::NotInteger { found, shape: self.shape.clone() }),
        })
    }

    fn map<const SIZE: usize, T>(&self, convert: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
        self.data.as_chunks::<SIZE>().0.iter().map(|bytes| convert(*bytes)).collect()
    }
}

fn fill<const SIZE: usize>(data: &[u8], out: &mut [f32], convert: impl Fn([u8; SIZE]) -> f32) {
    for (x, bytes) in out.iter_mut().zip(data.as_chunks::<SIZE>().0) {
        *x = convert(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, data: &[u8]) -> TensorView<'_> {
        TensorView { dtype, shape: vec![1], data }
    }

    #[test]
    fn conversions() {
        assert_eq!(view(Dtype::F32, &1.5f32.to_le_bytes()).to_f32().unwrap(), [1.5]);
        assert_eq!(view(Dtype::BF16, &bf16::from_f32(-2.5).to_le_bytes()).to_f32().unwrap(), [-2.5]);
        assert_eq!(view(Dtype::F16, &f16::from_f32(0.25).to_le_bytes()).to_f32().unwrap(), [0.25]);
        assert_eq!(view(Dtype::F64, &3.0f64.to_le_bytes()).to_f32().unwrap(), [3.0]);
        let three: Vec<u8> = [1.0, 2.0, 3.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let mut last = [0.0; 2];
        view(Dtype::BF16, &three).read_f32(1, &mut last).unwrap();
        assert_eq!(last, [2.0, 3.0]);
        assert_eq!(view(Dtype::I64, &(-7i64).to_le_bytes()).to_i64().unwrap(), [-7]);
        assert_eq!(view(Dtype::I8, &[0xff]).to_i64().unwrap(), [-1]);
        assert!(view(Dtype::U8, &[1]).to_f32().is_err());
        assert!(view(Dtype::F32, &[0; 4]).to_i64().is_err());
    }
}
