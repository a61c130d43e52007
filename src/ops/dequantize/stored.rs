//! A quantized weight whose tensors were found and checked, whatever dialect names them. Rows are decoded on demand,
//! so that a weight of any size costs no more memory than the rows asked for.

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::{DenseWeight, DequantizeError};
use crate::checkpoint::{Checkpoint, CheckpointError, TensorView};
use crate::ops::coded::CodeGrid;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::packed::CodeKind;
use crate::ops::weight_layout::{Element, Packing, ScaleKind, WeightCoding};
use crate::ops::{e8m0, fp4, fp6, fp8, int_pack};

/// Where the codes and scales of one weight lie, and what they mean.
#[derive(Debug, Clone)]
pub struct StoredWeight {
    /// [N, K] of the dense weight.
    pub shape: [usize; 2],
    /// Names of all tensors that stand for the weight, the codes first.
    pub tensors: Vec<String>,
    pub(super) element: Element,
    pub(super) packing: Packing,
    pub(super) scales: String,
    /// Rows and columns that share a scale.
    pub(super) block: [usize; 2],
    pub(super) global: Option<Global>,
    /// One for each scale, in the same order.
    pub(super) zero_points: Option<Vec<i8>>,
}

/// The scale of the whole tensor above its local scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Global {
    /// compressed-tensors' `weight_global_scale`.
    Divisor(f32),
    /// ModelOpt's `weight_scale_2`.
    Multiplier(f32),
}

/// The tensors of a weight as they lie in the file, each checked against the shape: w = (code − zero_point) · scale.
#[derive(Clone, Copy)]
pub struct PackedTensors<'a> {
    /// How codes and scales are coded.
    pub coding: WeightCoding,
    /// [N, K].
    pub shape: [usize; 2],
    /// Rows and columns that share a scale.
    pub block: [usize; 2],
    /// The scale above E4M3 scales.
    pub global: Option<Global>,
    /// Codes, row by row.
    pub codes: &'a [u8],
    /// [N/rows, K/columns].
    pub scales: &'a [u8],
    /// In the order of the scales.
    pub zero_points: Option<&'a [i8]>,
}

impl Global {
    fn apply(self, local: f32) -> f32 {
        match self {
            Self::Divisor(global) => local / global,
            Self::Multiplier(global) => local * global,
        }
    }
}

impl StoredWeight {
    /// The tensor that holds the codes.
    pub fn codes(&self) -> &str {
        &self.tensors[0]
    }

    /// Bytes of the codes of one row.
    pub fn code_row_bytes(&self) -> usize {
        self.packing.row_bytes(self.element, self.shape[1])
    }

    /// The tensors as they are stored, for kernels that decode them.
    pub fn packed<'a>(&'a self, ckpt: &'a Checkpoint) -> Result<PackedTensors<'a>, CheckpointError> {
        let scales = ckpt.require(&self.scales)?;
        let (scale, scale_dtype) = match scales.dtype {
            Dtype::F8_E4M3 => (ScaleKind::E4m3UnderGlobal, FloatDtype::F32),
            dtype => FloatDtype::of(dtype)
                .map_or((ScaleKind::E8m0, FloatDtype::F32), |dtype| (ScaleKind::Float, dtype)),
        };
        let coding = WeightCoding {
            element: self.element,
            packing: self.packing,
            scale,
            scale_dtype,
            symmetric: self.zero_points.is_none(),
        };
        Ok(PackedTensors {
            coding,
            shape: self.shape,
            block: self.block,
            global: self.global,
            codes: ckpt.require(self.codes())?.data,
            scales: scales.data,
            zero_points: self.zero_points.as_deref(),
        })
    }

    /// Decodes `rows` into `out` [rows, K], on this thread.
    pub fn decode(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let codes = ckpt.require(self.codes())?;
        let scales = ckpt.require(&self.scales)?;
        let mut row_scales = Vec::new();
        for (out, row) in out.chunks_mut(self.shape[1].max(1)).zip(rows) {
            self.decode_row(codes.data, &scales, row, &mut row_scales, out);
        }
        Ok(())
    }

    /// What the codes are, where a row is codes below one scale without zero points, so that products can be taken of
    /// them.
    pub fn code_kind(&self) -> Option<CodeKind> {
        let is_whole = self.block[1] >= self.shape[1];
        let kind = match self.element {
            Element::Int(_) => CodeKind::Int8,
            Element::E4m3 => CodeKind::Fp8,
            _ => return None,
        };
        (is_whole && self.global.is_none() && self.zero_points.is_none()).then_some(kind)
    }

    /// What codes stand for and how many consecutive k share a scale, where kernels can keep the codes: pairs of k must
    /// share one.
    pub fn grid(&self) -> Option<(CodeGrid, usize)> {
        let k = self.shape[1];
        let group = self.block[1].min(k);
        let grid = match self.element {
            Element::Int(bits) if bits <= 4 => CodeGrid::Int4,
            Element::Int(_) => CodeGrid::Int8,
            Element::E2m1 => CodeGrid::E2m1,
            Element::E2m3 => CodeGrid::E2m3,
            Element::E4m3 => CodeGrid::E4m3,
        };
        (k > 0 && k.is_multiple_of(2) && group.is_multiple_of(2)).then_some((grid, group))
    }

    /// Scale and zero point of each group of a row.
    pub fn group_scales(
        &self,
        ckpt: &Checkpoint,
        row: usize,
        out: &mut [(f32, f32)],
    ) -> Result<(), CheckpointError> {
        let [band, columns] = self.block;
        let groups = self.shape[1].div_ceil(columns);
        let first = row / band * groups;
        let mut scales = Vec::with_capacity(groups);
        decode_scales(&ckpt.require(&self.scales)?, first..first + groups, &mut scales);
        for (g, (out, local)) in out.iter_mut().zip(scales).enumerate() {
            let zero_point = self.zero_points.as_ref().map_or(0.0, |z| f32::from(z[first + g]));
            *out = (self.global.map_or(local, |global| global.apply(local)), zero_point);
        }
        Ok(())
    }

    /// Decodes the codes of `rows` into `out` [rows, K] without their scales.
    pub fn decode_codes(
        &self,
        ckpt: &Checkpoint,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CheckpointError> {
        let codes = ckpt.require(self.codes())?;
        let row_bytes = self.code_row_bytes();
        for (out, row) in out.chunks_mut(self.shape[1].max(1)).zip(rows) {
            decode_codes(
                self.packing,
                self.element,
                &codes.data[row * row_bytes..(row + 1) * row_bytes],
                out,
            );
        }
        Ok(())
    }

    /// The scale of each row, where a row has one ([`Self::code_kind`]): \[N\].
    pub fn row_scales(&self, ckpt: &Checkpoint) -> Result<Vec<f32>, CheckpointError> {
        let (n, band) = (self.shape[0], self.block[0]);
        let mut bands = Vec::new();
        decode_scales(&ckpt.require(&self.scales)?, 0..n.div_ceil(band), &mut bands);
        Ok((0..n).map(|row| bands[row / band]).collect())
    }

    /// The whole weight, on all threads.
    pub fn dense(&self, ckpt: &Checkpoint) -> Result<DenseWeight, DequantizeError> {
        const ROWS: usize = 32;
        let [n, k] = self.shape;
        let mut data = vec![0.0; n * k];
        data.par_chunks_mut(ROWS * k.max(1)).enumerate().try_for_each(|(i, out)| {
            let first = i * ROWS;
            self.decode(ckpt, first..(first + ROWS).min(n), out)
        })?;
        Ok(DenseWeight { data, shape: self.shape })
    }

    /// Every index here was checked against the tensors' sizes when the weight was found.
    fn decode_row(
        &self,
        codes: &[u8],
        scales: &TensorView<'_>,
        row: usize,
        row_scales: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let row_bytes = self.code_row_bytes();
        decode_codes(self.packing, self.element, &codes[row * row_bytes..(row + 1) * row_bytes], out);
        let [band, columns] = self.block;
        let groups = self.shape[1].div_ceil(columns);
        let first = row / band * groups;
        row_scales.clear();
        decode_scales(scales, first..first + groups, row_scales);
        for (group, out) in out.chunks_mut(columns).enumerate() {
            let local = row_scales[group];
            let scale = self.global.map_or(local, |global| global.apply(local));
            let zero_point = self.zero_points.as_ref().map_or(0.0, |z| f32::from(z[first + group]));
            for x in out {
                *x = (*x - zero_point) * scale;
            }
        }
    }
}

/// Bytes of one scale; `None` for a dtype that scales do not have.
fn scale_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::BF16 | Dtype::F16 => Some(2),
        Dtype::F8_E4M3 | Dtype::F8_E8M0 | Dtype::U8 => Some(1),
        _ => None,
    }
}

/// Appends the scales at `range` to `out`.
fn decode_scales(view: &TensorView<'_>, range: Range<usize>, out: &mut Vec<f32>) {
    let size = scale_bytes(view.dtype).unwrap_or(1);
    let bytes = &view.data[range.start * size..range.end * size];
    match view.dtype {
        Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::BF16 => out.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        Dtype::F16 => out.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        Dtype::F8_E4M3 => out.extend(bytes.iter().map(|b| fp8::e4m3_to_f32(*b))),
        _ => out.extend(bytes.iter().map(|b| e8m0::e8m0_to_f32(*b))),
    }
}

/// The codes of one row as numbers.
fn decode_codes(packing: Packing, element: Element, bytes: &[u8], out: &mut [f32]) {
    match (packing, element) {
        (Packing::Bytes, Element::E4m3) => {
            for (x, code) in out.iter_mut().zip(bytes) {
                *x = fp8::e4m3_to_f32(*code);
            }
        }
        (Packing::Bytes, _) => {
            for (x, code) in out.iter_mut().zip(bytes) {
                *x = f32::from(*code as i8);
            }
        }
        (Packing::Nibbles, _) => {
            for (pair, byte) in out.chunks_mut(2).zip(bytes) {
                pair[0] = fp4::e2m1_to_f32(*byte);
                if let Some(second) = pair.get_mut(1) {
                    *second = fp4::e2m1_to_f32(byte >> 4);
                }
            }
        }
        (Packing::Sextets, _) => {
            let mut codes = vec![0u8; out.len()];
            fp6::unpack(bytes, &mut codes);
            for (x, code) in out.iter_mut().zip(codes) {
                *x = fp6::e2m3_to_f32(code);
            }
        }
        (Packing::Words, Element::Int(bits)) => {
            let mut codes = vec![0i8; out.len()];
            int_pack::unpack_row(bytes, bits, &mut codes);
            for (x, code) in out.iter_mut().zip(codes) {
                *x = f32::from(code);
            }
        }
        (Packing::Words, _) => unreachable!("only integers are packed into words (WeightLayout::new)"),
    }
}
