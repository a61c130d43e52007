//! Preflight: everything that can be said about a quantization before it runs: bytes, time, memory, engines, devices,
//! and which module gets which scheme. Headers decide; only the time is measured, on rows of the model's own weights.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{Arithmetic, QuantizeError, QuantizePlan, sample};
use crate::checkpoint::Checkpoint;
use crate::ops::weight_layout::ModuleTensor;
use crate::recipe::assignment::AssignedModule;
use crate::recipe::{self, Recipe};
use crate::record::preflight::{
    CuttingProblem, PlannedFile, PlannedModules, PlannedScheme, PlannedWork, PreflightRecord,
};
use crate::record::{Failure, FailureClass, SCHEMA_VERSION};
use crate::scan::engines::{self, Use};
use crate::scan::tensor_parallel::{self, Linear, Problem, Role};

/// Tiles between reading and writing, and the buffers of the threads.
const IN_FLIGHT_BYTES: u64 = 192 << 20;
/// Precision of what is left as it is.
const LEFT: &str = "unquantized";
/// Most devices that are tried when the asked number is impossible.
const MAX_DEVICES: usize = 64;

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub struct PreflightOptions<'a> {
    /// Devices that each layer will be cut for. Several that were asked for and cannot be had make the request
    /// impossible; on a single one, which is looked at without a number too, problems are only reported.
    pub devices: Option<usize>,
    /// Where the result would be written: its file system is part of the measured rate. `None` measures nothing.
    pub target: Option<&'a Path>,
}

/// Looks at everything. An error means that not even the question makes sense (an unreadable source, a target that
/// cannot be written); what is impossible is recorded. The plan comes with it, where there is one.
pub fn preflight(
    source: &Arc<Checkpoint>,
    recipe: &Recipe,
    arithmetic: Arithmetic,
    options: PreflightOptions<'_>,
) -> Result<(PreflightRecord, Option<QuantizePlan>), Failure> {
    let mut record = PreflightRecord {
        schema_version: SCHEMA_VERSION,
        source: source.dir().display().to_string(),
        recipe: recipe.name.clone(),
        recipe_version: recipe.version,
        impossible: None,
        plan: None,
    };
    match QuantizePlan::new(Arc::clone(source), recipe.clone(), arithmetic) {
        Ok(plan) => {
            let work = planned_work(&plan, options)?;
            record.impossible = cutting_failure(&plan, options.devices, &work.cutting_problems);
            record.plan = Some(work);
            Ok((record, Some(plan)))
        }
        Err(error) => {
            let failure = Failure::from(error);
            if failure.class != FailureClass::ModelUnsupported {
                return Err(failure);
            }
            record.impossible = Some(failure);
            Ok((record, None))
        }
    }
}

fn planned_work(plan: &QuantizePlan, options: PreflightOptions<'_>) -> Result<PlannedWork, Failure> {
    let devices = options.devices.unwrap_or(1);
    let problems = cutting_problems(plan, devices);
    let time = options
        .target
        .map(|target| sample::estimate(plan, target, sample::SAMPLE_BYTES))
        .transpose()?
        .flatten();
    let cutting_problems = problems.iter().map(|p| CuttingProblem {
        module: p.module.clone(),
        observed: p.observed.clone(),
        expected: p.expected.clone(),
    });
    Ok(PlannedWork {
        source_bytes: plan.source_tensor_bytes(),
        predicted_bytes: plan.predicted_tensor_bytes(),
        files: (0..plan.num_shards())
            .map(|i| PlannedFile {
                file: plan.shard_file_name(i).to_owned(),
                tensor_bytes: plan.shard_output_bytes(i),
            })
            .collect(),
        schemes: schemes(plan),
        modules: grouped_modules(plan),
        time,
        peak_memory_bytes: plan.peak_memory_bytes(),
        calibration: None,
        devices,
        cutting_problems: cutting_problems.collect(),
        unknown_roles: plan
            .modules()
            .iter()
            .filter(|m| tensor_parallel::role(&m.name) == Role::Unknown)
            .count(),
        engines: engines::support(&uses(plan), &problems, plan.recipe().dialect),
    })
}

fn cutting_problems(plan: &QuantizePlan, devices: usize) -> Vec<Problem> {
    let linears: Vec<Linear<'_>> =
        plan.modules().iter().map(|m| Linear { name: &m.name, shape: m.shape, layout: &m.layout }).collect();
    tensor_parallel::check(&linears, Some(plan.source_config()), devices)
}

/// The groups of the recipe that have modules.
fn uses(plan: &QuantizePlan) -> Vec<Use<'_>> {
    let mut seen: BTreeMap<usize, Use<'_>> = BTreeMap::new();
    for module in plan.modules() {
        let scheme = &plan.recipe().groups[module.group];
        let format = Some(module.format);
        let used = seen.entry(module.group);
        let used = used.or_insert(Use { scheme, format, has_experts: false, has_dense: false });
        if engines::is_expert(&module.name) {
            used.has_experts = true;
        } else {
            used.has_dense = true;
        }
    }
    seen.into_values().collect()
}

/// Why so many devices cannot be had, with what would work instead.
fn cutting_failure(
    plan: &QuantizePlan,
    devices: Option<usize>,
    problems: &[CuttingProblem],
) -> Option<Failure> {
    // One device cuts nothing: what an engine refuses there is said of the engine.
    let devices = devices.filter(|n| *n > 1)?;
    let first = problems.first()?;
    let more = match problems.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let message = format!(
        "recipe {}: layers cannot be cut for {devices} devices: {}: {}, expected {}{more}",
        plan.recipe().name,
        first.module,
        first.observed,
        first.expected
    );
    let failure = Failure::new(FailureClass::ModelUnsupported, message);
    let hint = if let Some(name) = nearest_recipe(plan, devices) {
        format!("use --recipe {name}, which can be cut for {devices} devices")
    } else {
        let fewer = (2..devices.min(MAX_DEVICES)).rev().find(|n| cutting_problems(plan, *n).is_empty());
        format!("use --tp {}; no built-in recipe can be cut for {devices} devices", fewer.unwrap_or(1))
    };
    Some(failure.with_hint(hint))
}

/// A built-in recipe that applies and can be cut, one with the same kind of weights if there is one.
fn nearest_recipe(plan: &QuantizePlan, devices: usize) -> Option<String> {
    let kind = |r: &Recipe| r.groups.first().map(|g| (g.weights.qtype, g.weights.num_bits));
    let fits = |recipe: &Recipe| {
        plan.with_recipe(recipe.clone()).is_ok_and(|plan| cutting_problems(&plan, devices).is_empty())
    };
    let others = recipe::builtin_names().iter().filter(|name| **name != plan.recipe().name);
    let in_layout = |recipe: Recipe| recipe.in_dialect(plan.recipe().dialect).ok();
    let others = others.filter_map(|name| recipe::load(name).ok()).filter_map(in_layout);
    let (alike, unlike): (Vec<Recipe>, Vec<Recipe>) = others.partition(|r| kind(r) == kind(plan.recipe()));
    alike.into_iter().chain(unlike).find(fits).map(|r| r.name)
}

fn schemes(plan: &QuantizePlan) -> Vec<PlannedScheme> {
    let mut all: BTreeMap<String, PlannedScheme> = BTreeMap::new();
    let (mut source_bytes, mut predicted_bytes) = (plan.source_tensor_bytes(), plan.predicted_tensor_bytes());
    for module in plan.modules() {
        let precision = module.layout.precision();
        let scheme = all.entry(precision.clone()).or_insert(PlannedScheme {
            precision,
            modules: 0,
            source_bytes: 0,
            predicted_bytes: 0,
        });
        let before = (module.shape[0] * module.shape[1] * module.dtype.size()) as u64;
        let after = module.tensors().iter().map(ModuleTensor::num_bytes).sum::<u64>();
        scheme.modules += 1;
        scheme.source_bytes += before;
        scheme.predicted_bytes += after;
        source_bytes = source_bytes.saturating_sub(before);
        predicted_bytes = predicted_bytes.saturating_sub(after);
    }
    let rest = PlannedScheme {
        precision: LEFT.to_owned(),
        modules: plan.excluded_modules().len(),
        source_bytes,
        predicted_bytes,
    };
    all.into_values().chain([rest]).collect()
}

/// What modules have in common: name with numbers left out, shape, precision, reason.
type Alike = (String, Option<[usize; 2]>, Option<String>, Option<String>);

/// Modules in groups; each line of a report is one group.
fn grouped_modules(plan: &QuantizePlan) -> Vec<PlannedModules> {
    let mut groups: BTreeMap<Alike, Vec<Vec<u64>>> = BTreeMap::new();
    let mut add = |name: &str, shape, precision, reason| {
        let (pattern, numbers) = without_numbers(name);
        groups.entry((pattern, shape, precision, reason)).or_default().push(numbers);
    };
    for module in plan.modules() {
        add(&module.name, Some(module.shape), Some(module.layout.precision()), None);
    }
    for (name, reason) in plan.excluded_modules() {
        add(&name, None, None, Some(reason));
    }
    let mut lines: Vec<PlannedModules> = groups
        .into_iter()
        .map(|((pattern, shape, precision, reason), numbers)| PlannedModules {
            pattern: with_ranges(&pattern, &numbers),
            count: numbers.len(),
            shape,
            precision,
            reason,
        })
        .collect();
    // What is quantized comes first.
    lines.sort_by_key(|line| line.precision.is_none());
    lines
}

/// `model.layers.3.mlp` as `model.layers.*.mlp` and [3].
fn without_numbers(name: &str) -> (String, Vec<u64>) {
    let mut numbers = Vec::new();
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse::<u64>() {
            Ok(number) => {
                numbers.push(number);
                "*"
            }
            Err(_) => part,
        })
        .collect();
    (parts.join("."), numbers)
}

/// Puts the numbers back as `3`, `{0-29}` or `{0,2,5-7}`.
fn with_ranges(pattern: &str, numbers: &[Vec<u64>]) -> String {
    let mut position = 0;
    let parts: Vec<String> = pattern
        .split('.')
        .map(|part| {
            if part != "*" {
                return part.to_owned();
            }
            let mut here: Vec<u64> = numbers.iter().filter_map(|n| n.get(position).copied()).collect();
            position += 1;
            here.sort_unstable();
            here.dedup();
            ranges(&here)
        })
        .collect();
    parts.join(".")
}

fn ranges(sorted: &[u64]) -> String {
    if let [only] = sorted {
        return only.to_string();
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let run = |(first, last): &(u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    format!("{{{}}}", runs.iter().map(run).collect::<Vec<_>>().join(","))
}

impl QuantizePlan {
    /// The same source under another recipe.
    fn with_recipe(&self, recipe: Recipe) -> Result<Self, QuantizeError> {
        Self::new(Arc::clone(self.source.checkpoint()), recipe, self.arithmetic)
    }

    /// `config.json` of the source.
    fn source_config(&self) -> &serde_json::Value {
        self.source.config()
    }

    /// Bytes of the tensors of one output shard.
    fn shard_output_bytes(&self, shard: usize) -> u64 {
        self.shards[shard].iter().map(super::plan::OutputTensor::num_bytes).sum()
    }

    /// Upper bound of the resident memory: what the process has now, tiles in flight, and what is kept of one module
    /// until its codes are written: its scales and, where they stand in another place of the file, its codes.
    fn peak_memory_bytes(&self) -> u64 {
        let kept = |m: &AssignedModule| m.tensors().iter().skip(1).map(ModuleTensor::num_bytes).sum::<u64>();
        let tile = |m: &AssignedModule| {
            let [rows, _] = m.layout.block(m.shape);
            let rows = if m.layout.needs_tensor_amax() { 1 } else { rows };
            (rows * m.shape[1] * m.dtype.size()) as u64
        };
        let largest = |of: &dyn Fn(&AssignedModule) -> u64| self.modules().iter().map(of).max().unwrap_or(0);
        resident_bytes() + IN_FLIGHT_BYTES + 2 * largest(&kept) + 4 * largest(&tile)
    }
}

/// Resident memory of this process now: `VmRSS` of /proc/self/status; 0 where there is none.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::super::tests::model;
    use super::*;
    use crate::ops::float_dtype::FloatDtype;

    /// Blocks of 128 rows in a merged layer with parts of 64: vLLM does not load it on any number of devices, which is
    /// said; only a cut that was asked for is refused.
    #[test]
    fn one_device_refuses_nothing() {
        let (_guard, source, _) = model(FloatDtype::Bf16, 1);
        let source = Arc::new(Checkpoint::open(&source).unwrap());
        let recipe = recipe::load("fp8_block").unwrap();
        for (devices, is_refused) in [(None, false), (Some(1), false), (Some(2), true)] {
            let options = PreflightOptions { devices, target: None };
            let (record, plan) = preflight(&source, &recipe, Arithmetic::F32, options).unwrap();
            assert_eq!((record.impossible.is_some(), plan.is_some()), (is_refused, true), "{devices:?}");
            assert!(!record.plan.unwrap().cutting_problems.is_empty(), "{devices:?}");
        }
    }

    #[test]
    fn names_are_grouped_by_their_numbers() {
        let (pattern, numbers) = without_numbers("model.layers.12.mlp.experts.3.w1");
        assert_eq!((pattern.as_str(), numbers), ("model.layers.*.mlp.experts.*.w1", vec![12, 3]));
        let numbers = [vec![0, 1], vec![1, 1], vec![2, 1], vec![5, 1]];
        assert_eq!(with_ranges("a.*.b.*", &numbers), "a.{0-2,5}.b.1");
    }
}
