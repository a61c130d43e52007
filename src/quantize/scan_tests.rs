//! The verifier on what the quantizer writes, whole and damaged.

use std::path::Path;

use serde_json::{Value, json};

use super::tests::{made_up_inputs, model, quantize, quantize_as};
use super::{Arithmetic, QuantizePlan};
use crate::base::threads::detect;
use crate::base::{atomic, json as json_file};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::quant_args::Dialect;
use crate::ops::float_dtype::FloatDtype;
use crate::recipe::load;
use crate::record::Provenance;
use crate::record::scan::{DiffKind, MetadataDiff, ScanRecord};
use crate::record::{Classified, FailureClass};
use crate::scan::{ScanOptions, Target, scan, scan_target};

fn scanned(out: &Path, source: Option<&Path>, recipe: Option<&str>) -> ScanRecord {
    let recipe = recipe.map(|r| load(r).unwrap());
    scan(out, source, recipe.as_ref(), Provenance::new(detect(Some(1)))).unwrap()
}

/// Quantizes the test model, damages it, and scans it against its source.
fn damaged(recipe: &str, damage: impl FnOnce(&Path)) -> ScanRecord {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    quantize(&source, &out, recipe).unwrap();
    damage(&out);
    scanned(&out, Some(&source), Some(recipe))
}

/// Overwrites the data of one tensor.
fn overwrite(out: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let location = Checkpoint::open(out).unwrap().location(tensor).unwrap();
    let mut bytes = std::fs::read(&location.path).unwrap();
    let start = location.offset as usize;
    change(&mut bytes[start..start + location.num_bytes as usize]);
    atomic::write(&location.path, &bytes).unwrap();
}

/// Changes the header of `model.safetensors`; the JSON keeps its length.
fn edit_header(out: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = out.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    atomic::write(&path, &bytes).unwrap();
}

fn edit_config(out: &Path, change: impl FnOnce(&mut Value)) {
    let path = out.join("config.json");
    let mut config: Value = json_file::read(&path).unwrap();
    change(&mut config);
    json_file::write(&path, &config).unwrap();
}

fn assert_defect(record: &ScanRecord, check: &str, tensor: &str) {
    let found = record.defects.iter().any(|d| d.check == check && d.tensor.contains(tensor));
    assert!(found, "no {check} defect of {tensor} in {:?}", record.defects);
}

/// Names of the built-in recipes that quantize all linear layers of the test model alike.
fn load_all_but(others: &[&str]) -> Vec<&'static str> {
    crate::recipe::builtin_names().iter().copied().filter(|name| !others.contains(name)).collect()
}

/// A recipe file with constant ranges for inputs and KV cache, in two groups.
const STATIC: &str = "\
name: static
version: 1
description: constants
groups:
  - targets: ['re:.*mlp']
    weights: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16}
    input_activations: {num_bits: 4, type: float, strategy: tensor_group, group_size: 16, dynamic: local, amax: 1344}
  - targets: [Linear]
    weights: {num_bits: 8, type: float, strategy: tensor}
    input_activations: {num_bits: 8, type: float, strategy: tensor, amax: 56}
kv_cache: {num_bits: 8, type: float, strategy: tensor, amax: 896}
";

/// FP8 by block without quantized inputs.
const PB_WO: &str = "\
name: fp8_pb_wo
version: 1
description: blocks
groups:
  - targets: [Linear]
    weights: {num_bits: 8, type: float, strategy: block, block_structure: [128, 128]}
exclude_modules: ['re:.*self_attn']
";

/// Two groups in one checkpoint, with static scales and scales of the KV cache.
#[test]
fn mixed_precision_with_constant_scales() {
    for shards in [1, 2] {
        let (_guard, source, out) = model(FloatDtype::Bf16, shards);
        let recipe = source.with_extension("yaml");
        atomic::write(&recipe, STATIC.as_bytes()).unwrap();
        let recipe = recipe.to_str().unwrap();
        check_static(&source, &out, recipe);
        if shards == 1 {
            edit_header(&out, "up_proj.input_global_scale", "up_proj.input_globbl_scale");
            assert_defect(&scanned(&out, Some(&source), Some(recipe)), "scales", "input_global_scale");
        }
    }
}

fn check_static(source: &Path, out: &Path, recipe: &str) {
    let written = quantize(source, out, recipe).unwrap();
    let record = scanned(out, Some(source), Some(recipe));
    assert_eq!(record.defects, []);
    assert_eq!(record.size.predicted_bytes, Some(written.output_tensor_bytes));
    assert_eq!(record.coverage.modules_by_precision["nvfp4"], 6);
    assert_eq!(record.coverage.modules_by_precision["fp8_e4m3_tensor"], 8);
    let opened = Checkpoint::open(out).unwrap();
    let declared = &opened.config()["quantization_config"];
    assert_eq!(declared["format"], "mixed-precision");
    assert_eq!(declared["kv_cache_scheme"]["strategy"], "tensor");
    for (name, value) in [
        ("model.layers.0.mlp.up_proj.input_global_scale", 2.0),
        ("model.layers.1.self_attn.o_proj.input_scale", 0.125),
        ("model.layers.1.self_attn.k_scale", 2.0),
        ("model.layers.0.self_attn.v_scale", 2.0),
    ] {
        assert_eq!(opened.require(name).unwrap().to_f32().unwrap(), [value], "{name}");
    }
}

/// ModelOpt's layout holds the same codes and block scales, declared twice, and is read back as the same numbers.
#[test]
fn modelopt_exports_are_sound_and_mean_the_same() {
    for recipe in ["fp8_dynamic", "nvfp4a16", "mxfp8", "constants", "fp8_pb_wo"] {
        let (guard, source, out) = model(FloatDtype::Bf16, 2);
        let loaded = match recipe {
            "constants" => crate::recipe::file::parse("f", STATIC).unwrap(),
            "fp8_pb_wo" => crate::recipe::file::parse("f", PB_WO).unwrap(),
            builtin => load(builtin).unwrap(),
        };
        let other = guard.path().join("compressed-tensors");
        quantize_as(&source, &other, loaded.clone()).unwrap();
        let recipe_there = loaded.clone().in_dialect(Dialect::Modelopt).unwrap();
        assert_ne!(recipe_there.digest, loaded.digest);
        let written = quantize_as(&source, &out, recipe_there).unwrap();
        let record = scan(&out, Some(&source), Some(&loaded), Provenance::new(detect(Some(1)))).unwrap();
        assert_eq!(record.defects, [], "{recipe}");
        assert!(record.metadata_diffs.iter().all(|d| d.kind == DiffKind::Expected), "{recipe}: {record:?}");
        assert!(record.not_checked.is_empty(), "{recipe}: {record:?}");
        assert_eq!(record.size.predicted_bytes, Some(written.output_tensor_bytes), "{recipe}");
        assert_eq!(record.coverage.recipe_targets, Some(record.coverage.quantized), "{recipe}");
        assert_eq!(record.quant_method.as_deref(), Some("modelopt"));
        let (a, b) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(&other).unwrap());
        assert_same_weights(&a, &b, recipe);
    }
}

/// Dense weights of both; ModelOpt multiplies by the reciprocal of the global scale, which is one rounding apart.
fn assert_same_weights(a: &Checkpoint, b: &Checkpoint, recipe: &str) {
    use crate::ops::dequantize::dense_weight;
    let (x, y) = (a.quantization_config().unwrap().unwrap(), b.quantization_config().unwrap().unwrap());
    let mut compared = 0;
    for module in
        (0..2).flat_map(|l| ["self_attn.q_proj", "mlp.up_proj"].map(|m| format!("model.layers.{l}.{m}")))
    {
        let (Some(p), Some(q)) = (x.scheme_for(&module), y.scheme_for(&module)) else { continue };
        let (p, q) = (dense_weight(a, &module, p).unwrap(), dense_weight(b, &module, q).unwrap());
        assert!(
            p.data.iter().zip(&q.data).all(|(p, q)| (p - q).abs() <= 3e-7 * q.abs()),
            "{recipe} {module}"
        );
        compared += 1;
        let codes = |c: &Checkpoint| {
            let name = |suffix: &str| format!("{module}.{suffix}");
            c.get(&name("weight_packed")).or_else(|| c.get(&name("weight"))).map(|v| v.data.to_vec())
        };
        assert_eq!(codes(a), codes(b), "{recipe} {module}");
        let scales = |c: &Checkpoint| c.require(&format!("{module}.weight_scale")).unwrap().data.to_vec();
        if recipe == "nvfp4a16" {
            assert_eq!(scales(a), scales(b), "{module}");
        }
    }
    assert!(compared >= 2, "{recipe}");
}

#[test]
fn modelopt_refuses_what_it_cannot_hold() {
    for recipe in ["w4a16", "w8a8", "mxfp4a16", "fp8_weight_only", "fp8_block", "nvfp4_mlp_fp8"] {
        let error = load(recipe).unwrap().in_dialect(Dialect::Modelopt).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported, "{recipe}");
        assert!(error.to_string().contains("does not hold"), "{error}");
    }
}

/// Loaders read one file or the other.
#[test]
fn modelopt_files_must_agree() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    quantize_as(&source, &out, load("nvfp4a16").unwrap().in_dialect(Dialect::Modelopt).unwrap()).unwrap();
    let path = out.join("hf_quant_config.json");
    let mut file: Value = json_file::read(&path).unwrap();
    file["quantization"]["exclude_modules"] = json!(["lm_head", "model.layers.0.mlp*"]);
    json_file::write(&path, &file).unwrap();
    assert_defect(&scanned(&out, Some(&source), None), "declaration", "exclude_modules");
    // Without the declaration in config.json the file alone counts.
    edit_config(&out, |config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    let record = scanned(&out, Some(&source), None);
    assert_eq!(record.quant_method.as_deref(), Some("modelopt"));
    assert_eq!(record.coverage.declaration_mismatch.len(), 3, "{:?}", record.coverage);
    let tensor = "model.layers.1.mlp.up_proj.weight_scale_2";
    overwrite(&out, tensor, |bytes| bytes.fill(0));
    assert_defect(&scanned(&out, Some(&source), None), "fused_sets", "model.layers.1.mlp");
}

/// Static scales in both layouts, with the numbers that calibration found; without one no shard is written.
#[test]
fn calibrated_scales_are_written_and_checked() {
    for (recipe, suffix, values) in [
        ("nvfp4", "input_global_scale", [896.0, 537.6]),
        ("fp8_static", "input_scale", [0.0066833496, 0.011169434]),
    ] {
        for dialect in [Dialect::CompressedTensors, Dialect::Modelopt] {
            let (_guard, source, out) = model(FloatDtype::Bf16, 2);
            let loaded = load(recipe).unwrap().in_dialect(dialect).unwrap();
            let written = quantize_as(&source, &out, loaded.clone()).unwrap();
            let summary = written.calibration.unwrap();
            assert_eq!((summary.scales, summary.filled.len()), (14, 0));
            let record = scan(&out, Some(&source), Some(&loaded), Provenance::new(detect(Some(1)))).unwrap();
            assert_eq!(record.defects, [], "{recipe} {dialect:?}");
            let opened = Checkpoint::open(&out).unwrap();
            for (module, amax, value) in
                [("self_attn.k_proj", 3.0, values[0]), ("mlp.down_proj", 5.0, values[1])]
            {
                let name = |suffix: &str| format!("model.layers.1.{module}.{suffix}");
                let found = |suffix| opened.require(&name(suffix)).unwrap().to_f32().unwrap();
                match (dialect, recipe) {
                    (Dialect::CompressedTensors, _) => assert_eq!(found(suffix), [value], "{recipe}"),
                    (Dialect::Modelopt, "nvfp4") => assert_eq!(found("input_scale"), [amax / 2688.0f32]),
                    (Dialect::Modelopt, _) => assert_eq!(found("input_scale"), [amax / 448.0f32]),
                }
            }
            let scale = if dialect == Dialect::Modelopt { "input_scale" } else { suffix };
            overwrite(&out, &format!("model.layers.0.mlp.up_proj.{scale}"), |bytes| bytes.fill(0));
            let record = scan(&out, Some(&source), Some(&loaded), Provenance::new(detect(Some(1)))).unwrap();
            assert_defect(&record, "scales", "up_proj");
        }
    }
}

#[test]
fn a_plan_takes_one_calibration() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    let source = std::sync::Arc::new(Checkpoint::open(&source).unwrap());
    let plan = QuantizePlan::new(source, load("nvfp4").unwrap(), Arithmetic::F32).unwrap();
    std::fs::create_dir_all(&out).unwrap();
    let error = plan.write_shard(0, &out, &|_| {}).unwrap_err();
    assert!(error.to_string().contains("static input scales: none"), "{error}");
    let mut record = made_up_inputs(&plan);
    plan.calibrate(&record).unwrap();
    plan.calibrate(&record).unwrap();
    record.inputs.amax.values_mut().for_each(|amax| *amax *= 2.0);
    assert!(plan.calibrate(&record).unwrap_err().to_string().contains("other ones"));
    plan.write_shard(0, &out, &|_| {}).unwrap();
}

#[test]
fn scales_that_nothing_finds_are_refused_with_the_reason() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    let text = STATIC.replace(
        "kv_cache: {num_bits: 8, type: float, strategy: tensor, amax: 896}",
        "kv_cache: {num_bits: 8, type: float, strategy: tensor}",
    );
    let error = quantize_as(&source, &out, crate::recipe::file::parse("f", &text).unwrap()).unwrap_err();
    let text = crate::record::failure::chain(&error);
    assert!(text.contains("4 static scales of keys and values"), "{text}");
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
    assert!(error.hint().unwrap().contains("amax under kv_cache"));
}

#[test]
fn sound_exports_have_no_defects() {
    for recipe in load_all_but(&["nvfp4_experts_only", "nvfp4_mlp_fp8"]) {
        for shards in [1, 2] {
            let (_guard, source, out) = model(FloatDtype::Bf16, shards);
            let written = quantize(&source, &out, recipe).unwrap();
            let record = scanned(&out, Some(&source), Some(recipe));
            assert_eq!(record.defects, [], "{recipe}");
            assert!(record.metadata_diffs.iter().all(|d| d.kind == DiffKind::Expected), "{record:?}");
            assert!(record.notes.is_empty() && record.not_checked.is_empty(), "{record:?}");
            assert_eq!(record.checkpoint_digest, Some(written.output_digest));
            assert_eq!(record.size.output_bytes, written.output_tensor_bytes);
            assert_eq!(record.size.predicted_bytes, Some(written.predicted_tensor_bytes));
            assert_eq!(record.size.source_bytes, Some(written.source_tensor_bytes));
            assert!(!record.size.source_is_quantized);
            let coverage = &record.coverage;
            assert_eq!((coverage.quantized, coverage.recipe_targets), (14, Some(14)));
            assert!(coverage.unexpected_unquantized.is_empty() && coverage.declaration_mismatch.is_empty());
            let precision = &written.shards[0].modules[0].precision;
            assert_eq!(coverage.modules_by_precision[precision], 14);
            let parameters = 2 * 9 * 128 * 128 + 96 * 128 + 3 * 128 + 3;
            assert_eq!(record.size.parameters, parameters, "{recipe}");
        }
    }
}

#[test]
fn scan_is_the_same_twice() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 2);
    quantize(&source, &out, "nvfp4a16").unwrap();
    assert_eq!(scanned(&out, Some(&source), None), scanned(&out, Some(&source), None));
}

#[test]
fn erased_scales_are_found_in_every_scheme() {
    for recipe in ["fp8_dynamic", "w8a8", "w4a16", "nvfp4a16", "mxfp4a16"] {
        let tensor = "model.layers.1.mlp.up_proj.weight_scale";
        let record = damaged(recipe, |out| overwrite(out, tensor, |bytes| bytes.fill(0)));
        assert_defect(&record, "scales", tensor);
        assert_eq!(record.defects.len(), 1, "{recipe}: {:?}", record.defects);
    }
}

#[test]
fn nan_negative_and_infinite_scales_are_found() {
    let tensor = "model.layers.0.self_attn.q_proj.weight_scale";
    let set = |value: f32| {
        move |bytes: &mut [u8]| bytes[2..4].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes())
    };
    for value in [f32::NAN, f32::INFINITY, -1.0, -0.0] {
        let record = damaged("fp8_dynamic", |out| overwrite(out, tensor, set(value)));
        assert_defect(&record, "scales", tensor);
    }
    for (recipe, byte) in [("nvfp4a16", 0x7f), ("nvfp4a16", 0xb8), ("mxfp4a16", 0xff)] {
        let record = damaged(recipe, |out| overwrite(out, tensor, |bytes| bytes[5] = byte));
        assert_defect(&record, "scales", tensor);
        assert!(record.defects[0].observed.contains("first at 5"), "{:?}", record.defects);
    }
}

#[test]
fn global_scales_must_be_equal_over_fused_sets() {
    let tensor = "model.layers.0.self_attn.k_proj.weight_global_scale";
    let write = |value: f32| move |bytes: &mut [u8]| bytes.copy_from_slice(&value.to_le_bytes());
    let record = damaged("nvfp4a16", |out| overwrite(out, tensor, write(1000.0)));
    assert_defect(&record, "fused_sets", "model.layers.0.self_attn.{q_proj,k_proj,v_proj}");
    assert!(record.defects[0].observed.contains("k_proj 1000"), "{:?}", record.defects);
    let record = damaged("nvfp4a16", |out| overwrite(out, tensor, write(0.0)));
    assert_defect(&record, "scales", tensor);
}

#[test]
fn missing_scale_is_found() {
    for recipe in ["fp8_dynamic", "w4a16", "nvfp4a16", "mxfp4a16"] {
        let tensor = "model.layers.0.mlp.down_proj.weight_scale";
        let record = damaged(recipe, |out| {
            edit_header(out, &format!("\"{tensor}\""), &format!("\"{}\"", tensor.replace("scale", "scalX")));
        });
        assert_defect(&record, "scales", tensor);
        assert_defect(&record, "names", &tensor.replace("scale", "scalX"));
    }
}

#[test]
fn wrong_dtype_and_shape_are_found() {
    let module = "model.layers.0.mlp.down_proj";
    let record = damaged("fp8_dynamic", |out| {
        let at = format!("\"{module}.weight_scale\":{{\"dtype\":");
        edit_header(out, &format!("{at}\"BF16\","), &format!("{at}\"I16\", "));
    });
    assert_defect(&record, "dtypes", &format!("{module}.weight_scale"));
    let record = damaged("fp8_dynamic", |out| {
        let at = format!("\"{module}.weight_scale\":{{\"dtype\":\"BF16\",\"shape\":");
        edit_header(out, &format!("{at}[128,1]"), &format!("{at}[1,128]"));
    });
    assert_defect(&record, "shapes", &format!("{module}.weight_scale"));
}

#[test]
fn unquantized_layer_that_is_not_ignored() {
    let record = damaged("fp8_dynamic", |out| {
        edit_config(out, |config| {
            config["quantization_config"]["config_groups"]["group_0"]["targets"] = json!(["re:.*mlp.*"]);
        });
    });
    assert!(record.coverage.declaration_mismatch.contains(&"model.layers.0.self_attn.q_proj".to_owned()));
    let (_guard, source, _) = model(FloatDtype::Bf16, 1);
    edit_config(&source, |config| {
        config["quantization_config"] = json!({"quant_method": "compressed-tensors", "quantization_status": "compressed",
            "format": "float-quantized", "config_groups": {"group_0": {"targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}});
    });
    let record = scanned(&source, None, None);
    assert_eq!(record.coverage.unexpected_unquantized.len(), 14, "embeddings are no linear layers");
    assert_eq!(record.coverage.quantized, 0);
}

#[test]
fn declaring_nothing_or_something_else_is_found() {
    let record = damaged("fp8_dynamic", |out| {
        edit_config(out, |config| _ = config.as_object_mut().unwrap().remove("quantization_config"));
    });
    assert_eq!(record.quant_method, None);
    assert_eq!(record.coverage.declaration_mismatch.len(), 14);
    let record = damaged("w4a16", |out| {
        edit_config(out, |config| {
            config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = json!(64);
        });
    });
    assert_defect(&record, "shapes", "weight_scale");
    assert_eq!(record.coverage.declaration_mismatch.len(), 14, "not what the recipe says");
    let record = damaged("w4a16", |out| {
        edit_config(out, |config| config["quantization_config"]["quantization_status"] = json!("frozen"));
    });
    assert_defect(&record, "declaration", "quantization_status");
    let record = damaged("w4a16", |out| {
        edit_config(out, |config| config["quantization_config"]["quant_method"] = json!("gptq"));
    });
    assert_eq!(record.quant_method.as_deref(), Some("gptq"));
    assert!(record.not_checked["declaration"].contains("gptq"));
}

#[test]
fn weight_shape_must_fit() {
    let tensor = "model.layers.0.mlp.down_proj.weight_shape";
    for values in [[0i64, 0], [128, 128], [-1, i64::MAX]] {
        let record = damaged("w4a16", |out| {
            overwrite(out, tensor, |bytes| {
                bytes.copy_from_slice(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
            });
        });
        assert_defect(&record, "values", tensor);
    }
}

#[test]
fn metadata_differences() {
    let record = damaged("w8a8", |out| {
        edit_config(out, |config| {
            config["rms_norm_eps"] = json!(1e-6);
            let dtype = config.as_object_mut().unwrap().remove("torch_dtype").unwrap();
            config["dtype"] = dtype;
            config["transformers_version"] = json!("5.0.0");
        });
        json_file::write(&out.join("tokenizer.json"), &json!({"model": {"type": "WordPiece"}})).unwrap();
        std::fs::remove_file(out.join("generation_config.json")).unwrap();
        atomic::write(&out.join("chat_template.jinja"), b"{{ x }}").unwrap();
    });
    let of_kind = |kind| {
        let diffs = record.metadata_diffs.iter().filter(move |d| d.kind == kind);
        diffs.map(|d| (d.file.as_str(), d.field.as_str())).collect::<Vec<_>>()
    };
    let diffs = of_kind(DiffKind::Blocking);
    let expected = [("config.json", "quantization_config"), ("config.json", "transformers_version")];
    assert_eq!(of_kind(DiffKind::Expected), expected);
    assert_eq!(
        diffs,
        [
            ("chat template", "content"),
            ("config.json", "rms_norm_eps"),
            ("generation_config.json", "content"),
            ("tokenizer.json", "model"),
        ]
    );
}

/// The template may move from `tokenizer_config.json` to its own file, as transformers 5 writes it.
#[test]
fn moved_chat_template_is_no_difference() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    json_file::write(&source.join("tokenizer_config.json"), &json!({"chat_template": "{{ x }}"})).unwrap();
    quantize(&source, &out, "w8a8").unwrap();
    json_file::write(&out.join("tokenizer_config.json"), &json!({})).unwrap();
    atomic::write(&out.join("chat_template.jinja"), b"{{ x }}").unwrap();
    let diffs = scanned(&out, Some(&source), None).metadata_diffs;
    assert!(diffs.iter().all(|d| d.kind == DiffKind::Expected), "{diffs:?}");
    // A processor has its template in a file of its own, under the same key.
    for (dir, template) in [(&source, "{{ x }}"), (&out, "{{ y }}")] {
        json_file::write(&dir.join("chat_template.json"), &json!({"chat_template": template})).unwrap();
    }
    let diffs = scanned(&out, Some(&source), None).metadata_diffs;
    let blocking = |d: &&MetadataDiff| d.kind == DiffKind::Blocking;
    let files: Vec<&str> = diffs.iter().filter(blocking).map(|d| d.file.as_str()).collect();
    assert_eq!(files, ["chat_template.json"]);
}

/// Headers over HTTP: everything that headers tell, and what they do not is named.
#[test]
fn remote_scan_reads_headers_only() {
    use crate::checkpoint::test_server::{Reply, Request, TestServer};
    for recipe in ["fp8_dynamic", "w4a16", "nvfp4a16"] {
        let (_guard, source, out) = model(FloatDtype::Bf16, 2);
        quantize(&source, &out, recipe).unwrap();
        let root = out.clone();
        let server = TestServer::start(move |request: &Request| {
            let file = std::fs::read(root.join(request.path.trim_start_matches("/m/")));
            file.map_or_else(|_| Reply::new(404, Vec::new()), |bytes| Reply::range(request, &bytes))
        });
        let parsed = load(recipe).unwrap();
        let provenance = Provenance::new(detect(Some(1)));
        let url = server.url("/m");
        let options = ScanOptions::default();
        let against = Some(Target::Path(&source));
        let record = scan_target(Target::Url(&url), against, Some(&parsed), options, provenance).unwrap();
        let local = scanned(&out, Some(&source), Some(recipe));
        assert_eq!(record.defects, [], "{recipe}");
        assert_eq!((&record.size, &record.coverage), (&local.size, &local.coverage));
        assert_eq!(record.checkpoint_digest, None);
        let not_checked: Vec<&str> = record.not_checked.keys().map(String::as_str).collect();
        assert_eq!(not_checked, ["metadata", "scales"]);
        let provenance = Provenance::new(detect(Some(1)));
        let alone = scan_target(Target::Url(&url), None, None, options, provenance).unwrap();
        assert_eq!(alone.defects, [], "{recipe}");
        assert_eq!(alone.size.parameters, local.size.parameters, "{recipe}");
    }
}

#[test]
fn lost_and_added_tensors() {
    let record = damaged("w8a8", |out| edit_header(out, "\"model.norm.weight\"", "\"model.nrom.weight\""));
    assert_defect(&record, "names", "model.norm.weight");
    assert_defect(&record, "names", "model.nrom.weight");
}

#[test]
fn recipe_without_targets_and_scan_without_source() {
    let (_guard, source, out) = model(FloatDtype::Bf16, 1);
    quantize(&source, &out, "fp8_dynamic").unwrap();
    let record = scanned(&out, Some(&source), Some("nvfp4_experts_only"));
    assert_eq!(record.coverage.recipe_targets, Some(0));
    assert_eq!(record.size.predicted_bytes, None);
    let alone = scanned(&out, None, Some("fp8_dynamic"));
    assert_eq!(alone.coverage.recipe_targets, Some(14));
    assert!(alone.not_checked.contains_key("metadata"));
    assert_eq!((alone.size.source_bytes, alone.size.predicted_bytes), (None, None));
}

#[test]
fn plain_checkpoints_have_no_defects() {
    let (_guard, source, _) = model(FloatDtype::Bf16, 2);
    let record = scanned(&source, None, None);
    assert_eq!((record.quant_method, record.defects.len(), record.coverage.quantized), (None, 0, 0));
    assert_eq!(record.size.bits_per_weight, 16.0);
    assert_eq!(record.coverage.modules_by_precision["bf16"], 15);
}

/// How inputs are quantized at run time is part of the recipe, although no tensor shows it.
#[test]
fn inputs_other_than_the_recipe_asks_for_are_found() {
    for pair in [["fp8_weight_only", "fp8_dynamic"], ["w4a16", "w4afp8"], ["mxfp8a16", "mxfp8"]] {
        for [made, asked] in [pair, [pair[1], pair[0]]] {
            let (_guard, source, out) = model(FloatDtype::Bf16, 1);
            quantize(&source, &out, made).unwrap();
            let mismatch = |recipe| scanned(&out, Some(&source), Some(recipe)).coverage.declaration_mismatch;
            assert_eq!(mismatch(asked).len(), 14, "{made}, asked for {asked}");
            // Before compressed-tensors 0.20 no config named the dtype of scales.
            edit_config(&out, |config| {
                let group = &mut config["quantization_config"]["config_groups"]["group_0"];
                group["input_activations"].as_object_mut().map(|inputs| inputs.remove("scale_dtype"));
            });
            assert_eq!(mismatch(made), [] as [&str; 0], "{made}");
        }
    }
}

#[test]
fn weight_files_that_are_no_part_of_the_checkpoint_are_found() {
    for shards in [1, 2] {
        let (_guard, source, out) = model(FloatDtype::Bf16, shards);
        quantize(&source, &out, "w8a8").unwrap();
        let file = std::fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().path());
        let file = file.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).min().unwrap();
        std::fs::copy(&file, out.join("consolidated.safetensors")).unwrap();
        let record = scanned(&out, Some(&source), None);
        assert_eq!((record.defects.len(), record.notes.len()), (0, 1), "{record:?}");
        std::fs::copy(&file, out.join("model-00001-of-00007.safetensors")).unwrap();
        assert_defect(&scanned(&out, Some(&source), None), "names", "model-00001-of-00007.safetensors");
    }
}
