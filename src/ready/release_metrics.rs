//! What a release measured, as metrics that `diff` compares and `ratchet` holds:
//!
//! - `recovery.<task>`: the candidate's score as a share of the baseline's; of metrics that fall, the other way round.
//! - `sizeRatio`: the candidate's tensor bytes as a share of the source's in BF16.
//! - `coverage`: quantized modules as a share of the recipe's targets.
//! - `throughput.score`: items a second of the candidate's arm, over its waves.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::snapshot::commit;
use crate::base::{clock, json};
use crate::gate::{Margin, TaskEvidence};
use crate::record::scan::ScanRecord;
use crate::record::snapshot::{COVERAGE, Measured, Snapshot};
use crate::record::{Failure, GateReport, SCHEMA_VERSION};

/// The measurements of the run in `run`. What the run did not reach is absent.
pub fn of_run(run: &Path) -> Result<Snapshot, Failure> {
    let mut release = BTreeMap::new();
    let gate = run.join("gates/compare.json");
    if gate.is_file() {
        recoveries(&json::read(&gate)?, &mut release);
    }
    let scan = run.join("scan/record.json");
    if scan.is_file() {
        sizes(&json::read(&scan)?, &mut release);
    }
    let ledger = run.join("ledger.jsonl");
    if ledger.is_file() {
        let file = std::fs::File::open(&ledger).map_err(|e| Failure::io(ledger.display(), &e))?;
        let waves = waves(BufReader::new(file), "score/candidate/");
        let waves = waves.map_err(|e| Failure::io(ledger.display(), &e))?;
        release.extend(throughput(&waves).map(|rate| ("throughput.score".to_owned(), rate)));
    }
    Ok(Snapshot {
        schema_version: SCHEMA_VERSION,
        timestamp: clock::now_iso8601(),
        commit_sha: commit(run),
        release,
        ..Snapshot::default()
    })
}

fn recoveries(compare: &GateReport, release: &mut BTreeMap<String, Measured>) {
    for (task, value) in &compare.per_task {
        if let Some(recovery) = TaskEvidence::deserialize(value).ok().and_then(|e| recovery(&e)) {
            release.insert(format!("recovery.{task}"), recovery);
        }
    }
}

/// 1 − drop / baseline, with the bounds of the drop. A drop is a fraction of the scale, or of the baseline itself.
fn recovery(evidence: &TaskEvidence) -> Option<Measured> {
    let of_baseline = match evidence.margin {
        Margin::Absolute(_) => evidence.scale? / evidence.baseline,
        Margin::Relative(_) => 1.0,
    };
    let at = |drop: f64| 1.0 - drop * of_baseline;
    let finite = |value: f64| value.is_finite().then_some(value);
    Some(Measured {
        value: finite(at(evidence.drop_fraction?))?,
        lower: evidence.upper.map(at).and_then(finite),
        upper: evidence.lower.map(at).and_then(finite),
    })
}

fn sizes(scan: &ScanRecord, release: &mut BTreeMap<String, Measured>) {
    if let Some(source) = scan.size.source_bf16_bytes.filter(|bytes| *bytes > 0) {
        let ratio = scan.size.output_bytes as f64 / source as f64;
        release.insert("sizeRatio".to_owned(), Measured::exact(ratio));
    }
    if let Some(targets) = scan.coverage.recipe_targets.filter(|targets| *targets > 0) {
        let share = scan.coverage.quantized as f64 / targets as f64;
        release.insert(COVERAGE.to_owned(), Measured::exact(share));
    }
}

/// Items and seconds of each wave that was scored in this run.
fn waves(ledger: impl BufRead, prefix: &str) -> std::io::Result<Vec<(f64, f64)>> {
    let mut waves = Vec::new();
    for line in ledger.split(b'\n') {
        let line = line?;
        // Only the lines of the waves are worth parsing; a torn line is no wave.
        if !line.starts_with(b"{\"event\":\"done\"") {
            continue;
        }
        let Ok(entry) = serde_json::from_slice::<Value>(&line) else { continue };
        let unit = entry["unit"].as_str().unwrap_or_default();
        let items = entry["output"]["items"].as_array().map_or(0, Vec::len);
        let seconds = entry["elapsed_s"].as_f64().unwrap_or(0.0);
        if unit.starts_with(prefix) && items > 0 && seconds > 0.0 && entry["reused"] == Value::Bool(false) {
            waves.push((items as f64, seconds));
        }
    }
    Ok(waves)
}

/// Σ items / Σ seconds with the standard error of a ratio estimator (Cochran, Sampling Techniques, 3rd ed., 6.4):
/// s² = Σ (xᵢ − r·tᵢ)² / (n − 1), se = √(s² / n) / t̄. Fewer than two waves say nothing about the noise.
fn throughput(waves: &[(f64, f64)]) -> Option<Measured> {
    if waves.len() < 2 {
        return None;
    }
    let n = waves.len() as f64;
    let (items, seconds) = waves.iter().fold((0.0, 0.0), |(i, s), (x, t)| (i + x, s + t));
    let rate = items / seconds;
    let squares: f64 = waves.iter().map(|(x, t)| (x - rate * t).powi(2)).sum();
    let stderr = (squares / (n - 1.0) / n).sqrt() / (seconds / n);
    Some(Measured::with_stderr(rate, stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_is_a_ratio_with_its_error() {
        assert_eq!(throughput(&[(10.0, 1.0)]), None);
        let even = throughput(&[(10.0, 1.0), (20.0, 2.0), (5.0, 0.5)]).unwrap();
        assert_eq!((even.value, even.lower, even.upper), (10.0, Some(10.0), Some(10.0)));
        // r = 10; residuals ±2: s² = 8, se = √(8/2)/1 = 2.
        let noisy = throughput(&[(12.0, 1.0), (8.0, 1.0)]).unwrap();
        assert!((noisy.lower.unwrap() - (10.0 - 2.0 * 1.644_853_626_951_472_7)).abs() < 1e-12);
    }

    #[test]
    fn waves_are_those_scored_here_and_torn_lines_are_none() {
        let ledger = concat!(
            "{\"event\":\"done\",\"unit\":\"score/candidate/a/0\",\"output\":{\"items\":[1,2]},\"elapsed_s\":0.5,\"reused\":false}\n",
            "{\"event\":\"done\",\"unit\":\"score/candidate/a/1\",\"output\":{\"items\":[1]},\"elapsed_s\":0.0,\"reused\":true}\n",
            "{\"event\":\"done\",\"unit\":\"score/baseline/a/0\",\"output\":{\"items\":[1]},\"elapsed_s\":1.0,\"reused\":false}\n",
            "{\"event\":\"claim\"}\n{\"event\":\"done\",\"unit\":\"score/cand"
        );
        assert_eq!(waves(ledger.as_bytes(), "score/candidate/").unwrap(), [(2.0, 0.5)]);
    }
}
