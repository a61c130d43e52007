//! How fast this machine quantizes: a sample of the model's own weights goes through the whole pipeline, to the file
//! system of the target.
//!
//! The sample has the largest modules of each group of the recipe, the last cut to its first rows. Its time is that of
//! tiles, scales, digests and writing together, which no formula knows beforehand; reading is measured apart, where the
//! source lies, and so is waiting for storage.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::{Durability, QuantizeError, QuantizePlan, ShardTarget, write_shards};
use crate::base::json;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::files::{CONFIG, SINGLE};
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::recipe::assignment::AssignedModule;
use crate::record::Failure;
use crate::record::preflight::TimeEstimate;

/// Bytes of rows taken for each group: long enough to be timed, short enough not to be waited for.
pub(super) const SAMPLE_BYTES: usize = 24 << 20;
/// Rounding rows up to this keeps blocks whole.
const ROWS: usize = 128;

/// Measures with about `sample_bytes` of each group and extrapolates; `None` where there is nothing to take a sample of.
pub(super) fn estimate(
    plan: &QuantizePlan,
    target: &Path,
    sample_bytes: usize,
) -> Result<Option<TimeEstimate>, Failure> {
    let dir = existing_parent(target);
    let failed = |error: std::io::Error| Failure::io(dir.display(), &error);
    let scratch = tempfile::Builder::new().prefix(".day0-sample-").tempdir_in(&dir).map_err(failed)?;
    let source = scratch.path().join("source");
    let output = scratch.path().join("output");
    for dir in [&source, &output] {
        std::fs::create_dir(dir).map_err(failed)?;
    }
    let read = read_sample(plan, sample_bytes)?;
    if read.bytes == 0 {
        return Ok(None);
    }
    write_sample(plan, &read, &source)?;
    let opened = Arc::new(Checkpoint::open(&source)?);
    let small = QuantizePlan::new(opened, plan.recipe().clone(), plan.arithmetic())?;
    small.assume_scales();
    let target = ShardTarget { plan: &small, staging: &output };
    // The first run also pays for threads, buffers and page tables, which a long run pays for once.
    let mut seconds = f64::INFINITY;
    for _ in 0..2 {
        let start = Instant::now();
        write_shards(&[target], 0, Durability::None, None, &|_| {})?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    let written = File::open(output.join(small.shard_file_name(0))).map_err(failed)?;
    written.sync_all().map_err(failed)?;
    let storing = start.elapsed().as_secs_f64() / small.predicted_tensor_bytes().max(1) as f64;
    let pipeline = read.bytes as f64 / seconds;
    let source_bytes = plan.source_tensor_bytes() as f64;
    let (reading, working) = (source_bytes / read.bytes_per_s, source_bytes / pipeline);
    Ok(Some(TimeEstimate {
        sample_bytes: read.bytes,
        read_bytes_per_s: read.bytes_per_s,
        pipeline_bytes_per_s: pipeline,
        seconds_low: reading.max(working),
        seconds_high: reading + working + storing * plan.predicted_tensor_bytes() as f64,
    }))
}

/// The first rows of some modules of each group.
struct Sample<'a> {
    modules: Vec<(&'a AssignedModule, usize, Vec<u8>)>,
    bytes: u64,
    bytes_per_s: f64,
}

fn read_sample(plan: &QuantizePlan, sample_bytes: usize) -> Result<Sample<'_>, QuantizeError> {
    // The largest modules of each group of the recipe, as many as make a sample.
    let mut of_group: BTreeMap<usize, Vec<&AssignedModule>> = BTreeMap::new();
    for module in plan.modules() {
        of_group.entry(module.group).or_default().push(module);
    }
    let mut sample = Sample { modules: Vec::new(), bytes: 0, bytes_per_s: 0.0 };
    let start = Instant::now();
    for mut modules in of_group.into_values() {
        modules.sort_by_key(|m| std::cmp::Reverse(m.shape[0] * m.shape[1]));
        let mut missing = sample_bytes;
        for module in modules {
            let [n, k] = module.shape;
            let row_bytes = k * module.dtype.size();
            let rows = (missing / row_bytes.max(1)).max(1).next_multiple_of(ROWS).min(n);
            let Some(tensor) = plan.source.get(&module.weight()) else { continue };
            let mut data = Vec::new();
            plan.source.read(tensor, 0..(rows * row_bytes) as u64, &mut data)?;
            sample.bytes += data.len() as u64;
            missing = missing.saturating_sub(data.len());
            sample.modules.push((module, rows, data));
            if missing == 0 {
                break;
            }
        }
    }
    sample.bytes_per_s = sample.bytes as f64 / start.elapsed().as_secs_f64().max(1e-9);
    Ok(sample)
}

/// A checkpoint of the sampled rows under their own names.
fn write_sample(plan: &QuantizePlan, sample: &Sample<'_>, dir: &Path) -> Result<(), Failure> {
    let path = dir.join(SINGLE);
    let failed = |error: std::io::Error| Failure::io(path.display(), &error);
    let specs: Vec<TensorSpec> = sample
        .modules
        .iter()
        .map(|(module, rows, _)| TensorSpec {
            name: module.weight(),
            dtype: module.dtype.dtype(),
            shape: vec![*rows, module.shape[1]],
        })
        .collect();
    let file = File::create(&path).map_err(failed)?;
    let mut writer = ShardWriter::new(file, &specs, &BTreeMap::new()).map_err(failed)?;
    for (module, _, data) in &sample.modules {
        writer.write_tensor(&module.weight(), data).map_err(failed)?;
    }
    writer.finish().map_err(failed)?;
    // Cut weights are not those of the model any more: no sizes are declared that they would contradict.
    let mut config = plan.source.config().clone();
    if let Some(keys) = config.as_object_mut() {
        keys.remove("model_type");
    }
    json::write(&dir.join(CONFIG), &config)?;
    Ok(())
}

/// The target's parent, or the nearest directory above that exists.
fn existing_parent(target: &Path) -> PathBuf {
    let mut dir = target.parent();
    while let Some(parent) = dir {
        if parent.is_dir() {
            return parent.to_path_buf();
        }
        dir = parent.parent();
    }
    PathBuf::from(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::source;
    use crate::quantize::Arithmetic;
    use crate::recipe;

    #[test]
    fn weights_are_cut_to_their_first_rows() {
        let dir = tempfile::tempdir().unwrap();
        let model = source::resolve("day0-tiny", dir.path()).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(&model.dir).unwrap());
        for name in ["fp8_dynamic", "fp8_block", "w4a16", "nvfp4a16", "mxfp4a16"] {
            let plan =
                QuantizePlan::new(Arc::clone(&checkpoint), recipe::load(name).unwrap(), Arithmetic::F32);
            let found = estimate(&plan.unwrap(), &dir.path().join("out"), 1).unwrap().unwrap();
            // 128 rows of the widest weight, which has 640 columns of 2 bytes.
            assert!((1..=128 * 640 * 2).contains(&found.sample_bytes), "{name}: {found:?}");
            assert!(found.seconds_low > 0.0 && found.seconds_high >= found.seconds_low, "{name}: {found:?}");
        }
    }
}
