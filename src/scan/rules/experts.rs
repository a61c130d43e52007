//! Mixtures of experts: complete, one scheme a layer, one tensor a projection.
//!
//! vLLM looks the scheme up with expert 0's names and takes it for all experts of the layer; a missing expert stays
//! uninitialized memory, and experts in one three-dimensional packed tensor load as garbage (checkpoint-formats §4.5).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::scan::Findings;
use crate::scan::modules::Module;
use crate::scan::table::{Table, shown};

/// Keys of `config.json` with the number of experts of a layer.
const COUNT_KEYS: [&str; 4] = ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"];

/// Experts of one layer: index to projection to module.
type Layer<'m, 'a> = BTreeMap<usize, BTreeMap<&'m str, &'m Module<'a>>>;

pub(super) fn check(table: &Table<'_>, modules: &[Module<'_>], findings: &mut Findings) {
    let mut layers: BTreeMap<&str, Layer<'_, '_>> = BTreeMap::new();
    for module in modules {
        if let Some((layer, expert, projection)) = parts(module.name) {
            layers.entry(layer).or_default().entry(expert).or_default().insert(projection, module);
        }
    }
    let count = COUNT_KEYS.iter().find_map(|key| table.config_key(key).and_then(Value::as_u64));
    for (layer, experts) in &layers {
        if experts.values().flat_map(BTreeMap::values).any(|m| m.found.is_quantized()) {
            is_complete(layer, experts, count, findings);
            has_one_scheme(layer, experts, findings);
        }
    }
    for (name, info) in &table.tensors {
        let fused = info.shape.len() >= 3 && (name.ends_with("_packed") || name.ends_with("_scale"));
        if fused && name.split('.').any(|part| part == "experts") {
            let observed = shown(info.dtype, &info.shape);
            findings.defect("names", *name, observed, "one two-dimensional tensor for each expert");
        }
    }
}

/// `model.layers.0.mlp.experts`, 3, `up_proj`.
fn parts(module: &str) -> Option<(&str, usize, &str)> {
    let (rest, projection) = module.rsplit_once('.')?;
    let (layer, expert) = rest.rsplit_once('.')?;
    let is_experts = layer == "experts" || layer.ends_with(".experts");
    is_experts.then_some(())?;
    Some((layer, expert.parse().ok()?, projection))
}

/// Experts 0, 1, …, each with the same projections.
fn is_complete(layer: &str, experts: &Layer<'_, '_>, count: Option<u64>, findings: &mut Findings) {
    let last = experts.keys().next_back().copied().unwrap_or(0);
    // A number that no model has comes from a damaged name; without a declared count it would be a long loop.
    let expected = count.map_or(last + 1, |n| n as usize).min(1 << 16);
    let projections: Vec<&str> =
        experts.values().next().into_iter().flat_map(|p| p.keys().copied()).collect();
    if last >= expected {
        let observed = format!("experts up to {last}");
        findings.defect("experts", layer, observed, format!("{expected} experts, as config.json says"));
    }
    for expert in 0..expected {
        let found = experts.get(&expert);
        for projection in &projections {
            if found.is_none_or(|p| !p.contains_key(projection)) {
                let name = format!("{layer}.{expert}.{projection}");
                findings.defect("experts", name, "missing", "the projections that the other experts have");
            }
        }
        for projection in found.into_iter().flat_map(|p| p.keys()).filter(|p| !projections.contains(p)) {
            let name = format!("{layer}.{expert}.{projection}");
            findings.defect("experts", name, "only in this expert", "the projections that the others have");
        }
    }
}

fn has_one_scheme(layer: &str, experts: &Layer<'_, '_>, findings: &mut Findings) {
    let mut all = experts.values().flat_map(BTreeMap::values);
    let Some(first) = all.next() else { return };
    if let Some(other) = all.find(|m| !m.has_scheme_of(first)) {
        let (observed, expected) = (format!("{}: {}", other.name, other.scheme()), first.scheme());
        let expected = format!("one scheme for all experts: {expected}, as {} has", first.name);
        findings.defect("experts", layer, observed, expected);
    }
}
