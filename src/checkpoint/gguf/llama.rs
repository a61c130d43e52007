//! The llama architecture: metadata to `config.json`, tensor names and row order to those of Hugging Face.

use serde_json::{Value as Json, json};

use super::error::GgufProblem;
use super::reader::{Gguf, GgufTensor};
use super::value::{Metadata, required};

/// Hyperparameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Layers.
    pub num_hidden_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// `rope_scaling` of `config.json`.
    pub rope_scaling: Json,
    /// Whether the embedding is the output layer too.
    pub tie_word_embeddings: bool,
}

/// How the rows of a tensor are brought from GGUF's order to Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    Same,
    /// Rotary pairs of each head lie side by side in GGUF, and half a head apart in Hugging Face's layout.
    Rotary {
        /// Rows of a head (D).
        head_dim: usize,
    },
}

/// One tensor to be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Name in the GGUF file.
    pub source: String,
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in both.
    pub shape: Vec<usize>,
    /// Row order.
    pub rows: RowOrder,
}

/// GGUF's factors of Llama 3.1's rotary scaling; recognised, not copied.
const ROPE_FREQS: &str = "rope_freqs.weight";
/// Smallest number of tensors of a layer.
const TENSORS_PER_LAYER: usize = 9;

impl LlamaConfig {
    /// Reads the hyperparameters from the header of `file`; what would change the computation and is not known is
    /// refused.
    pub fn read(gguf: &Gguf, file: &[u8]) -> Result<Self, GgufProblem> {
        let meta = &gguf.metadata;
        let architecture = required(meta.text("general.architecture"), "general.architecture")?;
        if architecture != "llama" {
            return Err(GgufProblem::unsupported("general.architecture", "llama", architecture));
        }
        refuse_variants(meta)?;
        let count = |key: &str| positive(meta, key);
        let (hidden_size, heads) = (count("llama.embedding_length")?, count("llama.attention.head_count")?);
        let kv_heads = optional(meta, "llama.attention.head_count_kv")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of {heads}");
            return Err(GgufProblem::field("llama.attention.head_count_kv", &expected, kv_heads));
        }
        let head_dim = head_dim(meta, hidden_size, heads)?;
        let (rope_theta, rope_scaling) = rope(gguf, file, head_dim)?;
        let embedding = tensor(gguf, "token_embd.weight")?;
        let vocab_size = embedding.shape.first().copied().unwrap_or(0);
        if vocab_size == 0 {
            return Err(GgufProblem::tensor("token_embd.weight", "at least one row", "none"));
        }
        if let Some(declared) = optional(meta, "llama.vocab_size")?
            && declared != vocab_size
        {
            return Err(GgufProblem::field(
                "llama.vocab_size",
                &format!("{vocab_size} as token_embd.weight"),
                declared,
            ));
        }
        let eps_key = "llama.attention.layer_norm_rms_epsilon";
        let config = Self {
            num_hidden_layers: count("llama.block_count")?,
            hidden_size,
            intermediate_size: count("llama.feed_forward_length")?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size,
            max_position_embeddings: count("llama.context_length")?,
            rms_norm_eps: required(meta.float(eps_key), eps_key)?,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: !gguf.tensors.contains_key("output.weight"),
        };
        let most = gguf.tensors.len() / TENSORS_PER_LAYER;
        if config.num_hidden_layers > most {
            let expected = format!("at most {most}, by the number of tensors");
            return Err(GgufProblem::field("llama.block_count", &expected, config.num_hidden_layers));
        }
        Ok(config)
    }

    /// `config.json`; token ids are added by the caller.
    pub fn to_json(&self, torch_dtype: &str) -> Json {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
            "mlp_bias": false,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "torch_dtype": torch_dtype,
        })
    }

    /// Every tensor of the checkpoint, sorted by name. Each must be in the file with its shape, and nothing else.
    pub fn plan(&self, gguf: &Gguf) -> Result<Vec<PlannedTensor>, GgufProblem> {
        let (h, ff) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads.checked_mul(self.head_dim);
        let q =
            q.ok_or_else(|| GgufProblem::field("llama.attention.key_length", "a head width", self.head_dim))?;
        let kv = self.num_key_value_heads * self.head_dim;
        let rotary = RowOrder::Rotary { head_dim: self.head_dim };
        let layer: [(&str, &str, Vec<usize>, RowOrder); TENSORS_PER_LAYER] = [
            ("attn_norm", "input_layernorm", vec![h], RowOrder::Same),
            ("ffn_norm", "post_attention_layernorm", vec![h], RowOrder::Same),
            ("attn_q", "self_attn.q_proj", vec![q, h], rotary),
            ("attn_k", "self_attn.k_proj", vec![kv, h], rotary),
            ("attn_v", "self_attn.v_proj", vec![kv, h], RowOrder::Same),
            ("attn_output", "self_attn.o_proj", vec![h, q], RowOrder::Same),
            ("ffn_gate", "mlp.gate_proj", vec![ff, h], RowOrder::Same),
            ("ffn_up", "mlp.up_proj", vec![ff, h], RowOrder::Same),
            ("ffn_down", "mlp.down_proj", vec![h, ff], RowOrder::Same),
        ];
        let mut plan = vec![
            planned("token_embd.weight", "model.embed_tokens.weight", vec![self.vocab_size, h]),
            planned("output_norm.weight", "model.norm.weight", vec![h]),
        ];
        if !self.tie_word_embeddings {
            plan.push(planned("output.weight", "lm_head.weight", vec![self.vocab_size, h]));
        }
        for i in 0..self.num_hidden_layers {
            for (source, name, shape, rows) in &layer {
                let (source, name) =
                    (format!("blk.{i}.{source}.weight"), format!("model.layers.{i}.{name}.weight"));
                plan.push(PlannedTensor { source, name, shape: shape.clone(), rows: *rows });
            }
        }
        check_tensors(&plan, gguf)?;
        plan.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(plan)
    }
}

fn planned(source: &str, name: &str, shape: Vec<usize>) -> PlannedTensor {
    PlannedTensor { source: source.to_owned(), name: name.to_owned(), shape, rows: RowOrder::Same }
}

fn check_tensors(plan: &[PlannedTensor], gguf: &Gguf) -> Result<(), GgufProblem> {
    for planned in plan {
        let found = tensor(gguf, &planned.source)?;
        if found.shape != planned.shape {
            let expected = format!("shape {:?}", planned.shape);
            return Err(GgufProblem::tensor(&planned.source, &expected, format_args!("{:?}", found.shape)));
        }
    }
    let known: std::collections::BTreeSet<&str> = plan.iter().map(|p| p.source.as_str()).collect();
    match gguf.tensors.keys().find(|name| !known.contains(name.as_str()) && *name != ROPE_FREQS) {
        None => Ok(()),
        Some(extra) => Err(GgufProblem::unsupported(
            &format!("tensor {}", super::super::header::shown(extra)),
            "only the tensors of a llama decoder without biases and experts",
            "an additional tensor",
        )),
    }
}

/// Settings of llama-like models that would change the computation.
fn refuse_variants(meta: &Metadata) -> Result<(), GgufProblem> {
    for key in ["llama.expert_count", "llama.attention.sliding_window"] {
        if let Some(n) = optional(meta, key)?
            && n > 0
        {
            return Err(GgufProblem::unsupported(key, "none", n));
        }
    }
    Ok(())
}

/// The width of a head, the same for queries, keys, values and the rotary embedding.
fn head_dim(meta: &Metadata, hidden_size: usize, heads: usize) -> Result<usize, GgufProblem> {
    let head_dim = match optional(meta, "llama.attention.key_length")? {
        Some(length) => length,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of embedding_length {hidden_size}");
            return Err(GgufProblem::field("llama.attention.head_count", &expected, heads));
        }
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(length) = optional(meta, key)?
            && length != head_dim
        {
            return Err(GgufProblem::unsupported(key, &format!("{head_dim} as the other widths"), length));
        }
    }
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(GgufProblem::field("llama.attention.key_length", "an even number", head_dim));
    }
    Ok(head_dim)
}

/// `rope_theta` and `rope_scaling`.
fn rope(gguf: &Gguf, file: &[u8], head_dim: usize) -> Result<(f64, Json), GgufProblem> {
    let meta = &gguf.metadata;
    let theta = meta.float("llama.rope.freq_base")?.unwrap_or(10000.0);
    let kind = meta.text("llama.rope.scaling.type")?.unwrap_or("none");
    let factor = meta.float("llama.rope.scaling.factor")?.unwrap_or(1.0);
    let factors = gguf.tensors.get(ROPE_FREQS);
    match (kind, factors) {
        ("none" | "linear", None) if factor == 1.0 => Ok((theta, Json::Null)),
        ("linear", None) if factor > 0.0 => Ok((theta, json!({"rope_type": "linear", "factor": factor}))),
        ("none", Some(factors)) => {
            let values = factors
                .block_type
                .to_f32(&file[factors.begin..factors.end])
                .map_err(|error| GgufProblem::tensor(ROPE_FREQS, "readable values", error))?;
            if values.len() != head_dim / 2 {
                let expected = format!("{} factors", head_dim / 2);
                return Err(GgufProblem::tensor(ROPE_FREQS, &expected, values.len()));
            }
            Ok((theta, llama3_scaling(&values, theta)?))
        }
        _ => {
            let found = format!("{kind} with factor {factor}");
            let expected = "none, linear, or Llama 3.1's factors";
            Err(GgufProblem::unsupported("llama.rope.scaling.type", expected, found))
        }
    }
}

/// Recognises Llama 3.1's rotary scaling by its factors, one for each of D/2 frequencies, as
/// convert_hf_to_gguf.py computes them: 1 below a wavelength of 2048, `factor` above 8192, smooth between.
pub fn llama3_scaling(factors: &[f32], theta: f64) -> Result<Json, GgufProblem> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const CONTEXT: f64 = 8192.0;
    let factor = f64::from(factors.last().copied().unwrap_or(1.0)).round();
    let dim = (2 * factors.len()) as f64;
    for (i, found) in factors.iter().enumerate() {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / dim);
        let expected = if wavelength < CONTEXT / HIGH {
            1.0
        } else if wavelength > CONTEXT / LOW {
            factor
        } else {
            let smooth = (CONTEXT / wavelength - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        // The converter computes in f32.
        if (f64::from(*found) - expected).abs() > 1e-4 * expected {
            let expected = format!("Llama 3.1's factor {expected:.4} at index {i}");
            return Err(GgufProblem::unsupported(ROPE_FREQS, &expected, found));
        }
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
        "original_max_position_embeddings": CONTEXT as u64,
    }))
}

fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a GgufTensor, GgufProblem> {
    gguf.tensors.get(name).ok_or_else(|| GgufProblem::tensor(name, "to be in the file", "nothing"))
}

fn optional(meta: &Metadata, key: &str) -> Result<Option<usize>, GgufProblem> {
    meta.count(key)
}

fn positive(meta: &Metadata, key: &str) -> Result<usize, GgufProblem> {
    match required(meta.count(key), key)? {
        0 => Err(GgufProblem::field(key, "a positive number", 0)),
        n => Ok(n),
    }
}
