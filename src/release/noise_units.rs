//! The noise floor: the baseline once more, on other kernels, or over an endpoint in other company. What flips there
//! flips without any quantization.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::arm::{ArmEngine, ArmName};
use super::graph::{Build, names, node};
use super::keys;
use super::score_units::{EvalJob, Wave};
use crate::base::json;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions};
use crate::eval::local::LocalScorer;
use crate::eval::{self, ItemRef, PreparedTask, Scorer};
use crate::exec::{Context, FnUnit, Node, Output};
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::record::eval::{ItemRecord, NoiseFloor};
use crate::record::serve::ServeRecord;
use crate::record::{Failure, FailureClass};

/// Items of each task or group that are scored again: the second path may be ten times slower than the first.
const ITEMS: usize = 256;

/// Name of the node.
pub const NOISE: &str = "noise-floor";

/// The path that the noise floor of the CPU is measured on: the plainest one for `dtype`; `None` where the machine has only
/// one.
fn second_path(dtype: ComputeDtype) -> Option<KernelPath> {
    let paths = match dtype {
        ComputeDtype::F32 => KernelPath::available(),
        ComputeDtype::Bf16 => KernelPath::available_bf16(),
    };
    paths.last().copied().filter(|_| paths.len() > 1)
}

/// How a baseline is scored again.
#[derive(Clone, Copy)]
enum OtherWay {
    /// By other kernels of the CPU.
    On(ComputeDtype, KernelPath),
    /// By what answered before, whose numbers depend on what it is asked together: over an endpoint, and on a GPU.
    OneByOne,
}

impl OtherWay {
    /// `None` where there is no other way.
    fn of(engine: &ArmEngine) -> Option<Self> {
        match engine {
            ArmEngine::Local { dtype, place } if place.is_cpu() => {
                second_path(*dtype).map(|path| Self::On(*dtype, path))
            }
            _ => Some(Self::OneByOne),
        }
    }

    fn in_words(self) -> String {
        match self {
            Self::On(_, path) => format!("on {}", path.name()),
            Self::OneByOne => "one prompt at a time, last item first".to_owned(),
        }
    }
}

/// Whether the noise floor of a baseline can be measured.
pub fn is_measurable(baseline: &ArmEngine) -> bool {
    OtherWay::of(baseline).is_some()
}

/// Scores the first items of the baseline again, while what served them still does; `None` where there is no other way.
pub fn noise_node<'a>(build: &'a Build<'a>, job: &'a EvalJob<'a>) -> Option<Node<'a>> {
    let way = OtherWay::of(&build.inputs.engines[ArmName::Baseline as usize])?;
    let how = way.in_words();
    let key = keys::derived(&format!("noise/2 {how} {ITEMS}"), &build.keys.compare);
    let mut after = job.wave_names();
    after.push(names::serve(ArmName::Baseline));
    let unit = FnUnit::new(key, move |context| {
        let floors = measure(build, job, way, context)?;
        json::write(&build.run.join("eval/noise.json"), &floors)?;
        Output::of(&floors)
    })
    .reading(job.wave_names());
    Some(node(NOISE.to_owned(), "noise floor", after, unit))
}

fn measure(
    build: &Build<'_>,
    job: &EvalJob<'_>,
    way: OtherWay,
    context: &Context<'_>,
) -> Result<BTreeMap<String, NoiseFloor>, Failure> {
    let scorer = scorer(build, way, context)?;
    let mut floors = BTreeMap::new();
    for index in 0..job.sequences.len() {
        let (before, asked) = first_items(job, index, context)?;
        let asked: Vec<ItemRef<'_>> = asked.into_iter().rev().collect();
        let again = eval::score_items(&*scorer, &asked, &|_| ());
        for ((task, _), item) in asked.iter().zip(&again) {
            if let Some(error) = &item.error {
                let class = if error.transient {
                    FailureClass::InfraTransient
                } else {
                    FailureClass::SampleAccountingFailed
                };
                let message = format!("noise floor, task {}: {}", task.name(), error.message);
                return Err(Failure::new(class, message));
            }
        }
        for task in &job.sequences[index].tasks {
            let task = &job.tasks[*task];
            let own: Vec<&ItemRecord> = asked
                .iter()
                .zip(&again)
                .filter(|((of, _), _)| of.name() == task.name())
                .map(|(_, i)| i)
                .collect();
            let before = before.get(task.name()).map_or(&[][..], Vec::as_slice);
            floors.insert(task.name().to_owned(), floor(task, before, &own, way));
        }
    }
    Ok(floors)
}

/// The first items of a sequence as the baseline scored them, by task, and what they were asked as.
#[expect(clippy::type_complexity, reason = "two views of the same items")]
fn first_items<'a>(
    job: &EvalJob<'a>,
    sequence: usize,
    context: &Context<'_>,
) -> Result<(BTreeMap<String, Vec<ItemRecord>>, Vec<ItemRef<'a>>), Failure> {
    let mut before: BTreeMap<String, Vec<ItemRecord>> = BTreeMap::new();
    let mut asked = Vec::new();
    for wave in 0..job.sequences[sequence].waves.len() {
        let scored: Wave = context.output(&job.wave_name((sequence, wave)))?;
        // A wave without items was not needed any more.
        if asked.len() >= ITEMS || scored.items.is_empty() {
            break;
        }
        let left = ITEMS - asked.len();
        asked.extend(job.wave_items((sequence, wave)).into_iter().take(left));
        for (task, items) in scored.items {
            before.entry(task).or_default().extend(items);
        }
    }
    Ok((before, asked))
}

fn scorer(build: &Build<'_>, way: OtherWay, context: &Context<'_>) -> Result<Arc<dyn Scorer>, Failure> {
    match way {
        OtherWay::On(dtype, path) => {
            let checkpoint = Checkpoint::open(&build.inputs.model.dir)?;
            let options = EngineOptions { dtype, ..EngineOptions::new(build.inputs.threads.clone()) };
            Ok(Arc::new(LocalScorer::new(Arc::new(Engine::load_with(&checkpoint, &options, path)?))))
        }
        OtherWay::OneByOne => {
            let opening: ServeRecord = context.output(&names::serve(ArmName::Baseline))?;
            build.arm(ArmName::Baseline).one_by_one(&opening)
        }
    }
}

/// Compares `again` with the same documents as they were scored before.
fn floor(task: &PreparedTask, before: &[ItemRecord], again: &[&ItemRecord], way: OtherWay) -> NoiseFloor {
    let metric = eval::primary_metric(&task.task).name;
    let by_doc: BTreeMap<usize, &ItemRecord> = before.iter().map(|item| (item.doc_id, item)).collect();
    let (mut flips, mut largest, mut sum, mut count) = (0, 0.0f64, 0.0, 0u64);
    let mut items = 0;
    for item in again {
        let Some(before) = by_doc.get(&item.doc_id) else { continue };
        items += 1;
        flips += usize::from(before.values.get(&metric) != item.values.get(&metric));
        for (a, b) in before.loglikelihoods.iter().zip(&item.loglikelihoods) {
            largest = largest.max((a - b).abs());
            sum += (a - b).abs();
            count += 1;
        }
    }
    NoiseFloor {
        how: way.in_words(),
        items,
        flips,
        mean_abs_dll: sum / count.max(1) as f64,
        max_abs_dll: largest,
    }
}
