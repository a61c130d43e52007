//! Weights whose codes stay packed on a device: the twin of [`crate::ops::coded`].
//!
//! Up to [`FEW_ROWS`] rows of an input are multiplied by a kernel that decodes the weight as it goes; for more, the weight
//! is dequantized into room that all layers share, and the product is the library's. Both compute with
//! bf16((code − zero_point) · scale) and f32 sums, but take them in different orders: as everything computed on a GPU
//! (`crate::device::cuda::Products`), the last bits of a row depend on how many rows it is computed with.
//!
//! Only in bf16 mode: the kernel takes bf16. f32 mode, which is there for parity, keeps f32 weights.

use std::ops::Range;

use super::super::error::ModelError;
use super::super::module_rows::ModuleRows;
use super::linear::{On, dense_product};
use super::place::{OnDevices, Replicated};
use crate::device::cuda::{CudaError, DeviceBuffer, Operand};
use crate::ops::cuda::{Act, Columns, DeviceWeight, dequantize, linear_quantized};
use crate::ops::dequantize::{Global, PackedTensors};
use crate::ops::weight_layout::WeightCoding;

/// Most rows that are multiplied without dequantizing the weight first: those of one tile of the kernel, which decodes the
/// weight once a tile.
pub(super) const FEW_ROWS: usize = 64;

/// Modules one below the other: \[N, K\].
pub(super) struct PackedWeight {
    pieces: Vec<Piece>,
}

/// Modules that differ in nothing but their codes and scales.
struct Piece {
    coding: WeightCoding,
    shape: [usize; 2],
    block: [usize; 2],
    global: Option<Global>,
    codes: Replicated,
    scales: Replicated,
    zero_points: Option<Replicated>,
    /// Its rows among those of all pieces.
    rows: Range<usize>,
}

impl PackedWeight {
    /// Uploads modules as they are stored; `None` where one cannot be decoded by the kernels.
    pub fn load(place: &OnDevices, modules: &[ModuleRows<'_>]) -> Result<Option<Self>, ModelError> {
        if place.act() != Act::Bf16 {
            return Ok(None);
        }
        let Some(modules) =
            modules.iter().map(ModuleRows::as_packed).collect::<Result<Option<Vec<_>>, _>>()?
        else {
            return Ok(None);
        };
        if modules.iter().any(|module| !DeviceWeight::is_decoded(module.shape, module.block[1])) {
            return Ok(None);
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for alike in modules.chunk_by(are_alike) {
            let first = pieces.last().map_or(0, |piece| piece.rows.end);
            pieces.push(Piece::load(place, alike, first)?);
        }
        Ok(Some(Self { pieces }))
    }

    /// y \[rows, n\] from x \[rows, K\] bf16 and the rows from `first_n` on, one for each column of y. `room` is for the
    /// dequantized rows.
    ///
    /// # Safety
    /// Buffers stay alive and untouched until the stream was synchronized.
    pub unsafe fn forward(
        &self,
        on: On<'_>,
        x: &DeviceBuffer,
        first_n: usize,
        room: &mut DeviceBuffer,
        y: Columns<'_>,
    ) -> Result<(), CudaError> {
        let size = Act::Bf16.size();
        let k = self.pieces.first().map_or(0, |piece| piece.shape[1]);
        if y.rows > FEW_ROWS {
            room.ensure(y.n * k * size)?;
        }
        for (piece, rows, before) in self.parts(first_n..first_n + y.n) {
            // SAFETY: the caller's promise.
            unsafe {
                if y.rows > FEW_ROWS {
                    let out = Operand { buffer: room, offset: before * k * size };
                    dequantize(on.stream, Act::Bf16, &piece.weight(on.replica), rows, out)?;
                } else {
                    let at = Operand { buffer: y.at.buffer, offset: y.at.offset + before * y.act.size() };
                    let y = Columns { at, n: rows.len(), ..y };
                    linear_quantized(on.stream, x, (&piece.weight(on.replica), rows.start), y)?;
                }
            }
        }
        if y.rows <= FEW_ROWS {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { dense_product(on, x, ((&*room).into(), k), y) }
    }

    /// The pieces that have some of `rows`: which of their own, and how many of `rows` come before them.
    fn parts(&self, rows: Range<usize>) -> impl Iterator<Item = (&Piece, Range<usize>, usize)> {
        self.pieces.iter().filter_map(move |piece| {
            let both = piece.rows.start.max(rows.start)..piece.rows.end.min(rows.end);
            let own = both.start.checked_sub(piece.rows.start)?..both.end.checked_sub(piece.rows.start)?;
            (!both.is_empty()).then(|| (piece, own, both.start - rows.start))
        })
    }
}

/// Whether two modules one below the other are one weight: no rectangle of a scale reaches over both.
fn are_alike(a: &PackedTensors<'_>, b: &PackedTensors<'_>) -> bool {
    let of = |module: &PackedTensors<'_>| (module.coding, module.block, module.global);
    of(a) == of(b) && a.block[0] == 1
}

impl Piece {
    fn load(place: &OnDevices, modules: &[PackedTensors<'_>], first: usize) -> Result<Self, CudaError> {
        let PackedTensors { coding, shape: [_, k], block, global, .. } = modules[0];
        let n = modules.iter().map(|module| module.shape[0]).sum::<usize>();
        let codes: Vec<&[u8]> = modules.iter().map(|module| module.codes).collect();
        let scales: Vec<&[u8]> = modules.iter().map(|module| module.scales).collect();
        let zero_points = modules.iter().filter_map(|module| module.zero_points).flatten();
        let zero_points: Vec<u8> = zero_points.map(|z| z.cast_unsigned()).collect();
        Ok(Self {
            coding,
            shape: [n, k],
            block,
            global,
            codes: place.bytes(&codes)?,
            scales: place.bytes(&scales)?,
            zero_points: (!coding.symmetric).then(|| place.bytes(&[&zero_points])).transpose()?,
            rows: first..first + n,
        })
    }

    /// On the device of a replica.
    fn weight(&self, replica: usize) -> DeviceWeight<'_> {
        DeviceWeight {
            coding: self.coding,
            shape: self.shape,
            block: self.block,
            global: self.global,
            codes: self.codes.of(replica),
            scales: self.scales.of(replica),
            zero_points: self.zero_points.as_ref().map(|zero_points| zero_points.of(replica)),
        }
    }
}
