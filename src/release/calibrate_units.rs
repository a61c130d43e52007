//! Units of calibration: the samples in parts, each kept in the ledger as soon as it is done, then what they show
//! together. They depend on the source and the text only, so that every recipe and every release of one source shares
//! them.

use std::sync::{Arc, Mutex, PoisonError};

use super::graph::{names, node};
use crate::base::digest::Digest;
use crate::base::progress::{self, Progress};
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::engine::{self, Engine, EngineOptions};
use crate::exec::{Context, FnUnit, Graph, KeyBuilder, Node, Output, UnitKey};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::quantize::QuantizePlan;
use crate::quantize::calibration::{Calibration, CalibrationConfig};
use crate::record::calibration::{CalibrationRecord, CalibrationSummary, ObservedInputs};
use crate::record::preflight::{PlannedCalibration, PlannedWork};
use crate::record::{Failure, SCHEMA_VERSION};

/// Tokens of one part: seconds to a few minutes of work, which is what an interrupted run loses.
const PART_TOKENS: usize = 8192;

/// Buffers of the engine while it calibrates, and what the process holds besides.
const ENGINE_WORK_BYTES: u64 = 256 << 20;

/// A calibration of one source, which all outputs share that need it.
pub struct CalibrateJob {
    source: Arc<Checkpoint>,
    source_digest: Digest,
    calibration: Calibration,
    threads: Threads,
    build: Digest,
    /// Loaded by the first part that runs, dropped by the last.
    loaded: Mutex<Option<Arc<Loaded>>>,
}

struct Loaded {
    engine: Engine,
    tokenizer: Tokenizer,
}

/// The calibration that these plans of one source need, if any does. Refuses an architecture that the engine does not
/// know, and a text that cannot be used.
pub fn job<'a>(
    source: &Arc<Checkpoint>,
    plans: impl Iterator<Item = &'a QuantizePlan>,
    config: &CalibrationConfig,
    threads: &Threads,
    build: &Digest,
) -> Result<Option<CalibrateJob>, Failure> {
    let plans: Vec<&QuantizePlan> = plans.filter(|plan| plan.needs_calibration()).collect();
    if plans.is_empty() {
        if *config != CalibrationConfig::default() {
            progress::note("calibration: not needed, the recipe has no static input scales to find");
        }
        return Ok(None);
    }
    check(source)?;
    let max_len = engine::max_len(source.config());
    let calibration = config.settle(plans.iter().map(|plan| plan.recipe()), max_len)?;
    Ok(Some(CalibrateJob {
        source: Arc::clone(source),
        source_digest: source.digest()?,
        calibration,
        threads: threads.clone(),
        build: build.clone(),
        loaded: Mutex::new(None),
    }))
}

/// Whether the engine can calibrate this source; a recipe that needs it is impossible otherwise.
pub fn check(source: &Checkpoint) -> Result<(), Failure> {
    engine::check_supported(source).map_err(|error| {
        let failure = Failure::from(error);
        let message = format!("the recipe needs calibrated input scales: {}", failure.message);
        let hint = "use a recipe with dynamic inputs such as fp8_dynamic, a weight-only one such as nvfp4a16, or give a \
                    constant amax under input_activations in a recipe file";
        Failure::new(failure.class, message).with_hint(hint)
    })
}

impl CalibrateJob {
    /// Adds it to what is planned.
    pub fn announce(&self, work: &mut PlannedWork) {
        let engine_bytes = engine::memory_bytes(&self.source, ComputeDtype::F32);
        work.calibration = Some(PlannedCalibration { data: self.calibration.data(), engine_bytes });
        work.peak_memory_bytes = work.peak_memory_bytes.max(engine_bytes + ENGINE_WORK_BYTES);
    }

    /// Digest of the text.
    pub fn text_digest(&self) -> &Digest {
        self.calibration.text.digest()
    }

    /// Key of everything that the observed inputs depend on.
    pub fn key(&self) -> UnitKey {
        self.keys("calibrate/1").finish()
    }

    fn keys(&self, kind: &str) -> KeyBuilder {
        // The tokenizer's files are part of the source's digest.
        KeyBuilder::new(kind)
            .part("source", &self.source_digest)
            .part("text", self.calibration.text.digest())
            .part("samples", self.calibration.samples)
            .part("sequence_length", self.calibration.sequence_length)
            .part("build", &self.build)
            .part("kernel_path", engine::kernel_path(ComputeDtype::F32))
    }

    /// Samples of each part.
    fn parts(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let count = self.calibration.samples;
        let step = (PART_TOKENS / self.calibration.sequence_length.max(1)).max(1);
        (0..count).step_by(step).map(move |begin| begin..(begin + step).min(count))
    }

    fn loaded(&self) -> Result<Arc<Loaded>, Failure> {
        let mut slot = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*slot {
            return Ok(Arc::clone(loaded));
        }
        let tokenizer = Tokenizer::load(self.source.dir())?;
        let engine = Engine::load(&self.source, &EngineOptions::new(self.threads.clone()))?;
        let loaded = Arc::new(Loaded { engine, tokenizer });
        *slot = Some(Arc::clone(&loaded));
        Ok(loaded)
    }

    fn observe(&self, part: std::ops::Range<usize>) -> Result<ObservedInputs, Failure> {
        let loaded = self.loaded()?;
        let Calibration { text, samples: count, sequence_length: length } = &self.calibration;
        let mut samples = Vec::new();
        for index in part.clone() {
            let sample = text.sample(index, *count, *length, &loaded.tokenizer)?;
            samples.extend(Some(sample).filter(|s| !s.is_empty()));
        }
        let tokens = samples.iter().map(Vec::len).sum::<usize>();
        let label = format!("calibration, samples {} to {} of {count}", part.start + 1, part.end);
        let progress = Progress::new(&label, tokens as u64, "tok");
        Ok(loaded.engine.observe_inputs(&samples, &|tokens| progress.inc(tokens as u64))?)
    }

    fn merge(&self, context: &Context<'_>, parts: &[String]) -> Result<CalibrationRecord, Failure> {
        let mut inputs = ObservedInputs::default();
        for part in parts {
            inputs.merge(context.output(part)?);
        }
        // Memory goes back before shards are written.
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let data = self.calibration.data();
        if inputs.samples < data.samples {
            progress::note(&format!(
                "calibration: {} has text for {} of {} samples",
                data.text, inputs.samples, data.samples
            ));
        }
        let kernel_path = engine::kernel_path(ComputeDtype::F32).to_owned();
        Ok(CalibrationRecord { schema_version: SCHEMA_VERSION, data, inputs, kernel_path })
    }

    /// Adds `quantize/calibrate-N` and `quantize/calibration`.
    pub fn add<'a>(&'a self, graph: &mut Graph<'a>) {
        let mut parts = Vec::new();
        for (number, part) in self.parts().enumerate() {
            let name = format!("quantize/calibrate-{number}");
            let key = self.keys("calibrate-part/1").part("part", format!("{part:?}")).finish();
            let unit = FnUnit::new(key, move |_: &Context<'_>| Output::of(&self.observe(part.clone())?));
            graph.add(Node { shared: true, ..node(name.clone(), "quantize", Vec::new(), unit) });
            parts.push(name);
        }
        let after = parts.clone();
        let unit =
            FnUnit::new(self.key(), move |context: &Context<'_>| Output::of(&self.merge(context, &parts)?));
        graph.add(Node { shared: true, ..node(names::CALIBRATION.to_owned(), "quantize", after, unit) });
    }
}

/// Says what calibration could not see: nobody should have to look into the record to find out.
pub fn note(calibration: &CalibrationSummary) {
    let unseen = ("no token reached; the largest input of its siblings was taken for", &calibration.filled);
    for (what, modules) in [unseen, ("all inputs were zero of", &calibration.all_zero)] {
        let Some((first, others)) = modules.split_first() else { continue };
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        progress::note(&format!("calibration: {what} {first}{more}"));
    }
}
