//! The tensors of a module as compressed-tensors or ModelOpt name and shape them, each checked against the declared
//! scheme.

use safetensors::Dtype;

use super::stored::Global;
use super::{DequantizeError, StoredWeight, layout_of};
use crate::checkpoint::{Checkpoint, ConfigGroup, TensorView};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::int_pack;
use crate::ops::weight_layout::{Element, ModuleTensor, Packing, WeightLayout};

impl StoredWeight {
    /// The weight of a module that `group` of the declaration quantizes.
    pub fn declared(ckpt: &Checkpoint, module: &str, group: &ConfigGroup) -> Result<Self, DequantizeError> {
        let layout = layout_of(module, group)?;
        let parts = Parts { ckpt, module };
        let shape = parts.weight_shape(&layout)?;
        let specs = parts.specs(&layout, shape)?;
        for spec in &specs {
            parts.exactly(spec)?;
        }
        let spec = |suffix| specs.iter().find(|s| s.suffix == suffix);
        let value =
            |spec: &ModuleTensor| -> Result<f32, DequantizeError> { Ok(parts.exactly(spec)?.to_f32()?[0]) };
        let global = match (spec("weight_global_scale"), spec("weight_scale_2")) {
            (Some(spec), _) => Some(Global::Divisor(value(spec)?)),
            (None, Some(spec)) => Some(Global::Multiplier(value(spec)?)),
            (None, None) => None,
        };
        let zero_points =
            spec("weight_zero_point").map(|spec| parts.zero_points(spec, &layout, shape)).transpose()?;
        Ok(Self {
            shape,
            tensors: specs.iter().map(|s| format!("{module}.{}", s.suffix)).collect(),
            element: layout.element,
            packing: layout.packing,
            scales: format!("{module}.weight_scale"),
            block: layout.block(shape),
            global,
            zero_points,
        })
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

    /// What the layout implies; float scales have the dtype that is found.
    fn specs(&self, layout: &WeightLayout, shape: [usize; 2]) -> Result<Vec<ModuleTensor>, DequantizeError> {
        let found = self.require("weight_scale")?.dtype;
        let float = FloatDtype::of(found).map_or(Dtype::F32, FloatDtype::dtype);
        Ok(layout.tensors(shape, float))
    }

    /// A tensor with the dtype and shape that the layout implies.
    fn exactly(&self, spec: &ModuleTensor) -> Result<TensorView<'a>, DequantizeError> {
        let view = self.require(spec.suffix)?;
        if view.dtype == spec.dtype && spec.has_shape(&view.shape) {
            return Ok(view);
        }
        Err(self.mismatch(&view, spec.suffix, format!("{} {:?}", spec.dtype, spec.shape)))
    }

    fn zero_points(
        &self,
        spec: &ModuleTensor,
        layout: &WeightLayout,
        shape: [usize; 2],
    ) -> Result<Vec<i8>, DequantizeError> {
        let view = self.exactly(spec)?;
        Ok(match layout.element {
            Element::Int(bits) if layout.is_packed_in_words() => {
                int_pack::unpack_columns(view.data, shape[0], spec.shape[1], bits)
            }
            _ => view.data.iter().map(|b| *b as i8).collect(),
        })
    }
}
