//! Imports of small made-up models, of broken ones, and of SmolLM2 where it lies under target/models.

use super::super::test_file::TestGguf;
use super::super::value::Value;
use super::*;
use crate::checkpoint::Checkpoint;
use crate::record::{Failure, FailureClass};

const TOKENS: [&str; 8] = ["<s>", "</s>", "a", "b", "ab", "Ġ", "Ġa", "c"];

/// One layer, hidden 8, two query heads and one key head of width 4.
fn tiny() -> TestGguf {
    let types: Vec<Value> = [3, 3, 1, 1, 1, 1, 1, 1].map(Value::Int).to_vec();
    TestGguf::default()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 6)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 500_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &TOKENS)
        .list("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &["a b", "Ġ a"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .f32_tensor("token_embd.weight", &[8, 8], 0.0)
        .f32_tensor("output_norm.weight", &[8], 1.0)
        .f32_tensor("blk.0.attn_norm.weight", &[8], 2.0)
        .f32_tensor("blk.0.ffn_norm.weight", &[8], 3.0)
        .f32_tensor("blk.0.attn_q.weight", &[8, 8], 0.0)
        .f32_tensor("blk.0.attn_k.weight", &[4, 8], 0.0)
        .f32_tensor("blk.0.attn_v.weight", &[4, 8], 0.0)
        .f32_tensor("blk.0.attn_output.weight", &[8, 8], 0.0)
        .f32_tensor("blk.0.ffn_gate.weight", &[6, 8], 0.0)
        .f32_tensor("blk.0.ffn_up.weight", &[6, 8], 0.0)
        .f32_tensor("blk.0.ffn_down.weight", &[8, 6], 0.0)
}

fn run(gguf: &TestGguf, dtype: ImportDtype) -> (tempfile::TempDir, Result<ImportSummary, GgufError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    atomic::write(&path, &gguf.bytes()).unwrap();
    let result = import(&path, &dir.path().join("out"), ImportOptions { dtype });
    (dir, result)
}

fn refused(gguf: &TestGguf) -> (FailureClass, String) {
    let (dir, result) = run(gguf, ImportDtype::F32);
    let failure = Failure::from(result.unwrap_err());
    assert!(!dir.path().join("out").exists() && !dir.path().join("out.partial").exists(), "{failure}");
    assert!(failure.message.contains("m.gguf"), "{failure}");
    (failure.class, failure.message)
}

#[test]
fn small_model() {
    let (dir, summary) = run(&tiny(), ImportDtype::F32);
    let summary = summary.unwrap();
    assert_eq!((summary.num_tensors, summary.tie_word_embeddings), (11, true));
    let checkpoint = Checkpoint::open(&dir.path().join("out")).unwrap();
    let config = checkpoint.config();
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["rope_theta"], 500_000.0);
    assert_eq!(config["head_dim"], 4);
    assert_eq!(config["bos_token_id"], 0);
    // Rows 0 1 2 3 of a head are pairs (0, 1), (2, 3); Hugging Face has all first parts, then all second parts.
    let rows = |name: &str| -> Vec<f32> {
        checkpoint.require_f32(name).unwrap().chunks(8).map(|row| row[0] / 8.0).collect()
    };
    assert_eq!(rows("model.layers.0.self_attn.q_proj.weight"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(rows("model.layers.0.self_attn.k_proj.weight"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(rows("model.layers.0.self_attn.v_proj.weight"), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(summary.weights_digest, Digest::of_file(&dir.path().join("out").join(SINGLE)).unwrap());
    let untied = tiny().f32_tensor("output.weight", &[8, 8], 5.0);
    let (dir, summary) = run(&untied, ImportDtype::Bf16);
    assert!(!summary.unwrap().tie_word_embeddings);
    let checkpoint = Checkpoint::open(&dir.path().join("out")).unwrap();
    assert_eq!(checkpoint.get("lm_head.weight").unwrap().dtype, Dtype::BF16);
}

#[test]
fn output_is_never_overwritten() {
    let (dir, first) = run(&tiny(), ImportDtype::F32);
    first.unwrap();
    let again = import(&dir.path().join("m.gguf"), &dir.path().join("out"), ImportOptions::default());
    assert!(matches!(again.unwrap_err().problem, GgufProblem::OutputExists { .. }));
}

#[test]
fn unsupported_models_are_named() {
    for (gguf, word) in [
        (tiny().text("general.architecture", "mamba"), "mamba"),
        (tiny().u32("llama.attention.sliding_window", 8), "llama.attention.sliding_window"),
        (tiny().u32("llama.leading_dense_block_count", 1), "llama.leading_dense_block_count"),
        (tiny().f32("llama.rope.scaling.yarn_log_multiplier", 0.1), "yarn_log_multiplier"),
        (tiny().u32("llama.rope.dimension_count", 2), "llama.rope.dimension_count"),
        (tiny().text("llama.rope.scaling.type", "longrope"), "longrope"),
        (tiny().f32_tensor("rope_factors_long.weight", &[2], 3.0), "llama.rope.scaling.type"),
        (tiny().f32_tensor("blk.0.attn_q_norm.weight", &[4], 0.0), "blk.0.attn_q_norm.weight"),
        (tiny().f32_tensor("rope_freqs.weight", &[2], 3.0), "rope_freqs.weight"),
        (tiny().tensor("output.weight", &[8, 32], 20, vec![0; 18]), "IQ4_NL"),
        (tiny().text("tokenizer.ggml.pre", "viking"), "viking"),
        (tiny().text("tokenizer.ggml.model", "t5"), "t5"),
    ] {
        let (class, message) = refused(&gguf);
        assert_eq!(class, FailureClass::ModelUnsupported, "{message}");
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn malformed_models_are_named() {
    for (gguf, word) in [
        // A bias of one module is one of all.
        (tiny().f32_tensor("blk.0.attn_q.bias", &[8], 0.0), "blk.0.attn_k.bias"),
        (tiny().u32("llama.expert_count", 8), "llama.expert_used_count"),
        (tiny().text("llama.rope.scaling.type", "yarn"), "original_context_length"),
        (tiny().without("llama.block_count"), "llama.block_count"),
        (tiny().u32("llama.block_count", 2_000_000_000), "llama.block_count"),
        (tiny().u32("llama.attention.head_count", 0), "llama.attention.head_count"),
        (tiny().u32("llama.attention.head_count_kv", 3), "llama.attention.head_count_kv"),
        (tiny().u32("llama.vocab_size", 9), "llama.vocab_size"),
        (tiny().f32_tensor("token_embd.weight", &[0, 8], 0.0), "token_embd.weight"),
        (tiny().u32("llama.attention.head_count_kv", 0), "llama.attention.head_count_kv"),
        (tiny().f32("llama.attention.layer_norm_rms_epsilon", f32::NAN), "layer_norm_rms_epsilon"),
        (
            tiny().without_tensor("blk.0.ffn_up.weight").f32_tensor("output.weight", &[8, 8], 0.0),
            "blk.0.ffn_up.weight",
        ),
        (tiny().f32_tensor("blk.0.ffn_up.weight", &[8, 6], 0.0), "blk.0.ffn_up.weight"),
        (tiny().texts("tokenizer.ggml.merges", &["a z"]), "tokenizer.ggml.merges"),
        (tiny().texts("tokenizer.ggml.merges", &["ab"]), "tokenizer.ggml.merges"),
        (tiny().texts("tokenizer.ggml.tokens", &["a"; 8]), "tokenizer.ggml.tokens"),
        (tiny().texts("tokenizer.ggml.tokens", &["a", "b"]), "tokenizer.ggml.token_type"),
        (tiny().u32("tokenizer.ggml.bos_token_id", 8), "tokenizer.ggml.bos_token_id"),
        (tiny().without("tokenizer.ggml.pre"), "tokenizer.ggml.pre"),
        (tiny().u32("tokenizer.chat_template", 1), "tokenizer.chat_template"),
    ] {
        let (class, message) = refused(&gguf);
        assert_eq!(class, FailureClass::UserConfigError, "{message}");
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn linear_and_llama3_rope_scaling() {
    let linear = tiny().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 2.0);
    let (dir, result) = run(&linear, ImportDtype::F32);
    result.unwrap();
    let config = Checkpoint::open(&dir.path().join("out")).unwrap().config().clone();
    assert_eq!(config["rope_scaling"], json!({"rope_type": "linear", "factor": 2.0}));
}

/// Golden: convert_hf_to_gguf.py's `generate_extra_tensors` for Llama-3.1-8B (theta 500000, D 128, factor 8), run in
/// torch f32: 1 up to index 28, six smooth factors, 8 from index 35 on.
#[test]
fn llama3_factors_are_recognised() {
    let smooth = [1.207_483_9f32, 1.553_414_6, 2.026_313, 2.694_53, 3.684_253_2, 5.257_327];
    let factors: Vec<f32> = (0..64)
        .map(|i| {
            if i < 29 {
                1.0
            } else if i < 35 {
                smooth[i - 29]
            } else {
                8.0
            }
        })
        .collect();
    let scaling = super::super::rope::llama3_scaling(&factors, 500_000.0).unwrap();
    assert_eq!(scaling["rope_type"], "llama3");
    assert_eq!(scaling["factor"], 8.0);
    let mut other = factors;
    other[31] *= 1.01;
    assert!(super::super::rope::llama3_scaling(&other, 500_000.0).is_err());
}

/// Golden: the file that shared/oracle/convert_smollm2.py writes for the same GGUF (gguf-py 0.19, torch 2.10,
/// safetensors), and the tokens of shared/data/README.md.
#[test]
fn smollm2_equals_the_reference_conversion() {
    const BF16_DIGEST: &str = "26952486d351680e1d588bec3370d3f75ed7cae59de7d40c144b28f6323423fc";
    const TEXT: &str = "Hello world! In 2024, it's 3.14 <|im_start|>user\n  naïve café 你好";
    const TOKENS: [u32; 29] = [
        19556, 905, 17, 533, 216, 34, 32, 34, 36, 28, 357, 506, 216, 35, 30, 33, 36, 216, 1, 4093, 3805,
        15486, 46494, 37366, 216, 18645, 250, 48392, 138,
    ];
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !gguf.is_file() {
        println!("skipped: {} is not there", gguf.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let summary = import(&gguf, &out, ImportOptions::default()).unwrap();
    assert_eq!(summary.weights_digest.as_str(), BF16_DIGEST);
    let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let encoded = tokenizer.encode(TEXT, true).unwrap();
    assert_eq!(encoded.get_ids(), TOKENS);
    let config = Checkpoint::open(&out).unwrap().config().clone();
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["rope_theta"], 100_000.0);
    assert_eq!(config["tie_word_embeddings"], true);
}
