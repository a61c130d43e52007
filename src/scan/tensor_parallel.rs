//! Whether quantized layers can be cut into equal parts for several devices.
//!
//! A column-parallel layer is cut along N, a row-parallel one along K; scales and packed words must not straddle a cut.
//! Rules of vLLM 0.33, which SGLang took over: `fp8_utils.py` (`validate_fp8_block_shape`), `marlin_utils.py`
//! (`verify_group_size_divides_partition`), `parameter.py` (packed parameters); checkpoint-formats §4.6.

use serde_json::Value;

use crate::checkpoint::quant_args::Strategy;
use crate::ops::weight_layout::{Element, WeightLayout};
use crate::recipe::fused_sets;

/// A quantized layer.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// Module name.
    pub name: &'a str,
    /// [N, K].
    pub shape: [usize; 2],
    /// How it is stored.
    pub layout: &'a WeightLayout,
}

/// A layer that cannot be cut so.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Module, or key of `config.json`.
    pub module: String,
    /// What is cut.
    pub observed: String,
    /// What its parts must be.
    pub expected: String,
}

/// How engines cut a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Along N.
    Column,
    /// Along K.
    Row,
    /// Not at all: each device has the whole layer.
    Replicated,
    /// Not known by its name.
    Unknown,
}

/// Last parts of names, as the models of vLLM construct them.
const ROLES: [(Role, &[&str]); 3] = [
    (
        Role::Column,
        &[
            "q_proj",
            "k_proj",
            "v_proj",
            "qkv_proj",
            "query_key_value",
            "Wqkv",
            "c_attn",
            "gate_proj",
            "up_proj",
            "gate_up_proj",
            "w1",
            "w3",
            "fc1",
            "c_fc",
            "dense_h_to_4h",
            "q_b_proj",
            "kv_b_proj",
            "in_proj_qkv",
            "in_proj_z",
            "in_proj_b",
            "in_proj_a",
            "lm_head",
            "embed_tokens",
        ],
    ),
    (Role::Row, &["o_proj", "down_proj", "w2", "out_proj", "c_proj", "fc2", "dense", "dense_4h_to_h"]),
    (Role::Replicated, &["q_a_proj", "kv_a_proj_with_mqa", "gate", "router", "shared_expert_gate"]),
];

/// How engines cut the layer of this name.
pub fn role(module: &str) -> Role {
    let last = module.rsplit('.').next().unwrap_or(module);
    ROLES.iter().find(|(_, names)| names.contains(&last)).map_or(Role::Unknown, |(role, _)| *role)
}

/// Everything that keeps `layers` from being served on `devices` devices. With one device, merged layers still must
/// fit blocks and packed zero points.
pub fn check(layers: &[Linear<'_>], config: Option<&Value>, devices: usize) -> Vec<Problem> {
    let devices = devices.max(1);
    let heads = Heads::of(config);
    let mut problems = heads.problems(devices);
    for layer in layers {
        let problem = match role(layer.name) {
            Role::Column => columns(layer, &heads, devices),
            Role::Row => rows(layer, devices),
            Role::Replicated | Role::Unknown => None,
        };
        problems.extend(problem);
    }
    problems
}

/// Attention heads, which are dealt out whole.
struct Heads {
    attention: Option<usize>,
    key_value: Option<usize>,
}

impl Heads {
    fn of(config: Option<&Value>) -> Self {
        let key = |key: &str| {
            let config = config?;
            let value = config.get(key).or_else(|| config.get("text_config")?.get(key))?;
            usize::try_from(value.as_u64()?).ok().filter(|n| *n > 0)
        };
        let attention = key("num_attention_heads");
        Self { attention, key_value: key("num_key_value_heads").or(attention) }
    }

    fn problems(&self, devices: usize) -> Vec<Problem> {
        let problem = |key: &str, found: usize, expected: String| Problem {
            module: format!("config.json {key}"),
            observed: found.to_string(),
            expected,
        };
        let mut problems = Vec::new();
        if let Some(found) = self.attention.filter(|n| !n.is_multiple_of(devices)) {
            problems.push(problem("num_attention_heads", found, format!("a multiple of {devices}")));
        }
        // Fewer key-value heads than devices are replicated.
        if let Some(found) =
            self.key_value.filter(|n| !n.is_multiple_of(devices) && !devices.is_multiple_of(*n))
        {
            let expected = format!("a multiple or a divisor of {devices}");
            problems.push(problem("num_key_value_heads", found, expected));
        }
        problems
    }

    /// Into how many different parts a column-parallel layer is cut.
    fn parts(&self, module: &str, devices: usize) -> usize {
        let last = module.rsplit('.').next().unwrap_or(module);
        match self.key_value {
            Some(heads) if matches!(last, "k_proj" | "v_proj") => devices.min(heads),
            _ => devices,
        }
    }
}

fn columns(layer: &Linear<'_>, heads: &Heads, devices: usize) -> Option<Problem> {
    let [n, _] = layer.shape;
    let parts = heads.parts(layer.name, devices);
    let failed = |expected: String| {
        Some(Problem {
            module: layer.name.to_owned(),
            observed: format!("{n} rows in {parts} parts"),
            expected,
        })
    };
    if !n.is_multiple_of(parts) {
        return failed(format!("rows divisible by {parts}"));
    }
    let part = n / parts;
    let members = fused_sets::members(layer.name);
    let merged = members.is_some();
    let is_last = members.and_then(|m| m.last().cloned()).is_some_and(|last| last == layer.name);
    if let (Strategy::Block, [block, _]) = (layer.layout.strategy, layer.layout.block(layer.shape)) {
        // The last part of a merged layer may be ragged on one device, but not in experts.
        let exempt = devices == 1 && (!merged || (is_last && !super::engines::is_expert(layer.name)));
        if !exempt && !part.is_multiple_of(block) {
            return failed(format!("{block} rows or a multiple in each part: a block's size"));
        }
    }
    if let (false, true, Element::Int(bits)) =
        (layer.layout.symmetric, layer.layout.is_packed_in_words(), layer.layout.element)
        && (merged || devices > 1)
        && !(part * usize::from(bits)).is_multiple_of(32)
    {
        return failed(format!("whole words of 32 bits of zero points of {bits} bits in each part"));
    }
    None
}

fn rows(layer: &Linear<'_>, devices: usize) -> Option<Problem> {
    let [_, k] = layer.shape;
    if devices == 1 {
        return None;
    }
    let failed = |expected: String| {
        Some(Problem {
            module: layer.name.to_owned(),
            observed: format!("{k} columns in {devices} parts"),
            expected,
        })
    };
    if !k.is_multiple_of(devices) {
        return failed(format!("columns divisible by {devices}"));
    }
    let part = k / devices;
    let unit = match layer.layout.strategy {
        Strategy::Block => layer.layout.block(layer.shape)[1],
        _ => layer.layout.group_size().unwrap_or(1),
    };
    if !part.is_multiple_of(unit) {
        return failed(format!("{unit} columns or a multiple in each part: those that share a scale"));
    }
    if let (true, Element::Int(bits)) = (layer.layout.is_packed_in_words(), layer.layout.element)
        && !(part * usize::from(bits)).is_multiple_of(32)
    {
        return failed(format!("whole words of 32 bits of codes of {bits} bits in each part"));
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::checkpoint::quant_args::{Format, QuantizationArgs};

    fn layout(value: Value, format: Format) -> WeightLayout {
        let args: QuantizationArgs = serde_json::from_value(value).unwrap();
        WeightLayout::new(&args, format).unwrap()
    }

    fn block() -> WeightLayout {
        let args =
            json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]});
        layout(args, Format::FloatQuantized)
    }

    fn int4(group: usize, symmetric: bool) -> WeightLayout {
        let args = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric});
        layout(args, Format::PackQuantized)
    }

    /// The modules that cannot be cut.
    fn bad(
        layers: &[(&str, [usize; 2])],
        layout: &WeightLayout,
        config: &Value,
        devices: usize,
    ) -> Vec<String> {
        let layers: Vec<Linear<'_>> =
            layers.iter().map(|(name, shape)| Linear { name, shape: *shape, layout }).collect();
        check(&layers, Some(config), devices).into_iter().map(|p| p.module).collect()
    }

    /// vllm#45784 (192 rows), #54178 (experts of 320), SmolLM2's 576: parts of blocks.
    #[test]
    fn blocks() {
        let none = json!({});
        let attention: [(&str, [usize; 2]); 3] =
            [("a.q_proj", [576, 576]), ("a.k_proj", [192, 576]), ("a.v_proj", [192, 576])];
        assert_eq!(
            bad(&attention, &block(), &none, 1),
            ["a.q_proj", "a.k_proj"],
            "the last one may be ragged"
        );
        assert_eq!(bad(&[("a.o_proj", [576, 576])], &block(), &none, 1), [""; 0]);
        assert_eq!(bad(&[("m.down_proj", [512, 1536])], &block(), &none, 4), [""; 0]);
        assert_eq!(bad(&[("m.down_proj", [512, 1536])], &block(), &none, 8), ["m.down_proj"]);
        let expert: [(&str, [usize; 2]); 2] =
            [("m.experts.0.gate_proj", [320, 512]), ("m.experts.0.up_proj", [320, 512])];
        assert_eq!(bad(&expert, &block(), &none, 1).len(), 2, "experts have no exempt part");
    }

    /// vllm#5675, #41511: K / devices must hold whole groups.
    #[test]
    fn groups() {
        let none = json!({});
        assert_eq!(bad(&[("m.down_proj", [576, 1536])], &int4(64, true), &none, 3), [""; 0]);
        assert_eq!(bad(&[("m.down_proj", [576, 1536])], &int4(128, true), &none, 8), ["m.down_proj"]);
        assert_eq!(bad(&[("m.up_proj", [1536, 576])], &int4(64, true), &none, 8), [""; 0]);
        assert_eq!(bad(&[("m.up_proj", [1530, 576])], &int4(64, true), &none, 4), ["m.up_proj"]);
        assert_eq!(
            bad(&[("x.mystery", [7, 64])], &int4(64, true), &none, 4),
            [""; 0],
            "its role is not known"
        );
    }

    #[test]
    fn zero_points_are_packed_along_rows() {
        let none = json!({});
        let shape = [("a.k_proj", [20, 64])];
        assert_eq!(bad(&shape, &int4(32, true), &none, 1), [""; 0]);
        assert_eq!(bad(&shape, &int4(32, false), &none, 1), ["a.k_proj"], "20 · 4 bits are no whole words");
        assert_eq!(bad(&[("a.k_proj", [24, 64])], &int4(32, false), &none, 1), [""; 0]);
        assert_eq!(bad(&[("a.o_proj", [20, 64])], &int4(32, false), &none, 1), [""; 0], "not merged");
    }

    #[test]
    fn heads_are_dealt_out_whole() {
        let heads = |attention: u64, key_value: u64| json!({"text_config": {"num_attention_heads": attention, "num_key_value_heads": key_value}});
        let cut = |config: &Value, devices| bad(&[("a.k_proj", [256, 64])], &int4(32, true), config, devices);
        assert_eq!(cut(&heads(8, 2), 4), [""; 0], "two heads are replicated on four devices");
        assert_eq!(
            cut(&heads(9, 3), 2),
            ["config.json num_attention_heads", "config.json num_key_value_heads"]
        );
        assert_eq!(cut(&heads(9, 3), 3), ["a.k_proj"], "256 rows in 3 parts");
    }
}
