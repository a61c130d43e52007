//! Exports in ModelOpt's layout against the rules of its own exporter, tensor by tensor: which tensors a layer has, their
//! dtypes and shapes, what the scales mean, and the two declarations (day0-release-and-modelopt §2.1–2.4). The rules are
//! restated here, and codes decoded by their definition: nothing of the writer's tables is used.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use super::tests::{K, Tensor, llama, quantize_as, write_model};
use crate::base::json as json_file;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::quant_args::Dialect;
use crate::ops::float_dtype::FloatDtype;
use crate::recipe::file;

/// Suffix, dtype and shape of a tensor.
type Part = (&'static str, Dtype, Vec<usize>);

/// What a layer [N, K] of an algorithm consists of.
struct Rule {
    algorithm: &'static str,
    /// `weights` and `input_activations` of the recipe.
    weights: &'static str,
    inputs: Option<&'static str>,
    /// Every tensor.
    tensors: fn(usize, usize) -> Vec<Part>,
    /// Largest error of a weight in units of its scale, and of the weight itself.
    error: (f64, f64),
}

/// One rule for each algorithm that vLLM's ModelOpt loader accepts.
const RULES: [Rule; 6] = [
    Rule {
        algorithm: "FP8",
        weights: "{num_bits: 8, type: float, strategy: tensor}",
        inputs: Some("{num_bits: 8, type: float, strategy: tensor, amax: 56}"),
        tensors: |n, k| {
            vec![
                ("weight", Dtype::F8_E4M3, vec![n, k]),
                ("weight_scale", Dtype::F32, vec![]),
                ("input_scale", Dtype::F32, vec![]),
            ]
        },
        error: (0.001, 0.0626),
    },
    Rule {
        algorithm: "FP8_PER_CHANNEL_PER_TOKEN",
        weights: "{num_bits: 8, type: float, strategy: channel}",
        inputs: Some("{num_bits: 8, type: float, strategy: token, dynamic: true}"),
        tensors: |n, k| vec![("weight", Dtype::F8_E4M3, vec![n, k]), ("weight_scale", Dtype::F32, vec![n])],
        error: (0.001, 0.0626),
    },
    Rule {
        algorithm: "FP8_PB_WO",
        weights: "{num_bits: 8, type: float, strategy: block, block_structure: [128, 128]}",
        inputs: None,
        tensors: |n, k| {
            vec![
                ("weight", Dtype::F8_E4M3, vec![n, k]),
                ("weight_scale", Dtype::F32, vec![n / 128, 1, k / 128, 1]),
            ]
        },
        error: (0.001, 0.0626),
    },
    Rule {
        algorithm: "MXFP8",
        weights: "{num_bits: 8, type: float, strategy: group, group_size: 32}",
        inputs: Some("{num_bits: 8, type: float, strategy: group, group_size: 32, dynamic: true}"),
        tensors: |n, k| {
            vec![("weight", Dtype::F8_E4M3, vec![n, k]), ("weight_scale", Dtype::U8, vec![n, k / 32])]
        },
        error: (0.001, 0.0626),
    },
    Rule {
        algorithm: "NVFP4",
        weights: "{num_bits: 4, type: float, strategy: tensor_group, group_size: 16}",
        inputs: Some(
            "{num_bits: 4, type: float, strategy: tensor_group, group_size: 16, dynamic: local, amax: 1344}",
        ),
        tensors: |n, k| {
            let mut tensors = fp4(n, k);
            tensors.push(("input_scale", Dtype::F32, vec![]));
            tensors
        },
        error: (1.0, 0.0626),
    },
    Rule {
        algorithm: "W4A16_NVFP4",
        weights: "{num_bits: 4, type: float, strategy: tensor_group, group_size: 16}",
        inputs: None,
        tensors: fp4,
        error: (1.0, 0.0626),
    },
];

fn fp4(n: usize, k: usize) -> Vec<Part> {
    vec![
        ("weight", Dtype::U8, vec![n, k / 2]),
        ("weight_scale", Dtype::F8_E4M3, vec![n, k / 16]),
        ("weight_scale_2", Dtype::F32, vec![]),
    ]
}

/// The test model with layers that 128 divides, and two experts.
fn tensors() -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = llama();
    for (name, shape) in &mut tensors {
        if name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight") {
            *shape = vec![K, K];
        }
    }
    for expert in 0..2 {
        for (name, shape) in [("gate_proj", [2 * K, K]), ("up_proj", [2 * K, K]), ("down_proj", [K, 2 * K])] {
            let name = format!("model.layers.1.mlp.experts.{expert}.{name}.weight");
            tensors.push((name, shape.to_vec()));
        }
    }
    tensors.push(("model.layers.1.mlp.gate.weight".to_owned(), vec![2, K]));
    tensors
}

/// Modules that are quantized: linear layers but for the router.
fn is_quantized(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

/// Writes the model by a recipe of these groups and returns source and output.
fn exported(dir: &Path, groups: &[(&str, &Rule)], rest: &str) -> (Checkpoint, Checkpoint) {
    let (source, out) = (dir.join("source"), dir.join("out"));
    std::fs::create_dir_all(&source).unwrap();
    write_model(&source, &tensors(), FloatDtype::Bf16, 2);
    let group = |(targets, rule): &(&str, &Rule)| {
        let inputs = rule.inputs.map_or(String::new(), |inputs| format!("    input_activations: {inputs}\n"));
        format!("  - targets: [{targets}]\n    weights: {}\n{inputs}", rule.weights)
    };
    let groups: String = groups.iter().map(group).collect::<Vec<_>>().concat();
    let recipe = format!("name: rules\nversion: 1\ndescription: rules\ngroups:\n{groups}{rest}");
    let recipe = file::parse("rules.yaml", &recipe).unwrap();
    quantize_as(&source, &out, recipe.in_dialect(Dialect::Modelopt).unwrap()).unwrap();
    (Checkpoint::open(&source).unwrap(), Checkpoint::open(&out).unwrap())
}

fn rule(algorithm: &str) -> &'static Rule {
    RULES.iter().find(|r| r.algorithm == algorithm).unwrap()
}

/// Checks names, dtypes, shapes and values of everything in `out`; `rule_of` says which rule a module follows.
fn check_tensors(source: &Checkpoint, out: &Checkpoint, rule_of: impl Fn(&str) -> &'static Rule) {
    let mut expected: BTreeMap<String, (Dtype, Vec<usize>)> = BTreeMap::new();
    for name in source.names() {
        let info = source.info(name).unwrap();
        let Some(module) = name.strip_suffix(".weight").filter(|_| is_quantized(name)) else {
            assert_eq!(source.get(name), out.get(name), "{name} is carried over");
            expected.insert(name.to_owned(), (info.dtype, info.shape.clone()));
            continue;
        };
        let rule = rule_of(module);
        for (suffix, dtype, shape) in (rule.tensors)(info.shape[0], info.shape[1]) {
            expected.insert(format!("{module}.{suffix}"), (dtype, shape));
        }
        check_values(source, out, module, rule);
    }
    let found: BTreeMap<String, (Dtype, Vec<usize>)> = out
        .names()
        .filter(|name| !name.ends_with("k_scale") && !name.ends_with("v_scale"))
        .map(|name| (name.to_owned(), (out.info(name).unwrap().dtype, out.info(name).unwrap().shape.clone())))
        .collect();
    assert_eq!(found, expected);
}

/// Scales by their formulas, and every weight decoded by its definition.
fn check_values(source: &Checkpoint, out: &Checkpoint, module: &str, rule: &Rule) {
    let weight = source.require(&format!("{module}.weight")).unwrap();
    let [n, k] = weight.shape[..] else { panic!("{module}: {:?}", weight.shape) };
    let values: Vec<f64> = weight.to_f32().unwrap().into_iter().map(f64::from).collect();
    let of = |suffix: &str| out.require(&format!("{module}.{suffix}")).unwrap();
    let float = |suffix: &str| f64::from(of(suffix).to_f32().unwrap()[0]);
    let amax = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| {
        let all = rows.flat_map(|r| columns.clone().map(move |c| (r, c)));
        all.map(|(r, c)| values[r * k + c].abs()).fold(0.0, f64::max)
    };
    // Scales pass through bf16: one rounding, or two for the reciprocal of the global one.
    let close = |found: f64, exact: f64, what: &str| {
        assert!((found / exact - 1.0).abs() <= 2f64.powi(-7), "{module} {what}: {found}, expected {exact}");
    };
    let (scales, [rows, columns]): (Vec<f64>, [usize; 2]) = match rule.algorithm {
        "FP8" => {
            close(float("weight_scale"), amax(0..n, 0..k) / 448.0, "weight_scale");
            assert_eq!(float("input_scale"), 56.0 / 448.0, "{module}");
            (vec![float("weight_scale")], [n, k])
        }
        "FP8_PER_CHANNEL_PER_TOKEN" | "FP8_PB_WO" => {
            let block = if rule.algorithm == "FP8_PB_WO" { [128, 128] } else { [1, k] };
            let scales: Vec<f64> = of("weight_scale").to_f32().unwrap().into_iter().map(f64::from).collect();
            for (i, scale) in scales.iter().enumerate() {
                let (r, c) = (i / (k / block[1]) * block[0], i % (k / block[1]) * block[1]);
                close(*scale, amax(r..r + block[0], c..c + block[1]) / 448.0, "weight_scale");
            }
            (scales, block)
        }
        "MXFP8" => {
            let exponents = of("weight_scale").data.iter().map(|e| i32::from(*e) - 127);
            let scales: Vec<f64> = exponents.map(|e| 2f64.powi(e)).collect();
            for (i, scale) in scales.iter().enumerate() {
                let (r, c) = (i / (k / 32), i % (k / 32) * 32);
                // 2^ceil(log2(amax / 448)); where that is exact, compressed-tensors takes the next power of two.
                let exact = (amax(r..r + 1, c..c + 32) / 448.0).log2();
                let expected = if exact == exact.floor() { exact + 1.0 } else { exact.ceil() };
                assert_eq!(scale.log2(), expected, "{module} {i}");
            }
            (scales, [1, 32])
        }
        _ => {
            let global = float("weight_scale_2");
            close(global, largest_of_set(source, module) / 2688.0, "weight_scale_2");
            if rule.algorithm == "NVFP4" {
                assert_eq!(float("input_scale"), 1344.0 / 2688.0, "{module}");
            }
            let local: Vec<f64> = of("weight_scale").data.iter().map(|code| e4m3(*code)).collect();
            for (i, scale) in local.iter().enumerate() {
                let (r, c) = (i / (k / 16), i % (k / 16) * 16);
                let exact = amax(r..r + 1, c..c + 16) / 6.0 / global;
                // Half a step of E4M3, and the rounding of amax / 6 to bf16.
                assert!(
                    (scale / exact - 1.0).abs() < 0.0626 + 2f64.powi(-7),
                    "{module} {i}: {scale} {exact}"
                );
            }
            (local.iter().map(|s| s * global).collect(), [1, 16])
        }
    };
    assert!(scales.iter().all(|s| s.is_finite() && *s > 0.0), "{module}");
    let codes = of("weight");
    let code = |i: usize| match codes.dtype {
        Dtype::U8 => e2m1((codes.data[i / 2] >> (4 * (i % 2))) & 15),
        _ => e4m3(codes.data[i]),
    };
    let scale = |r: usize, c: usize| scales[r / rows * (k / columns) + c / columns];
    check_codes(module, &values, k, code, scale, rule);
}

/// The largest magnitude of a layer's fused set, which shares one global scale.
fn largest_of_set(source: &Checkpoint, module: &str) -> f64 {
    let sets = [vec!["q_proj", "k_proj", "v_proj"], vec!["gate_proj", "up_proj"]];
    let (parent, last) = module.rsplit_once('.').unwrap();
    let set = sets.iter().find(|set| set.contains(&last)).cloned().unwrap_or(vec![last]);
    let values = set.iter().flat_map(|m| {
        let weight = source.require(&format!("{parent}.{m}.weight")).unwrap();
        weight.to_f32().unwrap().into_iter().map(|x| f64::from(x.abs()))
    });
    values.fold(0.0, f64::max)
}

/// Every code times its scale is as near to its value as the rule allows.
fn check_codes(
    module: &str,
    values: &[f64],
    k: usize,
    code: impl Fn(usize) -> f64,
    scale: impl Fn(usize, usize) -> f64,
    rule: &Rule,
) {
    for (i, value) in values.iter().enumerate() {
        let (r, c) = (i / k, i % k);
        let (scale, code) = (scale(r, c), code(i));
        let allowed = rule.error.0 * scale + rule.error.1 * value.abs();
        assert!((code * scale - value).abs() <= allowed, "{module} [{r}, {c}]: {} {value}", code * scale);
    }
}

/// FP8 E4M3 by its definition.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        e => (1.0 + mantissa / 8.0) * 2f64.powi(e - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// FP4 E2M1 by its table.
fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn declarations(out: &Checkpoint) -> (Value, Value) {
    let file: Value = json_file::read(&out.dir().join("hf_quant_config.json")).unwrap();
    (out.config()["quantization_config"].clone(), file)
}

#[test]
fn every_algorithm_by_its_rules() {
    for rule in &RULES {
        let dir = tempfile::tempdir().unwrap();
        let (source, out) = exported(dir.path(), &[("Linear", rule)], "");
        check_tensors(&source, &out, |_| rule);
        let (config, file) = declarations(&out);
        let quantization = &file["quantization"];
        assert_eq!(file["producer"]["name"], "modelopt");
        assert_eq!(config["quant_method"], "modelopt");
        assert_eq!(
            (&config["quant_algo"], &quantization["quant_algo"]),
            (&json!(rule.algorithm), &json!(rule.algorithm))
        );
        assert_eq!(config["ignore"], quantization["exclude_modules"]);
        // Keys that vLLM requires, null where there is nothing to say.
        assert_eq!(quantization["kv_cache_quant_algo"], Value::Null);
        assert!(quantization.as_object().unwrap().contains_key("kv_cache_quant_algo"));
        let excluded: Vec<&str> =
            quantization["exclude_modules"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
        assert!(
            excluded.contains(&"lm_head") && excluded.contains(&"model.layers.1.mlp.gate"),
            "{excluded:?}"
        );
        assert!(!excluded.iter().any(|name| name.contains("_proj")), "{excluded:?}");
        let group_size = match rule.algorithm {
            "NVFP4" | "W4A16_NVFP4" => json!(16),
            "MXFP8" => json!(32),
            _ => Value::Null,
        };
        assert_eq!(quantization["group_size"], group_size, "{}", rule.algorithm);
        let has_groups = ["FP8", "NVFP4", "W4A16_NVFP4"].contains(&rule.algorithm);
        assert_eq!(config.get("config_groups").is_some(), has_groups, "{}", rule.algorithm);
        if has_groups {
            let group = &config["config_groups"]["group_0"];
            assert_eq!(group["targets"], json!(["Linear"]));
            assert_eq!(group["weights"]["dynamic"], false);
            assert_eq!(group.get("input_activations").is_some(), rule.inputs.is_some());
        }
    }
}

/// Several algorithms in one checkpoint, and scales of keys and values.
#[test]
fn mixed_precision_and_kv_cache_by_their_rules() {
    let dir = tempfile::tempdir().unwrap();
    let groups = [("'re:.*mlp'", rule("NVFP4")), ("Linear", rule("FP8"))];
    let kv_cache = "kv_cache: {num_bits: 8, type: float, strategy: tensor, amax: 896}\n";
    let (source, out) = exported(dir.path(), &groups, kv_cache);
    let of = |module: &str| if module.contains(".mlp.") { rule("NVFP4") } else { rule("FP8") };
    check_tensors(&source, &out, of);
    for layer in 0..2 {
        for (module, scale) in [("k_proj", "k_scale"), ("v_proj", "v_scale")] {
            let name = format!("model.layers.{layer}.self_attn.{module}.{scale}");
            let scale = out.require(&name).unwrap();
            assert_eq!((scale.dtype, scale.shape.len()), (Dtype::F32, 0), "{name}");
            assert_eq!(scale.to_f32().unwrap(), [2.0], "{name}");
        }
    }
    let (config, file) = declarations(&out);
    let quantization = &file["quantization"];
    assert_eq!(quantization["quant_algo"], "MIXED_PRECISION");
    assert_eq!(quantization["kv_cache_quant_algo"], "FP8");
    assert_eq!(config["kv_cache_scheme"], json!({"dynamic": false, "num_bits": 8, "type": "float"}));
    assert!(quantization.get("exclude_modules").is_none(), "a mixture names its layers instead");
    let layers = quantization["quantized_layers"].as_object().unwrap();
    let modules: Vec<&str> =
        source.names().filter(|n| is_quantized(n)).filter_map(|n| n.strip_suffix(".weight")).collect();
    assert_eq!(layers.len(), modules.len());
    for module in modules {
        assert_eq!(layers[module]["quant_algo"], of(module).algorithm, "{module}");
        let size = if module.contains(".mlp.") { json!(16) } else { Value::Null };
        assert_eq!(layers[module]["group_size"], size, "{module}");
    }
    assert_eq!(config["quantized_layers"], quantization["quantized_layers"]);
}
