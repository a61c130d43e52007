//! Three-dimensional expert tensors, seen as one weight per expert and projection.
//!
//! | layout | `gate_up_proj` | `down_proj` | who |
//! |---|---|---|---|
//! | rows | [E, 2I, H], gate above up | [E, H, I] | transformers 5, every architecture but those below |
//! | columns | [E, H, 2I], gate left of up | [E, I, H] | Llama 4, Qwen3-VL-MoE on the hub |
//! | interleaved | [E, H, 2I], gate in even columns, up in odd ones | [E, I, H] | gpt-oss, with biases |
//!
//! The two shapes together always tell rows from columns: both readings at once would need I = 0. Halves cannot be told
//! from interleaving by shape, so columns are split for the architectures listed here and no others. Source:
//! transformers 5.17, `use_experts_implementation(is_transposed, is_concatenated, has_bias)` in `models/*/modeling_*.py`
//! and `conversion_mapping.py`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::source::{DenseTensor, Storage};
use crate::checkpoint::header::TensorInfo;
use crate::ops::float_dtype::FloatDtype;

/// Architectures whose columns hold the gate in the left half.
const COLUMNS: [&str; 5] =
    ["llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text", "openai_privacy_filter"];
/// Architectures whose columns alternate.
const INTERLEAVED: [&str; 1] = ["gpt_oss"];
/// The last part of the name of a module that holds experts.
const EXPERTS: &str = "experts";

/// What splitting gives.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// The tensors of single experts.
    pub parts: Vec<DenseTensor>,
    /// Fused tensors that were split, by the module of the experts.
    pub fused: BTreeMap<String, Vec<String>>,
    /// Fused tensors that cannot be split, with the reason.
    pub unclear: BTreeMap<String, String>,
}

/// The fused tensors of one module.
#[derive(Default)]
struct Fused<'a> {
    gate_up: Option<&'a TensorInfo>,
    down: Option<&'a TensorInfo>,
    gate_up_bias: Option<&'a TensorInfo>,
    down_bias: Option<&'a TensorInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Rows,
    Columns,
    Interleaved,
}

/// Sizes and order of the experts of one module.
#[derive(Debug, Clone, Copy)]
struct Layout {
    experts: usize,
    hidden: usize,
    intermediate: usize,
    order: Order,
}

/// Splits every fused tensor whose layout is certain.
pub(super) fn split(tensors: &[&TensorInfo], config: &Value) -> Split {
    let mut modules: BTreeMap<&str, Fused<'_>> = BTreeMap::new();
    for info in tensors {
        let name = info.name.strip_suffix(".weight").unwrap_or(&info.name);
        let Some((module, last)) = name.rsplit_once('.') else { continue };
        if module.rsplit('.').next() != Some(EXPERTS) || FloatDtype::of(info.dtype).is_none() {
            continue;
        }
        let fused = modules.entry(module).or_default();
        match (last, info.shape.len()) {
            ("gate_up_proj", 3) => fused.gate_up = Some(info),
            ("down_proj", 3) => fused.down = Some(info),
            ("gate_up_proj_bias", 2) => fused.gate_up_bias = Some(info),
            ("down_proj_bias", 2) => fused.down_bias = Some(info),
            _ => {}
        }
    }
    let mut split = Split::default();
    for (module, fused) in modules {
        let all: Vec<&TensorInfo> = fused.all().collect();
        match fused.layout(config) {
            Ok(layout) => {
                fused.parts(module, layout, &mut split.parts);
                split.fused.insert(module.to_owned(), all.iter().map(|i| i.name.clone()).collect());
            }
            Err(problem) => {
                split.unclear.extend(all.iter().map(|i| (i.name.clone(), problem.clone())));
            }
        }
    }
    split
}

impl<'a> Fused<'a> {
    fn all(&self) -> impl Iterator<Item = &'a TensorInfo> {
        [self.gate_up, self.down, self.gate_up_bias, self.down_bias].into_iter().flatten()
    }

    fn layout(&self, config: &Value) -> Result<Layout, String> {
        let (Some(gate_up), Some(down)) = (self.gate_up, self.down) else {
            return Err("expected gate_up_proj and down_proj side by side".to_owned());
        };
        let (&[experts, a, b], &[down_experts, c, d]) = (gate_up.shape.as_slice(), down.shape.as_slice())
        else {
            return Err("expected three dimensions".to_owned());
        };
        if experts != down_experts || gate_up.dtype != down.dtype || experts * a * b == 0 {
            return Err(format!(
                "gate_up_proj is {} {:?} and down_proj {} {:?}, expected one dtype and number of experts",
                gate_up.dtype, gate_up.shape, down.dtype, down.shape
            ));
        }
        let (rows, columns) = (a == 2 * d && b == c, b == 2 * c && a == d);
        let (hidden, intermediate) = match (rows, columns) {
            (true, _) => (c, d),
            (_, true) => (d, c),
            _ => {
                return Err(format!(
                    "gate_up_proj {:?} with down_proj {:?} is neither [E, 2I, H] with [E, H, I] nor [E, H, 2I] with \
                     [E, I, H]",
                    gate_up.shape, down.shape
                ));
            }
        };
        let layout = Layout { experts, hidden, intermediate, order: self.order(rows, config)? };
        layout.agrees_with(config)?;
        self.check_biases(layout)?;
        Ok(layout)
    }

    fn order(&self, rows: bool, config: &Value) -> Result<Order, String> {
        let found = model_type(config);
        let known = |list: &[&str]| found.is_some_and(|t| list.contains(&t));
        let named = found.unwrap_or("no architecture");
        match (rows, known(&INTERLEAVED), known(&COLUMNS)) {
            (false, true, _) => Ok(Order::Interleaved),
            (false, _, true) => Ok(Order::Columns),
            (false, ..) => Err(format!(
                "whether the columns of [E, H, 2I] hold gate and up as halves or alternating is not known for {named}"
            )),
            (true, true, _) => Err(format!("{named} has [E, H, 2I], found [E, 2I, H]")),
            (true, ..) if self.gate_up_bias.is_some() => {
                Err(format!("the order of gate and up in gate_up_proj_bias is not known for {named}"))
            }
            (true, ..) => Ok(Order::Rows),
        }
    }

    fn check_biases(&self, layout: Layout) -> Result<(), String> {
        for (bias, width) in [(self.gate_up_bias, 2 * layout.intermediate), (self.down_bias, layout.hidden)] {
            if let Some(bias) = bias.filter(|b| b.shape != [layout.experts, width]) {
                return Err(format!(
                    "{} is {:?}, expected [{}, {width}]",
                    bias.name, bias.shape, layout.experts
                ));
            }
        }
        Ok(())
    }

    /// The tensors of all experts, in the order of the fused tensors' data.
    fn parts(&self, module: &str, layout: Layout, parts: &mut Vec<DenseTensor>) {
        let Layout { experts, hidden: h, intermediate: i, order } = layout;
        // Mixtral's names, where the module has Mixtral's name.
        let mixtral = module.rsplit('.').nth(1) == Some("block_sparse_moe");
        let [gate, up, down] =
            if mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
        // (first element, strides) of gate and up within an expert's 2I·H elements, and of down within its H·I.
        let (gate_at, up_at, strides, down_strides) = match order {
            Order::Rows => (0, i * h, [h, 1], [i, 1]),
            Order::Columns => (0, i, [1, 2 * i], [1, h]),
            Order::Interleaved => (0, 1, [2, 2 * i], [1, h]),
        };
        let (bias_up, bias_stride) = if order == Order::Interleaved { (1, 2) } else { (i, 1) };
        let mut add = |base: Option<&TensorInfo>, name: String, offset, shape: Vec<usize>, strides| {
            let Some(base) = base else { return };
            let storage = Storage::Part { base: base.name.clone(), offset, strides };
            parts.push(DenseTensor { name, dtype: base.dtype, shape, storage });
        };
        for e in 0..experts {
            let name = |projection: &str, suffix: &str| format!("{module}.{e}.{projection}.{suffix}");
            let first = e * 2 * i * h;
            add(self.gate_up, name(gate, "weight"), first + gate_at, vec![i, h], strides);
            add(self.gate_up, name(up, "weight"), first + up_at, vec![i, h], strides);
            add(self.down, name(down, "weight"), e * h * i, vec![h, i], down_strides);
            add(self.gate_up_bias, name(gate, "bias"), e * 2 * i, vec![i], [bias_stride, 1]);
            add(self.gate_up_bias, name(up, "bias"), e * 2 * i + bias_up, vec![i], [bias_stride, 1]);
            add(self.down_bias, name(down, "bias"), e * h, vec![h], [1, 1]);
        }
    }
}

impl Layout {
    /// Sizes that the config declares must be those of the tensors.
    fn agrees_with(self, config: &Value) -> Result<(), String> {
        let text = config.get("text_config").unwrap_or(config);
        let declared = |keys: &[&str]| {
            keys.iter().find_map(|key| Some(((*key).to_owned(), text.get(*key)?.as_u64()? as usize)))
        };
        let checks = [
            (declared(&["num_experts", "num_local_experts", "n_routed_experts"]), self.experts),
            (declared(&["hidden_size"]), self.hidden),
            (declared(&["moe_intermediate_size"]), self.intermediate),
        ];
        for (declared, found) in checks {
            if let Some((key, expected)) = declared.filter(|(_, expected)| *expected != found) {
                return Err(format!("config.json says {key} {expected}, the tensors have {found}"));
            }
        }
        Ok(())
    }
}

/// `model_type` of the language model.
fn model_type(config: &Value) -> Option<&str> {
    let inner = config.get("text_config").and_then(|text| text.get("model_type"));
    inner.or_else(|| config.get("model_type"))?.as_str()
}

#[cfg(test)]
#[path = "experts_tests.rs"]
mod tests;
