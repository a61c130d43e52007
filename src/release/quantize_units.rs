//! Units of the stages quantize and scan.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::graph::{Build, Timer, names, node};
use super::keys;
use crate::base::atomic::{StagingDir, staging_path};
use crate::base::digest::Digest;
use crate::base::json;
use crate::base::progress::Progress;
use crate::checkpoint::Checkpoint;
use crate::exec::{FnUnit, Graph, KeyBuilder, Node, Output, UnitKey};
use crate::quantize::QuantizePlan;
use crate::record::quantize::{QuantizeRecord, ShardRecord};
use crate::record::{Failure, Provenance};
use crate::{gate, scan};

/// A checkpoint to be made.
pub struct QuantizeJob<'a> {
    /// What is done to which tensors.
    pub plan: &'a QuantizePlan,
    /// Final directory of the checkpoint.
    pub target: PathBuf,
    /// Where the record goes.
    pub record: Option<PathBuf>,
    /// Key of the candidate.
    pub key: UnitKey,
    /// Origin of the record.
    pub provenance: Provenance,
}

/// Adds `quantize/shard-N` and `quantize/finish`.
pub fn add_quantize<'a>(graph: &mut Graph<'a>, job: &'a QuantizeJob<'a>) {
    let shards: Vec<String> = (0..job.plan.num_shards()).map(|i| format!("quantize/shard-{i}")).collect();
    for (index, name) in shards.iter().enumerate() {
        graph.add(shard_node(job, name.clone(), index));
    }
    graph.add(finish_node(job, shards));
}

fn shard_node<'a>(job: &'a QuantizeJob<'a>, name: String, index: usize) -> Node<'a> {
    let key =
        KeyBuilder::new("quantize-shard/1").part("candidate", job.key.as_str()).part("index", index).finish();
    let unit = FnUnit::new(key, move |_| {
        let staging = StagingDir::open(&job.target).map_err(|e| Failure::io(job.target.display(), &e))?;
        let file = job.plan.shard_file_name(index);
        let progress = Progress::new(file, job.plan.shard_source_bytes(index), "B");
        Output::of(&job.plan.write_shard(index, staging.path(), &|bytes| progress.inc(bytes))?)
    })
    .verified_by(move |output: &Value| shard_is_there(output, &job.target));
    node(name, "quantize", Vec::new(), unit)
}

/// Whether a recorded shard lies in the staging directory or under its final name, with its digest.
fn shard_is_there(output: &Value, target: &Path) -> bool {
    ShardRecord::deserialize(output).is_ok_and(|record| {
        [staging_path(target), target.to_path_buf()]
            .iter()
            .any(|dir| Digest::of_file(&dir.join(&record.file)).is_ok_and(|d| d == record.digest))
    })
}

fn finish_node<'a>(job: &'a QuantizeJob<'a>, shards: Vec<String>) -> Node<'a> {
    let names_of_shards = shards.clone();
    let unit = FnUnit::new(keys::derived("quantize-finish/1", &job.key), move |context| {
        let timer = Timer::start();
        let records: Vec<ShardRecord> =
            names_of_shards.iter().map(|name| context.output(name)).collect::<Result<_, _>>()?;
        let record = complete(job, records, timer)?;
        if let Some(path) = &job.record {
            json::write(path, &record)?;
        }
        Output::of(&record)
    })
    .verified_by(move |output: &Value| {
        job.record.as_ref().is_none_or(|path| path.is_file())
            && QuantizeRecord::deserialize(output).is_ok_and(|record| {
                let digest = Checkpoint::open(&job.target).and_then(|c| c.digest());
                digest.is_ok_and(|digest| digest == record.output_digest)
            })
    });
    node(names::FINISH.to_owned(), "quantize", shards, unit)
}

/// Writes what belongs beside the shards and gives the directory its final name.
fn complete(
    job: &QuantizeJob<'_>,
    shards: Vec<ShardRecord>,
    timer: Timer,
) -> Result<QuantizeRecord, Failure> {
    let io = |e: std::io::Error| Failure::io(job.target.display(), &e);
    // A run killed between the rename and the ledger's entry finds the directory under its final name.
    let staging = if job.target.exists() { None } else { Some(StagingDir::open(&job.target).map_err(io)?) };
    let dir = staging.as_ref().map_or(job.target.as_path(), StagingDir::path);
    let mut record = job.plan.finish(dir, shards, job.provenance.clone())?;
    if let Some(staging) = staging {
        staging.commit().map_err(io)?;
    }
    record.provenance = timer.stop(record.provenance);
    Ok(record)
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
    .verified_by(move |_: &Value| verify_path.is_file());
    graph.add(node(names::SCAN.to_owned(), "scan", vec![names::FINISH.to_owned()], unit));
    graph.add(build.gate_node(names::GATE_PTQ, "scan", &key, vec![names::SCAN.to_owned()], move |_| {
        Ok(gate::ptq(&json::read(&gate_path)?))
    }));
}
