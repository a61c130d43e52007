use serde_json::{Value, json};

use super::*;
use crate::dense::test_checkpoint::{Tensor, bf16s, declaration_of_golden, of_golden, open, values};
use crate::ops::golden;
use crate::record::{Classified, FailureClass};

/// The cases of `golden/sources.py`.
fn cases() -> serde_json::Map<String, Value> {
    serde_json::from_str(include_str!("golden/sources.json")).unwrap()
}

/// The tensors of a case as those of module `m`.
fn tensors(case: &Value) -> Vec<Tensor> {
    of_golden(case, "m")
}

fn config(case: &str) -> Value {
    json!({"torch_dtype": "bfloat16", "quantization_config": declaration_of_golden(case)})
}

#[test]
fn every_dialect_as_its_reference() {
    for (name, case) in &cases() {
        for step in [17, 4096, 1 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let mut all = tensors(case);
            all.push(bf16s("norm.weight", &[4], [1.0; 4]));
            all.push(("m.k_scale".to_owned(), Dtype::F32, Vec::new(), 1f32.to_le_bytes().to_vec()));
            let source = open(dir.path(), &config(name), &all).unwrap();
            let names: Vec<&str> = source.tensors().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["m.weight", "norm.weight"], "{name}");
            assert!(source.is_quantized() && source.config().get("quantization_config").is_none());
            let weight = source.get("m.weight").unwrap();
            assert_eq!(json!(weight.shape), case["shape"], "{name}");
            assert_eq!(weight.dtype, Dtype::BF16);
            let mut bytes = Vec::new();
            for x in values(&source, "m.weight", step) {
                FloatDtype::Bf16.write(x, &mut bytes);
            }
            assert_eq!(golden::sha256(&bytes), case["dense_bf16"], "{name} in steps of {step}");
        }
    }
}

/// ModelOpt's declaration in a file of its own, by module, and with nothing declared in `config.json`.
#[test]
fn hf_quant_config_is_read() {
    let case = &cases()["modelopt_FP8"];
    for quantization in [
        json!({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}),
        json!({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"m": {"quant_algo": "FP8"}}}),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let own = json!({"producer": {"name": "modelopt"}, "quantization": quantization});
        crate::base::json::write(&dir.path().join("hf_quant_config.json"), &own).unwrap();
        let source = open(dir.path(), &json!({"dtype": "float16"}), &tensors(case)).unwrap();
        assert_eq!(source.get("m.weight").unwrap().dtype, Dtype::F16);
    }
}

/// Whatever is missing, of another type or undeclared is named, and nothing panics.
#[test]
fn damaged_sources_are_named() {
    for (name, case) in &cases() {
        let good = tensors(case);
        for i in (0..good.len()).filter(|i| good[*i].0 != "m.input_scale") {
            let at = good[i].0.clone();
            let mut missing = good.clone();
            missing.remove(i);
            let mut reshaped = good.clone();
            reshaped[i].2.extend([1, 1]);
            reshaped[i].2.insert(0, 2);
            reshaped[i].3.extend(good[i].3.clone());
            for bad in [missing, reshaped] {
                let dir = tempfile::tempdir().unwrap();
                let Err(error) = open(dir.path(), &config(name), &bad) else {
                    panic!("{name}: opens without {at}");
                };
                let text = crate::record::failure::chain(&error);
                assert!(text.contains("m.weight"), "{name}: {text} does not name the module of {at}");
            }
        }
    }
}

#[test]
fn undeclared_and_unsupported_quantizations_are_refused() {
    let all = cases();
    let refused = |config: Value, tensors: &[Tensor], word: &str| {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path(), &config, tensors).unwrap_err();
        let text = crate::record::failure::chain(&error);
        assert!(text.contains(word), "{text}");
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported, "{text}");
        assert!(error.hint().is_some());
    };
    let fp8 = tensors(&all["block_fp8"]);
    refused(json!({}), &fp8, "the config declares no quantization");
    refused(json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), &fp8, "gptq");
    refused(config("modelopt_W4A16_AWQ"), &fp8, "W4A16_AWQ");
    let only = json!({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"other": {"quant_algo": "FP8"}}});
    refused(json!({"quantization_config": only}), &fp8, "does not cover its module");
    let mut scaled = tensors(&all["modelopt_NVFP4"]);
    scaled.push(bf16s("m.pre_quant_scale", &[64], [1.0; 64]));
    refused(config("modelopt_NVFP4"), &scaled, "pre_quant_scale");
    // A scale without codes, and codes under a name of which nothing is known.
    let orphan = vec![bf16s("m.weight", &[2, 2], [1.0; 4]), bf16s("m.weight_scale_inv", &[1, 1], [1.0])];
    refused(config("block_fp8"), &orphan, "m.weight_scale_inv");
    let experts = vec![("l.experts.gate_up_proj".to_owned(), Dtype::F8_E4M3, vec![2, 2, 2], vec![0; 8])];
    refused(config("block_fp8"), &experts, "l.experts.gate_up_proj");
}
