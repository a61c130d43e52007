//! Every architecture against transformers: random checkpoints whose weights both sides compute from the tensors' names
//! (`tests/golden/architectures.py` made the values), in both spellings of config.json, with and without sharing.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::fixture::{Tensor, options, write};
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::model::ModelConfig;
use crate::model::architecture::ARCHITECTURES;
use crate::ops::kernel_path::KernelPath;
use crate::record::score::ScoreRequest;

/// Largest difference of a log-probability. transformers' own sums differ by 1e-5 between its attention kernels.
pub(super) const TOLERANCE: f32 = 1e-4;

/// The golden file.
pub(super) struct Golden {
    index: Value,
    values: Vec<u8>,
    pub lengths: Vec<usize>,
    pub tokens: Vec<u32>,
    pub vocab: usize,
}

/// One checkpoint.
pub(super) struct Case {
    pub name: String,
    pub config: Value,
    pub saved: Value,
    pub tensors: Vec<Tensor>,
    /// For each length L two rows of log-probabilities, those at L/2 and L − 1: \[2·lengths, V\].
    pub rows: Vec<f32>,
}

/// The largest of these differences; NaN if one is.
pub(super) fn largest(differences: impl Iterator<Item = f32>) -> f32 {
    // Differences are positive, and NaN is above all numbers.
    differences.map(f32::abs).max_by(f32::total_cmp).unwrap_or(f32::NAN)
}

/// The 32-bit numbers of a name: FNV-1a, then multiples of the golden ratio through lowbias32 (C. Wellons).
fn hashed(name: &str) -> impl Iterator<Item = u32> {
    let seed = name.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    (0u32..).map(move |i| {
        let mut x = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9));
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        x ^ (x >> 16)
    })
}

/// As `value` of the script.
fn tensor(name: &str, shape: Vec<usize>, unit_norms: bool) -> Tensor {
    let (center, size) = if name.contains("norm") {
        (if unit_norms { 1.0 } else { 0.0 }, 0.2)
    } else if name.contains("embed_tokens") || name.ends_with(".gate.weight") {
        (0.0, 1.0)
    } else {
        (0.0, 0.3f32)
    };
    let uniform = hashed(name).map(|x| (x >> 8) as f32 / (1 << 23) as f32 - 1.0);
    let data = uniform.take(shape.iter().product()).flat_map(|u| (center + size * u).to_le_bytes()).collect();
    (name.to_owned(), Dtype::F32, shape, data)
}

impl Golden {
    pub(super) fn load() -> Self {
        // From the root of the repository, wherever that is when the tests run: they may have been built elsewhere.
        let dir = Path::new("tests/golden");
        let text = std::fs::read_to_string(dir.join("architectures.json")).unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        let lengths: Vec<usize> = serde_json::from_value(index["lengths"].clone()).unwrap();
        let vocab = index["vocab_size"].as_u64().unwrap() as usize;
        let longest = *lengths.last().unwrap();
        let tokens: Vec<u32> = hashed("tokens").map(|x| x % vocab as u32).take(longest + 1).collect();
        let first: Vec<u32> = serde_json::from_value(index["tokens"].clone()).unwrap();
        assert_eq!(tokens[..first.len()], first, "both sides hash alike");
        let values = std::fs::read(dir.join("architectures.safetensors")).unwrap();
        Self { index, values, lengths, tokens, vocab }
    }

    pub(super) fn cases(&self) -> impl Iterator<Item = Case> {
        let values = SafeTensors::deserialize(&self.values).unwrap();
        self.index["cases"].as_array().unwrap().iter().map(move |case| {
            let name = case["name"].as_str().unwrap().to_owned();
            let config = case["config"].clone();
            let unit_norms = !config["model_type"].as_str().unwrap().starts_with("gemma");
            let shape = |shape: &Value| serde_json::from_value(shape.clone()).unwrap();
            let tensors = case["tensors"].as_object().unwrap().iter();
            let tensors = tensors.map(|(name, dims)| tensor(name, shape(dims), unit_norms)).collect();
            let rows = values.tensor(&name).unwrap();
            let rows = rows.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Case { name, config, saved: case["saved"].clone(), tensors, rows }
        })
    }
}

impl Case {
    pub(super) fn checkpoint(&self, config: &Value) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), config, &self.tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        (dir, checkpoint)
    }

    pub(super) fn row(&self, golden: &Golden, length: usize, last: bool) -> &[f32] {
        &self.rows[(2 * length + usize::from(last)) * golden.vocab..][..golden.vocab]
    }
}

/// Largest difference without sharing: each length alone, every token of the two kept rows.
pub(super) fn alone(golden: &Golden, case: &Case, engine: &Engine) -> f32 {
    let mut differences = Vec::new();
    for (i, length) in golden.lengths.iter().enumerate() {
        let got = engine.prompt_logprobs(&golden.tokens[..=*length], golden.vocab).unwrap();
        for (position, last) in [(length / 2, false), (length - 1, true)] {
            let want = case.row(golden, i, last);
            let top = &got[position + 1].as_ref().unwrap().top;
            assert_eq!(top.len(), golden.vocab);
            differences.extend(top.iter().map(|(token, logprob)| logprob - want[*token as usize]));
        }
    }
    largest(differences.into_iter())
}

/// The same with sharing: all lengths and several next tokens as requests of one batch, or of many small ones.
pub(super) fn shared(golden: &Golden, case: &Case, engine: &Engine) -> f32 {
    let mut requests = Vec::new();
    let mut want = Vec::new();
    for (i, length) in golden.lengths.iter().enumerate() {
        for token in [0, 7, golden.vocab - 1] {
            let mut tokens = golden.tokens[..*length].to_vec();
            tokens.push(token as u32);
            requests.push(ScoreRequest { tokens, context_len: *length });
            want.push(case.row(golden, i, true)[token]);
        }
    }
    let got = engine.score(&requests, &|_| ()).unwrap();
    largest(got.iter().zip(want).map(|(got, want)| got.token_logprobs[0] - want))
}

#[test]
fn logprobs_of_transformers() {
    let golden = Golden::load();
    let mut wrong = Vec::new();
    for case in golden.cases() {
        let (_dir, checkpoint) = case.checkpoint(&case.config);
        for path in KernelPath::available() {
            let load = |threads, rows| Engine::load_with(&checkpoint, &options(threads, rows), path).unwrap();
            let (large, small) = (load(2, 512), load(1, 8));
            let differences = [
                alone(&golden, &case, &large),
                shared(&golden, &case, &large),
                shared(&golden, &case, &small),
            ];
            println!("{:28} {:16} {differences:?}", case.name, path.name());
            // NaN must not pass.
            if !differences.iter().all(|d| *d <= TOLERANCE) {
                wrong.push(format!("{} {}: {differences:?}", case.name, path.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn both_spellings_are_one_model_and_every_architecture_has_a_case() {
    let golden = Golden::load();
    let mut seen = std::collections::BTreeSet::new();
    for case in golden.cases() {
        let parse =
            |config: &Value| ModelConfig::parse(config).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let (given, saved) = (parse(&case.config), parse(&case.saved));
        assert_eq!(format!("{given:?}"), format!("{saved:?}"), "{}", case.name);
        seen.insert(given.architecture.class);
    }
    assert_eq!(seen, ARCHITECTURES.iter().map(|a| a.class).collect());
}
