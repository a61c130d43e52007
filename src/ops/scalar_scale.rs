//! Scales that a checkpoint holds as single numbers: of a module's inputs and of the KV cache.
//!
//! | operand | compressed-tensors | ModelOpt |
//! |---|---|---|
//! | FP8, INT8 inputs by tensor | `input_scale` \[1\], multiplies: amax / 448, amax / 127.5 | `input_scale`, f32 scalar |
//! | NVFP4 inputs | `input_global_scale` f32 \[1\], divides: 2688 / amax | `input_scale`, f32 scalar, multiplies: amax / 2688 |
//! | FP8 keys, values | `<attention>.k_scale`, `.v_scale` \[1\], multiply: amax / 448 | `k_proj.k_scale`, `v_proj.v_scale`, f32 scalars |
//!
//! Source: checkpoint-formats §1.2, and ModelOpt's `unified_export_hf.py` at a2fbac7.

use safetensors::Dtype;

use super::float_dtype::FloatDtype;
use super::weight_layout::ModuleTensor;
use crate::checkpoint::quant_args::{Dialect, Dynamic, QuantType, QuantizationArgs, Strategy};

/// NVFP4: largest E4M3 value times largest E2M1 value.
const NVFP4_RANGE: f32 = 448.0 * 6.0;

/// The tensor with the static scale of a module's inputs; `None` where scales are all found at run time. `float` is
/// the dtype of the module's float scales.
pub fn of_inputs(inputs: &QuantizationArgs, dialect: Dialect, float: Dtype) -> Option<ModuleTensor> {
    let (suffix, dtype) = match (inputs.dynamic, inputs.strategy, dialect) {
        (Dynamic::No, Strategy::Tensor, Dialect::CompressedTensors) => ("input_scale", float),
        (Dynamic::Local, Strategy::TensorGroup, Dialect::CompressedTensors) => {
            ("input_global_scale", Dtype::F32)
        }
        (Dynamic::No, Strategy::Tensor, Dialect::Modelopt)
        | (Dynamic::Local, Strategy::TensorGroup, Dialect::Modelopt) => ("input_scale", Dtype::F32),
        _ => return None,
    };
    Some(ModuleTensor { suffix, dtype, shape: shape(dialect) })
}

/// The number in that tensor for inputs of magnitudes up to `amax`.
pub fn of_inputs_value(inputs: &QuantizationArgs, dialect: Dialect, amax: f32) -> f32 {
    match (inputs.strategy, inputs.qtype, dialect) {
        (Strategy::TensorGroup, _, Dialect::CompressedTensors) => NVFP4_RANGE / amax,
        (Strategy::TensorGroup, _, Dialect::Modelopt) => amax / NVFP4_RANGE,
        (_, QuantType::Float, _) => amax / super::fp8::MAX,
        (_, QuantType::Int, _) => amax / (f32::from((1u16 << inputs.num_bits) - 1) / 2.0),
    }
}

/// The number for inputs that were seen to have magnitudes up to `amax`, perhaps zeros only; `float` is the type that
/// scales by tensor are stored in. What is not a scale is replaced as compressed-tensors does: a global scale by 1, any
/// other by the type's epsilon (checkpoint-formats §1.4).
pub fn of_observed(inputs: &QuantizationArgs, dialect: Dialect, float: FloatDtype, amax: f32) -> f32 {
    let value = of_inputs_value(inputs, dialect, amax);
    if inputs.strategy == Strategy::TensorGroup {
        return if value.is_finite() && value > 0.0 { value } else { 1.0 };
    }
    let value = float.round(value);
    if value > 0.0 { value } else { float.epsilon() }
}

/// The tensors with the scales of keys and values, relative to the attention module `attention`.
pub fn of_kv_cache(dialect: Dialect, float: Dtype) -> [ModuleTensor; 2] {
    let (suffixes, dtype) = match dialect {
        Dialect::CompressedTensors => (["k_scale", "v_scale"], float),
        Dialect::Modelopt => (["k_proj.k_scale", "v_proj.v_scale"], Dtype::F32),
    };
    suffixes.map(|suffix| ModuleTensor { suffix, dtype, shape: shape(dialect) })
}

fn shape(dialect: Dialect) -> Vec<usize> {
    match dialect {
        Dialect::CompressedTensors => vec![1],
        Dialect::Modelopt => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::weight_layout::tests::args;

    #[test]
    fn names_and_numbers_of_both_dialects() {
        use Dialect::{CompressedTensors, Modelopt};
        let fp8 = args(QuantType::Float, 8, Strategy::Tensor, None);
        let mut fp4 = args(QuantType::Float, 4, Strategy::TensorGroup, Some(16));
        fp4.dynamic = Dynamic::Local;
        let tensor = |args, dialect| {
            let t = of_inputs(args, dialect, Dtype::BF16).unwrap();
            (t.suffix, t.dtype, t.shape)
        };
        assert_eq!(tensor(&fp8, CompressedTensors), ("input_scale", Dtype::BF16, vec![1]));
        assert_eq!(tensor(&fp8, Modelopt), ("input_scale", Dtype::F32, vec![]));
        assert_eq!(tensor(&fp4, CompressedTensors), ("input_global_scale", Dtype::F32, vec![1]));
        assert_eq!(tensor(&fp4, Modelopt), ("input_scale", Dtype::F32, vec![]));
        assert_eq!(of_inputs_value(&fp8, Modelopt, 448.0), 1.0);
        // ModelOpt's constant_amax preset: 2688 gives input_scale 1.
        assert_eq!(of_inputs_value(&fp4, Modelopt, 2688.0), 1.0);
        assert_eq!(of_inputs_value(&fp4, CompressedTensors, 1344.0), 2.0);
        let mut token = args(QuantType::Int, 8, Strategy::Token, None);
        token.dynamic = Dynamic::Yes;
        assert_eq!(of_inputs(&token, CompressedTensors, Dtype::BF16), None);
        let observed = |args, amax| of_observed(args, CompressedTensors, FloatDtype::Bf16, amax);
        // bf16 has eight bits: 1.2345 / 448 is rounded.
        assert_eq!(observed(&fp8, 1.2345), 0.002_761_840_8);
        assert_eq!((observed(&fp8, 0.0), observed(&fp4, 0.0), observed(&fp4, 10.5)), (0.0078125, 1.0, 256.0));
        assert_eq!(of_observed(&fp4, Modelopt, FloatDtype::F32, 0.0), 1.0);
        let int8 = args(QuantType::Int, 8, Strategy::Tensor, None);
        assert_eq!(of_inputs_value(&int8, CompressedTensors, 127.5), 1.0);
    }
}
