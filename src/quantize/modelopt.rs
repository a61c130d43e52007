//! What a checkpoint in ModelOpt's layout declares: `quantization_config` and `hf_quant_config.json`.
//!
//! Source: ModelOpt a2fbac7, `export/convert_hf_config.py` and `quant_utils.py` (day0-release-and-modelopt §2.1).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::config;
use crate::checkpoint::modelopt::{METHOD, MIXED, algorithm};
use crate::checkpoint::quant_args::{QuantizationArgs, QuantizationScheme};
use crate::recipe::Recipe;
use crate::recipe::assignment::Assignment;

/// The release whose layout is written. With the producer's name, loaders go by it; it does not say who wrote the file.
const VERSION: &str = "0.47.0";

/// Modules by algorithm.
type Layers<'a> = BTreeMap<&'static str, (&'a QuantizationScheme, Vec<&'a str>)>;

/// Everything declared, as the pair of `config.json`'s object and the content of `hf_quant_config.json`.
pub(super) fn declarations(recipe: &Recipe, assignment: &Assignment) -> (Value, Value) {
    let mut layers = Layers::new();
    for module in &assignment.modules {
        let scheme = &recipe.groups[module.group];
        // `Recipe::in_dialect` has refused all others.
        if let Some(name) = algorithm(scheme) {
            layers.entry(name).or_insert_with(|| (scheme, Vec::new())).1.push(&module.name);
        }
    }
    let exclude: BTreeSet<&str> = config::ignore(assignment).into_iter().collect();
    let producer = json!({"name": METHOD, "version": VERSION});
    let mut declared = json!({"ignore": exclude, "producer": producer, "quant_method": METHOD});
    let mut quantization = json!({"kv_cache_quant_algo": recipe.kv_cache.as_ref().map(|_| "FP8")});
    if recipe.kv_cache.is_some() {
        declared["kv_cache_scheme"] = json!({"dynamic": false, "num_bits": 8, "type": "float"});
    }
    let mixed = layers.len() > 1;
    let quant_algo = if mixed { MIXED } else { layers.keys().next().copied().unwrap_or_default() };
    declared["quant_algo"] = json!(quant_algo);
    quantization["quant_algo"] = json!(quant_algo);
    if mixed {
        let by_module = by_module(&layers);
        declared["quantized_layers"] = by_module.clone();
        quantization["quantized_layers"] = by_module;
    } else {
        quantization["exclude_modules"] = json!(exclude);
        if let Some(size) = layers.values().find_map(|(scheme, _)| scheme.weights.group_size) {
            quantization["group_size"] = json!(size);
        }
    }
    if mixed || ["FP8", "NVFP4", "W4A16_NVFP4"].contains(&quant_algo) {
        declared["config_groups"] = groups(&layers, mixed);
    }
    (declared, json!({"producer": producer, "quantization": quantization}))
}

/// `quantized_layers`: the algorithm of each module.
fn by_module(layers: &Layers<'_>) -> Value {
    let mut map = Map::new();
    for (name, (scheme, modules)) in layers {
        let mut layer = json!({"quant_algo": name});
        if let Some(size) = scheme.weights.group_size {
            layer["group_size"] = json!(size);
        }
        map.extend(modules.iter().map(|module| ((*module).to_owned(), layer.clone())));
    }
    Value::Object(map)
}

fn groups(layers: &Layers<'_>, mixed: bool) -> Value {
    let mut groups = Map::new();
    for (scheme, modules) in layers.values() {
        let mut group = json!({"weights": arguments(&scheme.weights)});
        group["targets"] = if mixed { json!(modules) } else { json!(["Linear"]) };
        if let Some(inputs) = &scheme.input_activations {
            group["input_activations"] = arguments(inputs);
        }
        groups.insert(format!("group_{}", groups.len()), group);
    }
    Value::Object(groups)
}

/// ModelOpt calls what has a stored scale static, also where scales of groups are found at run time.
fn arguments(args: &QuantizationArgs) -> Value {
    let mut keys = json!({"dynamic": false, "num_bits": args.num_bits, "type": args.qtype});
    if let Some(size) = args.group_size {
        keys["group_size"] = json!(size);
    }
    keys
}
