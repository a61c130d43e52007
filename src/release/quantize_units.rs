//! Units of the stages quantize and scan.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

use super::calibrate_units::{self, CalibrateJob};
use super::graph::{Build, Timer, names, node};
use super::keys;
use crate::base::atomic::{StagingDir, staging_path, sync_files};
use crate::base::digest::Digest;
use crate::base::json;
use crate::base::progress::Progress;
use crate::checkpoint::Checkpoint;
use crate::exec::{Context, FnUnit, Graph, KeyBuilder, Node, Output, Snapshot, UnitKey};
use crate::quantize::{Durability, Gpus, QuantizePlan, ShardTarget, write_shards};
use crate::record::quantize::{QuantizeRecord, ShardRecord};
use crate::record::{Failure, FailureClass, Provenance};
use crate::{gate, scan};

/// Checkpoints to be made from one source, which is read once for all of them.
pub struct QuantizeJob<'a> {
    /// The checkpoints; their plans have the same source.
    pub outputs: Vec<QuantizeOutput<'a>>,
    /// Whether to wait for storage before a checkpoint gets its name.
    pub sync: bool,
    /// Whether the targets lie in a directory of the run's own, where a damaged checkpoint is made anew. Anywhere else it
    /// is refused: whoever made it may want it.
    pub own_targets: bool,
    /// GPUs to quantize on; the CPU where there is none.
    pub gpus: Option<Gpus>,
    /// Origin of the records.
    pub provenance: Provenance,
    /// The calibration, where a plan needs one.
    pub calibration: Option<&'a CalibrateJob>,
}

/// One checkpoint to be made.
pub struct QuantizeOutput<'a> {
    /// What is done to which tensors.
    pub plan: &'a QuantizePlan,
    /// Final directory of the checkpoint.
    pub target: PathBuf,
    /// Where the record goes.
    pub record: Option<PathBuf>,
    /// Key of the checkpoint.
    pub key: UnitKey,
}

/// Name of the unit that completes an output.
pub fn finish_name(output: usize) -> String {
    if output == 0 { names::FINISH.to_owned() } else { format!("{}-{output}", names::FINISH) }
}

/// Adds calibration if it is needed, `quantize/shard-N`, then for each output `quantize/finish`.
pub fn add_quantize<'a>(graph: &mut Graph<'a>, job: &'a QuantizeJob<'a>) {
    if let Some(calibration) = job.calibration {
        calibration.add(graph);
    }
    let num_shards = job.outputs.first().map_or(0, |o| o.plan.num_shards());
    let shards: Vec<String> = (0..num_shards).map(|i| format!("quantize/shard-{i}")).collect();
    for (index, name) in shards.iter().enumerate() {
        graph.add(shard_node(job, name.clone(), index));
    }
    for index in 0..job.outputs.len() {
        graph.add(finish_node(job, index, shards.clone()));
    }
}

/// Whether `ledger` is that of this very job, and what lies under the targets' names may be what it made.
pub fn is_ledger_of(job: &QuantizeJob<'_>, ledger: &Snapshot) -> bool {
    let holds = |key: &UnitKey| ledger.units.contains_key(key);
    let finished = job.outputs.iter().filter(|o| o.target.exists());
    holds(&shard_key(job, 0)) && finished.map(finish_key).all(|key| holds(&key))
}

/// Bytes the job will write beyond what an earlier, unfinished run left.
pub fn missing_bytes(job: &QuantizeJob<'_>) -> u64 {
    let there = |target: &Path| {
        let files = std::fs::read_dir(staging_path(target)).into_iter().flatten().flatten();
        files.filter_map(|entry| entry.metadata().ok()).map(|m| m.len()).sum::<u64>()
    };
    job.outputs.iter().map(|o| o.plan.predicted_tensor_bytes().saturating_sub(there(&o.target))).sum()
}

fn shard_node<'a>(job: &'a QuantizeJob<'a>, name: String, index: usize) -> Node<'a> {
    let unit = FnUnit::new(shard_key(job, index), move |context| {
        job.calibrate(context)?;
        let staging = job
            .outputs
            .iter()
            .map(|o| StagingDir::open(&o.target).map_err(|e| Failure::io(o.target.display(), &e)))
            .collect::<Result<Vec<_>, _>>()?;
        let targets: Vec<ShardTarget<'_>> = job
            .outputs
            .iter()
            .zip(&staging)
            .map(|(o, staging)| ShardTarget { plan: o.plan, staging: staging.path() })
            .collect();
        let plan = job.outputs[0].plan;
        let progress = Progress::new(plan.shard_file_name(index), plan.shard_source_bytes(index), "B");
        let durability = if job.sync { Durability::Early } else { Durability::None };
        Output::of(&write_shards(&targets, index, durability, job.gpus.as_ref(), &|bytes| {
            progress.inc(bytes);
        })?)
    })
    .verified_by(move |output: &Value| shards_are_there(output, job));
    let after = job.calibration.iter().map(|_| names::CALIBRATION.to_owned()).collect();
    let cost = job.outputs[0].plan.shard_source_bytes(index);
    Node { cost, ..node(name, "quantize", after, unit) }
}

fn shard_key(job: &QuantizeJob<'_>, index: usize) -> UnitKey {
    let keys = KeyBuilder::new("quantize-shard/2").part("index", index);
    job.outputs.iter().fold(keys, |keys, o| keys.part("candidate", o.key.as_str())).finish()
}

fn finish_key(output: &QuantizeOutput<'_>) -> UnitKey {
    keys::derived("quantize-finish/1", &output.key)
}

impl QuantizeJob<'_> {
    /// Gives the plans that need them their static input scales.
    fn calibrate(&self, context: &Context<'_>) -> Result<(), Failure> {
        for plan in self.outputs.iter().map(|o| o.plan).filter(|plan| plan.needs_calibration()) {
            plan.calibrate(&context.output(names::CALIBRATION)?)?;
        }
        Ok(())
    }
}

/// Whether each recorded shard lies in its staging directory or under its final name, with its digest. A shard that is
/// not was perhaps lost by a crash of the system: it is made again.
fn shards_are_there(output: &Value, job: &QuantizeJob<'_>) -> bool {
    Vec::<ShardRecord>::deserialize(output).is_ok_and(|records| {
        records.len() == job.outputs.len()
            && records.iter().zip(&job.outputs).all(|(record, output)| {
                [staging_path(&output.target), output.target.clone()]
                    .iter()
                    .any(|dir| is_recorded(dir, record))
            })
    })
}

/// Whether the shard lies in `dir` with its digest.
fn is_recorded(dir: &Path, shard: &ShardRecord) -> bool {
    Digest::of_file(&dir.join(&shard.file)).is_ok_and(|digest| digest == shard.digest)
}

fn finish_node<'a>(job: &'a QuantizeJob<'a>, index: usize, shards: Vec<String>) -> Node<'a> {
    let names_of_shards = shards.clone();
    let output = &job.outputs[index];
    let unit = FnUnit::new(finish_key(output), move |context| {
        let timer = Timer::start();
        // Shards of an earlier run were written without this process.
        job.calibrate(context)?;
        let mut records = Vec::new();
        for name in &names_of_shards {
            let mut of_shard: Vec<ShardRecord> = context.output(name)?;
            if index < of_shard.len() {
                records.push(of_shard.swap_remove(index));
            }
        }
        let record = complete(job, output, records, timer)?;
        if let Some(calibration) = &record.calibration {
            calibrate_units::note(calibration);
        }
        if let Some(path) = &output.record {
            json::write(path, &record)?;
        }
        Output::of(&record)
    })
    .verified_by(move |value: &Value| {
        output.record.as_ref().is_none_or(|path| path.is_file())
            && QuantizeRecord::deserialize(value).is_ok_and(|record| {
                let digest = Checkpoint::open(&output.target).and_then(|c| c.digest());
                digest.is_ok_and(|digest| digest == record.output_digest)
            })
    });
    node(finish_name(index), "quantize", shards, unit)
}

/// Writes what belongs beside the shards and gives the directory its final name.
fn complete(
    job: &QuantizeJob<'_>,
    output: &QuantizeOutput<'_>,
    shards: Vec<ShardRecord>,
    timer: Timer,
) -> Result<QuantizeRecord, Failure> {
    let io = |e: std::io::Error| Failure::io(output.target.display(), &e);
    let staging = staging_of(job, output, &shards)?;
    if let Some(staging) = &staging {
        output.plan.keep_only_shards(staging.path())?;
    }
    let dir = staging.as_ref().map_or(output.target.as_path(), StagingDir::path);
    let mut record = output.plan.finish(dir, shards, job.provenance.clone())?;
    if job.sync {
        let start = Instant::now();
        sync_files(dir).map_err(io)?;
        record.sync_s = Some(start.elapsed().as_secs_f64());
    }
    match staging {
        Some(staging) if job.sync => staging.commit().map_err(io)?,
        Some(staging) => staging.commit_without_sync().map_err(io)?,
        None => {}
    }
    record.device_seconds = job.gpus.as_ref().map(Gpus::seconds);
    record.provenance = timer.stop(record.provenance);
    Ok(record)
}

/// Where the shards lie; `None` if under the final name: a run was killed between the rename and the ledger's entry.
fn staging_of(
    job: &QuantizeJob<'_>,
    output: &QuantizeOutput<'_>,
    shards: &[ShardRecord],
) -> Result<Option<StagingDir>, Failure> {
    let target = &output.target;
    if !target.exists() {
        return StagingDir::open(target).map(Some).map_err(|e| Failure::io(target.display(), &e));
    }
    if job.own_targets {
        return take_back(target, shards).map(Some);
    }
    match shards.iter().find(|shard| !is_recorded(target, shard)) {
        None => Ok(None),
        Some(shard) => {
            Err(made_by_another(target, &format!("{} in it is not what this one wrote", shard.file)))
        }
    }
}

/// The refusal of a target that is there already.
pub fn made_by_another(target: &Path, why: &str) -> Failure {
    Failure::config(format!("{}: exists already, made by another run: {why}", target.display()))
        .with_hint("choose a new --out, or remove what is there")
}

/// Moves the shards that are as recorded back into the staging directory, and removes the rest of the target. Killed
/// anywhere, each shard lies in one of the two.
fn take_back(target: &Path, shards: &[ShardRecord]) -> Result<StagingDir, Failure> {
    let io = |e: std::io::Error| Failure::io(target.display(), &e);
    let staging = StagingDir::open(target).map_err(io)?;
    for shard in shards.iter().filter(|shard| !is_recorded(staging.path(), shard)) {
        if !is_recorded(target, shard) {
            let message = format!("{}: {} is not what was written", target.display(), shard.file);
            return Err(Failure::new(FailureClass::InfraTransient, message)
                .with_hint("resume the run: the shard is made again"));
        }
        std::fs::rename(target.join(&shard.file), staging.path().join(&shard.file)).map_err(io)?;
    }
    std::fs::remove_dir_all(target).map_err(io)?;
    Ok(staging)
}

/// Adds `scan` and `gate/ptq`.
pub fn add_scan<'a>(graph: &mut Graph<'a>, build: &'a Build<'a>) {
    let key = keys::derived("scan/1", &build.keys.candidate);
    let path = build.run.join("scan/record.json");
    let gate_path = path.clone();
    let verify_path = path.clone();
    let unit = FnUnit::new(key.clone(), move |_| {
        let timer = Timer::start();
        let inputs = build.inputs;
        let source = Some(inputs.model.dir.as_path());
        let mut record =
            scan::scan(&build.run.checkpoint(), source, Some(&inputs.recipe), build.provenance())?;
        // As the run knows them: a moved run directory or cache still says the truth.
        "quantize/checkpoint".clone_into(&mut record.checkpoint);
        record.source = Some(inputs.config.model.clone());
        record.provenance = timer.stop(record.provenance);
        json::write(&path, &record)?;
        Output::of(&serde_json::json!({ "defects": record.defects.len() }))
    })
    .verified_by(move |_: &Value| verify_path.is_file())
    // A candidate that was made anew is scanned anew.
    .reading(vec![names::FINISH.to_owned()]);
    graph.add(node(names::SCAN.to_owned(), "scan", vec![names::FINISH.to_owned()], unit));
    graph.add(build.gate_node(names::GATE_PTQ, "scan", &key, vec![names::SCAN.to_owned()], move |_| {
        Ok(gate::ptq(&json::read(&gate_path)?))
    }));
}
