//! Weights against the sizes that `config.json` declares, for architectures whose names and shapes leave no doubt.
//!
//! A config of another model gives a checkpoint that quantizes and cannot be loaded. Layers of any other architecture, and
//! names that are not listed, are not judged: quantizing works on names and shapes alone.

use serde_json::Value;

use super::{DenseError, DenseTensor};

/// `model_type` of decoders with the names and shapes of Llama.
const LLAMA_LIKE: [&str; 11] = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "gemma",
    "gemma2",
    "granite",
];

/// Sizes as declared.
struct Sizes {
    hidden: u64,
    queries: u64,
    keys: u64,
    vocab: Option<u64>,
    intermediate: Option<u64>,
}

/// Refuses the first weight whose shape contradicts the config.
pub(super) fn check<'a>(
    tensors: impl Iterator<Item = &'a DenseTensor>,
    config: &Value,
) -> Result<(), DenseError> {
    let Some(sizes) = Sizes::of(config) else { return Ok(()) };
    for tensor in tensors {
        let Some((expected, key)) = sizes.expected(&tensor.name) else { continue };
        let found: Vec<u64> = tensor.shape.iter().map(|d| *d as u64).collect();
        if found.len() != expected.len()
            || found.iter().zip(&expected).any(|(found, expected)| expected.is_some_and(|e| e != *found))
        {
            let shown: Vec<String> =
                expected.iter().map(|e| e.map_or_else(|| "any".to_owned(), |e| e.to_string())).collect();
            return Err(DenseError::Contradiction {
                tensor: tensor.name.clone(),
                shape: tensor.shape.clone(),
                expected: format!("[{}]", shown.join(", ")),
                key,
            });
        }
    }
    Ok(())
}

impl Sizes {
    fn of(config: &Value) -> Option<Self> {
        let number = |key: &str| config.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
        let model_type = config.get("model_type")?.as_str()?;
        if !LLAMA_LIKE.contains(&model_type) {
            return None;
        }
        let (hidden, heads) = (number("hidden_size")?, number("num_attention_heads")?);
        let head_dim = number("head_dim").or_else(|| hidden.checked_div(heads))?;
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        // Dense layers of mixture models may be of either size.
        let dense = !model_type.ends_with("moe") && model_type != "mixtral";
        Some(Self {
            hidden,
            queries: heads.checked_mul(head_dim)?,
            keys: kv_heads.checked_mul(head_dim)?,
            vocab: number("vocab_size"),
            intermediate: number("intermediate_size").filter(|_| dense),
        })
    }

    /// The shape of a tensor, where it is certain, and the keys of the config that decide it.
    fn expected(&self, name: &str) -> Option<(Vec<Option<u64>>, &'static str)> {
        let hidden = Some(self.hidden);
        if matches!(name, "model.embed_tokens.weight" | "lm_head.weight") {
            return Some((vec![self.vocab, hidden], "vocab_size and hidden_size"));
        }
        if name == "model.norm.weight" {
            return Some((vec![hidden], "hidden_size"));
        }
        let in_layer = name.strip_prefix("model.layers.")?.strip_suffix(".weight")?;
        let (number, module) = in_layer.split_once('.')?;
        number.parse::<u64>().ok()?;
        let heads = "hidden_size, head_dim and the numbers of heads";
        let mlp = "hidden_size and intermediate_size";
        Some(match module {
            "self_attn.q_proj" => (vec![Some(self.queries), hidden], heads),
            "self_attn.k_proj" | "self_attn.v_proj" => (vec![Some(self.keys), hidden], heads),
            "self_attn.o_proj" => (vec![hidden, Some(self.queries)], heads),
            "mlp.gate_proj" | "mlp.up_proj" => (vec![self.intermediate, hidden], mlp),
            "mlp.down_proj" => (vec![hidden, self.intermediate], mlp),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dense::test_checkpoint::{bf16s, open};
    use crate::record::{Classified, FailureClass};

    fn opened(model_type: &str, name: &str, shape: [usize; 2]) -> Result<(), DenseError> {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"model_type": model_type, "hidden_size": 8, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 16, "intermediate_size": 12});
        open(dir.path(), &config, &[bf16s(name, &shape, vec![1.0; shape[0] * shape[1]])]).map(|_| ())
    }

    #[test]
    fn right_shapes_pass_and_wrong_ones_are_named() {
        for (name, shape) in [
            ("model.embed_tokens.weight", [16, 8]),
            ("model.layers.3.self_attn.q_proj.weight", [8, 8]),
            ("model.layers.3.self_attn.v_proj.weight", [4, 8]),
            ("model.layers.3.self_attn.o_proj.weight", [8, 8]),
            ("model.layers.3.mlp.up_proj.weight", [12, 8]),
            ("model.layers.3.mlp.down_proj.weight", [8, 12]),
        ] {
            opened("llama", name, shape).unwrap();
            let error = opened("llama", name, [shape[0], shape[1] + 1]).unwrap_err();
            assert_eq!(error.failure_class(), FailureClass::UserConfigError);
            let text = error.to_string();
            assert!(text.contains(name) && text.contains("hidden_size") && error.hint().is_some(), "{text}");
        }
        let error =
            opened("llama", "model.layers.3.self_attn.k_proj.weight", [8, 8]).unwrap_err().to_string();
        assert!(error.contains("[8, 8]") && error.contains("[4, 8]"), "{error}");
    }

    #[test]
    fn what_is_not_certain_is_not_judged() {
        opened("novel", "model.layers.3.self_attn.q_proj.weight", [5, 7]).unwrap();
        opened("llama", "model.layers.3.self_attn.gate.weight", [5, 7]).unwrap();
        opened("qwen3_moe", "model.layers.3.mlp.up_proj.weight", [5, 8]).unwrap();
        assert!(opened("qwen3_moe", "model.layers.3.mlp.up_proj.weight", [5, 7]).is_err());
    }
}
