//! The dense f32 weight of a quantized module: the exact product of code and scale.
//!
//! | layout | value |
//! |---|---|
//! | float scales | `(code − zero_point) · scale` |
//! | NVFP4 | `code · (local / global)`, the quotient rounded to f32 as compressed-tensors' decompression does |
//! | NVFP4 of ModelOpt | `code · (local · weight_scale_2)`, the product in brackets rounded to f32 |
//! | MXFP4, MXFP6, MXFP8 | `code · 2^(byte − 127)` |
//!
//! With bf16 or f16 scales and codes of at most 8 bits the product is exact in f32; with f32 scales it is rounded once.
//! Source: compressed-tensors 0.19, `compressors/*/base.py` (`decompress`) and `forward_helpers.py` (`_dequantize`).
//! Values of scales are not judged here; `scan` does that.

use rayon::prelude::*;
use safetensors::Dtype;

use super::float_dtype::FloatDtype;
use super::weight_layout::{Element, LayoutError, ModuleTensor, Packing, ScaleKind, WeightLayout};
use super::{e8m0, fp4, fp6, fp8, int_pack};
use crate::checkpoint::quant_args::{Dialect, Format};
use crate::checkpoint::{Checkpoint, CheckpointError, ConfigGroup, TensorView};
use crate::record::{Classified, FailureClass};

/// A dense weight.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseWeight {
    /// Row-major [N, K].
    pub data: Vec<f32>,
    /// [N, K].
    pub shape: [usize; 2],
}

/// A quantized module whose weight cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum DequantizeError {
    /// The declared scheme has no layout here.
    #[error("module {module}: the declared scheme cannot be read")]
    Layout {
        /// The module.
        module: String,
        /// Why.
        source: LayoutError,
    },
    /// The scheme implies no format and the config declares none.
    #[error("module {module}: neither the config nor its scheme names a format")]
    NoFormat {
        /// The module.
        module: String,
    },
    /// A tensor is missing or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor is there, but not as the scheme needs it.
    #[error("tensor {tensor}: found {found}, expected {expected}")]
    Tensor {
        /// Name.
        tensor: String,
        /// dtype and shape found.
        found: String,
        /// dtype and shape that the scheme implies.
        expected: String,
    },
}

impl Classified for DequantizeError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Layout { .. } | Self::NoFormat { .. } => FailureClass::ModelUnsupported,
            Self::Checkpoint(error) => error.failure_class(),
            Self::Tensor { .. } => FailureClass::QuantCoverageFailure,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            _ => Some("day0 scan DIR lists every tensor that is not as declared".to_owned()),
        }
    }
}

/// The layout of a config group: its declared format, else the one its scheme implies.
pub fn layout_of(module: &str, group: &ConfigGroup) -> Result<WeightLayout, DequantizeError> {
    let format: Format = group
        .format
        .or_else(|| group.scheme.format())
        .ok_or_else(|| DequantizeError::NoFormat { module: module.to_owned() })?;
    WeightLayout::new(&group.scheme.weights, format)
        .and_then(|layout| layout.in_dialect(group.dialect))
        .map_err(|source| DequantizeError::Layout { module: module.to_owned(), source })
}

/// The weight of a quantized module, rows in parallel.
pub fn dense_weight(
    ckpt: &Checkpoint,
    module: &str,
    group: &ConfigGroup,
) -> Result<DenseWeight, DequantizeError> {
    let layout = layout_of(module, group)?;
    let parts = Parts { ckpt, module };
    let shape = parts.weight_shape(&layout)?;
    let [n, k] = shape;
    let codes = parts.codes(&layout, shape)?;
    let scales = parts.scales(&layout, shape)?;
    let zero_points = parts.zero_points(&layout, shape)?;
    let [band, columns] = layout.block(shape);
    let groups = k.div_ceil(columns);
    let code_bytes = codes.data.len().checked_div(n).unwrap_or(0);
    let mut data = vec![0.0; n * k];
    data.par_chunks_mut(k.max(1)).enumerate().for_each(|(row, out)| {
        decode_row(&layout, &codes.data[row * code_bytes..(row + 1) * code_bytes], out);
        for (group, out) in out.chunks_mut(columns).enumerate() {
            let at = row / band * groups + group;
            let zero_point = zero_points.as_ref().map_or(0.0, |z| f32::from(z[at]));
            for x in out {
                *x = (*x - zero_point) * scales[at];
            }
        }
    });
    Ok(DenseWeight { data, shape })
}

/// The codes of one row as numbers.
fn decode_row(layout: &WeightLayout, bytes: &[u8], out: &mut [f32]) {
    match (layout.packing, layout.element) {
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

/// Reads the tensors of one module and checks each against the layout.
struct Parts<'a> {
    ckpt: &'a Checkpoint,
    module: &'a str,
}

impl<'a> Parts<'a> {
    fn require(&self, suffix: &str) -> Result<TensorView<'a>, DequantizeError> {
        Ok(self.ckpt.require(&format!("{}.{suffix}", self.module))?)
    }

    fn mismatch(&self, view: &TensorView<'_>, suffix: &str, expected: impl Into<String>) -> DequantizeError {
        DequantizeError::Tensor {
            tensor: format!("{}.{suffix}", self.module),
            found: format!("{} {:?}", view.dtype, view.shape),
            expected: expected.into(),
        }
    }

    /// [N, K]: from `weight_shape` where codes are words, else from the codes' own shape.
    fn weight_shape(&self, layout: &WeightLayout) -> Result<[usize; 2], DequantizeError> {
        let suffix = layout.codes([0, 0]).suffix;
        let codes = self.require(suffix)?;
        let &[rows, columns] = codes.shape.as_slice() else {
            return Err(self.mismatch(&codes, suffix, "two dimensions"));
        };
        match layout.packing {
            Packing::Bytes => Ok([rows, columns]),
            Packing::Nibbles => Ok([rows, columns * 2]),
            Packing::Sextets => Ok([rows, columns / 3 * 4]),
            Packing::Words => {
                let view = self.require("weight_shape")?;
                let wrong =
                    || self.mismatch(&view, "weight_shape", "two integers [N, K] that fit weight_packed");
                let values = view.to_i64().map_err(|_| wrong())?;
                let (&[n, k], [2]) = (values.as_slice(), view.shape.as_slice()) else { return Err(wrong()) };
                let sizes = usize::try_from(n).ok().zip(usize::try_from(k).ok());
                // Bounds before any arithmetic on sizes from the file: a word holds at least 4 codes.
                let (n, k) = sizes
                    .filter(|(n, k)| *n == rows && *k <= columns.saturating_mul(16))
                    .ok_or_else(wrong)?;
                Ok([n, k])
            }
        }
    }

    /// A tensor with the dtype and shape that the layout implies.
    fn exactly(&self, spec: &ModuleTensor) -> Result<TensorView<'a>, DequantizeError> {
        let view = self.require(spec.suffix)?;
        if view.dtype == spec.dtype && spec.has_shape(&view.shape) {
            return Ok(view);
        }
        Err(self.mismatch(&view, spec.suffix, format!("{} {:?}", spec.dtype, spec.shape)))
    }

    fn codes(&self, layout: &WeightLayout, shape: [usize; 2]) -> Result<TensorView<'a>, DequantizeError> {
        self.exactly(&layout.codes(shape))
    }

    /// What codes are multiplied with, [ceil(N/rows), ceil(K/columns)] flattened.
    fn scales(&self, layout: &WeightLayout, shape: [usize; 2]) -> Result<Vec<f32>, DequantizeError> {
        let found = self.require("weight_scale")?.dtype;
        let float = FloatDtype::of(found).map_or(Dtype::F32, FloatDtype::dtype);
        let specs = layout.tensors(shape, float);
        let spec = |suffix| specs.iter().find(|s| s.suffix == suffix);
        let Some(scale_spec) = spec("weight_scale") else { return Ok(Vec::new()) };
        let view = self.exactly(scale_spec)?;
        Ok(match layout.scale {
            ScaleKind::Float => view.to_f32()?,
            ScaleKind::E8m0 => view.data.iter().map(|b| e8m0::e8m0_to_f32(*b)).collect(),
            ScaleKind::E4m3UnderGlobal => {
                let global = match spec("weight_global_scale").or_else(|| spec("weight_scale_2")) {
                    Some(spec) => self.exactly(spec)?.to_f32()?,
                    None => vec![1.0],
                };
                let effective = |local: f32| match layout.dialect {
                    Dialect::CompressedTensors => local / global[0],
                    Dialect::Modelopt => local * global[0],
                };
                view.data.iter().map(|code| effective(fp8::e4m3_to_f32(*code))).collect()
            }
        })
    }

    fn zero_points(
        &self,
        layout: &WeightLayout,
        shape: [usize; 2],
    ) -> Result<Option<Vec<i8>>, DequantizeError> {
        let specs = layout.tensors(shape, Dtype::F32);
        let Some(spec) = specs.iter().find(|s| s.suffix == "weight_zero_point") else { return Ok(None) };
        let view = self.exactly(spec)?;
        Ok(Some(match layout.element {
            Element::Int(bits) if layout.is_packed_in_words() => {
                int_pack::unpack_columns(view.data, shape[0], spec.shape[1], bits)
            }
            _ => view.data.iter().map(|b| *b as i8).collect(),
        }))
    }
}

#[cfg(test)]
#[path = "dequantize_tests.rs"]
mod tests;
