//! Small random checkpoints, and where the shared models lie.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::base::threads::{Threads, detect};
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions};
use crate::quantize::{Arithmetic, QuantizePlan};
use crate::record::Provenance;
use crate::record::score::{ScoreRequest, ScoreResult};

/// A tensor to write.
pub(super) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Which random model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model {
    pub tied: bool,
    /// Input quantization: `float` (FP8) or `int` (INT8), or none.
    pub quantized: Option<&'static str>,
    /// Whether heads and the MLP have the widths whose results bf16 mode rounds at once, multiples of 32.
    pub wide: bool,
}

pub(crate) const VOCAB: usize = 40;
pub(super) const MAX_LEN: usize = 96;
const HIDDEN: usize = 24;
const LAYERS: usize = 2;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;

struct Noise(u32);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, name: String, shape: &[usize], size: f32, around: f32) -> Tensor {
        let len = shape.iter().product();
        let data = (0..len).flat_map(|_| (around + size * self.next()).to_le_bytes()).collect();
        (name, Dtype::F32, shape.to_vec(), data)
    }

    fn codes(&mut self, name: String, dtype: Dtype, shape: &[usize]) -> Tensor {
        let len = shape.iter().product();
        // Below 0x78: neither NaN nor large in E4M3.
        let data = (0..len).map(|_| (self.next().abs() * 112.0) as u8 | (u8::from(self.next() < 0.0) << 7));
        (name, dtype, shape.to_vec(), data.collect())
    }
}

impl Model {
    fn head_dim(self) -> usize {
        if self.wide { 32 } else { 8 }
    }

    fn inner(self) -> usize {
        if self.wide { 64 } else { 40 }
    }

    pub(super) fn config(self) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": self.inner(), "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": self.head_dim(), "vocab_size": VOCAB, "max_position_embeddings": MAX_LEN,
            "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
            "tie_word_embeddings": self.tied, "dtype": "float32"
        });
        if let Some(kind) = self.quantized {
            let args = |strategy: &str, dynamic: bool| json!({"num_bits": 8, "type": kind, "symmetric": true, "strategy": strategy, "dynamic": dynamic});
            config["quantization_config"] = json!({
                "quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": ["lm_head"],
                "format": if kind == "float" { "float-quantized" } else { "int-quantized" },
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": args("channel", false),
                    "input_activations": args("token", true)}}
            });
        }
        config
    }

    pub(super) fn tensors(self, seed: u32) -> Vec<Tensor> {
        let mut noise = Noise(seed);
        let (inner, queries, keys) = (self.inner(), HEADS * self.head_dim(), KV_HEADS * self.head_dim());
        let mut tensors = vec![noise.floats("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 1.0, 0.0)];
        tensors.push(noise.floats("model.norm.weight".into(), &[HIDDEN], 0.2, 1.0));
        if !self.tied {
            tensors.push(noise.floats("lm_head.weight".into(), &[VOCAB, HIDDEN], 1.0, 0.0));
        }
        for i in 0..LAYERS {
            let name = |module: &str| format!("model.layers.{i}.{module}");
            for norm in ["input_layernorm.weight", "post_attention_layernorm.weight"] {
                tensors.push(noise.floats(name(norm), &[HIDDEN], 0.2, 1.0));
            }
            for (module, n, k) in [
                ("self_attn.q_proj", queries, HIDDEN),
                ("self_attn.k_proj", keys, HIDDEN),
                ("self_attn.v_proj", keys, HIDDEN),
                ("self_attn.o_proj", HIDDEN, queries),
                ("mlp.gate_proj", inner, HIDDEN),
                ("mlp.up_proj", inner, HIDDEN),
                ("mlp.down_proj", HIDDEN, inner),
            ] {
                let weight = name(&format!("{module}.weight"));
                match self.quantized {
                    None => tensors.push(noise.floats(weight, &[n, k], 0.3, 0.0)),
                    Some(kind) => {
                        let dtype = if kind == "float" { Dtype::F8_E4M3 } else { Dtype::I8 };
                        let size = if kind == "float" { 5e-4 } else { 2e-3 };
                        tensors.push(noise.floats(format!("{weight}_scale"), &[n, 1], size / 2.0, size));
                        tensors.push(noise.codes(weight, dtype, &[n, k]));
                    }
                }
            }
        }
        tensors
    }
}

/// Writes a checkpoint directory.
pub(super) fn write(dir: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

pub(crate) fn checkpoint(model: Model, seed: u32) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &model.config(), &model.tensors(seed));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// A checkpoint quantized by a recipe's text.
pub(super) fn quantized(source: Checkpoint, recipe: &str) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("recipe.yaml");
    std::fs::write(&file, recipe).unwrap();
    let recipe = crate::recipe::load(file.to_str().unwrap()).unwrap();
    let plan = QuantizePlan::new(Arc::new(source), recipe, Arithmetic::F32).unwrap();
    let out = dir.path().join("quantized");
    std::fs::create_dir(&out).unwrap();
    let shards = (0..plan.num_shards()).map(|i| plan.write_shard(i, &out, &|_| ()).unwrap()).collect();
    plan.finish(&out, shards, Provenance::new(detect(Some(1)))).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    (dir, checkpoint)
}

pub(crate) fn options(threads: usize, max_batched_tokens: usize) -> EngineOptions {
    let threads = Threads { count: threads, origin: "test".to_owned() };
    EngineOptions { max_batched_tokens, ..EngineOptions::new(threads) }
}

pub(super) fn engine(model: Model) -> Engine {
    Engine::load(&checkpoint(model, 1).1, &options(2, 512)).unwrap()
}

/// 200 requests of a few-shot task: one header, a few long contexts among short ones, four continuations each.
pub(crate) fn two_hundred() -> Vec<ScoreRequest> {
    let token = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u32 % VOCAB as u32;
    let header: Vec<u32> = (0..33).map(token).collect();
    (0..50)
        .flat_map(|item| {
            let len = if item % 8 == 0 { 29 + item % 5 } else { 1 + item % 7 };
            let context: Vec<u32> = (0..len).map(|i| token(1000 + item * 50 + i)).collect();
            let tokens = [header.clone(), context].concat();
            (0..4).map(move |choice| {
                let continuation =
                    (0..=(item + choice) % 3).map(|i| token(9000 + item * 40 + choice * 10 + i));
                let context_len = tokens.len();
                ScoreRequest { tokens: tokens.iter().copied().chain(continuation).collect(), context_len }
            })
        })
        .collect()
}

/// An order of `count` things that is not theirs.
pub(crate) fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|i| (*i as u32 + 1).wrapping_mul(2_654_435_769));
    order
}

/// All of a result that must not depend on anything but the request.
pub(crate) fn bits(result: &ScoreResult) -> (Vec<u32>, Vec<bool>) {
    (result.token_logprobs.iter().map(|l| l.to_bits()).collect(), result.token_is_greedy.clone())
}

/// A path outside the repository's tracked files, or `None` with a printed reason.
pub(super) fn outside(relative: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(relative);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {relative} is not there");
    None
}
