//! GGUF files of every importable architecture, written as llama.cpp's converter writes them, give the log-probabilities
//! of the checkpoints they were made from. Names and keys: `tests/golden/gguf_names.py`, from gguf-py. Transforms:
//! llama.cpp's `conversion/*.py`, repeated here in their own direction.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::fixture::{Tensor, options};
use super::golden::{Case, Golden, TOLERANCE, alone, largest};
use crate::base::atomic;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::architecture::ARCHITECTURES;
use crate::checkpoint::gguf::test_file::TestGguf;
use crate::checkpoint::gguf::value::Value;
use crate::checkpoint::gguf::{ImportDtype, ImportOptions, ImportSummary, import};
use crate::engine::Engine;
use crate::model::ModelConfig;

fn values((_, _, _, data): &Tensor) -> Vec<f32> {
    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// `LlamaModel.permute`: reshape(heads, 2, D/2, …).swapaxes(1, 2).
fn permute(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (row, d) = (values.len() / rows, rows / heads);
    let from = |to: usize| {
        let (head, i) = (to / d, to % d);
        head * d + i % 2 * (d / 2) + i / 2
    };
    (0..rows).flat_map(|to| values[from(to) * row..][..row].to_vec()).collect()
}

/// `modify_tensors` of the architecture's class for tensors that stay single.
fn modify(arch: &str, name: &str, tensor: &Tensor, config: &Json) -> Vec<f32> {
    let mut values = values(tensor);
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    if arch.starts_with("gemma") && name.ends_with("norm.weight") {
        for w in &mut values {
            *w += 1.0;
        }
    }
    if matches!(arch, "llama" | "granite" | "smollm3") {
        if name.contains("q_proj.") {
            values = permute(&values, tensor.2[0], heads("num_attention_heads"));
        } else if name.contains("k_proj.") {
            values = permute(&values, tensor.2[0], heads("num_key_value_heads"));
        }
    }
    values
}

fn set(gguf: TestGguf, key: &str, value: &Json) -> TestGguf {
    match value {
        Json::String(s) => gguf.text(key, s),
        Json::Bool(b) => gguf.bool(key, *b),
        Json::Number(n) if n.is_u64() => gguf.u32(key, n.as_u64().unwrap() as u32),
        other => gguf.f32(key, other.as_f64().unwrap() as f32),
    }
}

/// The file of a case.
fn file(case: &Case, written: &Json, vocab: usize) -> TestGguf {
    let tokens: Vec<String> =
        (0..vocab as u32).map(|i| char::from_u32(0x41 + i).unwrap().to_string()).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut gguf = TestGguf::default()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .list("tokenizer.ggml.token_type", &vec![Value::Int(1); vocab])
        .texts("tokenizer.ggml.merges", &[]);
    for (key, value) in written["keys"].as_object().unwrap() {
        gguf = set(gguf, key, value);
    }
    let arch = written["keys"]["general.architecture"].as_str().unwrap();
    // Experts in order of their number, to be stacked.
    let mut stacks: BTreeMap<&str, Vec<(usize, &Tensor)>> = BTreeMap::new();
    for tensor in &case.tensors {
        let name = tensor.0.as_str();
        match &written["names"][name] {
            Json::Array(halves) => {
                let [e, n, k] = <[usize; 3]>::try_from(tensor.2.clone()).unwrap();
                for (half, target) in halves.iter().enumerate() {
                    let experts = values(tensor);
                    let part = experts.chunks(n / 2 * k).skip(half).step_by(2).flatten().copied();
                    let part: Vec<f32> = part.collect();
                    gguf = gguf.f32_values(target.as_str().unwrap(), &[e, n / 2, k], &part);
                }
            }
            target => {
                let target = target.as_str().unwrap();
                let number =
                    name.split(".experts.").nth(1).and_then(|tail| tail.split('.').next()?.parse().ok());
                if let Some(number) = number {
                    stacks.entry(target).or_default().push((number, tensor));
                } else {
                    let values = modify(arch, name, tensor, &case.saved);
                    gguf = gguf.f32_values(target, &tensor.2, &values);
                }
            }
        }
    }
    for (target, mut experts) in stacks {
        experts.sort_by_key(|(number, _)| *number);
        let shape = [&[experts.len()], experts[0].1.2.as_slice()].concat();
        let stacked: Vec<f32> = experts.iter().flat_map(|(_, tensor)| values(tensor)).collect();
        gguf = gguf.f32_values(target, &shape, &stacked);
    }
    // The converter computes the factors in f32 and writes them beside the weights.
    if let Some(scaling) = case.config["rope_scaling"].as_object().filter(|_| arch == "phi3") {
        for (field, target) in
            [("long_factor", "rope_factors_long.weight"), ("short_factor", "rope_factors_short.weight")]
        {
            let factors: Vec<f32> = serde_json::from_value(scaling[field].clone()).unwrap();
            gguf = gguf.f32_values(target, &[factors.len()], &factors);
        }
    }
    gguf
}

fn imported(gguf: &TestGguf) -> (tempfile::TempDir, ImportSummary, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    atomic::write(&path, &gguf.bytes()).unwrap();
    let options = ImportOptions { dtype: ImportDtype::F32 };
    let summary =
        import(&path, &dir.path().join("out"), options).unwrap_or_else(|e| panic!("{e}: {}", e.problem));
    let checkpoint = Checkpoint::open(&dir.path().join("out")).unwrap();
    (dir, summary, checkpoint)
}

/// What the converter calls things, by case.
fn written_names() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn imported_files_have_the_logprobs_of_their_origin() {
    let golden = Golden::load();
    let written = written_names();
    let (mut wrong, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    for case in golden.cases() {
        let Some(written) = written.get(&case.name) else { continue };
        let (_dir, summary, checkpoint) = imported(&file(&case, written, golden.vocab));
        assert_eq!(summary.vocab_size, golden.vocab);
        let engine =
            Engine::load(&checkpoint, &options(1, 512)).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let difference = alone(&golden, &case, &engine);
        println!("{:28} {difference:?}", case.name);
        if difference.is_nan() || difference > TOLERANCE {
            wrong.push(format!("{}: {difference}", case.name));
        }
        seen.insert(written["keys"]["general.architecture"].as_str().unwrap().to_owned());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, ARCHITECTURES.iter().map(|a| a.name.to_owned()).collect());
}

/// `rope_freqs.weight` of `LlamaModel.generate_extra_tensors`, in f32.
fn llama3_factors(theta: f32, head_dim: usize, factor: f32) -> Vec<f32> {
    const CONTEXT: f32 = 8192.0;
    const HIGH: f32 = 4.0;
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = 2.0 * std::f32::consts::PI * theta.powf(2.0 * i as f32 / head_dim as f32);
            let smooth = (CONTEXT / wavelength - 1.0) / (HIGH - 1.0);
            if wavelength < CONTEXT / HIGH {
                1.0
            } else if wavelength > CONTEXT {
                factor
            } else {
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

/// Llama 3.1's scaling is stored as factors only; imported, the model is the one whose config names the scaling.
#[test]
fn llama_3_factors_become_the_scaling_that_they_came_from() {
    let golden = Golden::load();
    let mut case = golden.cases().find(|case| case.name == "llama-v5").unwrap();
    case.config["rope_parameters"] = json!({
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
    });
    let mut written = written_names()["llama-v5"].take();
    written["keys"]["llama.rope.freq_base"] = json!(500_000.0);
    let plain = file(&case, &written, golden.vocab);
    let factors = llama3_factors(500_000.0, 16, 8.0);
    assert!(factors.iter().any(|f| 1.0 < *f && *f < 8.0) && factors[7] == 8.0, "{factors:?}");

    let logprobs = |checkpoint: &Checkpoint| -> Vec<f32> {
        let engine = Engine::load(checkpoint, &options(1, 512)).unwrap();
        let tokens = engine.prompt_logprobs(&golden.tokens, 0).unwrap();
        tokens.into_iter().flatten().map(|token| token.logprob).collect()
    };
    let (_unscaled, _, unscaled) = imported(&plain);
    let (_scaled, _, scaled) = imported(&plain.f32_values("rope_freqs.weight", &[factors.len()], &factors));
    let (_origin, origin) = case.checkpoint(&case.config);
    let ropes =
        |checkpoint: &Checkpoint| format!("{:?}", ModelConfig::parse(checkpoint.config()).unwrap().ropes);
    assert_eq!(ropes(&scaled), ropes(&origin));
    let (got, want) = (logprobs(&scaled), logprobs(&origin));
    assert!(largest(got.iter().zip(&want).map(|(got, want)| got - want)) <= TOLERANCE);
    assert_ne!(got, logprobs(&unscaled));
}
