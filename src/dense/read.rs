//! Reading dense bytes: by position where they stand in a file, by decoding or gathering elsewhere.

use std::fs::File;
use std::ops::Range;

use super::DenseError;
use super::source::{DenseSource, DenseTensor, Storage};
use crate::checkpoint::{CheckpointError, TensorLocation};
use crate::ops::dequantize::StoredWeight;
use crate::ops::float_dtype::FloatDtype;

impl DenseSource {
    /// Fills `out` with `range` of the tensor's dense bytes: row-major little-endian elements of its dtype. Dequantized
    /// weights are rounded to nearest even. Any thread may read any range at any time; pages of codes are given back at
    /// once and plain bytes are not mapped, so what counts as memory is `out`. Whole rows are cheapest where
    /// [`Self::location`] is `None`.
    pub fn read(&self, tensor: &DenseTensor, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), DenseError> {
        out.clear();
        out.resize((range.end - range.start) as usize, 0);
        if let Some(at) = self.location(tensor) {
            let failed = |source| CheckpointError::Read { path: at.path.clone(), source };
            let file = File::open(&at.path).map_err(failed)?;
            read_exact_at(&file, out, at.offset + range.start).map_err(failed)?;
            return Ok(());
        }
        let row_bytes = tensor.row_bytes() as u64;
        if out.is_empty() || row_bytes == 0 {
            return Ok(());
        }
        let rows = (range.start / row_bytes) as usize..range.end.div_ceil(row_bytes) as usize;
        let skipped = (range.start % row_bytes) as usize;
        if skipped == 0 && range.end.is_multiple_of(row_bytes) {
            return self.read_rows(tensor, rows, out);
        }
        let mut whole = vec![0; rows.len() * tensor.row_bytes()];
        self.read_rows(tensor, rows, &mut whole)?;
        let end = skipped + out.len();
        out.copy_from_slice(&whole[skipped..end]);
        Ok(())
    }

    /// Where the dense bytes lie in a file as they are, for readers of their own; `None` where they must be made.
    pub fn location(&self, tensor: &DenseTensor) -> Option<TensorLocation> {
        let (name, first) = match &tensor.storage {
            Storage::Plain => (&tensor.name, 0),
            Storage::Part { base, offset, strides } if *strides == [tensor.row_elements(), 1] => {
                (base, offset * tensor.dtype.bitsize() / 8)
            }
            Storage::Part { .. } | Storage::Quantized(_) => return None,
        };
        let mut at = self.checkpoint.location(name)?;
        at.offset += first as u64;
        at.num_bytes = tensor.num_bytes();
        Some(at)
    }

    /// Gives back the memory of a tensor's pages once its last byte was read.
    pub fn release(&self, tensor: &DenseTensor) {
        match &tensor.storage {
            Storage::Quantized(stored) => {
                stored.tensors.iter().for_each(|name| self.checkpoint.release(name));
            }
            Storage::Plain | Storage::Part { .. } => self.checkpoint.release(tensor.stored_name()),
        }
    }

    /// Makes whole rows.
    fn read_rows(&self, tensor: &DenseTensor, rows: Range<usize>, out: &mut [u8]) -> Result<(), DenseError> {
        match &tensor.storage {
            Storage::Quantized(stored) => {
                let dtype = tensor.float_dtype().unwrap_or(FloatDtype::Bf16);
                self.decode(stored, rows, dtype, out)
            }
            Storage::Part { base, offset, strides } => {
                let size = tensor.dtype.bitsize() / 8;
                let view = self.checkpoint.require(base)?;
                gather(&view.data[offset * size..], rows, tensor.row_elements(), *strides, size, out);
                Ok(())
            }
            Storage::Plain => Ok(()),
        }
    }

    fn decode(
        &self,
        stored: &StoredWeight,
        rows: Range<usize>,
        dtype: FloatDtype,
        out: &mut [u8],
    ) -> Result<(), DenseError> {
        let mut values = vec![0.0; rows.len() * stored.shape[1]];
        stored.decode(&self.checkpoint, rows.clone(), &mut values)?;
        for (bytes, value) in out.chunks_exact_mut(dtype.size()).zip(values) {
            match dtype {
                FloatDtype::Bf16 => bytes.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                FloatDtype::F16 => bytes.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                FloatDtype::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
            }
        }
        let row = stored.code_row_bytes() as u64;
        self.checkpoint.release_bytes(stored.codes(), rows.start as u64 * row..rows.end as u64 * row);
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(not(unix))]
fn read_exact_at(mut file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    // The file was opened for this call alone: nobody else moves its cursor.
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(buffer)
}

/// Copies elements of `size` bytes from strided positions. Rows are the fast direction of a transposed matrix, so the
/// outer loop runs over columns there.
fn gather(data: &[u8], rows: Range<usize>, k: usize, strides: [usize; 2], size: usize, out: &mut [u8]) {
    let element = |row: usize, column: usize| (row * strides[0] + column * strides[1]) * size;
    let mut copy = |row: usize, column: usize| {
        let (from, to) = (element(row, column), ((row - rows.start) * k + column) * size);
        out[to..to + size].copy_from_slice(&data[from..from + size]);
    };
    if strides[0] < strides[1] {
        (0..k).for_each(|column| rows.clone().for_each(|row| copy(row, column)));
    } else {
        rows.clone().for_each(|row| (0..k).for_each(|column| copy(row, column)));
    }
}
