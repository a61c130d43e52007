//! Rows of a linear module's weight, decoded from the checkpoint when they are packed.

use std::ops::Range;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::ops::coded::{CodeGrid, GroupedRows};
use crate::ops::dequantize::{PackedTensors, StoredWeight};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::packed::{CodeKind, CodeRows, WeightRows};

/// Where the rows of one module come from. Its pages of the file are released when it is dropped.
pub struct ModuleRows<'a> {
    checkpoint: &'a Checkpoint,
    source: Source,
}

enum Source {
    /// Rows of an unquantized tensor.
    Plain { name: String, k: usize, rows: Range<usize> },
    /// A quantized weight, dequantized and perhaps rounded.
    Stored { weight: Box<StoredWeight>, rounded: Option<FloatDtype> },
}

impl<'a> ModuleRows<'a> {
    /// Rows `rows`, of `k` elements, of a tensor of floats.
    pub(super) fn plain(checkpoint: &'a Checkpoint, name: String, k: usize, rows: Range<usize>) -> Self {
        Self { checkpoint, source: Source::Plain { name, k, rows } }
    }

    /// All rows of a quantized weight, rounded after dequantization where a dtype is given.
    pub(super) fn stored(
        checkpoint: &'a Checkpoint,
        weight: StoredWeight,
        rounded: Option<FloatDtype>,
    ) -> Self {
        Self { checkpoint, source: Source::Stored { weight: Box::new(weight), rounded } }
    }

    /// The same rows as codes of this kind below one scale each, where they are that.
    pub(super) fn as_codes(&self, kind: CodeKind) -> Option<&dyn CodeRows> {
        match &self.source {
            Source::Stored { weight, rounded: None } if weight.code_kind() == Some(kind) => Some(self),
            _ => None,
        }
    }

    /// The same rows as codes that kernels of bf16 products keep, where they can.
    pub(super) fn as_grouped(&self) -> Option<&dyn GroupedRows> {
        match &self.source {
            // Products round to bf16 anyway.
            Source::Stored { weight, rounded: None | Some(FloatDtype::Bf16) } if weight.grid().is_some() => {
                Some(self)
            }
            _ => None,
        }
    }

    /// The tensors of the weight as they are stored, where kernels of bf16 products can decode it: not where it is rounded
    /// to f16 first.
    pub(super) fn as_packed(&self) -> Result<Option<PackedTensors<'_>>, CheckpointError> {
        match &self.source {
            Source::Stored { weight, rounded: None | Some(FloatDtype::Bf16 | FloatDtype::F32) } => {
                weight.packed(self.checkpoint).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The quantized weight.
    fn weight(&self) -> &StoredWeight {
        match &self.source {
            Source::Stored { weight, .. } => weight,
            Source::Plain { .. } => unreachable!("plain rows have no codes (as_codes)"),
        }
    }
}

impl WeightRows for ModuleRows<'_> {
    fn count(&self) -> usize {
        match &self.source {
            Source::Plain { rows, .. } => rows.len(),
            Source::Stored { weight, .. } => weight.shape[0],
        }
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        match &self.source {
            Source::Plain { name, k, rows: of_tensor } => {
                self.checkpoint.require_f32_at(name, (of_tensor.start + rows.start) * k, out)
            }
            Source::Stored { weight, rounded } => {
                weight.decode(self.checkpoint, rows, out)?;
                if let Some(dtype) = rounded {
                    for x in out {
                        *x = dtype.round(*x);
                    }
                }
                Ok(())
            }
        }
    }
}

impl CodeRows for ModuleRows<'_> {
    fn count(&self) -> usize {
        WeightRows::count(self)
    }

    fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        self.weight().decode_codes(self.checkpoint, rows, out)
    }

    fn scales(&self) -> Result<Vec<f32>, CheckpointError> {
        self.weight().row_scales(self.checkpoint)
    }
}

impl GroupedRows for ModuleRows<'_> {
    fn count(&self) -> usize {
        WeightRows::count(self)
    }

    fn grid(&self) -> CodeGrid {
        self.weight().grid().map_or(CodeGrid::Int8, |(grid, _)| grid)
    }

    fn group(&self) -> usize {
        self.weight().grid().map_or(1, |(_, group)| group)
    }

    fn codes(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        self.weight().decode_codes(self.checkpoint, rows, out)
    }

    fn scales(&self, row: usize, out: &mut [(f32, f32)]) -> Result<(), CheckpointError> {
        self.weight().group_scales(self.checkpoint, row, out)
    }
}

impl Drop for ModuleRows<'_> {
    fn drop(&mut self) {
        match &self.source {
            // Other experts of the tensor may follow; a page that is read again costs little.
            Source::Plain { name, .. } => self.checkpoint.release(name),
            Source::Stored { weight, .. } => {
                weight.tensors.iter().for_each(|name| self.checkpoint.release(name));
            }
        }
    }
}
