//! The noise floor: the baseline once more, on other kernels. What flips there flips without any quantization.

use std::collections::BTreeMap;

use super::arm::ArmName;
use super::graph::{Build, names, node};
use super::keys;
use crate::base::json;
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions};
use crate::eval::local::LocalScorer;
use crate::eval::{self, PreparedTask};
use crate::exec::{FnUnit, Node, Output};
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::eval::{EvalRecord, ItemRecord, NoiseFloor};
use crate::record::{Failure, FailureClass};

/// Items of each task that are scored again: the second path may be ten times slower than the first.
const ITEMS: usize = 256;

/// Name of the node.
pub const NOISE: &str = "noise-floor";

/// The path that the noise floor is measured on: the plainest one for `dtype`; `None` where the machine has only one.
pub fn second_path(dtype: ComputeDtype) -> Option<KernelPath> {
    let paths = match dtype {
        ComputeDtype::F32 => KernelPath::available(),
        ComputeDtype::Bf16 => KernelPath::available_bf16(),
    };
    paths.last().copied().filter(|_| paths.len() > 1)
}

/// Scores the first items of the baseline again on `path`, after its evaluation.
pub fn noise_node<'a>(build: &'a Build<'a>, path: KernelPath) -> Node<'a> {
    let key = keys::derived(&format!("noise/1 {} {ITEMS}", path.name()), &build.keys.compare);
    let unit = FnUnit::new(key, move |_| {
        let floors = measure(build, path)?;
        json::write(&build.run.join("eval/noise.json"), &floors)?;
        Output::of(&floors)
    });
    node(NOISE.to_owned(), "noise floor", vec![names::eval(ArmName::Baseline)], unit)
}

fn measure(build: &Build<'_>, path: KernelPath) -> Result<BTreeMap<String, NoiseFloor>, Failure> {
    let baseline: EvalRecord = json::read(&build.run.join("eval/baseline/record.json"))?;
    let scorer = LocalScorer::new(std::sync::Arc::new(engine(build, path, build.inputs.threads.clone())?));
    let mut floors = BTreeMap::new();
    for prepared in &build.inputs.tasks {
        let Some(task) = baseline.tasks.get(prepared.name()) else { continue };
        let items: Vec<usize> = (0..prepared.items.len().min(ITEMS).min(task.items.len())).collect();
        let again = eval::score_items(&scorer, prepared, &items, &|_| ());
        if let Some(error) = again.iter().find_map(|item| item.error.as_ref()) {
            let message = format!("noise floor, task {}: {}", prepared.name(), error.message);
            return Err(Failure::new(FailureClass::SampleAccountingFailed, message));
        }
        floors.insert(prepared.name().to_owned(), floor(prepared, &task.items, &again, path));
    }
    Ok(floors)
}

fn engine(build: &Build<'_>, path: KernelPath, threads: Threads) -> Result<Engine, Failure> {
    let checkpoint = Checkpoint::open(&build.inputs.model.dir)?;
    Ok(Engine::load_with(&checkpoint, &EngineOptions::new(threads), path)?)
}

/// Compares `again` with the same documents of the baseline, whose items are in ascending `doc_id`.
fn floor(
    prepared: &PreparedTask,
    baseline: &[ItemRecord],
    again: &[ItemRecord],
    path: KernelPath,
) -> NoiseFloor {
    let metric = eval::primary_metric(prepared).name;
    let (mut flips, mut largest, mut sum, mut count) = (0, 0.0f64, 0.0, 0u64);
    let mut items = 0;
    for item in again {
        let Ok(place) = baseline.binary_search_by_key(&item.doc_id, |b| b.doc_id) else { continue };
        let before = &baseline[place];
        items += 1;
        flips += usize::from(before.values.get(&metric) != item.values.get(&metric));
        for (a, b) in before.loglikelihoods.iter().zip(&item.loglikelihoods) {
            largest = largest.max((a - b).abs());
            sum += (a - b).abs();
            count += 1;
        }
    }
    NoiseFloor {
        kernel_path: path.name().to_owned(),
        items,
        flips,
        mean_abs_dll: sum / count.max(1) as f64,
        max_abs_dll: largest,
    }
}
