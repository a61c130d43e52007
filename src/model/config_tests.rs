//! Spellings, refusals and wrong fields of configurations. That what is read is right, the golden values of every
//! architecture show (`engine/tests/golden.rs`).

use serde_json::json;

use super::super::rope::RopeScaling;
use super::*;

fn base() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
        "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": null,
        "hidden_act": "silu", "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "float32"
    })
}

/// The base of another architecture, with the fields that it needs.
fn of(class: &str) -> Value {
    let architecture = ARCHITECTURES.iter().find(|a| a.class == class).unwrap();
    let mut config = base();
    config["architectures"] = json!([class]);
    config["model_type"] = json!(architecture.model_type);
    if architecture.activation.1 == Activation::GeluTanh {
        config["hidden_act"] = json!("gelu_pytorch_tanh");
    }
    if let Some(experts) = &architecture.experts {
        for field in ["num_experts", experts.width].into_iter().chain(experts.shared_width) {
            config[field] = json!(8);
        }
        config["num_experts_per_tok"] = json!(2);
    }
    config
}

#[expect(clippy::needless_pass_by_value, reason = "json! makes values")]
fn changed(mut config: Value, changes: Value) -> Result<ModelConfig, ConfigError> {
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    ModelConfig::parse(&config)
}

#[expect(clippy::needless_pass_by_value, reason = "json! makes values")]
fn with(field: &str, value: Value) -> Result<ModelConfig, ConfigError> {
    changed(base(), json!({field: value}))
}

#[test]
fn both_spellings_of_rope() {
    let old = ModelConfig::parse(&base()).unwrap();
    assert_eq!((old.head_dim, old.ropes[0].theta), (8, 10_000.0));
    let mut new = base();
    new.as_object_mut().unwrap().remove("rope_theta");
    new["rope_parameters"] = json!({"rope_theta": 100000.0, "rope_type": "default"});
    assert_eq!(ModelConfig::parse(&new).unwrap().ropes[0].theta, 100_000.0);
    assert_eq!(with("head_dim", json!(16)).unwrap().head_dim, 16);
}

/// Reference: transformers 5.17 `ROPE_INIT_FUNCTIONS["llama3"]` with head_dim 16, theta 500000, factor 32,
/// low 1, high 4, original 8192 (Llama 3.2); computed by `tests/oracle/rope_llama3.py`.
#[test]
fn llama3_frequencies() {
    const WANT: [f32; 8] = [
        1.0,
        1.939_227_6e-1,
        3.760_603e-2,
        7.292_665e-3,
        4.295_567e-4,
        8.570_256e-6,
        1.661_967_4e-6,
        3.222_933e-7,
    ];
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let config =
        changed(base(), json!({"rope_scaling": scaling, "rope_theta": 500_000.0, "head_dim": 16})).unwrap();
    for (got, want) in config.ropes[0].inverse_frequencies(false).iter().zip(WANT) {
        assert!((got / want - 1.0).abs() < 1e-6, "{got}, not {want}");
    }
}

#[test]
fn unsupported_options_are_named() {
    for (field, value, named) in [
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("hidden_activation", json!("silu"), "hidden_activation"),
        ("sliding_window", json!(4096), "sliding_window"),
        ("layer_types", json!(vec!["sliding_attention"; 5]), "layer_types"),
        ("layer_types", json!(vec!["chunked_attention"; 5]), "layer_types"),
        ("rope_scaling", json!({"type": "proportional", "factor": 2.0}), "rope_scaling.type"),
        ("rope_scaling", json!({"type": "su", "factor": 2.0}), "rope_scaling.type"),
        ("rope_scaling", json!({"type": "linear", "rope_type": "yarn", "factor": 2.0}), "rope_scaling.type"),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0, "mscale": 2.0}), "rope_scaling.mscale"),
        (
            "rope_scaling",
            json!({"rope_type": "default", "mrope_section": [1, 2]}),
            "rope_scaling.mrope_section",
        ),
        ("rope_scaling", json!({"rope_type": "default", "rope_theta": 7.0}), "rope_scaling.rope_theta"),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5}), "rope_parameters.partial_rotary_factor"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("architectures", json!(["GemmaForCausalLM"]), "GemmaForCausalLM"),
        ("architectures", json!(["LlamaForCausalLM", "GemmaForCausalLM"]), "GemmaForCausalLM"),
        ("model_type", json!("mistral"), "model_type"),
        ("clip_qkv", json!(8.0), "clip_qkv"),
        ("some_new_option", json!(true), "some_new_option"),
        ("vision_config", json!({"hidden_size": 4}), "vision_config"),
    ] {
        let error = with(field, value).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
        assert!(error.to_string().contains(named) && error.hint().is_some(), "{error}");
    }
}

#[test]
fn options_of_one_architecture_are_refused_in_another() {
    let yarn = json!({"rope_type": "yarn", "factor": 2.0});
    for (class, changes, named) in [
        ("MistralForCausalLM", json!({"attention_bias": true}), "attention_bias"),
        ("MistralForCausalLM", json!({"use_sliding_window": true}), "use_sliding_window"),
        ("Qwen2ForCausalLM", json!({"mlp_bias": true}), "mlp_bias"),
        ("Qwen2ForCausalLM", json!({"layer_types": vec!["sliding_attention"; 5]}), "layer_types"),
        ("Gemma3ForCausalLM", json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
        ("Gemma3ForCausalLM", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (
            "Gemma3ForCausalLM",
            json!({"rope_scaling": {"type": "linear", "factor": 8.0}}),
            "rope_scaling.type",
        ),
        ("Gemma2ForCausalLM", json!({"hidden_activation": "gelu"}), "hidden_activation"),
        ("Gemma2ForCausalLM", json!({"hidden_act": "silu"}), "hidden_act"),
        ("Phi3ForCausalLM", json!({"rope_scaling": yarn}), "rope_scaling.rope_type"),
        ("Phi3ForCausalLM", json!({"partial_rotary_factor": 0.1}), "partial_rotary_factor"),
        ("GraniteForCausalLM", json!({"position_embedding_type": "nope"}), "position_embedding_type"),
        ("MixtralForCausalLM", json!({"norm_topk_prob": true}), "norm_topk_prob"),
        ("MixtralForCausalLM", json!({"num_local_experts": 4}), "num_local_experts"),
    ] {
        let error = changed(of(class), changes).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::ModelUnsupported, "{error}");
        assert!(error.to_string().contains(named), "{class}: {error}");
    }
}

#[test]
fn defaults_of_classes_and_neutral_values() {
    for architecture in ARCHITECTURES {
        let config = of(architecture.class);
        let parsed = ModelConfig::parse(&config).unwrap();
        assert_eq!(parsed.architecture.class, architecture.class);
        // By model_type alone.
        let mut unnamed = config.clone();
        unnamed.as_object_mut().unwrap().remove("architectures");
        assert_eq!(ModelConfig::parse(&unnamed).unwrap().architecture.class, architecture.class);
        // What says nothing is not in the way.
        let neutral = json!({"new_option": false, "other": null, "list": [], "x": 0, "attention_dropout": 0.1,
            "bos_token_id": 5, "unsloth_version": "1", "_name_or_path": "x"});
        changed(config, neutral).unwrap();
    }
    let mistral = |window: Value| {
        let mut config = of("MistralForCausalLM");
        config["sliding_window"] = window;
        ModelConfig::parse(&config).unwrap().layers[0].window
    };
    assert_eq!((mistral(json!(7)), mistral(Value::Null)), (Some(7), None));
    // No field means the class's default, which is not the same as null.
    assert_eq!(ModelConfig::parse(&of("MistralForCausalLM")).unwrap().layers[0].window, Some(4096));
    let phi = json!({"rope_scaling": {"type": "su", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]},
        "original_max_position_embeddings": 128});
    let phi = changed(of("Phi3ForCausalLM"), phi).unwrap();
    assert!(matches!(phi.ropes[0].scaling, RopeScaling::LongRope { original: 128, .. }));
    assert_eq!(phi.longest_short_input(), Some(128));
}

#[test]
fn wrong_fields_are_named() {
    for (field, value) in [
        ("hidden_size", json!(null)),
        ("hidden_size", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(-1)),
        ("head_dim", json!(7)),
        ("vocab_size", json!(1u64 << 40)),
        ("rms_norm_eps", json!("small")),
        ("tie_word_embeddings", json!(1)),
        ("rope_parameters", json!([1])),
        ("rope_theta", json!(-1)),
        ("architectures", json!("LlamaForCausalLM")),
        ("layer_types", json!(["full_attention"])),
        ("max_window_layers", json!("all")),
        ("rope_scaling", json!({"type": "linear", "factor": "2"})),
    ] {
        let error = with(field, value).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::UserConfigError);
        assert!(error.to_string().contains(field), "{error}");
    }
    assert!(ModelConfig::parse(&json!([])).is_err());
    let factors =
        json!({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1, 0, 1, 1]}});
    for (class, changes, named) in [
        ("Qwen2MoeForCausalLM", json!({"num_experts_per_tok": 9}), "num_experts_per_tok"),
        ("Qwen2MoeForCausalLM", json!({"mlp_only_layers": 3}), "mlp_only_layers"),
        ("Qwen3ForCausalLM", json!({"head_dim": null}), "head_dim"),
        ("SmolLM3ForCausalLM", json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
        ("Phi3ForCausalLM", factors, "short_factor"),
        ("Gemma3ForCausalLM", json!({"rope_parameters": {"full_attention": {}}}), "full_attention"),
    ] {
        let error = changed(of(class), changes).unwrap_err();
        assert_eq!(error.failure_class(), FailureClass::UserConfigError, "{error}");
        assert!(error.to_string().contains(named), "{class}: {error}");
    }
}
