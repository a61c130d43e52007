//! `quantization_config` of the written checkpoint, with the fewest keys that every loader accepts.
//!
//! compressed-tensors refuses unknown keys, and older readers know fewer of them (checkpoint-formats §1.1).

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::checkpoint::quant_args::{QuantizationArgs, QuantizationScheme};
use crate::recipe::Recipe;
use crate::recipe::assignment::Assignment;

/// What `version` says: the compressed-tensors release whose layout is written. Informative for loaders.
const VERSION: &str = "0.19.0";
/// Module that is named under `ignore` even where tied embeddings leave it no tensor of its own: loaders create the
/// module all the same.
const HEAD: &str = "lm_head";

/// The object for `config.json`.
pub(super) fn quantization_config(recipe: &Recipe, assignment: &Assignment) -> Value {
    let used: BTreeSet<usize> = assignment.modules.iter().map(|m| m.group).collect();
    let mut groups = Map::new();
    let mut formats = BTreeSet::new();
    for index in used {
        let scheme = &recipe.groups[index];
        let format = scheme.format().map(|f| json!(f)).unwrap_or_default();
        formats.insert(format.to_string());
        groups.insert(format!("group_{}", groups.len()), group(scheme, &format));
    }
    let format = match (formats.len(), groups.values().next()) {
        (1, Some(only)) => only["format"].clone(),
        _ => json!("mixed-precision"),
    };
    let mut config = json!({
        "config_groups": groups,
        "format": format,
        "ignore": ignore(assignment),
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": VERSION,
    });
    if let Some(args) = &recipe.kv_cache {
        config["kv_cache_scheme"] = arguments(args);
    }
    config
}

fn group(scheme: &QuantizationScheme, format: &Value) -> Value {
    let mut keys = json!({
        "format": format,
        "targets": scheme.targets,
        "weights": arguments(&scheme.weights),
    });
    if let Some(inputs) = &scheme.input_activations {
        keys["input_activations"] = arguments(inputs);
    }
    keys
}

fn arguments(args: &QuantizationArgs) -> Value {
    let mut keys = json!({
        "dynamic": args.dynamic,
        "num_bits": args.num_bits,
        "strategy": args.strategy,
        "symmetric": args.symmetric,
        "type": args.qtype,
    });
    if let Some(size) = args.group_size {
        keys["group_size"] = json!(size);
    }
    if let Some(block) = args.block_structure {
        keys["block_structure"] = json!(block);
    }
    if let Some(dtype) = &args.scale_dtype {
        keys["scale_dtype"] = json!(dtype);
    }
    keys
}

/// Linear layers left unquantized, by name.
pub(super) fn ignore(assignment: &Assignment) -> Vec<&str> {
    let mut names: BTreeSet<&str> =
        assignment.excluded.iter().filter(|(_, e)| e.is_linear).map(|(name, _)| name.as_str()).collect();
    let is_head = |name: &str| name == HEAD || name.ends_with(".lm_head");
    let has_head = names.iter().any(|n| is_head(n)) || assignment.modules.iter().any(|m| is_head(&m.name));
    if !has_head {
        names.insert(HEAD);
    }
    names.into_iter().collect()
}
