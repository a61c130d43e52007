//! What `config.json` says of the decoder, checked: every field this engine computes with, in both spellings.
//!
//! What an architecture's fields are called and what absent ones mean stands in [`super::architecture`]. A field that is
//! not known to be harmless and says something, or an option that is not implemented, is refused by name.

use serde_json::Value;

use super::architecture::{ARCHITECTURES, Architecture, Bias, Experts, RopeLayout, Scales, Window};
use super::config_fields::Fields;
use super::rope::{Rope, RopeContext};
use crate::base::closest;
use crate::ops::gated::Activation;
use crate::ops::log_softmax::LogitMap;
use crate::record::{Classified, FailureClass};

/// A decoder.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Names and structure.
    pub architecture: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// D, even.
    pub head_dim: usize,
    /// V.
    pub vocab_size: usize,
    /// Longest input.
    pub max_position_embeddings: usize,
    /// ε of every normalization.
    pub rms_norm_eps: f32,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// Biases of q, k, v; of o; of the MLP.
    pub biases: [bool; 3],
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// Factor of attention scores.
    pub attention_scale: f32,
    /// Factor of what a block adds to the residual stream.
    pub residual_scale: f32,
    /// Cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// From the head's products to logits.
    pub logit_map: LogitMap,
    /// Rotary embeddings that layers refer to.
    pub ropes: Vec<Rope>,
    /// Layer by layer.
    pub layers: Vec<LayerConfig>,
    /// Mixture of experts.
    pub experts: Option<ExpertsConfig>,
}

/// What differs between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Keys that a row sees, its own included; all before it where absent.
    pub window: Option<usize>,
    /// Index of the rotary embedding.
    pub rope: Option<usize>,
    /// Whether experts take the place of the MLP.
    pub experts: bool,
}

/// Mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// E.
    pub count: usize,
    /// Experts of a token.
    pub per_token: usize,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalized: bool,
    /// Width of an expert.
    pub width: usize,
    /// Width of the shared expert.
    pub shared_width: Option<usize>,
}

/// Why a model configuration cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No implementation for the architecture.
    #[error("config.json: architecture {found} is not implemented")]
    Architecture {
        /// What the file names.
        found: String,
    },
    /// An option that changes the computation, or may.
    #[error("config.json: {field} = {found} is not implemented")]
    Option {
        /// Field, with a dot for nested ones.
        field: String,
        /// Its value.
        found: String,
    },
    /// A field the computation needs.
    #[error("config.json: {field} is missing")]
    Missing {
        /// Field, with a dot for nested ones.
        field: String,
    },
    /// A field of the wrong type or value.
    #[error("config.json: {field} must be {expected}, found {found}")]
    Wrong {
        /// Field, with a dot for nested ones.
        field: String,
        /// What would be right.
        expected: String,
        /// What the file says.
        found: String,
    },
}

impl Classified for ConfigError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Architecture { .. } | Self::Option { .. } => FailureClass::ModelUnsupported,
            Self::Missing { .. } | Self::Wrong { .. } => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Architecture { found } => {
                let classes: Vec<&str> = ARCHITECTURES.iter().map(|a| a.class).collect();
                let like = closest::closest(found, classes.iter().copied());
                let like = like.map_or(String::new(), |name| format!(" (the closest is {name})"));
                Some(format!(
                    "the built-in engine runs {}{like}; serve other models with an external engine and --endpoint",
                    classes.join(", ")
                ))
            }
            Self::Option { .. } => Some("serve this model with an external engine and --endpoint".to_owned()),
            Self::Missing { .. } | Self::Wrong { .. } => None,
        }
    }
}

impl ModelConfig {
    /// Reads the parsed `config.json`.
    pub fn parse(config: &Value) -> Result<Self, ConfigError> {
        let fields = Fields::of(config, "")?;
        let architecture = architecture(&fields)?;
        let defaults = &architecture.defaults;
        let hidden_size = fields.positive("hidden_size", None)?;
        let heads = fields.positive("num_attention_heads", None)?;
        let kv_heads = kv_heads(&fields, architecture, heads)?;
        let head_dim = head_dim(&fields, architecture, hidden_size, heads)?;
        let max_positions = fields.positive("max_position_embeddings", defaults.max_positions)?;
        let num_layers = fields.positive("num_hidden_layers", None)?;
        let (ropes, rotated) = ropes(&fields, architecture, head_dim, max_positions, num_layers)?;
        let windows = windows(&fields, architecture, num_layers, &rotated)?;
        let (experts, sparse) = experts(&fields, architecture, num_layers)?;
        let layers = (0..num_layers).map(|i| {
            let rope = if ropes.len() > 1 { usize::from(windows[i].is_some()) } else { 0 };
            LayerConfig { window: windows[i], rope: rotated[i].then_some(rope), experts: sparse[i] }
        });
        let layers = layers.collect();
        let [embedding_scale, attention_scale, residual_scale, divisor] =
            scales(&fields, architecture, hidden_size, head_dim)?;
        let parsed = Self {
            architecture,
            hidden_size,
            intermediate_size: fields.positive("intermediate_size", None)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: fields.positive("vocab_size", None)?,
            max_position_embeddings: max_positions,
            rms_norm_eps: fields.number("rms_norm_eps", Some(defaults.eps))? as f32,
            tie_word_embeddings: fields.flag("tie_word_embeddings", defaults.tied)?,
            activation: activation(&fields, architecture)?,
            biases: biases(&fields, architecture)?,
            embedding_scale,
            attention_scale,
            residual_scale,
            attention_softcap: softcap(&fields, architecture.attention_softcap)?,
            logit_map: LogitMap { divisor, softcap: softcap(&fields, architecture.logit_softcap)? },
            ropes,
            layers,
            experts,
        };
        fields.refuse_unread()?;
        Ok(parsed)
    }

    /// Where longer inputs rotate all their positions differently, the longest that do not.
    pub fn longest_short_input(&self) -> Option<usize> {
        self.ropes.iter().find_map(Rope::longest_short_input)
    }

    /// Whether an input of `len` tokens is longer than [`Self::longest_short_input`].
    pub fn is_long_input(&self, len: usize) -> bool {
        self.longest_short_input().is_some_and(|short| len > short)
    }
}

fn architecture(fields: &Fields<'_>) -> Result<&'static Architecture, ConfigError> {
    let expected = "a list of class names";
    let classes = fields.list("architectures", expected, Value::as_str)?.unwrap_or_default();
    let model_type = fields.text("model_type")?;
    let by = |found: &str, matches: &dyn Fn(&Architecture) -> bool| {
        let found = found.to_owned();
        ARCHITECTURES.iter().find(|a| matches(a)).ok_or(ConfigError::Architecture { found })
    };
    match (classes.as_slice(), model_type) {
        ([], None) => Err(fields.missing("architectures")),
        ([], Some(model_type)) => by(model_type, &|a| a.model_type == model_type),
        (classes, model_type) => {
            let found = by(&classes.join(", "), &|a| classes == [a.class])?;
            // Loaders go by the one or by the other.
            if model_type.is_some_and(|t| t != found.model_type) {
                return Err(fields.unsupported("model_type"));
            }
            Ok(found)
        }
    }
}

fn kv_heads(fields: &Fields<'_>, architecture: &Architecture, heads: usize) -> Result<usize, ConfigError> {
    let field = "num_key_value_heads";
    let absent_is_heads = architecture.defaults.key_value_heads || fields.raw(field).is_some();
    let kv_heads = fields.positive(field, absent_is_heads.then_some(heads))?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.wrong(field, format!("a divisor of num_attention_heads = {heads}")));
    }
    Ok(kv_heads)
}

fn head_dim(
    fields: &Fields<'_>,
    architecture: &Architecture,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, ConfigError> {
    let derived = hidden_size / heads;
    let default = match architecture.defaults.head_dim {
        Some(_) if fields.raw("head_dim").is_some() => None,
        Some(default) => Some(default),
        None => (derived > 0).then_some(derived),
    };
    let head_dim = fields.positive("head_dim", default)?;
    if head_dim % 2 != 0 {
        let (field, expected) = ("head_dim".to_owned(), "even".to_owned());
        return Err(ConfigError::Wrong { field, expected, found: head_dim.to_string() });
    }
    Ok(head_dim)
}

fn activation(fields: &Fields<'_>, architecture: &Architecture) -> Result<Activation, ConfigError> {
    let (field, default) = architecture.activation;
    let named = |field: &str| match fields.text(field)? {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("gelu_pytorch_tanh") => Ok(Some(Activation::GeluTanh)),
        Some(_) => Err(fields.unsupported(field)),
    };
    let found = named(field)?.unwrap_or(default);
    // Gemma's files have both fields; where they differ, loaders do.
    if named("hidden_act")?.is_some_and(|other| other != found) {
        return Err(fields.unsupported("hidden_act"));
    }
    Ok(found)
}

fn biases(fields: &Fields<'_>, architecture: &Architecture) -> Result<[bool; 3], ConfigError> {
    let bias = |bias: Bias| match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Field(field, default) => fields.flag(field, default),
    };
    Ok([bias(architecture.qkv_bias)?, bias(architecture.output_bias)?, bias(architecture.mlp_bias)?])
}

/// Factors of embeddings, scores and residuals, and the divisor of logits.
fn scales(
    fields: &Fields<'_>,
    architecture: &Architecture,
    hidden_size: usize,
    head_dim: usize,
) -> Result<[f32; 4], ConfigError> {
    let inverse_root = |n: f64| (1.0 / n.sqrt()) as f32;
    Ok(match architecture.scales {
        Scales::Plain => [1.0, inverse_root(head_dim as f64), 1.0, 1.0],
        Scales::Gemma => {
            let query = fields.number("query_pre_attn_scalar", Some(256.0))?;
            [(hidden_size as f64).sqrt() as f32, inverse_root(query), 1.0, 1.0]
        }
        Scales::Granite => {
            let factor = |field: &str| fields.number(field, Some(1.0)).map(|x| x as f32);
            [
                factor("embedding_multiplier")?,
                factor("attention_multiplier")?,
                factor("residual_multiplier")?,
                factor("logits_scaling")?,
            ]
        }
    })
}

/// `null` means no cap, which an absent field need not.
fn softcap(
    fields: &Fields<'_>,
    softcap: Option<(&'static str, Option<f64>)>,
) -> Result<Option<f32>, ConfigError> {
    let Some((field, default)) = softcap else { return Ok(None) };
    let cap = if fields.raw(field).is_some() { fields.optional_number(field)? } else { default };
    Ok(cap.map(|c| c as f32))
}

/// The rotary embeddings, and which layers rotate.
fn ropes(
    fields: &Fields<'_>,
    architecture: &Architecture,
    head_dim: usize,
    max_positions: usize,
    num_layers: usize,
) -> Result<(Vec<Rope>, Vec<bool>), ConfigError> {
    let field = "original_max_position_embeddings";
    let original = match architecture.defaults.original_max_positions {
        None if fields.get(field).is_none() => None,
        default => Some(fields.positive(field, default)?),
    };
    let context = RopeContext {
        head_dim,
        max_positions,
        theta: architecture.defaults.theta,
        partial: architecture.rope == RopeLayout::Partial,
        original,
    };
    let all = vec![true; num_layers];
    Ok(match architecture.rope {
        RopeLayout::Same | RopeLayout::Partial => (vec![context.read(fields)?], all),
        RopeLayout::PerLayerType => {
            const LOCAL_THETA: f64 = 10_000.0;
            (context.read_per_layer_type(fields, LOCAL_THETA)?.into(), all)
        }
        RopeLayout::SomeLayers => {
            let interval = fields.positive("no_rope_layer_interval", Some(4))?;
            let flag = |v: &Value| v.as_u64().filter(|n| *n < 2).map(|n| n == 1);
            let expected = format!("{num_layers} numbers, 1 for layers that rotate and 0 for others");
            let listed = fields.list("no_rope_layers", &expected, flag)?.filter(|l| !l.is_empty());
            let rotated = listed.unwrap_or_else(|| (1..=num_layers).map(|i| i % interval != 0).collect());
            if rotated.len() != num_layers {
                return Err(fields.wrong("no_rope_layers", expected));
            }
            (vec![context.read(fields)?], rotated)
        }
    })
}

/// The window of each layer.
fn windows(
    fields: &Fields<'_>,
    architecture: &Architecture,
    num_layers: usize,
    rotated: &[bool],
) -> Result<Vec<Option<usize>>, ConfigError> {
    let used = || fields.flag("use_sliding_window", false);
    let size = |default: Option<usize>| match fields.raw("sliding_window") {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => fields.positive("sliding_window", None).map(Some),
    };
    // Qwen's files carry it whether or not their class looks at it.
    let upper = |default| match fields.get("max_window_layers") {
        Some(value) => value
            .as_u64()
            .ok_or_else(|| fields.wrong("max_window_layers", "a number of layers"))
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        None => Ok(default),
    };
    let max_window_layers = upper(28)?;
    let (window, by_rule): (Option<usize>, Vec<bool>) = match architecture.window {
        Window::Never => (None, vec![false; num_layers]),
        Window::All(default) => (size(default)?, vec![true; num_layers]),
        Window::AllIfUsed | Window::Upper | Window::LowerAlternating | Window::NoRope => {
            let default = if architecture.window == Window::NoRope { None } else { Some(4096) };
            let window = if used()? { size(default)? } else { None };
            fields.raw("sliding_window");
            let rule = |i: usize| match architecture.window {
                Window::Upper => i >= max_window_layers,
                Window::LowerAlternating => i.is_multiple_of(2) && i < max_window_layers,
                Window::NoRope => !rotated[i],
                _ => true,
            };
            (window, (0..num_layers).map(rule).collect())
        }
        Window::Pattern(field, default) => {
            let pattern = field.map_or(Ok(default), |field| fields.positive(field, Some(default)))?;
            (size(Some(4096))?, (1..=num_layers).map(|i| i % pattern != 0).collect())
        }
    };
    let windows = by_rule.iter().map(|limited| window.filter(|_| *limited));
    layer_types(fields, architecture, window, windows.collect())
}

/// `layer_types` where the architecture has it; elsewhere it must say what the other fields say.
fn layer_types(
    fields: &Fields<'_>,
    architecture: &Architecture,
    window: Option<usize>,
    by_rule: Vec<Option<usize>>,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let field = "layer_types";
    let expected = format!("{} times full_attention or sliding_attention", by_rule.len());
    let Some(kinds) = fields.list(field, &expected, Value::as_str)?.filter(|l| !l.is_empty()) else {
        return Ok(by_rule);
    };
    if kinds.iter().any(|kind| !matches!(*kind, "full_attention" | "sliding_attention")) {
        return Err(fields.unsupported(field));
    }
    let listed: Vec<bool> = kinds.iter().map(|kind| *kind == "sliding_attention").collect();
    if listed.len() != by_rule.len() {
        return Err(fields.wrong(field, expected));
    }
    let has_field = !matches!(architecture.window, Window::Never | Window::All(_) | Window::AllIfUsed);
    let agrees = listed.iter().zip(&by_rule).all(|(sliding, window)| *sliding == window.is_some());
    if !agrees && (!has_field || window.is_none()) {
        return Err(fields.unsupported(field));
    }
    Ok(listed.iter().map(|sliding| window.filter(|_| *sliding)).collect())
}

/// The mixture of experts, and which layers have it.
fn experts(
    fields: &Fields<'_>,
    architecture: &Architecture,
    num_layers: usize,
) -> Result<(Option<ExpertsConfig>, Vec<bool>), ConfigError> {
    let Some(names) = &architecture.experts else { return Ok((None, vec![false; num_layers])) };
    let Experts { width, always_normalized, shared_width, some_layers, .. } = names;
    // transformers knows both names as one.
    let (count, other) = match (fields.get("num_experts"), fields.get("num_local_experts")) {
        (None, Some(_)) => ("num_local_experts", "num_experts"),
        _ => ("num_experts", "num_local_experts"),
    };
    let found = fields.positive(count, None)?;
    if fields.get(other).is_some() && fields.positive(other, None)? != found {
        return Err(fields.unsupported(other));
    }
    let config = ExpertsConfig {
        count: found,
        per_token: fields.positive("num_experts_per_tok", None)?,
        normalized: *always_normalized || fields.flag("norm_topk_prob", false)?,
        width: fields.positive(width, None)?,
        shared_width: shared_width.map(|field| fields.positive(field, None)).transpose()?,
    };
    if config.per_token > config.count {
        return Err(fields.wrong("num_experts_per_tok", format!("at most {count} = {found}")));
    }
    let mut sparse = vec![true; num_layers];
    if *some_layers {
        let step = fields.positive("decoder_sparse_step", Some(1))?;
        let layer = |v: &Value| v.as_u64();
        let dense = fields.list("mlp_only_layers", "a list of layers", layer)?.unwrap_or_default();
        for (i, sparse) in sparse.iter_mut().enumerate() {
            *sparse = (i + 1).is_multiple_of(step) && !dense.contains(&(i as u64));
        }
    }
    Ok((Some(config), sparse))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
