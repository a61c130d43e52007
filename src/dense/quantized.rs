//! Which tensors of a checkpoint stand for a quantized weight, by what it declares and what it holds.

use std::collections::BTreeSet;

use safetensors::Dtype;
use serde_json::Value;

use super::DenseError;
use super::source::{DenseTensor, Storage};
use crate::checkpoint::declaration::Declaration;
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::ops::dequantize::StoredWeight;
use crate::ops::float_dtype::FloatDtype;

/// What was found.
#[derive(Default)]
pub(super) struct Quantized {
    /// Whether the checkpoint declares a quantization.
    pub declared: bool,
    /// The weights, dense.
    pub weights: Vec<DenseTensor>,
    /// Stored tensors that the dense checkpoint does not have under this name and content.
    pub absorbed: BTreeSet<String>,
}

/// Last parts of names of tensors that only mean something to a quantized model: scales of activations and of the KV
/// cache. Sources: checkpoint-formats §1.2, day0-release-and-modelopt §2.3.
const DROPPED: [&str; 14] = [
    "input_scale",
    "input_scale_inv",
    "activation_scale",
    "activation_scale_inv",
    "input_global_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
    "q_scale",
    "k_zero_point",
    "v_zero_point",
    "q_zero_point",
];
/// Last parts of names of tensors that only a quantized weight has.
const TELLTALE: [&str; 8] = [
    // ModelOpt multiplies inputs by it: dropping it would change what the model computes.
    "pre_quant_scale",
    "weight_packed",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_global_scale",
    "weight_zero_point",
    "qweight",
];

/// Finds every quantized weight; a weight that looks quantized and is not declared so is an error.
pub(super) fn find(checkpoint: &Checkpoint) -> Result<Quantized, DenseError> {
    let declaration = checkpoint.declaration()?;
    let mut found = Quantized { declared: declaration.is_some(), ..Quantized::default() };
    let dtype = declared_dtype(checkpoint.config())?;
    for info in checkpoint.names().filter_map(|name| checkpoint.info(name)) {
        let Some((module, suffix)) = info.name.rsplit_once('.') else { continue };
        if !holds_codes(info, suffix) {
            continue;
        }
        let Some(declaration) = &declaration else {
            return Err(undeclared(info, "the config declares no quantization"));
        };
        let stored = stored_weight(checkpoint, module, declaration, info)?;
        found.absorbed.extend(stored.tensors.iter().cloned());
        found.weights.push(DenseTensor {
            name: format!("{module}.weight"),
            dtype: dtype.dtype(),
            shape: stored.shape.to_vec(),
            storage: Storage::Quantized(Box::new(stored)),
        });
    }
    for info in checkpoint.names().filter_map(|name| checkpoint.info(name)) {
        let Some((_, suffix)) = info.name.rsplit_once('.') else { continue };
        if found.absorbed.contains(&info.name) {
            continue;
        }
        // FP8 is a storage format: no model computes with unscaled FP8 weights. Fused experts in FP8 end here too.
        if TELLTALE.contains(&suffix) || matches!(info.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2) {
            return Err(undeclared(info, "no weight of its module is stored with it as declared"));
        }
        if found.declared && DROPPED.contains(&suffix) {
            found.absorbed.insert(info.name.clone());
        }
    }
    Ok(found)
}

fn stored_weight(
    checkpoint: &Checkpoint,
    module: &str,
    declaration: &Declaration,
    info: &TensorInfo,
) -> Result<StoredWeight, DenseError> {
    Ok(match declaration {
        Declaration::Groups(config) => {
            let group = config
                .scheme_for(module)
                .ok_or_else(|| undeclared(info, "the declared quantization does not cover its module"))?;
            StoredWeight::declared(checkpoint, module, group)?
        }
        Declaration::Fp8(config) => StoredWeight::fp8(checkpoint, module, config.block)?,
    })
}

/// Whether the tensor holds a weight's codes.
fn holds_codes(info: &TensorInfo, suffix: &str) -> bool {
    let codes = matches!(info.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::I8 | Dtype::U8 | Dtype::I32);
    match suffix {
        "weight_packed" => true,
        "weight" => codes && info.shape.len() >= 2,
        _ => false,
    }
}

/// The model's float type: `dtype` (transformers 5) or `torch_dtype` of the config, bfloat16 where neither is given.
pub fn declared_dtype(config: &Value) -> Result<FloatDtype, CheckpointError> {
    let of = |object: &Value| {
        ["dtype", "torch_dtype"].iter().find_map(|key| object.get(*key)?.as_str().map(str::to_owned))
    };
    let declared = of(config).or_else(|| of(config.get("text_config")?));
    match declared.as_deref().map(|d| d.trim_start_matches("torch.")) {
        None | Some("bfloat16") => Ok(FloatDtype::Bf16),
        Some("float16") => Ok(FloatDtype::F16),
        Some("float32") => Ok(FloatDtype::F32),
        Some(other) => Err(CheckpointError::Field {
            path: crate::checkpoint::files::CONFIG.into(),
            field: "dtype".to_owned(),
            expected: "bfloat16, float16 or float32".to_owned(),
            found: other.to_owned(),
        }),
    }
}

fn undeclared(info: &TensorInfo, declared: &str) -> DenseError {
    DenseError::Undeclared {
        tensor: info.name.clone(),
        dtype: info.dtype.to_string(),
        shape: info.shape.clone(),
        declared: declared.to_owned(),
    }
}

#[cfg(test)]
#[path = "quantized_tests.rs"]
mod tests;
