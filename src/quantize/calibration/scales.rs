//! From largest magnitudes to static input scales: layers that engines fuse get one, and experts that saw no token get
//! the largest of their siblings.

use std::collections::{BTreeMap, BTreeSet};

use super::CalibrationError;
use crate::checkpoint::quant_args::Dialect;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::scalar_scale;
use crate::recipe::assignment::Assignment;
use crate::recipe::{Recipe, fused_sets};
use crate::record::calibration::{CalibrationRecord, CalibrationSummary, ObservedInputs};

/// The static input scales of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct InputScales {
    /// By tensor.
    pub values: BTreeMap<String, f32>,
    /// For the record; `None` for numbers that only hold a place.
    pub summary: Option<CalibrationSummary>,
}

/// The largest magnitude of one module's inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Amax {
    Seen(f32),
    /// From its siblings.
    Filled(f32),
}

impl InputScales {
    /// The scales that `assignment` needs.
    pub fn new(
        assignment: &Assignment,
        recipe: &Recipe,
        record: &CalibrationRecord,
    ) -> Result<Self, CalibrationError> {
        let inputs = &record.inputs;
        if let Some(module) = &inputs.not_finite {
            return Err(CalibrationError::NotFinite { module: module.clone() });
        }
        if inputs.tokens == 0 {
            return Err(CalibrationError::Empty { text: record.data.text.clone() });
        }
        let needed: Vec<_> = assignment.calibrated().collect();
        let modules: BTreeSet<&str> = needed.iter().filter_map(|s| s.inputs_of.as_deref()).collect();
        let siblings = siblings(&modules, inputs);
        let mut found: BTreeMap<&str, Amax> = BTreeMap::new();
        for module in modules.iter().copied() {
            let filled = || sibling_key(module).and_then(|key| siblings.get(&key)).copied().map(Amax::Filled);
            let amax = observed(inputs, module).map(Amax::Seen).or_else(filled);
            found.insert(module, amax.ok_or_else(|| CalibrationError::Unseen { module: module.to_owned() })?);
        }
        let schemes: BTreeMap<&str, (usize, FloatDtype)> =
            assignment.modules.iter().map(|m| (m.name.as_str(), (m.group, m.dtype))).collect();
        let mut values = BTreeMap::new();
        for scalar in &needed {
            let Some(module) = scalar.inputs_of.as_deref() else { continue };
            let Some((group, dtype)) = schemes.get(module) else { continue };
            let Some(args) = &recipe.groups[*group].input_activations else { continue };
            // ModelOpt's scalars are f32 whatever the weights are.
            let stored = if recipe.dialect == Dialect::Modelopt { FloatDtype::F32 } else { *dtype };
            let amax = shared(&found, module);
            values.insert(scalar.name.clone(), scalar_scale::of_observed(args, recipe.dialect, stored, amax));
        }
        let named = |keep: &dyn Fn(&Amax) -> bool| {
            found.iter().filter(|(_, amax)| keep(amax)).map(|(module, _)| (*module).to_owned()).collect()
        };
        let summary = CalibrationSummary {
            data: record.data.clone(),
            samples: inputs.samples,
            tokens: inputs.tokens,
            scales: values.len(),
            filled: named(&|amax| matches!(amax, Amax::Filled(_))),
            all_zero: named(&|amax| *amax == Amax::Seen(0.0)),
        };
        Ok(Self { values, summary: Some(summary) })
    }

    /// 1 everywhere: for a sample that is written to take its time.
    pub fn placeholders(assignment: &Assignment) -> Self {
        Self { values: assignment.calibrated().map(|s| (s.name.clone(), 1.0)).collect(), summary: None }
    }
}

impl Amax {
    fn get(self) -> f32 {
        match self {
            Self::Seen(amax) | Self::Filled(amax) => amax,
        }
    }
}

/// What was seen of a module, or of the module that the engine has in its place: checkpoints with stacked experts
/// multiply gate and up at once.
fn observed(inputs: &ObservedInputs, module: &str) -> Option<f32> {
    let stacked = || {
        let parent = module.strip_suffix(".gate_proj").or_else(|| module.strip_suffix(".up_proj"))?;
        inputs.amax.get(&format!("{parent}.gate_up_proj"))
    };
    inputs.amax.get(module).or_else(stacked).copied()
}

/// The largest magnitude over the members of the module's fused set.
fn shared(found: &BTreeMap<&str, Amax>, module: &str) -> f32 {
    let members = fused_sets::members(module).unwrap_or_else(|| vec![module.to_owned()]);
    members.iter().filter_map(|m| found.get(m.as_str())).map(|amax| amax.get()).fold(0.0, f32::max)
}

/// The same projection of all experts of a layer: `model.layers.0.mlp.experts.*.up_proj`.
fn sibling_key(module: &str) -> Option<String> {
    let (before, after) = module.split_once(".experts.")?;
    let (expert, projection) = after.split_once('.')?;
    expert.parse::<u32>().is_ok().then(|| format!("{before}.experts.*.{projection}"))
}

/// The largest magnitude by projection of the experts of a layer, over those that were seen.
fn siblings(modules: &BTreeSet<&str>, inputs: &ObservedInputs) -> BTreeMap<String, f32> {
    let mut largest: BTreeMap<String, f32> = BTreeMap::new();
    for module in modules {
        if let (Some(key), Some(amax)) = (sibling_key(module), observed(inputs, module)) {
            let all = largest.entry(key).or_insert(0.0);
            *all = all.max(amax);
        }
    }
    largest
}
