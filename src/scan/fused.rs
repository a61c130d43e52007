//! Layers that engines fuse must share scheme and global scale (checkpoint-formats §4.4): vLLM loads one of differing
//! global scales for all, and so gives the others wrong magnitudes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Findings;
use super::modules::{Found, Module};
use super::table::Table;
use crate::recipe::fused_sets;

/// Checks every fused set of which more than one member is there.
pub(super) fn check(table: &Table<'_>, modules: &[Module<'_>], findings: &mut Findings) {
    let mut sets: BTreeMap<String, Vec<&Module<'_>>> = BTreeMap::new();
    for module in modules {
        if let Some(key) = fused_sets::key(module.name) {
            sets.entry(key).or_default().push(module);
        }
    }
    for (set, members) in sets {
        if members.iter().any(|m| !m.has_scheme_of(members[0])) {
            differing(&set, &members, "scheme", |m: &Module<'_>| m.scheme().into(), findings);
        }
        for scale in ["weight_global_scale", "weight_scale_2", "input_global_scale"] {
            let value = |m: &Module<'_>| global_scale(table, m, scale);
            differing(&set, &members, scale, value, findings);
        }
        // Engines take one input scale for what they fuse, except dense FP8 layers, which are brought to the largest.
        if set.contains(".experts.") || members.iter().all(|m| m.found == Found::Nvfp4) {
            differing(&set, &members, "input_scale", |m| global_scale(table, m, "input_scale"), findings);
        }
    }
}

/// Reports the set unless `of` is the same for all members.
fn differing(
    set: &str,
    members: &[&Module<'_>],
    what: &str,
    of: impl Fn(&Module<'_>) -> Cow<'static, str>,
    findings: &mut Findings,
) {
    let all: Vec<Cow<'_, str>> = members.iter().map(|m| of(m)).collect();
    if all.iter().any(|value| value != &all[0]) {
        let last = |m: &Module<'_>| m.name.rsplit('.').next().unwrap_or(m.name).to_owned();
        let observed: Vec<String> =
            members.iter().zip(&all).map(|(m, v)| format!("{} {v}", last(m))).collect();
        findings.defect("fused_sets", set, format!("{what}: {}", observed.join(", ")), format!("one {what}"));
    }
}

/// The value with its bits' precision; `none` where there is no such tensor or no values.
fn global_scale(table: &Table<'_>, module: &Module<'_>, suffix: &str) -> Cow<'static, str> {
    let values = module.tensors.contains_key(suffix).then(|| format!("{}.{suffix}", module.name));
    let values = values.and_then(|name| table.values(&name)?.view().to_f32().ok());
    values.and_then(|v| v.first().copied()).map_or(Cow::Borrowed("none"), |value| value.to_string().into())
}
