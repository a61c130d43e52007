//! Both spellings, target matching, malformed and foreign declarations.

use serde_json::json;

use super::*;

/// The FP8_BLOCK group as compressed-tensors 0.20.0 writes it.
fn new_spelling() -> Value {
    json!({
        "quant_method": "compressed-tensors", "version": "0.20.0", "format": "float-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": null,
        "global_compression_ratio": null, "sparsity_config": {}, "transform_config": {},
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": true, "group_size": null,
                "strategy": "block", "block_structure": [128, 128], "dynamic": false},
            "input_activations": {"num_bits": 8, "type": "float", "symmetric": true, "group_size": 128,
                "strategy": "group", "dynamic": true},
            "output_activations": null, "format": null}}
    })
}

#[test]
fn new_and_old_spelling_mean_the_same() {
    let new = QuantizationConfig::parse(&new_spelling()).unwrap();
    let mut old = new_spelling();
    let group = &mut old["config_groups"]["group_0"];
    for part in ["weights", "input_activations"] {
        for key in ["actorder", "scale_dtype", "observer", "zp_dtype"] {
            group[part][key] = Value::Null;
        }
        group[part]["observer_kwargs"] = json!({});
    }
    group["weights"]["block_structure"] = json!("128x128");
    let old = QuantizationConfig::parse(&old).unwrap();
    assert_eq!(new.groups[0].scheme, old.groups[0].scheme);
    assert_eq!(new.groups[0].format, Some(Format::FloatQuantized));
    assert_eq!(new.groups[0].scheme.weights.block_structure, Some([128, 128]));
    assert_eq!(new.groups[0].scheme.input_activations.as_ref().unwrap().group_size, Some(128));
    assert_eq!(new.quantization_status.as_deref(), Some("compressed"));
    assert!(new.kv_cache_scheme.is_none());
}

#[test]
fn strategy_is_inferred_from_group_size() {
    for (size, strategy, kept) in [
        (Value::Null, Strategy::Tensor, None),
        (json!(-1), Strategy::Channel, None),
        (json!(64), Strategy::Group, Some(64)),
    ] {
        let parsed = args("w", &json!({"num_bits": 4, "type": "int", "group_size": size})).unwrap();
        assert_eq!((parsed.strategy, parsed.group_size), (strategy, kept));
    }
}

#[test]
fn ignore_then_exact_then_pattern_then_class_then_order() {
    let weights = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
    let group = |targets: Value| json!({"targets": targets, "weights": weights, "format": "pack-quantized"});
    let config = QuantizationConfig::parse(&json!({
        "quant_method": "compressed-tensors", "format": "mixed-precision",
        "ignore": ["lm_head", "re:.*\\.gate$"],
        "config_groups": {
            "z_first": group(json!(["Linear"])),
            "b": group(json!(["re:.*self_attn"])),
            "a": group(json!(["re:.*self_attn", "model.layers.0.mlp.up_proj"])),
        }
    }))
    .unwrap();
    let name = |module| config.scheme_for(module).map(|g| g.name.as_str());
    assert_eq!(name("lm_head"), None);
    assert_eq!(name("model.layers.0.mlp.gate"), None);
    assert_eq!(name("model.layers.0.mlp.gate_proj"), Some("z_first"));
    assert_eq!(name("model.layers.0.self_attn.q_proj"), Some("b"));
    assert_eq!(name("model.layers.0.mlp.up_proj"), Some("a"));
    assert_eq!(config.groups[0].format, Some(Format::PackQuantized));
}

#[test]
fn other_methods_are_named() {
    for method in ["fp8", "gptq", "awq", "bitsandbytes"] {
        let error = QuantizationConfig::parse(&json!({"quant_method": method})).unwrap_err();
        assert!(matches!(&error, QuantConfigError::UnsupportedMethod { method: m } if m == method));
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
    }
}

#[test]
fn unsupported_declarations_are_infeasible() {
    let cases = [
        ("/config_groups/group_0/weights/actorder", json!("group")),
        ("/config_groups/group_0/output_activations", json!({"num_bits": 8})),
        ("/config_groups/group_0/weights", Value::Null),
        ("/config_groups/group_0", json!(["Linear"])),
        ("/config_groups/group_0/targets", json!(["re:(?!lm_head)"])),
        ("/format", json!("marlin-24")),
        ("/sparsity_config", json!({"format": "sparse-24-bitmask"})),
        ("/transform_config", json!({"config_groups": {"u": {}}})),
    ];
    for (place, value) in cases {
        let error = QuantizationConfig::parse(&with(place, value)).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported, "{place}: {error}");
    }
}

#[test]
fn malformed_declarations_name_the_field() {
    let cases = [
        ("", json!([]), "quantization_config"),
        ("/quant_method", Value::Null, "quant_method"),
        ("/quant_method", json!(7), "quant_method"),
        ("/config_groups", json!([]), "config_groups"),
        ("/config_groups/group_0", json!(1), "config_groups.group_0"),
        ("/config_groups/group_0/targets", json!("Linear"), "config_groups.group_0.targets"),
        ("/config_groups/group_0/weights/num_bits", json!(-1), "config_groups.group_0.weights.num_bits"),
        ("/config_groups/group_0/weights/num_bits", json!(0), "config_groups.group_0.weights.num_bits"),
        ("/config_groups/group_0/weights/type", json!("fp"), "config_groups.group_0.weights.type"),
        ("/config_groups/group_0/weights/group_size", json!(0), "config_groups.group_0.weights.group_size"),
        ("/config_groups/group_0/weights/group_size", json!(64), "config_groups.group_0.weights.group_size"),
        ("/config_groups/group_0/weights/strategy", json!("row"), "config_groups.group_0.weights.strategy"),
        ("/config_groups/group_0/weights/block_structure", json!([0, 1]), "block_structure"),
        ("/config_groups/group_0/weights/block_structure", Value::Null, "block_structure"),
        ("/config_groups/group_0/weights/strategy", json!("group"), "group_size"),
        ("/ignore", json!("lm_head"), "ignore"),
        ("/quantization_status", json!({}), "quantization_status"),
    ];
    for (place, value, field) in cases {
        let error = QuantizationConfig::parse(&with(place, value)).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::UserConfigError, "{place}: {error}");
        assert!(error.to_string().contains(field), "{place}: {error}");
    }
}

#[test]
fn unknown_key_gets_a_suggestion() {
    let mut config = new_spelling();
    config["config_groups"]["group_0"]["weights"]["group_sise"] = json!(128);
    let message = QuantizationConfig::parse(&config).unwrap_err().to_string();
    assert!(message.contains("group_sise") && message.contains("'group_size'"), "{message}");
}

/// The new spelling with the value at one JSON pointer replaced or added; the empty pointer is everything.
fn with(place: &str, value: Value) -> Value {
    let Some((parent, key)) = place.rsplit_once('/') else { return value };
    let mut config = new_spelling();
    config.pointer_mut(parent).unwrap()[key] = value;
    config
}
