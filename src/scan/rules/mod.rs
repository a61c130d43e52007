//! What loaders demand beyond the tensors of single modules (checkpoint-formats §4). vLLM does not check that a
//! quantized model is complete, so a breach shows as garbage or as an exception far from its cause.

mod declaration;
mod experts;
mod kv_cache;
mod special;

#[cfg(test)]
mod tests;

use super::Findings;
use super::modules::Module;
use super::table::Table;
use crate::checkpoint::name_match::{MatchLevel, NameMatcher};
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{ConfigGroup, QuantizationConfig};

/// Checks a checkpoint that declares a quantization.
pub(super) fn check(
    table: &Table<'_>,
    modules: &[Module<'_>],
    config: &QuantizationConfig,
    findings: &mut Findings,
) {
    let groups = Groups::new(config);
    experts::check(table, modules, findings);
    special::check(modules, &groups, findings);
    // ModelOpt has other keys and names no targets.
    if config.dialect == Dialect::CompressedTensors {
        declaration::check(table, modules, &groups, findings);
        special::head(table, modules, &groups, findings);
        kv_cache::check(table, config, findings);
    }
}

/// The config groups with their targets compiled one group at a time.
struct Groups<'a> {
    config: &'a QuantizationConfig,
    targets: Vec<(&'a ConfigGroup, NameMatcher)>,
}

impl<'a> Groups<'a> {
    fn new(config: &'a QuantizationConfig) -> Self {
        // The config was parsed, so its patterns compile.
        let matcher = |group: &ConfigGroup| NameMatcher::new(&group.scheme.targets).unwrap_or_default();
        Self { config, targets: config.groups.iter().map(|g| (g, matcher(g))).collect() }
    }

    /// The first group that names a module exactly or by pattern.
    fn by_name(&self, module: &str) -> Option<&'a ConfigGroup> {
        let named = |matcher: &NameMatcher| matcher.level(module).is_some_and(|l| l > MatchLevel::Class);
        self.targets.iter().find(|(_, matcher)| named(matcher)).map(|(group, _)| *group)
    }

    /// The first group that claims a class.
    fn by_class(&self, class: &str) -> Option<&'a ConfigGroup> {
        self.targets.iter().map(|(g, _)| *g).find(|g| g.scheme.targets.iter().any(|t| t == class))
    }
}

/// Last part of a module's name.
fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}
