//! Tensors of a checkpoint to a device, decoded in memory a piece at a time.

use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use super::super::error::ModelError;
use super::super::module_rows::ModuleRows;
use super::super::placement::Placement;
use super::super::weights::Weights;
use super::linear::DeviceLinear;
use crate::checkpoint::CheckpointError;
use crate::device::cuda::{CudaError, Device, DeviceBuffer, Stream};
use crate::ops::cuda::Act;
use crate::ops::fp8;
use crate::ops::packed::{CodeKind, CodeRows, WeightRows};

/// Bytes decoded at a time.
const PIECE_BYTES: usize = 64 << 20;
/// Rows of one task.
const ROWS: usize = 16;

/// On a device, for activations of a type.
pub(in crate::model) struct OnDevice {
    stream: Stream,
    act: Act,
}

impl OnDevice {
    pub fn new(device: &Arc<Device>, act: Act) -> Result<Self, ModelError> {
        Ok(Self { stream: Stream::new(device)?, act })
    }

    /// Type of activations.
    pub fn act(&self) -> Act {
        self.act
    }

    /// Where to.
    pub fn device(&self) -> &Arc<Device> {
        self.stream.device()
    }

    /// Matrices \[N_i, K\], one below the other, in the type of activations.
    pub fn dense(&self, parts: &[&dyn WeightRows], k: usize) -> Result<DeviceBuffer, ModelError> {
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let write: WriteRow = match self.act {
            Act::Bf16 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                    *to = bf16::from_f32(*x).to_le_bytes();
                }
            },
            Act::F32 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                    *to = x.to_le_bytes();
                }
            },
        };
        let read = |part: usize, rows: std::ops::Range<usize>, out: &mut [f32]| parts[part].read(rows, out);
        self.rows(&counts, k, self.act.size(), &read, write)
    }

    /// Codes of matrices \[N_i, K\], one below the other, a byte each, and their scales \[N\].
    pub fn codes(
        &self,
        kind: CodeKind,
        parts: &[&dyn CodeRows],
        k: usize,
    ) -> Result<[DeviceBuffer; 2], ModelError> {
        let counts: Vec<usize> = parts.iter().map(|part| part.count()).collect();
        let write: WriteRow = match kind {
            CodeKind::Int8 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.iter_mut().zip(x) {
                    *to = *x as i8 as u8;
                }
            },
            CodeKind::Fp8 => |x: &[f32], out: &mut [u8]| {
                for (to, x) in out.iter_mut().zip(x) {
                    *to = fp8::e4m3_code_and_value(*x).0;
                }
            },
        };
        let read = |part: usize, rows: std::ops::Range<usize>, out: &mut [f32]| parts[part].codes(rows, out);
        let codes = self.rows(&counts, k, 1, &read, write)?;
        let mut scales = Vec::new();
        for part in parts {
            scales.extend(part.scales()?);
        }
        Ok([codes, self.vector(scales)?])
    }

    /// Bytes of a file one behind the other.
    pub fn bytes(&self, parts: &[&[u8]]) -> Result<DeviceBuffer, CudaError> {
        let buffer = DeviceBuffer::new(self.device(), parts.iter().map(|part| part.len()).sum())?;
        let mut offset = 0;
        for part in parts {
            // SAFETY: both live until the stream is synchronized below.
            unsafe { self.stream.copy_in(part, &buffer, offset)? };
            offset += part.len();
        }
        self.stream.synchronize()?;
        Ok(buffer)
    }

    /// Reads rows of parts as numbers and writes them as elements of `size` bytes.
    fn rows(
        &self,
        counts: &[usize],
        k: usize,
        size: usize,
        read: &ReadRows<'_>,
        write: WriteRow,
    ) -> Result<DeviceBuffer, ModelError> {
        let buffer = DeviceBuffer::new(self.device(), counts.iter().sum::<usize>() * k * size)?;
        let (mut offset, step) = (0, (PIECE_BYTES / (k * size).max(1)).max(ROWS));
        for (part, count) in counts.iter().enumerate() {
            for first in (0..*count).step_by(step) {
                let piece = first..(first + step).min(*count);
                let mut bytes = vec![0; piece.len() * k * size];
                bytes.par_chunks_mut(ROWS * k * size).enumerate().try_for_each(|(i, out)| {
                    let first = piece.start + i * ROWS;
                    let count = out.len() / (k * size);
                    let mut numbers = vec![0.0; count * k];
                    read(part, first..first + count, &mut numbers)?;
                    write(&numbers, out);
                    Ok::<_, CheckpointError>(())
                })?;
                // SAFETY: both live until the stream is synchronized below.
                unsafe { self.stream.copy_in(&bytes, &buffer, offset)? };
                self.stream.synchronize()?;
                offset += bytes.len();
            }
        }
        Ok(buffer)
    }
}

/// Decodes rows of one part.
type ReadRows<'a> =
    dyn Fn(usize, std::ops::Range<usize>, &mut [f32]) -> Result<(), CheckpointError> + Sync + 'a;
/// Writes numbers as elements.
type WriteRow = fn(&[f32], &mut [u8]);

impl Placement for OnDevice {
    type Linear = DeviceLinear;
    type Vector = DeviceBuffer;
    type Table = DeviceBuffer;

    fn linear(
        &self,
        weights: &Weights<'_>,
        modules: &[(String, usize)],
        k: usize,
        bias: bool,
    ) -> Result<DeviceLinear, ModelError> {
        DeviceLinear::load(self, weights, modules, k, bias)
    }

    fn module(
        &self,
        _: &Weights<'_>,
        _: &str,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<DeviceLinear, ModelError> {
        Ok(DeviceLinear::dense(self.dense(&[rows], k)?, [WeightRows::count(rows), k]))
    }

    fn vector(&self, values: Vec<f32>) -> Result<DeviceBuffer, ModelError> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(self.stream.upload(&bytes)?)
    }

    fn table(&self, _: &Weights<'_>, rows: &ModuleRows<'_>, k: usize) -> Result<DeviceBuffer, ModelError> {
        self.dense(&[rows], k)
    }
}
