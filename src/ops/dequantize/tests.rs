use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use super::*;
use crate::checkpoint::quant_args::Strategy;
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::golden;
use crate::ops::quantize_weight::tests::{quantize, scheme};
use crate::ops::quantize_weight::{Arithmetic, Weight};
use crate::ops::weight_layout::ModuleTensor;

/// A checkpoint of one module `m` with the given tensors, declared as `scheme_name` of the golden file.
fn checkpoint(dir: &Path, scheme_name: &str, tensors: &[(ModuleTensor, Vec<u8>)]) -> Checkpoint {
    let (args, format) = scheme(scheme_name);
    let mut args = serde_json::to_value(&args).unwrap();
    if scheme_name.starts_with("int8_channel") {
        args["dynamic"] = json!(false);
    }
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args, "format": format}},
    }});
    crate::base::json::write(&dir.join("config.json"), &config).unwrap();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(t, _)| TensorSpec { name: format!("m.{}", t.suffix), dtype: t.dtype, shape: t.shape.clone() })
        .collect();
    let mut writer = ShardWriter::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
    for (spec, (_, bytes)) in specs.iter().zip(tensors) {
        writer.write_tensor(&spec.name, bytes).unwrap();
    }
    crate::base::atomic::write(&dir.join("model.safetensors"), &writer.finish().unwrap().0).unwrap();
    Checkpoint::open(dir).unwrap()
}

fn quantized(scheme_name: &str, dtype: FloatDtype) -> Vec<(ModuleTensor, Vec<u8>)> {
    let all = golden::weights();
    let key = if dtype == FloatDtype::Bf16 { "bfloat16" } else { "float32" };
    let data = golden::from_hex(all[key]["weight"].as_str().unwrap());
    let (args, format) = scheme(scheme_name);
    let layout = WeightLayout::new(&args, format).unwrap();
    let weight = Weight { data: &data, dtype, shape: [40, 96] };
    let bytes = quantize(weight, &layout, Arithmetic::WeightDtype);
    layout.tensors([40, 96], dtype.dtype()).into_iter().zip(bytes.into_iter().map(|b| b.1)).collect()
}

fn dense(ckpt: &Checkpoint) -> Result<DenseWeight, DequantizeError> {
    let config = ckpt.quantization_config().unwrap().unwrap();
    dense_weight(ckpt, "m", config.scheme_for("m").unwrap())
}

#[test]
fn every_scheme_as_compressed_tensors() {
    let all = golden::weights();
    for (dtype, key) in [(FloatDtype::Bf16, "bfloat16"), (FloatDtype::F32, "float32")] {
        for (name, expected) in all[key].as_object().unwrap() {
            let Some(expected) = expected.as_object().filter(|_| !name.ends_with("_mse")) else { continue };
            let dir = tempfile::tempdir().unwrap();
            let weight = dense(&checkpoint(dir.path(), name, &quantized(name, dtype))).unwrap();
            assert_eq!(weight.shape, [40, 96]);
            let bytes: Vec<u8> = weight.data.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(golden::sha256(&bytes), expected["dense_f32"], "{key} {name}");
        }
    }
}

/// Tensors that are missing, of another dtype or of another shape are named, and nothing panics.
#[test]
fn wrong_tensors_are_named() {
    for name in ["fp8_channel", "fp8_block", "int8_channel", "int4_g32_asym", "nvfp4", "mxfp4"] {
        let good = quantized(name, FloatDtype::Bf16);
        for i in 0..good.len() {
            let at = format!("m.{}", good[i].0.suffix);
            let mut missing = good.clone();
            missing.remove(i);
            let mut reshaped = good.clone();
            reshaped[i].0.shape = vec![reshaped[i].0.shape.iter().product(), 1, 1];
            let mut retyped = good.clone();
            retyped[i].0.shape = vec![retyped[i].1.len()];
            retyped[i].0.dtype = Dtype::U8;
            for bad in [missing, reshaped, retyped] {
                let dir = tempfile::tempdir().unwrap();
                let error = dense(&checkpoint(dir.path(), name, &bad)).map(|w| w.shape).unwrap_err();
                let text = crate::record::failure::chain(&error);
                assert!(text.contains(&at), "{name}: {text} does not name {at}");
            }
        }
    }
}

#[test]
fn absurd_weight_shapes_are_refused() {
    for shape in [[-1i64, 96], [40, -96], [40, i64::MAX], [i64::MAX, i64::MAX], [41, 96], [40, 97], [0, 0]] {
        let mut tensors = quantized("int4_g32", FloatDtype::Bf16);
        tensors[2].1 = shape.iter().flat_map(|d| d.to_le_bytes()).collect();
        let dir = tempfile::tempdir().unwrap();
        assert!(dense(&checkpoint(dir.path(), "int4_g32", &tensors)).is_err(), "{shape:?}");
    }
}

#[test]
fn scheme_without_a_layout_is_unsupported() {
    let tensors = quantized("fp8_channel", FloatDtype::Bf16);
    let dir = tempfile::tempdir().unwrap();
    let ckpt = checkpoint(dir.path(), "fp8_channel", &tensors);
    let config = ckpt.quantization_config().unwrap().unwrap();
    let mut group = config.scheme_for("m").unwrap().clone();
    group.scheme.weights.strategy = Strategy::Token;
    let error = dense_weight(&ckpt, "m", &group).unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
}
