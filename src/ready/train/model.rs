//! The llama graph over a map of tensors under Hugging Face's names, for training and for checking.
//!
//! Shapes: B sequences of T tokens, H query and KV key heads of dimension D, C hidden, V vocabulary.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::fused::{CausalSoftmax, RmsNorm, Rope, SwiGlu};
use super::tokens::END_OF_TEXT_ID;
use super::{Result, TrainError};

/// Sizes; hidden and intermediate are multiples of 128, so that groups of 128 divide them.
#[derive(Clone, Debug)]
pub struct Config {
    /// V
    pub vocab_size: usize,
    /// C
    pub hidden_size: usize,
    /// Width of the gated layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// H
    pub num_heads: usize,
    /// KV
    pub num_kv_heads: usize,
}

/// D
pub const HEAD_DIM: usize = 64;
/// Longest sequence the configuration declares.
pub const MAX_POSITIONS: usize = 256;
const ROPE_THETA: f32 = 10_000.0;
const RMS_NORM_EPS: f32 = 1e-5;
/// Standard deviation of initial weights, as in GPT-2 and llama.
const INIT_STD: f32 = 0.02;
/// Larger, so that which token it is outweighs what the first steps write to the residual stream.
const EMBEDDING_STD: f32 = 0.05;

impl Config {
    /// The sizes of day0-tiny: 3.0 M parameters at a vocabulary of 1,024.
    pub fn tiny(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            hidden_size: 256,
            intermediate_size: 640,
            num_layers: 4,
            num_heads: 4,
            num_kv_heads: 2,
        }
    }

    /// Every tensor's name and shape, in the order of the graph.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (c, i) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_heads * HEAD_DIM, self.num_kv_heads * HEAD_DIM);
        let layer = [
            ("input_layernorm", vec![c]),
            ("self_attn.q_proj", vec![q, c]),
            ("self_attn.k_proj", vec![kv, c]),
            ("self_attn.v_proj", vec![kv, c]),
            ("self_attn.o_proj", vec![c, q]),
            ("post_attention_layernorm", vec![c]),
            ("mlp.gate_proj", vec![i, c]),
            ("mlp.up_proj", vec![i, c]),
            ("mlp.down_proj", vec![c, i]),
        ];
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, c])];
        for n in 0..self.num_layers {
            all.extend(
                layer.iter().map(|(name, dims)| (format!("model.layers.{n}.{name}.weight"), dims.clone())),
            );
        }
        all.push(("model.norm.weight".to_owned(), vec![c]));
        all
    }

    /// Parameters in all; the head shares the embedding.
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum()
    }

    /// Random weights: normal, the projections that write to the residual stream smaller by √(2·layers).
    pub fn initial(&self, rng: &mut ChaCha8Rng) -> Result<BTreeMap<String, Var>> {
        let residual_std = INIT_STD / (2.0 * self.num_layers as f32).sqrt();
        let mut vars = BTreeMap::new();
        for (name, dims) in self.tensors() {
            let n: usize = dims.iter().product();
            let data = if dims.len() == 1 {
                vec![1.0; n]
            } else {
                let writes = name.contains("o_proj") || name.contains("down_proj");
                let std = match name.as_str() {
                    "model.embed_tokens.weight" => EMBEDDING_STD,
                    _ if writes => residual_std,
                    _ => INIT_STD,
                };
                (0..n).map(|_| std * normal(rng)).collect()
            };
            vars.insert(name, Var::from_vec(data, dims, &Device::Cpu)?);
        }
        Ok(vars)
    }

    /// `config.json`.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": MAX_POSITIONS,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_key_value_heads": self.num_kv_heads,
            "pad_token_id": END_OF_TEXT_ID,
            "rms_norm_eps": 1e-5,
            "rope_scaling": null,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }
}

/// A standard normal number by Box and Muller's transform.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

/// What happens to the input of every quantized linear layer.
pub type ActivationHook = fn(&Tensor) -> candle_core::Result<Tensor>;

/// A graph over weights of any origin.
pub struct Model {
    /// Sizes.
    pub config: Config,
    /// Weights by name, f32.
    pub weights: BTreeMap<String, Tensor>,
    /// Rounds activations, for simulated schemes.
    pub activations: Option<ActivationHook>,
}

impl Model {
    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.weights.get(name).ok_or_else(|| TrainError::MissingTensor { name: name.to_owned() })
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.matmul(&self.weight(name)?.t()?)?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        Ok(x.apply_op2(self.weight(name)?, RmsNorm { eps: RMS_NORM_EPS })?)
    }

    /// The input of one or more linear layers, rounded where the scheme says so.
    fn input(&self, x: Tensor) -> Result<Tensor> {
        Ok(match self.activations {
            Some(hook) => hook(&x)?,
            None => x,
        })
    }

    /// Final hidden states `[B·T, C]` of token ids `[B, T]`; `starts` as in [`CausalSoftmax`].
    pub fn hidden(&self, ids: &Tensor, starts: &Arc<[usize]>) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let embedding = self.weight("model.embed_tokens.weight")?;
        let mut x = embedding.index_select(&ids.flatten_all()?, 0)?;
        for n in 0..self.config.num_layers {
            let layer = format!("model.layers.{n}");
            let h = self.norm(&x, &format!("{layer}.input_layernorm.weight"))?;
            x = (x + self.attention(&self.input(h)?, &layer, (b, t), starts)?)?;
            let h = self.norm(&x, &format!("{layer}.post_attention_layernorm.weight"))?;
            x = (x + self.mlp(&self.input(h)?, &layer)?)?;
        }
        self.norm(&x, "model.norm.weight")
    }

    /// Logits `[N, V]` of hidden states `[N, C]`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.linear(hidden, "model.embed_tokens.weight")
    }

    fn attention(
        &self,
        x: &Tensor,
        layer: &str,
        (b, t): (usize, usize),
        starts: &Arc<[usize]>,
    ) -> Result<Tensor> {
        let (h, kv) = (self.config.num_heads, self.config.num_kv_heads);
        // [B·T, heads·D] → [B, heads, T, D]
        let project = |name: &str, heads: usize| -> Result<Tensor> {
            let y = self.linear(x, &format!("{layer}.self_attn.{name}.weight"))?;
            Ok(y.reshape((b, t, heads, HEAD_DIM))?.transpose(1, 2)?.contiguous()?)
        };
        let rope = || Rope { theta: ROPE_THETA, sign: 1.0 };
        let q = project("q_proj", h)?.apply_op1(rope())?;
        let k = project("k_proj", kv)?.apply_op1(rope())?;
        let v = project("v_proj", kv)?;
        // The H/KV query heads of one key head lie side by side: [B, KV, H/KV·T, D].
        let q = q.reshape((b, kv, h / kv * t, HEAD_DIM))?;
        let scores = q.matmul(&k.t()?)?;
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let y = scores.apply_op1(CausalSoftmax { scale, starts: starts.clone() })?.matmul(&v)?;
        // [B, H, T, D] → [B·T, H·D]
        let y =
            y.reshape((b, h, t, HEAD_DIM))?.transpose(1, 2)?.contiguous()?.reshape((b * t, h * HEAD_DIM))?;
        self.linear(&self.input(y)?, &format!("{layer}.self_attn.o_proj.weight"))
    }

    fn mlp(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        let gate = self.linear(x, &format!("{layer}.mlp.gate_proj.weight"))?;
        let up = self.linear(x, &format!("{layer}.mlp.up_proj.weight"))?;
        let y = self.input(gate.apply_op2(&up, SwiGlu)?)?;
        self.linear(&y, &format!("{layer}.mlp.down_proj.weight"))
    }
}

/// The same weights rounded to bf16, as they are stored, in f32.
pub fn rounded(weights: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let round = |w: &Tensor| w.detach().to_dtype(DType::BF16)?.to_dtype(DType::F32);
    weights.iter().map(|(name, w)| Ok((name.clone(), round(w)?))).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::fused::CrossEntropy;
    use super::*;

    /// The gradient of each tensor, along itself, against central differences of the loss.
    #[test]
    fn gradients_reach_every_tensor() {
        let mut config = Config::tiny(64);
        config.num_layers = 2;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let vars = config.initial(&mut rng).unwrap();
        let ids: Vec<u32> = (0..24).map(|_| rng.random_range(0..64)).collect();
        let targets: Vec<u32> = (0..24).map(|_| rng.random_range(0..64)).collect();
        let ids = Tensor::from_vec(ids, (2, 12), &Device::Cpu).unwrap();
        // Larger than at the start of a training, so that attention is far from uniform.
        let mut weights: BTreeMap<String, Tensor> = BTreeMap::new();
        for (name, var) in &vars {
            if name.contains("_proj") {
                var.set(&(var.as_tensor() * 3.0).unwrap()).unwrap();
            }
            weights.insert(name.clone(), var.as_tensor().clone());
        }
        let mut model = Model { config, weights, activations: None };
        let loss = |model: &Model| {
            let logits = model.logits(&model.hidden(&ids, &Arc::default()).unwrap()).unwrap();
            logits.apply_op1(CrossEntropy { targets: targets.clone() }).unwrap()
        };
        let grads = loss(&model).backward().unwrap();
        for (name, var) in &vars {
            let var = var.as_tensor();
            let grad = grads.get(var).unwrap_or_else(|| panic!("no gradient for {name}"));
            let slope = (grad * grad).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let h = 0.01 / slope.sqrt();
            let mut at = |h: f32| {
                let moved = (var.detach() + (grad * f64::from(h)).unwrap()).unwrap();
                model.weights.insert(name.clone(), moved);
                loss(&model).to_scalar::<f32>().unwrap()
            };
            let measured = (at(h) - at(-h)) / (2.0 * h);
            model.weights.insert(name.clone(), var.clone());
            assert!((slope - measured).abs() < 0.02 * slope, "{name}: {slope} against {measured}");
        }
    }
}
