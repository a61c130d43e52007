//! Small checkpoints for tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::{DenseError, DenseSource};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::ops::golden;

/// Name, dtype, shape and bytes of a tensor.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A tensor of bf16.
pub(crate) fn bf16s(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    let bytes = values.into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect();
    (name.to_owned(), Dtype::BF16, shape.to_vec(), bytes)
}

/// Writes `config.json` and `model.safetensors`.
pub(crate) fn write(dir: &Path, config: &Value, tensors: &[Tensor]) {
    crate::base::json::write(&dir.join("config.json"), config).unwrap();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorSpec { name: name.clone(), dtype: *dtype, shape: shape.clone() })
        .collect();
    let mut writer = ShardWriter::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
    for (name, _, _, bytes) in tensors {
        writer.write_tensor(name, bytes).unwrap();
    }
    crate::base::atomic::write(&dir.join("model.safetensors"), &writer.finish().unwrap().0).unwrap();
}

/// The dense view of a checkpoint of these tensors.
pub(crate) fn open(dir: &Path, config: &Value, tensors: &[Tensor]) -> Result<DenseSource, DenseError> {
    write(dir, config, tensors);
    DenseSource::open(Arc::new(Checkpoint::open(dir).unwrap()))
}

/// All values of a tensor, read in pieces of `step` bytes.
pub(crate) fn values(source: &DenseSource, name: &str, step: u64) -> Vec<f32> {
    let tensor = source.get(name).unwrap_or_else(|| panic!("no {name}"));
    let (mut bytes, mut piece) = (Vec::new(), Vec::new());
    for first in (0..tensor.num_bytes()).step_by(step as usize) {
        source.read(tensor, first..(first + step).min(tensor.num_bytes()), &mut piece).unwrap();
        bytes.extend_from_slice(&piece);
    }
    source.release(tensor);
    let dtype = tensor.float_dtype().unwrap();
    let mut decoded = vec![0.0; bytes.len() / dtype.size()];
    dtype.decode(&bytes, &mut decoded);
    decoded
}

/// The tensors of a case of `golden/sources.json` as those of `module`.
pub(crate) fn of_golden(case: &Value, module: &str) -> Vec<Tensor> {
    let dtype = |name: &str| match name {
        "F8_E4M3" => Dtype::F8_E4M3,
        "BF16" => Dtype::BF16,
        "U8" => Dtype::U8,
        _ => Dtype::F32,
    };
    let sizes =
        |shape: &Value| shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let tensors = case["tensors"].as_object().unwrap();
    tensors
        .iter()
        .map(|(suffix, t)| {
            let bytes = golden::from_hex(t["hex"].as_str().unwrap());
            (format!("{module}.{suffix}"), dtype(t["dtype"].as_str().unwrap()), sizes(&t["shape"]), bytes)
        })
        .collect()
}

/// What a checkpoint of the case of this name declares.
pub(crate) fn declaration_of_golden(case: &str) -> Value {
    match case.strip_prefix("modelopt_") {
        None => json!({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}),
        Some(algorithm) => {
            json!({"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]})
        }
    }
}
