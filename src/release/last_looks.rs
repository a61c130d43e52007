//! The last look at each engine of an arm whose waves are scored by several processes: one file a process.

use std::path::PathBuf;

use super::arm::ArmName;
use super::graph::Build;
use super::run_dir::RunDir;
use crate::base::json;
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

/// The record of the engine that ended worst; `None` where no process has looked.
pub fn worst(run: &RunDir, arm: ArmName, opening: &ServeRecord) -> Result<Option<ServeRecord>, Failure> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir(run)).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut worst: Option<ServeRecord> = None;
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(&format!("{arm}-")) || !name.ends_with(".json") {
            continue;
        }
        let record: ServeRecord = json::read(&path)?;
        // Of a probe that was made again only the looks that followed count.
        let follows = record.identity == opening.identity
            && record.fingerprint.as_ref().map(|f| &f.start)
                == opening.fingerprint.as_ref().map(|f| &f.start);
        let bad = |r: &ServeRecord| {
            let restarts = r.process.as_ref().map_or(0, |p| p.restarts);
            (r.stayed_up.as_ref().is_some_and(|p| !p.ok), restarts)
        };
        if follows && worst.as_ref().is_none_or(|w| bad(&record) > bad(w)) {
            worst = Some(record);
        }
    }
    Ok(worst)
}
