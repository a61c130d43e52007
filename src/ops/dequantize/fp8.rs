//! Weights as DeepSeek-style FP8 checkpoints store them: `w ≈ code · weight_scale_inv`, one scale for each tile.
//!
//! Source: `weight_dequant` of DeepSeek-V3's `inference/kernel.py`; transformers' `FineGrainedFP8Config`.

use safetensors::Dtype;

use super::{DequantizeError, StoredWeight};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::ops::weight_layout::{Element, Packing};

/// Float scales, or powers of two.
const SCALES: [Dtype; 5] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::U8, Dtype::F8_E8M0];

impl StoredWeight {
    /// The weight of a module with FP8 codes and scales by tiles of `block`, or by row or tensor without one.
    pub fn fp8(ckpt: &Checkpoint, module: &str, block: Option<[usize; 2]>) -> Result<Self, DequantizeError> {
        let named = |suffix: &str| format!("{module}.{suffix}");
        let wrong = |tensor: &str, view: &TensorView<'_>, expected: String| DequantizeError::Tensor {
            tensor: tensor.to_owned(),
            found: format!("{} {:?}", view.dtype, view.shape),
            expected,
        };
        let codes = named("weight");
        let view = ckpt.require(&codes)?;
        let (&[n, k], Dtype::F8_E4M3) = (view.shape.as_slice(), view.dtype) else {
            return Err(wrong(&codes, &view, "F8_E4M3 of two dimensions".to_owned()));
        };
        let inverse = named("weight_scale_inv");
        let plain = named("weight_scale");
        let scales = if block.is_none() && ckpt.info(&inverse).is_none() { plain } else { inverse };
        let view = ckpt.require(&scales)?;
        let block = match block {
            Some(tile) => tile,
            None if view.num_elements() == 1 => [n, k],
            None => [1, k],
        }
        .map(|size| size.max(1));
        let expected = [n.div_ceil(block[0]), k.div_ceil(block[1])];
        // Dimensions of 1 are written or left out at will: [N] and [N, 1], [] and [1].
        let squeezed = |shape: &[usize]| shape.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
        if !SCALES.contains(&view.dtype) || squeezed(&view.shape) != squeezed(&expected) {
            return Err(wrong(&scales, &view, format!("floats or powers of two {expected:?}")));
        }
        Ok(Self {
            shape: [n, k],
            tensors: vec![codes, scales.clone()],
            element: Element::E4m3,
            packing: Packing::Bytes,
            scales,
            block,
            global: None,
            zero_points: None,
        })
    }
}
