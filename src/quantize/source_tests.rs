//! Sources that are quantized or hold fused experts: what is written must be what a dense source with one tensor per
//! expert and the same values gives, byte for byte.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::tests::{K, Tensor, model, quantize, values};
use crate::base::json as json_file;
use crate::base::threads::detect;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::declaration::without_declaration;
use crate::dense::DenseSource;
use crate::dense::test_checkpoint;
use crate::ops::float_dtype::FloatDtype;
use crate::recipe::load;
use crate::record::scan::{DiffKind, ScanRecord};
use crate::record::{Classified, FailureClass, Provenance};
use crate::scan::scan;

/// Writes the dense values of every tensor of `source`, in the order of its data.
fn densify(source: &Path, out: &Path) {
    let checkpoint = Arc::new(Checkpoint::open(source).unwrap());
    let dense = DenseSource::open(Arc::clone(&checkpoint)).unwrap();
    let mut tensors = Vec::new();
    for tensor in (0..checkpoint.shards().len()).flat_map(|shard| dense.shard(shard)) {
        let mut bytes = Vec::new();
        dense.read(tensor, 0..tensor.num_bytes(), &mut bytes).unwrap();
        tensors.push((tensor.name.clone(), tensor.dtype, tensor.shape.clone(), bytes));
    }
    std::fs::create_dir_all(out).unwrap();
    test_checkpoint::write(out, &without_declaration(checkpoint.config()), &tensors);
}

/// The bytes of every tensor.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.names().map(|n| (n.to_owned(), checkpoint.get(n).unwrap().data.to_vec())).collect()
}

fn scanned(out: &Path, source: &Path, recipe: &str) -> ScanRecord {
    scan(out, Some(source), Some(&load(recipe).unwrap()), Provenance::new(detect(Some(1)))).unwrap()
}

/// No defect, nothing left unquantized, and exactly the predicted size.
#[track_caller]
fn assert_clean(record: &ScanRecord) {
    assert!(record.defects.is_empty(), "{:?}", record.defects);
    assert!(
        record.metadata_diffs.iter().all(|d| d.kind == DiffKind::Expected),
        "{:?}",
        record.metadata_diffs
    );
    assert!(
        record.coverage.unexpected_unquantized.is_empty() && record.coverage.declaration_mismatch.is_empty()
    );
    assert_eq!(record.size.predicted_bytes, Some(record.size.output_bytes));
}

/// The names of one expert's projections, and those of the fused tensors.
const EXPERTS: &str = "model.layers.0.mlp.experts";

fn mixture_config() -> Value {
    json!({"model_type": "qwen3_moe", "num_hidden_layers": 1, "hidden_size": K, "num_experts": 4,
        "moe_intermediate_size": K / 2, "torch_dtype": "bfloat16"})
}

/// A mixture of four experts whose tensors are fused.
fn fused_mixture(dir: &Path) {
    let tensors: Vec<Tensor> = vec![
        ("model.layers.0.self_attn.o_proj.weight".to_owned(), vec![K, K]),
        ("model.layers.0.mlp.gate.weight".to_owned(), vec![4, K]),
        (format!("{EXPERTS}.gate_up_proj"), vec![4, K, K]),
        (format!("{EXPERTS}.down_proj"), vec![4, K, K / 2]),
    ];
    let made: Vec<test_checkpoint::Tensor> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let bytes = values(&name, shape.iter().product(), FloatDtype::Bf16);
            (name, FloatDtype::Bf16.dtype(), shape, bytes)
        })
        .collect();
    std::fs::create_dir_all(dir).unwrap();
    test_checkpoint::write(dir, &mixture_config(), &made);
}

#[test]
fn quantized_again_as_if_from_the_dense_checkpoint() {
    for (first, second) in [
        ("fp8_dynamic", "nvfp4a16"),
        ("w4a16_g32", "fp8_dynamic"),
        ("nvfp4a16", "w8a8"),
        ("mxfp4a16", "w4a16_g64"),
        ("w8a8", "mxfp4a16"),
    ] {
        let (guard, source, quantized) = model(FloatDtype::Bf16, 2);
        quantize(&source, &quantized, first).unwrap();
        let (dense, again, expected) =
            (guard.path().join("dense"), guard.path().join("again"), guard.path().join("expected"));
        densify(&quantized, &dense);
        let record = quantize(&quantized, &again, second).unwrap();
        quantize(&dense, &expected, second).unwrap();
        assert_eq!(contents(&again), contents(&expected), "{first} then {second}");
        assert_eq!(record.predicted_tensor_bytes, record.output_tensor_bytes);
        let config: Value = json_file::read(&again.join("config.json")).unwrap();
        let plain: Value = json_file::read(&expected.join("config.json")).unwrap();
        assert_eq!(config["quantization_config"], plain["quantization_config"]);
        assert_clean(&scanned(&again, &quantized, second));
    }
}

/// The size to beat is that of the source in BF16, although the source is smaller on disk already.
#[test]
fn sizes_compare_with_the_source_in_bf16() {
    let (guard, source, quantized) = model(FloatDtype::Bf16, 1);
    quantize(&source, &quantized, "nvfp4a16").unwrap();
    let again = guard.path().join("again");
    quantize(&quantized, &again, "fp8_dynamic").unwrap();
    let record = scanned(&again, &quantized, "fp8_dynamic");
    let dense: u64 = contents(&source).values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(record.size.source_bf16_bytes, Some(dense));
    assert!(record.size.source_is_quantized && record.size.source_bytes.unwrap() < record.size.output_bytes);
    assert!(record.size.output_bytes < dense);
}

#[test]
fn fused_experts_as_if_stored_one_by_one() {
    for recipe in ["nvfp4a16", "fp8_dynamic", "w4a16_g32", "nvfp4_experts_only"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fused_mixture(&at("fused"));
        densify(&at("fused"), &at("single"));
        let record = quantize(&at("fused"), &at("out"), recipe).unwrap();
        quantize(&at("single"), &at("expected"), recipe).unwrap();
        let written = contents(&at("out"));
        assert_eq!(written, contents(&at("expected")), "{recipe}");
        assert!(written.keys().any(|n| n.starts_with(&format!("{EXPERTS}.3.up_proj.weight"))), "{recipe}");
        assert!(written.contains_key("model.layers.0.mlp.gate.weight"), "the router stays");
        assert_eq!(record.predicted_tensor_bytes, record.output_tensor_bytes);
        assert_clean(&scanned(&at("out"), &at("fused"), recipe));
    }
}

/// Experts that the recipe leaves alone stay as the model's own code expects them.
#[test]
fn fused_experts_that_nothing_targets_stay_fused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fused_mixture(&at("fused"));
    let recipe =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/fp8_dynamic.yaml")).unwrap();
    let path = at("attention.yaml");
    crate::base::atomic::write(&path, (recipe + "\nexclude_modules: ['re:.*experts.*']\n").as_bytes())
        .unwrap();
    let recipe = path.to_str().unwrap();
    quantize(&at("fused"), &at("out"), recipe).unwrap();
    let (before, after) = (contents(&at("fused")), contents(&at("out")));
    let name = format!("{EXPERTS}.gate_up_proj");
    assert_eq!(before[&name], after[&name]);
    assert!(!after.keys().any(|n| n.contains("experts.0")));
    assert_clean(&scanned(&at("out"), &at("fused"), recipe));
    // The same checkpoint is no result of a recipe that targets the experts.
    let record = scanned(&at("out"), &at("fused"), "fp8_dynamic");
    assert!(record.coverage.unexpected_unquantized.contains(&name), "{:?}", record.coverage);
}

#[test]
fn experts_that_cannot_be_told_apart_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fused_mixture(&at("fused"));
    let mut config = mixture_config();
    config["num_experts"] = json!(8);
    json_file::write(&at("fused").join("config.json"), &config).unwrap();
    let error = quantize(&at("fused"), &at("out"), "fp8_dynamic").unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
    let text = crate::record::failure::chain(&error);
    assert!(text.contains("num_experts 8") && text.contains(EXPERTS), "{text}");
}

#[test]
fn foreign_dialects_are_quantized_again() {
    let golden: Value = serde_json::from_str(include_str!("../dense/golden/sources.json")).unwrap();
    for (algorithm, case) in golden.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let tensors = test_checkpoint::of_golden(case, "model.layers.0.mlp.down_proj");
        let declared = test_checkpoint::declaration_of_golden(algorithm);
        let config = json!({"torch_dtype": "bfloat16", "quantization_config": declared});
        std::fs::create_dir_all(at("source")).unwrap();
        test_checkpoint::write(&at("source"), &config, &tensors);
        json_file::write(&at("source").join("hf_quant_config.json"), &json!({})).unwrap();
        densify(&at("source"), &at("dense"));
        quantize(&at("source"), &at("out"), "w8a8").unwrap();
        quantize(&at("dense"), &at("expected"), "w8a8").unwrap();
        assert_eq!(contents(&at("out")), contents(&at("expected")), "{algorithm}");
        assert!(!at("out").join("hf_quant_config.json").exists());
        assert_clean(&scanned(&at("out"), &at("source"), "w8a8"));
    }
}

/// Values that are legal and awkward: all zero, denormal, and a tensor without elements.
#[test]
fn awkward_weights_are_quantized_and_scan_clean() {
    for recipe in ["fp8_dynamic", "w8a8", "w4a16_g32", "nvfp4a16", "mxfp4a16"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let tensor = |name: &str, value: f32| {
            test_checkpoint::bf16s(&format!("model.layers.0.mlp.{name}.weight"), &[K, K], vec![value; K * K])
        };
        let tensors = [
            tensor("down_proj", 0.0),
            tensor("gate_proj", 1e-39),
            tensor("up_proj", -1e-39),
            test_checkpoint::bf16s(
                "model.layers.0.self_attn.o_proj.weight",
                &[K, K],
                (0..K * K).map(|x| x as f32),
            ),
            test_checkpoint::bf16s("model.layers.0.self_attn.empty.weight", &[0, K], []),
        ];
        std::fs::create_dir_all(at("source")).unwrap();
        test_checkpoint::write(&at("source"), &json!({"torch_dtype": "bfloat16"}), &tensors);
        quantize(&at("source"), &at("out"), recipe).unwrap();
        assert_clean(&scanned(&at("out"), &at("source"), recipe));
        let dense = DenseSource::open(Arc::new(Checkpoint::open(&at("out")).unwrap())).unwrap();
        let zero = test_checkpoint::values(&dense, "model.layers.0.mlp.down_proj.weight", 1 << 20);
        assert!(zero.iter().all(|x| *x == 0.0), "{recipe}");
        let small = test_checkpoint::values(&dense, "model.layers.0.mlp.gate_proj.weight", 1 << 20);
        assert!(small.iter().all(|x| x.abs() < 1e-4), "{recipe}: {}", small[0]);
    }
}

/// Rows that groups do not divide are refused before anything is written; one scale a row takes any length.
#[test]
fn odd_row_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let odd = 33;
    let values = (0..K * odd).map(|x| ((x * 7) % 31) as f32 - 15.0);
    let tensors = [test_checkpoint::bf16s("model.layers.0.mlp.down_proj.weight", &[K, odd], values)];
    std::fs::create_dir_all(at("source")).unwrap();
    test_checkpoint::write(&at("source"), &json!({"torch_dtype": "bfloat16"}), &tensors);
    for recipe in ["w4a16_g32", "nvfp4a16", "mxfp4a16"] {
        let error = quantize(&at("source"), &at("out"), recipe).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
        let text = crate::record::failure::chain(&error);
        assert!(text.contains("down_proj.weight [128, 33]"), "{recipe}: {text}");
        assert!(!at("out").exists());
    }
    let by_row = at("by_row.yaml");
    let text = "name: by_row\nversion: 1\ndescription: INT4 weights with one scale a row\ngroups:\n  - targets: [Linear]\n    \
                weights: {num_bits: 4, type: int, strategy: channel}\n";
    crate::base::atomic::write(&by_row, text.as_bytes()).unwrap();
    let recipe = by_row.to_str().unwrap();
    quantize(&at("source"), &at("out"), recipe).unwrap();
    assert_clean(&scanned(&at("out"), &at("source"), recipe));
    let dense = DenseSource::open(Arc::new(Checkpoint::open(&at("out")).unwrap())).unwrap();
    let written = test_checkpoint::values(&dense, "model.layers.0.mlp.down_proj.weight", 100);
    let original = DenseSource::open(Arc::new(Checkpoint::open(&at("source")).unwrap())).unwrap();
    let expected = test_checkpoint::values(&original, "model.layers.0.mlp.down_proj.weight", 100);
    // Half a step of 15 / 7.5, and the rounding of the scale.
    assert!(written.iter().zip(&expected).all(|(w, e)| (w - e).abs() <= 1.05));
}
