//! Bytes and parameters.

use std::collections::HashSet;

use super::modules::Module;
use super::source::SourceCheck;
use super::table::{Table, decl};
use crate::record::scan::SizeScan;

/// Measures the checkpoint and, where given, its source.
pub(super) fn measure(table: &Table<'_>, modules: &[Module<'_>], check: &SourceCheck<'_>) -> SizeScan {
    let output_bytes = table.tensors.values().map(|t| t.num_bytes()).sum();
    let source = check.source_bytes();
    let parameters = parameters(table, modules);
    SizeScan {
        output_bytes,
        source_bytes: source.map(|(stored, _)| stored),
        source_bf16_bytes: source.map(|(_, dense)| dense),
        source_is_quantized: check.source_is_quantized(),
        predicted_bytes: check.predicted_bytes(),
        parameters,
        bits_per_weight: if parameters == 0 { 0.0 } else { 8.0 * output_bytes as f64 / parameters as f64 },
    }
}

/// Elements of the dequantized weights, and of every other tensor that belongs to no quantized module.
fn parameters(table: &Table<'_>, modules: &[Module<'_>]) -> u64 {
    let quantized: HashSet<&str> =
        modules.iter().filter(|m| m.found.is_quantized()).map(|m| m.name).collect();
    let plain: u64 = table
        .tensors
        .iter()
        .filter(|(name, _)| match name.rsplit_once('.') {
            // A bias is a parameter also where the weight is quantized; scales are none.
            Some((module, suffix)) => suffix == "bias" || !quantized.contains(module),
            None => true,
        })
        .map(|(_, info)| decl(info).shape.iter().map(|d| *d as u64).product::<u64>())
        .sum();
    let dense: u64 = modules
        .iter()
        .filter(|m| m.found.is_quantized())
        .filter_map(|m| m.shape)
        .map(|[n, k]| n as u64 * k as u64)
        .sum();
    plain + dense
}
