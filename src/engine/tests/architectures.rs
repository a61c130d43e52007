//! What holds for llama holds for every architecture: bits that do not depend on the batch, generation with the bits of
//! scoring, quantized linear modules.

use safetensors::Dtype;
use serde_json::json;

use super::fixture::{Tensor, options, write};
use super::golden::{Case, Golden};
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::record::score::ScoreRequest;

fn bits(engine: &Engine, requests: &[ScoreRequest]) -> Vec<u32> {
    let results = engine.score(requests, &|_| ()).unwrap();
    results.iter().flat_map(|r| r.token_logprobs.iter().map(|l| l.to_bits())).collect()
}

/// Requests of several lengths with a common beginning, some on either side of every window and rotary switch.
fn requests(golden: &Golden) -> Vec<ScoreRequest> {
    let of = |len: usize, context_len: usize, last: u32| {
        let mut tokens = golden.tokens[..len].to_vec();
        tokens[len - 1] = last;
        ScoreRequest { tokens, context_len }
    };
    [(70, 30), (34, 31), (33, 32), (20, 1), (70, 69), (12, 11)]
        .into_iter()
        .flat_map(|(len, context)| [3, 4].map(|last| of(len, context, last)))
        .collect()
}

/// Bits are the same together, in small batches on other threads, alone and reversed; generated tokens have those of
/// scored ones.
fn check_bits(golden: &Golden, name: &str, checkpoint: &Checkpoint) {
    let large = Engine::load(checkpoint, &options(1, 4096)).unwrap();
    let small = Engine::load(checkpoint, &options(3, 9)).unwrap();
    let mut requests = requests(golden);
    let together = bits(&large, &requests);
    assert!(together.iter().all(|b| f32::from_bits(*b).is_finite()), "{name}");
    assert_eq!(bits(&small, &requests), together, "{name}: small batches");
    let alone: Vec<u32> = requests.iter().flat_map(|r| bits(&large, std::slice::from_ref(r))).collect();
    assert_eq!(alone, together, "{name}: alone");
    let first = bits(&large, &requests[..1]);
    requests.reverse();
    assert!(bits(&small, &requests).ends_with(&first), "{name}: reversed");

    let mut tokens = golden.tokens[..29].to_vec();
    for token in large.generate_greedy(&tokens, 6, &[], 0).unwrap() {
        let context_len = tokens.len();
        tokens.push(token.token);
        let scored = bits(&large, &[ScoreRequest { tokens: tokens.clone(), context_len }]);
        assert_eq!(scored, [token.logprob.to_bits()], "{name}: token {context_len}");
    }
}

#[test]
fn bits_do_not_depend_on_the_batch() {
    let golden = Golden::load();
    for case in golden.cases() {
        check_bits(&golden, &case.name, &case.checkpoint(&case.config).1);
    }
}

/// Whether a recipe would quantize it.
fn is_linear(name: &str, shape: &[usize]) -> bool {
    let kept = ["embed_tokens", "lm_head", ".gate.weight", "shared_expert_gate"];
    shape.len() == 2 && name.ends_with(".weight") && !kept.iter().any(|k| name.contains(k))
}

/// INT8 codes and a scale for each row, and the weight they stand for.
fn quantized(tensor: &Tensor) -> [Tensor; 3] {
    let (name, _, shape, data) = tensor;
    let values: Vec<f32> = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let (mut codes, mut scales, mut dense) = (Vec::new(), Vec::new(), Vec::new());
    for row in values.chunks(shape[1]) {
        let scale = row.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
        scales.extend(scale.to_le_bytes());
        for x in row {
            let code = (x / scale).round();
            codes.push(code as i8 as u8);
            dense.extend((code * scale).to_le_bytes());
        }
    }
    [
        (name.clone(), Dtype::I8, shape.clone(), codes),
        (format!("{name}_scale"), Dtype::F32, vec![shape[0], 1], scales),
        (name.clone(), Dtype::F32, shape.clone(), dense),
    ]
}

/// A checkpoint with quantized linear modules, with quantized inputs or not, and the dense one it stands for.
fn pair(case: &Case, inputs: bool) -> [(tempfile::TempDir, Checkpoint); 2] {
    let (mut codes, mut dense) = (Vec::new(), Vec::new());
    for tensor in &case.tensors {
        if is_linear(&tensor.0, &tensor.2) {
            let [code, scale, weight] = quantized(tensor);
            codes.extend([code, scale]);
            dense.push(weight);
        } else {
            codes.push(tensor.clone());
            dense.push(tensor.clone());
        }
    }
    let args = |strategy: &str, dynamic: bool| json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": strategy, "dynamic": dynamic});
    let mut config = case.config.clone();
    config["quantization_config"] = json!({
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "format": "int-quantized",
        "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args("channel", false),
            "input_activations": if inputs { args("token", true) } else { json!(null) }}}
    });
    [(config, codes), (case.config.clone(), dense)].map(|(config, tensors)| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config, &tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    })
}

/// Fused projections, biases, experts, shared experts: weight-only schemes have the bits of the dense weights, and
/// quantized inputs stay near them and keep the batch out.
#[test]
fn linear_modules_of_every_architecture_may_be_quantized() {
    let golden = Golden::load();
    let requests = requests(&golden);
    // Stacked experts have no quantized form here.
    for case in golden.cases().filter(|case| !case.name.ends_with("-fused")) {
        let [(_a, weight_only), (_b, dense)] = pair(&case, false);
        let load = |checkpoint: &Checkpoint| Engine::load(checkpoint, &options(2, 512)).unwrap();
        let dense = bits(&load(&dense), &requests);
        assert_eq!(bits(&load(&weight_only), &requests), dense, "{}", case.name);
    }
    for name in ["phi3-longrope", "qwen2-moe", "mixtral", "gemma2", "olmo2-gqa", "llama-biases"] {
        let case = golden.cases().find(|case| case.name == name).unwrap();
        let [(_a, inputs), _] = pair(&case, true);
        check_bits(&golden, name, &inputs);
        let plain = case.checkpoint(&case.config);
        let load = |checkpoint: &Checkpoint| Engine::load(checkpoint, &options(2, 512)).unwrap();
        let (got, want) = (bits(&load(&inputs), &requests), bits(&load(&plain.1), &requests));
        // A step of the input's grid may change a token's experts, so only the mean says something.
        let differences = got.iter().zip(&want).map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs());
        let mean = differences.sum::<f32>() / got.len() as f32;
        println!("{name}: mean difference {mean}");
        assert!(mean < 0.5, "{name}: {mean}");
    }
}
