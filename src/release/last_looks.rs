//! The last look at each engine of an arm whose waves are scored by several processes: one file a process.

use std::path::PathBuf;

use super::arm::ArmName;
use super::graph::Build;
use super::run_dir::RunDir;
use crate::base::{atomic, json};
use crate::exec::Owner;
use crate::record::Failure;
use crate::record::serve::ServeRecord;

fn dir(run: &RunDir) -> PathBuf {
    run.join("slurm/served")
}

/// Looks at the engines that run in this process, before they are stopped. `opening` is what the probe of the arm saw,
/// perhaps in another process.
pub fn take(build: &Build<'_>, arm: ArmName, opening: &ServeRecord) -> Result<(), Failure> {
    if !build.arm(arm).is_running() {
        return Ok(());
    }
    let record = build.arm(arm).probe_again(opening, &build.provenance())?;
    let own = Owner::current();
    let name = own.job.unwrap_or_else(|| format!("{}-{}", own.host, own.pid));
    Ok(json::write(&dir(build.run).join(format!("{arm}-{name}.json")), &record)?)
}

/// The files of all looks.
fn paths(run: &RunDir) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir(run)).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    paths
}

fn has_failed(record: &ServeRecord) -> bool {
    record.stayed_up.as_ref().is_some_and(|probe| !probe.ok)
}

/// Removes the looks at engines that had not stayed up: what is left is to be looked at again.
pub fn forget_failed(run: &RunDir) -> Result<(), Failure> {
    for path in paths(run) {
        if has_failed(&json::read(&path)?) {
            atomic::remove(&path).map_err(|e| Failure::io(path.display(), &e))?;
        }
    }
    Ok(())
}

/// The record of the engine that ended worst; `None` where no process has looked.
pub fn worst(run: &RunDir, arm: ArmName, opening: &ServeRecord) -> Result<Option<ServeRecord>, Failure> {
    let mut worst: Option<ServeRecord> = None;
    for path in paths(run) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(&format!("{arm}-")) {
            continue;
        }
        let record: ServeRecord = json::read(&path)?;
        // Of a probe that was made again only the looks that followed count.
        let follows = record.identity == opening.identity
            && record.fingerprint.as_ref().map(|f| &f.start)
                == opening.fingerprint.as_ref().map(|f| &f.start);
        let bad = |r: &ServeRecord| {
            let restarts = r.process.as_ref().map_or(0, |p| p.restarts);
            (has_failed(r), restarts)
        };
        if follows && worst.as_ref().is_none_or(|w| bad(&record) > bad(w)) {
            worst = Some(record);
        }
    }
    Ok(worst)
}
