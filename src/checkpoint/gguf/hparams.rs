//! Hyperparameters of a GGUF file, as `config.json`.

use serde_json::{Map, Value as Json, json};

use super::architecture::{ARCHITECTURES, Architecture, Bias, Extra, MIXTRAL};
use super::error::GgufProblem;
use super::keys::Keys;
use super::reader::{Gguf, GgufTensor};
use super::rope::{self, Rope};
use super::value::required;

/// Smallest number of tensors of a layer.
const TENSORS_PER_LAYER: usize = 6;

/// Hyperparameters, checked.
#[derive(Debug, Clone)]
pub struct Hparams {
    /// Names and transforms.
    pub architecture: &'static Architecture,
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
    /// Whether the embedding is the output layer too.
    pub tie_word_embeddings: bool,
    /// Biases of q, k, v; of o; of the MLP.
    pub biases: [bool; 3],
    /// Mixture of experts.
    pub experts: Option<ExpertCounts>,
    /// What else `config.json` has.
    fields: Map<String, Json>,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertCounts {
    /// E.
    pub count: usize,
    /// Experts of a token.
    pub per_token: usize,
    /// Width of an expert.
    pub width: usize,
    /// Width of the shared expert.
    pub shared_width: Option<usize>,
}

impl Hparams {
    /// Reads the hyperparameters from the header of `file`; what would change the computation and is not known is
    /// refused.
    pub fn read(gguf: &Gguf, file: &[u8]) -> Result<Self, GgufProblem> {
        let meta = &gguf.metadata;
        let name = required(meta.text("general.architecture"), "general.architecture")?;
        let keys = Keys::of(meta, name);
        let architecture = architecture(name, &keys)?;
        let (hidden_size, heads) =
            (keys.positive("embedding_length")?, keys.positive("attention.head_count")?);
        let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of {heads}");
            return Err(GgufProblem::field(&keys.name("attention.head_count_kv"), &expected, kv_heads));
        }
        let head_dim = head_dim(&keys, hidden_size, heads)?;
        let max_position_embeddings = keys.positive("context_length")?;
        let rope = rope::read(gguf, file, &keys, architecture, head_dim, max_position_embeddings)?;
        let vocab_size = vocab_size(gguf, &keys)?;
        let mut hparams = Self {
            architecture,
            num_hidden_layers: keys.positive("block_count")?,
            hidden_size,
            intermediate_size: keys.positive("feed_forward_length")?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size,
            max_position_embeddings,
            tie_word_embeddings: !gguf.tensors.contains_key("output.weight"),
            biases: biases(gguf, architecture),
            experts: experts(&keys, architecture)?,
            fields: Map::new(),
        };
        let most = gguf.tensors.len() / TENSORS_PER_LAYER;
        if hparams.num_hidden_layers > most {
            let expected = format!("at most {most}, by the number of tensors");
            return Err(GgufProblem::field(&keys.name("block_count"), &expected, hparams.num_hidden_layers));
        }
        hparams.read_fields(&keys, &rope)?;
        keys.refuse_unread()?;
        Ok(hparams)
    }

    /// `config.json`; token ids are added by the caller.
    pub fn to_json(&self, torch_dtype: &str) -> Json {
        let mut config = json!({
            "architectures": [self.architecture.class],
            "model_type": self.architecture.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "torch_dtype": torch_dtype,
        });
        if let Some(object) = config.as_object_mut() {
            object.extend(self.fields.clone());
        }
        config
    }

    /// What differs between architectures.
    fn read_fields(&mut self, keys: &Keys<'_>, rope: &Rope) -> Result<(), GgufProblem> {
        let architecture = self.architecture;
        let eps = keys.required_float("attention.layer_norm_rms_epsilon")?;
        self.set("rms_norm_eps", json!(eps));
        self.set("rope_theta", json!(rope.theta));
        self.set("rope_scaling", rope.scaling.clone());
        if matches!(architecture.qkv_bias, Bias::Attention | Bias::AttentionAndMlp) {
            self.set("attention_bias", json!(self.biases[0]));
        }
        if architecture.qkv_bias == Bias::AttentionAndMlp {
            self.set("mlp_bias", json!(self.biases[2]));
        }
        if let (Some(names), Some(counts)) = (&architecture.experts, self.experts) {
            let normalized = names.normalized.map(|n| ("norm_topk_prob", json!(n)));
            let shared = names.shared_width.zip(counts.shared_width).map(|(field, n)| (field, json!(n)));
            let width = names.width.map(|field| (field, json!(counts.width)));
            let always =
                [(names.count, json!(counts.count)), ("num_experts_per_tok", json!(counts.per_token))];
            for (field, value) in always.into_iter().chain(width).chain(shared).chain(normalized) {
                self.set(field, value);
            }
        }
        self.read_extra(keys, rope)
    }

    /// What one architecture alone has.
    fn read_extra(&mut self, keys: &Keys<'_>, rope: &Rope) -> Result<(), GgufProblem> {
        let architecture = self.architecture;
        match architecture.extra {
            Extra::Gemma2 => self.read_gemma(keys, "attn_logit_softcapping", 2, 46),
            Extra::Gemma3 => {
                let local = keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
                self.set("rope_local_base_freq", json!(local));
                self.read_gemma(keys, "", 6, 62)
            }
            Extra::Phi3 => {
                self.set("hidden_act", json!("silu"));
                let window = keys.count("attention.sliding_window")?.filter(|n| *n > 0);
                self.set("sliding_window", json!(window));
                let original = rope.original.unwrap_or(self.max_position_embeddings);
                self.set("original_max_position_embeddings", json!(original));
                self.set("partial_rotary_factor", json!(rope.dims as f64 / self.head_dim as f64));
                Ok(())
            }
            Extra::Granite => {
                self.set("hidden_act", json!("silu"));
                for (key, field) in [
                    ("attention.scale", "attention_multiplier"),
                    ("embedding_scale", "embedding_multiplier"),
                    ("residual_scale", "residual_multiplier"),
                    ("logit_scale", "logits_scaling"),
                ] {
                    self.set(field, json!(keys.required_float(key)?));
                }
                Ok(())
            }
            Extra::SmolLm3 => {
                // A constant of llama.cpp's graph.
                self.set("no_rope_layer_interval", json!(4));
                self.set("hidden_act", json!("silu"));
                Ok(())
            }
            Extra::Nothing => {
                self.set("hidden_act", json!("silu"));
                if architecture.class == MIXTRAL.class {
                    self.set("sliding_window", Json::Null);
                }
                Ok(())
            }
        }
    }

    /// Gemma's fields. `pattern`: every n-th layer has no window; `wide`: the number of layers of the model whose
    /// scores are scaled by hidden_size / heads instead of the head's width. Both are constants of llama.cpp's graphs.
    fn read_gemma(
        &mut self,
        keys: &Keys<'_>,
        attention_cap: &str,
        pattern: usize,
        wide: usize,
    ) -> Result<(), GgufProblem> {
        if !self.tie_word_embeddings {
            return Err(GgufProblem::unsupported("tensor output.weight", "none, as for every Gemma", "one"));
        }
        keys.only("attention.sliding_window_pattern", pattern)?;
        let scalar = if self.num_hidden_layers == wide {
            self.hidden_size / self.num_attention_heads
        } else {
            self.head_dim
        };
        self.set("query_pre_attn_scalar", json!(scalar));
        self.set("sliding_window", json!(keys.positive("attention.sliding_window")?));
        self.set("hidden_activation", json!("gelu_pytorch_tanh"));
        let logit_cap = if attention_cap.is_empty() {
            self.set("sliding_window_pattern", json!(pattern));
            keys.float("final_logit_softcapping")?
        } else {
            self.set(attention_cap, json!(keys.required_float(attention_cap)?));
            Some(keys.required_float("final_logit_softcapping")?)
        };
        self.set("final_logit_softcapping", json!(logit_cap));
        Ok(())
    }

    fn set(&mut self, field: &str, value: Json) {
        self.fields.insert(field.to_owned(), value);
    }
}

fn architecture(name: &str, keys: &Keys<'_>) -> Result<&'static Architecture, GgufProblem> {
    let found = ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        GgufProblem::unsupported("general.architecture", &known.join(", "), name)
    })?;
    if found.experts.is_none() && keys.count("expert_count")?.is_some_and(|n| n > 0) {
        if found.name == MIXTRAL.name {
            return Ok(&MIXTRAL);
        }
        return Err(GgufProblem::unsupported(&keys.name("expert_count"), "none", "some"));
    }
    Ok(found)
}

/// The width of a head, the same for queries, keys and values.
fn head_dim(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize, GgufProblem> {
    let head_dim = match keys.count("attention.key_length")? {
        Some(length) => length,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of embedding_length {hidden_size}");
            return Err(GgufProblem::field(&keys.name("attention.head_count"), &expected, heads));
        }
    };
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(GgufProblem::field(&keys.name("attention.key_length"), "an even number", head_dim));
    }
    if let Some(length) = keys.count("attention.value_length")?
        && length != head_dim
    {
        let name = keys.name("attention.value_length");
        return Err(GgufProblem::unsupported(&name, &format!("{head_dim} as the other widths"), length));
    }
    Ok(head_dim)
}

fn vocab_size(gguf: &Gguf, keys: &Keys<'_>) -> Result<usize, GgufProblem> {
    let embedding = tensor(gguf, "token_embd.weight")?;
    let vocab_size = embedding.shape.first().copied().unwrap_or(0);
    if vocab_size == 0 {
        return Err(GgufProblem::tensor("token_embd.weight", "at least one row", "none"));
    }
    match keys.count("vocab_size")? {
        Some(declared) if declared != vocab_size => {
            let expected = format!("{vocab_size} as token_embd.weight");
            Err(GgufProblem::field(&keys.name("vocab_size"), &expected, declared))
        }
        _ => Ok(vocab_size),
    }
}

/// Where biases are optional, the first layer says whether there are any; the plan demands them in every layer.
fn biases(gguf: &Gguf, architecture: &Architecture) -> [bool; 3] {
    let has = |tensor: &str| gguf.tensors.contains_key(&format!("blk.0.{tensor}.bias"));
    let attention = has("attn_q") || has("attn_output");
    match architecture.qkv_bias {
        Bias::Never => [false; 3],
        Bias::Always => [true, false, false],
        Bias::Attention => [attention, attention, false],
        Bias::AttentionAndMlp => [attention, attention, has("ffn_gate")],
    }
}

fn experts(keys: &Keys<'_>, architecture: &Architecture) -> Result<Option<ExpertCounts>, GgufProblem> {
    let Some(names) = &architecture.experts else { return Ok(None) };
    // Softmax, and no factor or norm other than the architecture's own.
    keys.only("expert_gating_func", 1)?;
    let name = keys.name("expert_weights_norm");
    if keys.bool("expert_weights_norm")?.is_some_and(|n| n != names.normalized.unwrap_or(true)) {
        return Err(GgufProblem::unsupported(&name, "what the architecture does without", "another value"));
    }
    if let Some(scale) = keys.float("expert_weights_scale")?.filter(|scale| *scale != 1.0 && *scale != 0.0) {
        return Err(GgufProblem::unsupported(&keys.name("expert_weights_scale"), "1", scale));
    }
    let counts = ExpertCounts {
        count: keys.positive("expert_count")?,
        per_token: keys.positive("expert_used_count")?,
        width: match names.width {
            Some(_) => keys.positive("expert_feed_forward_length")?,
            None => keys.positive("feed_forward_length")?,
        },
        shared_width: names
            .shared_width
            .map(|_| keys.positive("expert_shared_feed_forward_length"))
            .transpose()?,
    };
    if counts.per_token > counts.count {
        let expected = format!("at most {}", counts.count);
        return Err(GgufProblem::field(&keys.name("expert_used_count"), &expected, counts.per_token));
    }
    Ok(Some(counts))
}

/// A tensor that must be there.
pub(super) fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a GgufTensor, GgufProblem> {
    gguf.tensors.get(name).ok_or_else(|| GgufProblem::tensor(name, "to be in the file", "nothing"))
}
