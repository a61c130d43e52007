//! A quantized weight on a device, as the kernels that decode it take it: `kernels/weight.cuh`.

use std::ops::Range;

use super::{STEP, alignment, code_bits, dtype_name, element_name, index, require, scale_name};
use crate::device::cuda::{CudaError, DeviceBuffer, Variant};
use crate::ops::dequantize::Global;
use crate::ops::weight_layout::{Packing, ScaleKind, WeightCoding};

/// The tensors of one weight on a device: w = (code − zero_point) · scale.
#[derive(Clone, Copy)]
pub struct DeviceWeight<'a> {
    /// How codes and scales are coded.
    pub coding: WeightCoding,
    /// [N, K].
    pub shape: [usize; 2],
    /// Rows and columns that share a scale, at least 1 each.
    pub block: [usize; 2],
    /// The scale above E4M3 scales.
    pub global: Option<Global>,
    /// Packed codes, row by row.
    pub codes: &'a DeviceBuffer,
    /// Scales as they are stored.
    pub scales: &'a DeviceBuffer,
    /// Zero points, one byte each, in the order of the scales.
    pub zero_points: Option<&'a DeviceBuffer>,
}

/// Mirrors `Weight` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Stored {
    codes: u64,
    scales: u64,
    zero_points: u64,
    row_code_bytes: u64,
    k: u32,
    band: u32,
    columns: u32,
    multiplies: u32,
    global: f32,
    code_alignment: i32,
}

impl WeightCoding {
    /// The defines by which kernels decode such weights.
    pub(super) fn defines(self, variant: Variant) -> Variant {
        variant
            .define("DTYPE", dtype_name(self.scale_dtype))
            .define("ELEMENT", element_name(self.element))
            .define("BITS", code_bits(self.packing, self.element))
            .define("SCALE", scale_name(self.scale))
            .define("ASYMMETRIC", !self.symmetric)
            .define("OFFSET", self.packing == Packing::Words)
    }
}

impl DeviceWeight<'_> {
    /// Whether kernels decode a weight of this shape, `columns` of which share a scale: groups end where a thread's sixteen
    /// codes do, and 32-bit numbers count its steps.
    pub fn is_decoded([n, k]: [usize; 2], columns: usize) -> bool {
        let in_range = n.checked_mul(k.div_ceil(STEP)).is_some_and(|steps| u32::try_from(steps).is_ok());
        (columns >= k || columns.is_multiple_of(STEP)) && in_range
    }

    /// The kernels' struct for `rows` of the weight, after its buffers were measured.
    pub(super) fn stored(&self, operation: &'static str, rows: &Range<usize>) -> Result<Stored, CudaError> {
        let ([n, k], [band, columns]) = (self.shape, self.block);
        let argument = |what: String| Err(CudaError::Argument { operation, what });
        if rows.end > n || band == 0 || columns == 0 || !Self::is_decoded(self.shape, columns) {
            return argument(format!("rows {rows:?} of [{n}, {k}] with a scale for {band} × {columns}"));
        }
        let coding = self.coding;
        let row_code_bytes = coding.packing.row_bytes(coding.element, k);
        let groups = n.div_ceil(band) * k.div_ceil(columns);
        let scale_bytes = if coding.scale == ScaleKind::Float { coding.scale_dtype.size() } else { 1 };
        require(
            operation,
            &[("codes", n * row_code_bytes, self.codes), ("scales", groups * scale_bytes, self.scales)],
        )?;
        match (coding.symmetric, self.zero_points) {
            (true, _) => {}
            (false, Some(zero_points)) => require(operation, &[("zero points", groups, zero_points)])?,
            (false, None) => return argument("an asymmetric weight without zero points".to_owned()),
        }
        let (multiplies, global) = match self.global {
            None => (false, 1.0),
            Some(Global::Divisor(global)) => (false, global),
            Some(Global::Multiplier(global)) => (true, global),
        };
        Ok(Stored {
            codes: self.codes.address(),
            scales: self.scales.address(),
            zero_points: self.zero_points.map_or(0, DeviceBuffer::address),
            row_code_bytes: row_code_bytes as u64,
            k: index(operation, k)?,
            band: index(operation, band)?,
            columns: index(operation, columns.min(k))?,
            multiplies: multiplies.into(),
            global,
            code_alignment: alignment(row_code_bytes),
        })
    }
}
