//! Modules that engines treat apart: output head, embeddings, routers, norms (checkpoint-formats §4.5, 4.7).

use safetensors::Dtype;
use serde_json::Value;

use super::{Groups, last};
use crate::checkpoint::name_match::NameMatcher;
use crate::checkpoint::quant_args::{QuantType, Strategy};
use crate::ops::weight_layout::{Element, Packing};
use crate::recipe::exclusions;
use crate::scan::Findings;
use crate::scan::modules::{Declared, Module};
use crate::scan::table::Table;

/// The output head's module, also of models that tie it to the embedding.
const HEAD: &str = "lm_head";

pub(super) fn check(modules: &[Module<'_>], groups: &Groups<'_>, findings: &mut Findings) {
    // The default list compiles; a test of its own sees to it.
    let kinds: Vec<(NameMatcher, &str)> = exclusions::DEFAULT
        .iter()
        .filter_map(|e| Some((NameMatcher::new(&[e.pattern]).ok()?, e.reason)))
        .collect();
    let patterns: Vec<&str> = exclusions::DEFAULT.iter().map(|e| e.pattern).collect();
    let any = NameMatcher::new(&patterns).unwrap_or_default();
    for module in modules.iter().filter(|m| m.found.is_quantized() && any.matches(m.name)) {
        let kind = kinds.iter().find(|(matcher, _)| matcher.matches(module.name)).map(|(_, kind)| *kind);
        let expected = match kind {
            Some("router") => "unquantized: engines read routers in full precision, and rounding misroutes",
            Some("norm" | "convolution") => "unquantized: it is no linear layer",
            Some("embedding") if !is_loadable_embedding(module, groups) => {
                "unquantized, or packed symmetric integers without quantized inputs, targeted by name"
            }
            _ => continue,
        };
        findings.defect("exclusions", module.name, module.scheme(), expected);
    }
}

/// Ties, and the `ignore` entry that transformers needs: its output head is an `nn.Linear`.
pub(super) fn head(table: &Table<'_>, modules: &[Module<'_>], groups: &Groups<'_>, findings: &mut Findings) {
    let is_tied = table.config_key("tie_word_embeddings").and_then(Value::as_bool) == Some(true);
    let stored = modules.iter().find(|m| last(m.name) == HEAD);
    match stored {
        Some(head) if head.found.is_quantized() => {
            if is_tied {
                let expected = "nothing: config.json says tie_word_embeddings, so the embedding is used";
                findings.defect("exclusions", head.name, head.scheme(), expected);
            }
            if groups.by_name(head.name).is_none() {
                let expected =
                    "a target that names it: vLLM's and SGLang's output head is not of class Linear";
                findings.defect("declaration", head.name, "quantized, but targeted by class only", expected);
            }
        }
        Some(head) if is_tied => {
            // vLLM skips it, SGLang stumbles over it (sglang#2935).
            findings.note("exclusions", head.name, "stored", "nothing, because config.json ties it");
        }
        None if groups.config.scheme_for(HEAD).is_some() && has_head(table) => {
            let expected =
                "an entry lm_head: transformers' output head is an nn.Linear even where it is tied";
            findings.defect("declaration", "config.json ignore", "no lm_head", expected);
        }
        _ => {}
    }
}

/// Whether the architecture is one with an output head: encoders have none.
fn has_head(table: &Table<'_>) -> bool {
    let architectures = table.config_key("architectures").and_then(Value::as_array);
    let generates = |name: &Value| {
        name.as_str().is_some_and(|n| n.ends_with("ForCausalLM") || n.ends_with("ForConditionalGeneration"))
    };
    architectures.is_some_and(|names| names.iter().any(generates))
}

/// vLLM's embeddings take packed symmetric integers by group or channel, if targeted by name or class.
fn is_loadable_embedding(module: &Module<'_>, groups: &Groups<'_>) -> bool {
    let Some(Declared { group, layout, .. }) = &module.declared else { return false };
    let Some(group) = groups.config.groups.iter().find(|g| g.name == *group) else { return false };
    let by_name = groups.by_name(module.name).or_else(|| groups.by_class("Embedding"));
    matches!(layout.element, Element::Int(_))
        && layout.packing == Packing::Words
        && layout.symmetric
        && matches!(layout.strategy, Strategy::Group | Strategy::Channel)
        && group.scheme.weights.qtype == QuantType::Int
        && group.scheme.input_activations.is_none()
        && by_name.is_some_and(|g| g.name == group.name)
        && module.main().is_some_and(|t| t.dtype == Dtype::I32)
}
