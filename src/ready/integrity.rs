//! Whether a run directory is whole: what founding document 003 asks of context, data flow and coordination, read as
//! facts about a run (DESIGN section 7).
//!
//! | criterion | of the document |
//! |---|---|
//! | `single_release` | single state.json after execution |
//! | `no_orphans` | no orphan state files |
//! | `schemas` | schema validation active, consistent field naming |
//! | `request_digests` | no full content in prompts: requests are named by digests in every record |
//! | `errors_handled` | all calls have error handling, results validated before use |

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::{atomic, json};
use crate::record::eval::EvalRecord;
use crate::record::quality::Integrity;
use crate::record::{Failure, SCHEMA_VERSION};

/// Examines the run in `run`. Of an open run the index does not exist yet.
pub fn examine(run: &Path) -> Result<Integrity, Failure> {
    let files = files(run)?;
    let mut problems = BTreeMap::new();
    let nested = |f: &&String| Path::new(f).file_name().is_some_and(|n| n == "release.json");
    let extra = files.iter().filter(nested).filter(|f| *f != "release.json").cloned();
    problems.insert("single_release".to_owned(), extra.collect());
    problems.insert("no_orphans".to_owned(), orphans(run, &files)?);
    problems.insert("schemas".to_owned(), schemas(run, &files));
    problems.insert("request_digests".to_owned(), request_digests(run));
    problems.insert("errors_handled".to_owned(), errors_handled(&run.join("ledger.jsonl"))?);
    Ok(Integrity { problems })
}

/// Every file below the run, relative to it.
fn files(run: &Path) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    let mut open = vec![run.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| Failure::io(dir.display(), &e))? {
            let path = entry.map_err(|e| Failure::io(dir.display(), &e))?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(run).unwrap_or(&path).display().to_string());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Files beside the index, which names all others.
const UNINDEXED: [&str; 7] = [
    "run.json",
    "release.json",
    "report.md",
    "events.jsonl",
    "ledger.jsonl",
    // For a CI system, written after the index.
    "junit.xml",
    "summary.md",
];

/// Whether a file of a run directory belongs there without being named by the index: scripts, logs and exit codes of jobs
/// and engines say where and when the run ran, not what it found.
pub fn is_unindexed(file: &str) -> bool {
    UNINDEXED.contains(&file)
        || file.starts_with("slurm/")
        || Path::new(file).extension().is_some_and(|e| e == "log")
}

/// Temporary files, and, once there is an index, files that it does not name and names without a file.
fn orphans(run: &Path, files: &[String]) -> Result<Vec<String>, Failure> {
    let name = |f: &String| PathBuf::from(f).file_name().is_some_and(atomic::is_temporary);
    let mut found: Vec<String> = files.iter().filter(|f| name(f)).cloned().collect();
    let index = run.join("release.json");
    if index.is_file() {
        let index: Value = json::read(&index)?;
        let indexed: BTreeSet<&str> =
            index["artifacts"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let known = |f: &&String| indexed.contains(f.as_str()) || is_unindexed(f);
        found.extend(files.iter().filter(|f| !known(f)).map(|f| format!("{f}: not in release.json")));
        let there: BTreeSet<&str> = files.iter().map(String::as_str).collect();
        found.extend(indexed.difference(&there).map(|f| format!("{f}: in release.json, not there")));
    }
    found.dedup();
    Ok(found)
}

/// JSON that does not parse, and records of another schema. Files of lm-eval's and Hugging Face's layouts have none.
fn schemas(run: &Path, files: &[String]) -> Vec<String> {
    let json = files.iter().filter(|f| Path::new(f).extension().is_some_and(|e| e == "json"));
    json.filter_map(|file| match json::read::<Value>(&run.join(file)) {
        Err(e) => Some(format!("{file}: {e}")),
        Ok(value) => match value.get("schema_version") {
            Some(version) if *version != SCHEMA_VERSION => {
                Some(format!("{file}: schema_version is {version}"))
            }
            None if is_record(file) => Some(format!("{file}: no schema_version")),
            _ => None,
        },
    })
    .collect()
}

fn is_record(file: &str) -> bool {
    file.starts_with("gates/") || file.ends_with("record.json") || matches!(file, "run.json" | "release.json")
}

/// Items without the digests of their requests.
fn request_digests(run: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for arm in ["baseline", "candidate"] {
        let path = run.join(format!("eval/{arm}/record.json"));
        if !path.is_file() {
            continue;
        }
        match json::read::<EvalRecord>(&path) {
            Err(e) => problems.push(e.to_string()),
            Ok(record) => {
                for (name, task) in &record.tasks {
                    let whole = |d: &crate::base::digest::Digest| d.as_str().len() == 64;
                    let without = task
                        .items
                        .iter()
                        .filter(|i| !whole(&i.prompt_digest) || !whole(&i.token_digest))
                        .count();
                    if without > 0 {
                        problems.push(format!("{arm} {name}: {without} items without digests"));
                    }
                }
            }
        }
    }
    problems
}

/// Units that failed and were never done. A line that a kill tore is no entry: its unit ran again.
fn errors_handled(ledger: &Path) -> Result<Vec<String>, Failure> {
    if !ledger.is_file() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(ledger).map_err(|e| Failure::io(ledger.display(), &e))?;
    let mut open: BTreeMap<String, String> = BTreeMap::new();
    for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let Ok(entry) = serde_json::from_slice::<Value>(line) else { continue };
        let key = entry["key"].to_string();
        match entry["event"].as_str() {
            Some("failed") => {
                let unit = entry["unit"].as_str().unwrap_or_default();
                open.insert(
                    key,
                    format!("{unit}: {}", entry["failure"]["message"].as_str().unwrap_or_default()),
                );
            }
            Some("done") => {
                open.remove(&key);
            }
            _ => {}
        }
    }
    Ok(open.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        crate::base::atomic::write(&dir.join(name), text.as_bytes()).unwrap();
    }

    fn problems(dir: &Path, criterion: &str) -> Vec<String> {
        examine(dir).unwrap().problems.remove(criterion).unwrap()
    }

    /// Document 003, "Verification Criteria": each criterion, whole and broken.
    #[test]
    fn each_criterion_sees_its_damage() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        write(run, "run.json", r#"{"schema_version": 1}"#);
        write(run, "gates/ptq.json", r#"{"schema_version": 1}"#);
        write(
            run,
            "ledger.jsonl",
            "{\"event\":\"failed\",\"key\":\"a\",\"unit\":\"u\",\"failure\":{\"message\":\"m\"}}\n{\"event\":\"done\",\"key\":\"a\"}\n",
        );
        write(run, "release.json", r#"{"schema_version": 1, "artifacts": {"gates/ptq.json": "x"}}"#);
        assert!(examine(run).unwrap().problems.values().all(Vec::is_empty), "{:?}", examine(run));
        write(run, "prerelease.json", r#"{"schema_version": 1}"#);
        assert!(problems(run, "single_release").is_empty(), "another name that ends so");
        std::fs::remove_file(run.join("prerelease.json")).unwrap();
        write(run, "old/release.json", r#"{"schema_version": 1}"#);
        assert_eq!(problems(run, "single_release"), ["old/release.json"]);
        assert_eq!(problems(run, "no_orphans"), ["old/release.json: not in release.json"]);
        write(run, "gates/ptq.json", "{");
        write(run, "gates/run.json", "{}");
        let schemas = problems(run, "schemas");
        assert!(
            schemas[0].starts_with("gates/ptq.json") && schemas[1].contains("no schema_version"),
            "{schemas:?}"
        );
        write(
            run,
            "ledger.jsonl",
            "{\"event\":\"failed\",\"key\":\"a\",\"unit\":\"u\",\"failure\":{\"message\":\"m\"}}\n{\"ev",
        );
        assert_eq!(problems(run, "errors_handled"), ["u: m"]);
        write(run, "eval/baseline/record.json", "{}");
        assert_eq!(problems(run, "request_digests").len(), 1);
    }
}
