//! `quantization_config` against itself and against how engines look modules up in it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Groups, last};
use crate::checkpoint::name_match::LINEAR;
use crate::ops::dequantize::layout_of;
use crate::recipe::fused_sets;
use crate::scan::Findings;
use crate::scan::modules::Module;
use crate::scan::table::Table;

/// Format of a checkpoint whose groups differ; each group must then name its own.
const MIXED: &str = "mixed-precision";

pub(super) fn check(table: &Table<'_>, modules: &[Module<'_>], groups: &Groups<'_>, findings: &mut Findings) {
    formats(table, groups, findings);
    targets(modules, groups, findings);
    fused_lookup(modules, groups, findings);
}

/// Each group has a format, and its scheme a layout in it. vLLM 0.33: "No compressed-tensors compatible scheme".
fn formats(table: &Table<'_>, groups: &Groups<'_>, findings: &mut Findings) {
    let global = table.declared().and_then(|d| d.get("format")).and_then(Value::as_str);
    let formats: Vec<_> = groups.config.groups.iter().map(|g| g.format).collect();
    for group in &groups.config.groups {
        let subject = format!("config.json config_groups.{}", group.name);
        if group.format.is_none() {
            let expected = match global {
                Some(MIXED) => "a format in each group, because the global one is mixed-precision",
                _ => "a format, here or for all groups",
            };
            findings.defect("declaration", subject + ".format", "none", expected);
        } else if let Err(error) = layout_of(&group.name, group) {
            let observed = crate::record::failure::chain(&error);
            findings.defect("declaration", subject, observed, "a scheme that its format can hold");
        }
    }
    if formats.windows(2).any(|pair| pair[0] != pair[1]) && global != Some(MIXED) {
        let observed = global.unwrap_or("none");
        findings.defect("declaration", "config.json format", observed, format!("{MIXED}: the groups differ"));
    }
}

/// Groups and exact `ignore` entries that no module answers to: nothing breaks in vLLM, but somebody meant a module.
/// TensorRT-LLM refuses such groups.
fn targets(modules: &[Module<'_>], groups: &Groups<'_>, findings: &mut Findings) {
    let mut claimed: BTreeMap<&str, usize> = BTreeMap::new();
    for module in modules.iter().filter_map(|m| m.declared.as_ref()) {
        *claimed.entry(module.group.as_str()).or_default() += 1;
    }
    for group in &groups.config.groups {
        if !claimed.contains_key(group.name.as_str()) {
            let subject = format!("config.json config_groups.{}.targets", group.name);
            findings.note("declaration", subject, "no quantized module", "at least one");
        }
    }
    for entry in groups.config.ignore.iter().filter(|e| !e.starts_with("re:") && last(e) != "lm_head") {
        let known = modules.binary_search_by(|m| m.name.cmp(entry)).is_ok();
        if !known && entry.contains('.') {
            findings.note("declaration", format!("ignore: {entry}"), "no such module", "a module's name");
        }
    }
}

/// vLLM asks for a fused layer by its fused name first, then by class, and only then by the names of its parts: where
/// another group claims the class `Linear`, patterns for the parts alone come too late
/// (`compressed_tensors/utils.py`, `find_matched_target`).
fn fused_lookup(modules: &[Module<'_>], groups: &Groups<'_>, findings: &mut Findings) {
    for module in modules.iter().filter(|m| !m.name.contains(".experts.")) {
        let (Some(declared), Some(members)) = (&module.declared, fused_sets::members(module.name)) else {
            continue;
        };
        // Once for each set, at its first member.
        if members.first().is_none_or(|first| first != module.name) {
            continue;
        }
        let Some(fused) = fused_name(module.name) else { continue };
        let found = groups.by_name(&fused).or_else(|| groups.by_class(LINEAR));
        if let Some(found) = found.filter(|g| g.name != declared.group) {
            findings.defect(
                "declaration",
                fused,
                format!("looked up by vLLM in {}, as no target names it", found.name),
                format!("{}, like its parts: a target for the fused name too", declared.group),
            );
        }
    }
}

/// What vLLM calls the layer that a module becomes part of (`packed_modules_mapping` of its models).
fn fused_name(module: &str) -> Option<String> {
    let (parent, last) = module.rsplit_once('.')?;
    let fused = match last {
        "q_proj" => "qkv_proj",
        "gate_proj" | "w1" => "gate_up_proj",
        "q_a_proj" => "fused_qkv_a_proj",
        "in_proj_qkv" => "in_proj_qkvz",
        "in_proj_b" => "in_proj_ba",
        _ => return None,
    };
    Some(format!("{parent}.{fused}"))
}
