//! Fields of `config.json` by name, with a note of which were read, so that what nobody reads can be refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::config::ConfigError;

/// Fields that change no logit: token ids, training, sampling, bookkeeping, dialects that others parse. Patterns end
/// with `*`.
const HARMLESS: &[&str] = &[
    "_*",
    "*_token_id",
    "*_token_ids",
    "*_dropout",
    "*_pdrop",
    "output_*",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "initializer_range",
    "use_cache",
    "cache_implementation",
    "attn_implementation",
    "pretraining_tp",
    "dtype",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "unsloth_*",
    "model_name",
    "auto_map",
    "quantization_config",
    "compression_config",
    "tokenizer_class",
    "return_dict",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "chunk_size_feed_forward",
    // Defaults of generation, which transformers 4 wrote into config.json.
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "num_return_sequences",
    "exponential_decay_length_penalty",
    // Names for programs that convert or train.
    "model_max_length",
    "is_llama_config",
    "seq_length",
];

/// Fields that some files carry and no loader computes with, and the only value that means nothing.
const NEUTRAL: &[(&str, f64)] =
    &[("full_attn_mod", 1.0), ("interpolate_factor", 1.0), ("partial_rotary_factor", 1.0)];

/// A JSON object whose fields are asked for by name; `null` counts as absent.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    pub fn of(value: &'a Value, path: &str) -> Result<Self, ConfigError> {
        let object = value.as_object().ok_or_else(|| ConfigError::Wrong {
            field: if path.is_empty() { "the file" } else { path }.to_owned(),
            expected: "an object".to_owned(),
            found: shorten(value),
        })?;
        Ok(Self { object, path: path.to_owned(), read: RefCell::default() })
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.raw(field).filter(|v| !v.is_null())
    }

    /// The value, `null` included: where that means something else than no field.
    pub fn raw(&self, field: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(field.to_owned());
        self.object.get(field)
    }

    /// A nested object. Empty ones count as absent.
    pub fn nested(&self, field: &str) -> Result<Option<Self>, ConfigError> {
        let nested = self.get(field).map(|value| Self::of(value, &self.name(field))).transpose()?;
        Ok(nested.filter(|n| !n.object.is_empty()))
    }

    /// Refuses what was not read and may mean something: every field that is not known to be harmless, unless it is
    /// null, false, zero or empty.
    pub fn refuse_unread(&self) -> Result<(), ConfigError> {
        let read = self.read.borrow();
        for (field, value) in self.object {
            let nothing = match value {
                Value::Null => true,
                Value::Bool(b) => !b,
                Value::Number(n) => {
                    let n = n.as_f64();
                    n == Some(0.0) || NEUTRAL.iter().any(|(name, value)| name == field && n == Some(*value))
                }
                Value::String(s) => s.is_empty(),
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
            };
            let harmless = self.path.is_empty() && HARMLESS.iter().any(|pattern| matches(pattern, field));
            if !nothing && !harmless && !read.contains(field) {
                return Err(self.unsupported(field));
            }
        }
        Ok(())
    }

    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn found(&self, field: &str) -> String {
        self.object.get(field).map_or_else(|| "nothing".to_owned(), shorten)
    }

    pub fn missing(&self, field: &str) -> ConfigError {
        ConfigError::Missing { field: self.name(field) }
    }

    pub fn wrong(&self, field: &str, expected: impl Into<String>) -> ConfigError {
        ConfigError::Wrong { field: self.name(field), expected: expected.into(), found: self.found(field) }
    }

    pub fn unsupported(&self, field: &str) -> ConfigError {
        ConfigError::Option { field: self.name(field), found: self.found(field) }
    }

    /// An integer in 1..2^31: larger ones would overflow products of sizes.
    pub fn positive(&self, field: &str, default: Option<usize>) -> Result<usize, ConfigError> {
        match self.get(field) {
            None => default.ok_or_else(|| self.missing(field)),
            Some(value) => value
                .as_u64()
                .filter(|n| (1..1 << 31).contains(n))
                .map(|n| n as usize)
                .ok_or_else(|| self.wrong(field, "a positive integer below 2^31")),
        }
    }

    /// A finite number above 0.
    pub fn number(&self, field: &str, default: Option<f64>) -> Result<f64, ConfigError> {
        match self.optional_number(field)? {
            Some(number) => Ok(number),
            None => default.ok_or_else(|| self.missing(field)),
        }
    }

    /// A finite number above 0, if there is one.
    pub fn optional_number(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(field, "a positive number"))
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false")),
        }
    }

    /// A list whose entries `convert` accepts.
    pub fn list<T>(
        &self,
        field: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let entries = value.as_array().and_then(|a| a.iter().map(convert).collect::<Option<Vec<T>>>());
        entries.map(Some).ok_or_else(|| self.wrong(field, expected))
    }

    pub fn text(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(field, "a string"))
    }
}

fn matches(pattern: &str, field: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => field.ends_with(end),
        (_, Some(start)) => field.starts_with(start),
        _ => pattern == field,
    }
}

/// A value for messages, at most 60 characters of it.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
