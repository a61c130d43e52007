use serde_json::json;

use super::*;
use crate::recipe::{file, load};
use crate::record::{Classified, FailureClass};

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

/// A llama of one layer with hidden size `k`.
fn llama(k: usize) -> Tensors {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), Dtype::BF16, vec![100, k]),
        ("model.norm.weight".to_owned(), Dtype::BF16, vec![k]),
        ("lm_head.weight".to_owned(), Dtype::BF16, vec![100, k]),
    ];
    for (name, n, columns) in [
        ("self_attn.q_proj", k, k),
        ("self_attn.k_proj", k / 2, k),
        ("self_attn.v_proj", k / 2, k),
        ("self_attn.o_proj", k, k),
        ("mlp.gate_proj", 2 * k, k),
        ("mlp.up_proj", 2 * k, k),
        ("mlp.down_proj", k, 2 * k),
    ] {
        tensors.push((format!("model.layers.0.{name}.weight"), Dtype::BF16, vec![n, columns]));
    }
    tensors
}

fn decls(tensors: &Tensors) -> Vec<TensorDecl<'_>> {
    tensors.iter().map(|(name, dtype, shape)| TensorDecl { name, dtype: *dtype, shape }).collect()
}

fn apply(tensors: &Tensors, recipe: &str) -> Result<Assignment, AssignmentError> {
    Assignment::new(&decls(tensors), &json!({"num_hidden_layers": 1}), &load(recipe).unwrap())
}

#[test]
fn linear_modules_are_quantized_and_the_rest_is_not() {
    let assignment = apply(&llama(128), "fp8_dynamic").unwrap();
    assert_eq!(assignment.modules.len(), 7);
    let reasons: Vec<(&str, &str, bool)> =
        assignment.excluded.iter().map(|(n, e)| (n.as_str(), e.reason.as_str(), e.is_linear)).collect();
    assert_eq!(reasons, [("lm_head", "output head", true), ("model.embed_tokens", "embedding", false)]);
    // 10 k² weights at one byte, scales at two bytes a row, the rest in bf16.
    let scales: u64 = (3 * 128 + 2 * 64 + 4 * 128) * 2;
    assert_eq!(assignment.predicted_bytes, 9 * 128 * 128 + scales + (2 * 100 * 128 + 128) * 2);
    assert_eq!(assignment.source_bf16_bytes, (9 * 128 * 128 + 2 * 100 * 128 + 128) * 2);
}

#[test]
fn group_sizes_that_fit_are_named() {
    let error = apply(&llama(576), "w4a16").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("group size 128 does not divide the columns of model.layers.0"), "{text}");
    assert!(text.contains("and 3 more") && text.contains("group sizes that fit: 64, 32"), "{text}");
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
    assert_eq!(error.hint().unwrap(), "use --recipe w4a16_g64 or --recipe w4a16_g32");
    let odd = apply(&llama(100), "nvfp4a16").unwrap_err();
    assert!(odd.to_string().contains("no smaller group size fits"), "{odd}");
    assert_eq!(odd.hint().unwrap(), "use --recipe fp8_dynamic or --recipe w8a8");
}

#[test]
fn experts_only_on_a_dense_model() {
    let error = apply(&llama(128), "nvfp4_experts_only").unwrap_err();
    assert!(matches!(&error, AssignmentError::NothingMatched { linear_modules: 9, .. }), "{error}");
    assert_eq!(error.hint().unwrap(), "use --recipe nvfp4a16 or --recipe mxfp4a16");
}

#[test]
fn experts_only_on_experts() {
    let mut tensors = llama(128);
    for name in ["gate_proj", "up_proj", "down_proj"] {
        tensors.push((format!("model.layers.0.mlp.experts.0.{name}.weight"), Dtype::BF16, vec![128, 128]));
    }
    tensors.push(("model.layers.0.mlp.gate.weight".to_owned(), Dtype::BF16, vec![4, 128]));
    let assignment = apply(&tensors, "nvfp4_experts_only").unwrap();
    assert_eq!(assignment.modules.len(), 3);
    assert_eq!(assignment.excluded["model.layers.0.mlp.gate"].reason, "router");
    assert_eq!(assignment.excluded["model.layers.0.self_attn.q_proj"].reason, "not targeted by the recipe");
}

#[test]
fn fused_experts_are_refused_by_name() {
    let mut tensors = llama(128);
    tensors.push(("model.layers.0.mlp.experts.gate_up_proj".to_owned(), Dtype::BF16, vec![4, 256, 128]));
    let error = apply(&tensors, "fp8_dynamic").unwrap_err();
    assert!(error.to_string().contains("experts.gate_up_proj [4, 256, 128]"), "{error}");
}

#[test]
fn quantized_sources_are_refused() {
    let recipe = load("fp8").unwrap();
    let declared = json!({"quantization_config": {"quant_method": "gptq"}});
    let error = Assignment::new(&decls(&llama(128)), &declared, &recipe).unwrap_err();
    assert!(error.to_string().contains("source is already quantized") && error.to_string().contains("gptq"));
    let mut tensors = llama(128);
    tensors[5].1 = Dtype::F8_E4M3;
    assert!(matches!(apply(&tensors, "fp8"), Err(AssignmentError::AlreadyQuantized { .. })));
}

#[test]
fn prediction_layers_beyond_the_last_are_excluded() {
    let mut tensors = llama(128);
    tensors.push(("model.layers.1.self_attn.o_proj.weight".to_owned(), Dtype::BF16, vec![128, 128]));
    let assignment = apply(&tensors, "fp8").unwrap();
    assert_eq!(assignment.excluded["model.layers.1.self_attn.o_proj"].reason, "multi-token prediction");
}

fn custom(extra: &str) -> Recipe {
    let text = format!(
        "name: x\nversion: 1\ndescription: x\ngroups:\n  - targets: [Linear]\n    weights: {{num_bits: 8, type: float, \
         strategy: channel}}\n    input_activations: {{num_bits: 8, type: float, strategy: token, dynamic: true}}\n{extra}"
    );
    file::parse("x.yaml", &text).unwrap()
}

#[test]
fn own_exclusions_and_inclusions() {
    let apply = |recipe: &Recipe| Assignment::new(&decls(&llama(128)), &json!({}), recipe);
    let without_down = apply(&custom("exclude_modules: ['re:.*down_proj']")).unwrap();
    assert_eq!(without_down.modules.len(), 6);
    assert!(without_down.excluded["model.layers.0.mlp.down_proj"].reason.contains("re:.*down_proj"));
    let with_head = apply(&custom("include_modules: [lm_head]")).unwrap();
    assert_eq!(with_head.modules.len(), 8);
    let both = apply(&custom("include_modules: [lm_head]\nexclude_modules: [lm_head]")).unwrap();
    assert_eq!(both.modules.len(), 7, "the recipe's own exclusions win");
}

#[test]
fn fused_sets_must_not_be_split() {
    let recipe = custom("exclude_modules: ['re:.*v_proj$']");
    let error = Assignment::new(&decls(&llama(128)), &json!({}), &recipe).unwrap_err();
    assert!(
        matches!(&error, AssignmentError::SplitFusedSet { member, .. } if member.ends_with("v_proj")),
        "{error}"
    );
}

#[test]
fn output_must_be_smaller() {
    // One scale per row of one element costs more than it saves.
    let tensors = vec![("a.b.weight".to_owned(), Dtype::BF16, vec![64, 1])];
    let error = apply(&tensors, "w8a8").unwrap_err();
    assert!(matches!(
        error,
        AssignmentError::NotSmaller { predicted_bytes: 192, source_bf16_bytes: 128, .. }
    ));
    assert_eq!(error.failure_class(), FailureClass::ModelUnsupported);
}
