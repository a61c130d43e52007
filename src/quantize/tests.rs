use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::calibration::CalibrationConfig;
use super::*;
use crate::base::threads::detect;
use crate::base::{atomic, json as json_file};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::ops::dequantize::dense_weight;
use crate::ops::float_dtype::FloatDtype;
use crate::recipe::load;
use crate::record::calibration::{CalibrationRecord, ObservedInputs};
use crate::record::quantize::QuantizeRecord;
use crate::record::{Classified, FailureClass, Provenance};

/// Hidden size of the test model.
pub(super) const K: usize = 128;

/// One tensor of the test model.
pub(super) type Tensor = (String, Vec<usize>);

/// A llama of two layers with tied embeddings; q, k and v of different magnitude.
pub(super) fn llama() -> Vec<Tensor> {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![96, K]),
        ("model.norm.weight".to_owned(), vec![K]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![K]),
            ("self_attn.q_proj", vec![K, K]),
            ("self_attn.k_proj", vec![K / 2, K]),
            ("self_attn.v_proj", vec![K / 2, K]),
            ("self_attn.o_proj", vec![K, K]),
            ("mlp.gate_proj", vec![2 * K, K]),
            ("mlp.up_proj", vec![2 * K, K]),
            ("mlp.down_proj", vec![K, 2 * K]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    // Not a whole number of eight-byte words: moved to the end of its shard.
    tensors.push(("model.layers.1.self_attn.q_proj.bias".to_owned(), vec![3]));
    tensors
}

/// Deterministic values: roughly bell-shaped, larger for names that hash high.
pub(super) fn values(name: &str, count: usize, dtype: FloatDtype) -> Vec<u8> {
    let seed = name.bytes().fold(7u32, |a, b| a.wrapping_mul(31).wrapping_add(u32::from(b)));
    let magnitude = 0.01 * (1.0 + (seed % 13) as f32);
    let mut state = seed;
    let mut bytes = Vec::new();
    for _ in 0..count {
        let mut sum = 0.0;
        for _ in 0..4 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            sum += (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        }
        dtype.write(sum * magnitude, &mut bytes);
    }
    bytes
}

/// Writes one file of tensors; `data` gives the bytes of each.
pub(super) fn write_shard(
    path: &Path,
    tensors: &[Tensor],
    dtype: FloatDtype,
    data: &dyn Fn(&str, usize) -> Vec<u8>,
) {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape)| TensorSpec { name: name.clone(), dtype: dtype.dtype(), shape: shape.clone() })
        .collect();
    let mut writer = ShardWriter::new(Vec::new(), &specs, &BTreeMap::new()).unwrap();
    for (name, shape) in tensors {
        writer.write_tensor(name, &data(name, shape.iter().product())).unwrap();
    }
    atomic::write(path, &writer.finish().unwrap().0).unwrap();
}

/// Writes the test model in `shards` files with tokenizer and generation config.
pub(super) fn write_model(dir: &Path, tensors: &[Tensor], dtype: FloatDtype, shards: usize) {
    let config = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
        "hidden_size": K, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5});
    json_file::write(&dir.join("config.json"), &config).unwrap();
    json_file::write(&dir.join("tokenizer.json"), &json!({"model": {"type": "BPE"}})).unwrap();
    json_file::write(&dir.join("generation_config.json"), &json!({"eos_token_id": 2})).unwrap();
    atomic::write(&dir.join("pytorch_model.bin"), b"pickle").unwrap();
    let make = |name: &str, count| values(name, count, dtype);
    if shards == 1 {
        return write_shard(&dir.join("model.safetensors"), tensors, dtype, &make);
    }
    let mut map = BTreeMap::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        write_shard(&dir.join(&file), part, dtype, &make);
        map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    json_file::write(&dir.join("model.safetensors.index.json"), &index).unwrap();
}

/// Quantizes `source` into `out`.
pub(super) fn quantize(source: &Path, out: &Path, recipe: &str) -> Result<QuantizeRecord, QuantizeError> {
    quantize_as(source, out, load(recipe).unwrap())
}

/// The same with a recipe that is loaded already.
pub(super) fn quantize_as(
    source: &Path,
    out: &Path,
    recipe: crate::recipe::Recipe,
) -> Result<QuantizeRecord, QuantizeError> {
    let source = Arc::new(Checkpoint::open(source)?);
    let plan = QuantizePlan::new(source, recipe, Arithmetic::F32)?;
    if plan.needs_calibration() {
        plan.calibrate(&made_up_inputs(&plan))?;
    }
    std::fs::create_dir_all(out).unwrap();
    let shards: Result<Vec<_>, _> =
        (0..plan.num_shards()).map(|i| plan.write_shard(i, out, &|_| {})).collect();
    plan.finish(out, shards?, Provenance::new(detect(Some(1))))
}

/// A calibration that saw inputs of magnitude 3 everywhere, and of 5 before each `down_proj`.
pub(super) fn made_up_inputs(plan: &QuantizePlan) -> CalibrationRecord {
    let amax = |name: &str| if name.ends_with("down_proj") { 5.0 } else { 3.0 };
    CalibrationRecord {
        schema_version: crate::record::SCHEMA_VERSION,
        data: CalibrationConfig::default().settle(std::iter::empty(), 64).unwrap().data(),
        inputs: ObservedInputs {
            samples: 1,
            tokens: 1,
            amax: plan.modules().iter().map(|m| (m.name.clone(), amax(&m.name))).collect(),
            ..ObservedInputs::default()
        },
        kernel_path: "test".to_owned(),
    }
}

/// A source model and a directory for its quantized version.
pub(super) fn model(dtype: FloatDtype, shards: usize) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    std::fs::create_dir_all(&source).unwrap();
    write_model(&source, &llama(), dtype, shards);
    (dir, source, out)
}

#[test]
fn every_recipe_gives_a_readable_checkpoint() {
    for recipe in ["fp8_dynamic", "w8a8", "w4a16", "w4a16_g64", "w4a16_g32", "nvfp4a16", "mxfp4a16", "w2a16"]
    {
        for dtype in [FloatDtype::Bf16, FloatDtype::F16, FloatDtype::F32] {
            let (_guard, source, out) = model(dtype, 2);
            let record = quantize(&source, &out, recipe).unwrap();
            assert_eq!(record.predicted_tensor_bytes, record.output_tensor_bytes, "{recipe}");
            assert_eq!(record.quantized_modules, 14);
            assert_eq!(
                record.excluded_modules,
                BTreeMap::from([("model.embed_tokens".into(), "embedding".into())])
            );
            let (before, after) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(&out).unwrap());
            let bytes: u64 = after.names().map(|n| after.info(n).unwrap().num_bytes()).sum();
            assert_eq!(bytes, record.output_tensor_bytes);
            assert_eq!(after.shards().len(), 2);
            let config = after.quantization_config().unwrap().unwrap();
            assert_eq!(config.ignore, ["lm_head"]);
            for module in record.shards.iter().flat_map(|s| &s.modules) {
                let original = before.require_f32(&format!("{}.weight", module.module)).unwrap();
                let dense =
                    dense_weight(&after, &module.module, config.scheme_for(&module.module).unwrap()).unwrap();
                let noise: f64 =
                    original.iter().zip(&dense.data).map(|(a, b)| f64::from(a - b).powi(2)).sum();
                let signal: f64 = original.iter().map(|a| f64::from(*a).powi(2)).sum();
                let sqnr = 10.0 * (signal / noise).log10();
                assert!((sqnr - module.sqnr_db.unwrap()).abs() < 0.01, "{recipe} {}: {sqnr}", module.module);
                assert!(sqnr > if recipe == "w2a16" { 2.0 } else { 15.0 }, "{recipe} {sqnr}");
            }
            let view = |c: &Checkpoint, n: &str| c.get(n).unwrap().data.to_vec();
            for name in
                ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.q_proj.bias"]
            {
                assert_eq!(view(&before, name), view(&after, name));
            }
        }
    }
}

#[test]
fn data_is_aligned_to_its_elements() {
    for recipe in ["nvfp4a16", "w4a16", "fp8_dynamic"] {
        let (_guard, source, out) = model(FloatDtype::Bf16, 1);
        quantize(&source, &out, recipe).unwrap();
        let after = Checkpoint::open(&out).unwrap();
        for name in after.names() {
            let size = after.info(name).unwrap().dtype.bitsize() as u64 / 8;
            assert_eq!(after.location(name).unwrap().offset % size, 0, "{recipe} {name}");
        }
    }
}

#[test]
fn odd_shapes_are_written_in_a_readable_order() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    std::fs::create_dir_all(&source).unwrap();
    let tensors = vec![
        ("a.odd.weight".to_owned(), vec![3, 7]),
        ("b.even.weight".to_owned(), vec![4, 8]),
        ("c.row.weight".to_owned(), vec![1, 9]),
        ("d.bias".to_owned(), vec![5]),
    ];
    write_model(&source, &tensors, FloatDtype::Bf16, 1);
    for recipe in ["fp8_dynamic", "w8a8"] {
        let _ = std::fs::remove_dir_all(&out);
        quantize(&source, &out, recipe).unwrap();
        let after = Checkpoint::open(&out).unwrap();
        let config = after.quantization_config().unwrap().unwrap();
        for (module, shape) in [("a.odd", [3, 7]), ("b.even", [4, 8]), ("c.row", [1, 9])] {
            let dense = dense_weight(&after, module, config.scheme_for(module).unwrap()).unwrap();
            assert_eq!(dense.shape, shape);
            let original =
                Checkpoint::open(&source).unwrap().require_f32(&format!("{module}.weight")).unwrap();
            for (a, b) in original.iter().zip(&dense.data) {
                assert!((a - b).abs() <= a.abs() * 0.07 + 0.01 * 0.07, "{recipe} {module}: {a} {b}");
            }
        }
    }
}

#[test]
fn fused_sets_share_their_global_scale() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 3);
    quantize(&source, &out, "nvfp4a16").unwrap();
    let after = Checkpoint::open(&out).unwrap();
    let global = |m: &str| after.require_f32(&format!("model.layers.0.{m}.weight_global_scale")).unwrap()[0];
    assert_eq!(global("self_attn.q_proj"), global("self_attn.k_proj"));
    assert_eq!(global("self_attn.q_proj"), global("self_attn.v_proj"));
    assert_eq!(global("mlp.gate_proj"), global("mlp.up_proj"));
    assert_ne!(global("mlp.gate_proj"), global("mlp.down_proj"));
}

#[test]
fn same_bytes_for_any_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (_guard, source, out) = model(FloatDtype::Bf16, 2);
            quantize(&source, &out, "nvfp4a16").unwrap().output_digest
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn config_has_the_fewest_keys() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    quantize(&source, &out, "fp8_dynamic").unwrap();
    let config: Value = json_file::read(&out.join("config.json")).unwrap();
    assert_eq!(
        config["quantization_config"],
        json!({
            "config_groups": {"group_0": {
                "format": "float-quantized",
                "input_activations": {"dynamic": true, "num_bits": 8, "strategy": "token",
                    "symmetric": true, "type": "float"},
                "targets": ["Linear"],
                "weights": {"dynamic": false, "num_bits": 8, "strategy": "channel",
                    "symmetric": true, "type": "float"},
            }},
            "format": "float-quantized",
            "ignore": ["lm_head"],
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "version": "0.19.0",
        })
    );
    let mut rest = config.clone();
    rest.as_object_mut().unwrap().remove("quantization_config");
    assert_eq!(rest, json_file::read::<Value>(&source.join("config.json")).unwrap());
}

#[test]
fn other_files_are_copied_and_weights_of_other_formats_are_not() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    std::fs::create_dir_all(&out).unwrap();
    atomic::write(&out.join(".day0-leftover.part"), b"half").unwrap();
    quantize(&source, &out, "w8a8").unwrap();
    let mut names: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);
    let read = |dir: &Path| std::fs::read(dir.join("tokenizer.json")).unwrap();
    assert_eq!(read(&source), read(&out));
}

#[test]
fn progress_adds_up_to_the_source() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    let plan = QuantizePlan::new(
        Arc::new(Checkpoint::open(&source).unwrap()),
        load("w4a16").unwrap(),
        Arithmetic::F32,
    )
    .unwrap();
    std::fs::create_dir_all(&out).unwrap();
    let done = std::sync::atomic::AtomicU64::new(0);
    let count = |n| {
        done.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    };
    plan.write_shard(0, &out, &count).unwrap();
    let done = done.into_inner();
    assert_eq!(done, plan.source_tensor_bytes());
    assert_eq!(done, plan.shard_source_bytes(0));
}

#[test]
fn non_finite_weights_leave_no_shard() {
    for (bad, recipe) in [
        ("model.layers.0.mlp.up_proj.weight", "fp8_dynamic"),
        ("model.layers.0.mlp.up_proj.weight", "nvfp4a16"),
        ("model.embed_tokens.weight", "w8a8"),
    ] {
        let (_guard, source, out) = model(FloatDtype::Bf16, 1);
        write_shard(&source.join("model.safetensors"), &llama(), FloatDtype::Bf16, &|name, count| {
            let mut bytes = values(name, count, FloatDtype::Bf16);
            if name == bad {
                bytes[1000..1002].copy_from_slice(&[0xc0, 0x7f]);
            }
            bytes
        });
        let error = quantize(&source, &out, recipe).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
        assert!(error.to_string().contains(bad) && error.to_string().contains("NaN"), "{error}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0, "nothing is left");
    }
}

#[test]
fn preconditions_are_checked_before_anything_is_written() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    let error = quantize(&source, &out, "nvfp4_experts_only").unwrap_err();
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
    assert!(error.hint().unwrap().contains("nvfp4a16"), "{:?}", error.hint());
    assert!(!out.exists());
}

#[test]
fn records_of_other_shards_are_refused() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 2);
    let plan = QuantizePlan::new(
        Arc::new(Checkpoint::open(&source).unwrap()),
        load("w8a8").unwrap(),
        Arithmetic::F32,
    )
    .unwrap();
    std::fs::create_dir_all(&out).unwrap();
    let one = plan.write_shard(0, &out, &|_| {}).unwrap();
    assert!(matches!(
        plan.finish(&out, vec![one], Provenance::new(detect(Some(1)))),
        Err(QuantizeError::Shards { .. })
    ));
}

#[test]
fn unwritable_staging_is_named() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    atomic::write(&out, b"a file where a directory should be").unwrap();
    let plan = QuantizePlan::new(
        Arc::new(Checkpoint::open(&source).unwrap()),
        load("w8a8").unwrap(),
        Arithmetic::F32,
    )
    .unwrap();
    let error = plan.write_shard(0, &out, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

/// Dtypes stay what they were.
#[test]
fn scales_have_the_dtype_of_the_weight() {
    for (dtype, expected) in
        [(FloatDtype::Bf16, Dtype::BF16), (FloatDtype::F16, Dtype::F16), (FloatDtype::F32, Dtype::F32)]
    {
        let (_guard, source, out) = model(dtype, 1);
        quantize(&source, &out, "w4a16").unwrap();
        let after = Checkpoint::open(&out).unwrap();
        assert_eq!(after.info("model.layers.0.self_attn.q_proj.weight_scale").unwrap().dtype, expected);
    }
}
