//! Runs of other harnesses as evaluation records: lm-eval's `results*.json` with `samples_*.jsonl`, and NeMo
//! Evaluator's `results.jsonl`. They can be compared item by item; what the files do not say (tokens, kernel path) is
//! left blank, and identity is declared, not proven.
//!
//! Formats: lm-eval 0.4.13 `loggers/evaluation_tracker.py`, `result_schema.py`; NVIDIA-NeMo/Evaluator
//! `docs/result-format.mdx` at ac66aff5d.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::digest::Digest;
use crate::base::json;
use crate::base::threads::Threads;
use crate::record::eval::EvalRecord;
use crate::record::score::EngineIdentity;
use crate::record::{Classified, Failure, FailureClass, Provenance, SCHEMA_VERSION};

mod lm_eval;
mod metrics;
mod nemo;

pub use lm_eval::{ItemText, blank_what_others_lack, item_texts};

/// A run that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Nothing in the directory is a run.
    #[error("{}: holds no evaluation: no record.json, results*.json with samples_*.jsonl, or results.jsonl", .0.display())]
    NoRun(PathBuf),
    /// Only aggregated scores.
    #[error("{}: holds scores without items", .0.display())]
    NoItems(PathBuf),
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line or field is not what its format says.
    #[error("{}, line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong, with the field.
        what: String,
    },
    /// Nobody says which way a metric is better.
    #[error("{}: {field}: whether more of {metric} is better is {found}", path.display())]
    Direction {
        /// The results file.
        path: PathBuf,
        /// The field that should say it.
        field: String,
        /// The metric.
        metric: String,
        /// What is wrong.
        found: String,
    },
    /// A JSON file cannot be read.
    #[error(transparent)]
    Json(#[from] json::JsonError),
}

impl Classified for ImportError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Read { path, source } => Failure::io(path.display(), source).class,
            Self::Json(error) => error.failure_class(),
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRun(_) => Some(
                "name the --out directory of `day0 eval`, a release's run directory, or lm-eval's --output_path \
                 (run with --log_samples)"
                    .to_owned(),
            ),
            Self::NoItems(_) => {
                Some("`day0 gate compare` compares score files {task: score}; a proof needs the items".to_owned())
            }
            Self::Direction { .. } => Some(
                "declare it in the task's metric_list (higher_is_better), or judge by another metric: --metric NAME"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// A run read from files.
pub struct Run {
    /// What was measured.
    pub record: EvalRecord,
    /// Whether another harness wrote it.
    pub foreign: bool,
    /// Directory of its sample files.
    pub dir: PathBuf,
    /// The path it was read from; of a release with the arm.
    pub title: String,
    /// What the files do not say and was inferred.
    pub notes: Vec<String>,
}

/// Which run of a comparison is read, and so which arm of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The original model.
    Baseline,
    /// The model that is compared with it.
    Candidate,
}

impl Side {
    fn arm(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Candidate => "candidate",
        }
    }
}

/// Reads the run at `path`: a record, a directory of one, a release's run directory (the arm of `side`), or a directory
/// that another harness wrote. `metric_of` names the metric that decides a task, where the caller knows it.
pub fn read_run(
    path: &Path,
    side: Side,
    metric_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Run, ImportError> {
    let title = path.display().to_string();
    let of_release =
        (path.join("eval").join(side.arm()).join("record.json"), format!("{title} ({} arm)", side.arm()));
    let own = [(path.to_path_buf(), title.clone()), (path.join("record.json"), title.clone()), of_release];
    if let Some((file, title)) = own.into_iter().find(|(file, _)| file.is_file()) {
        let dir = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        return Ok(Run { record: json::read(&file)?, foreign: false, dir, title, notes: Vec::new() });
    }
    for dir in candidates(path)? {
        let imported = if let Some(results) = newest(&dir, "results", ".json")? {
            lm_eval::read(&dir, &results, metric_of)?
        } else if dir.join("results.jsonl").is_file() {
            nemo::read(&dir)?
        } else if ["results.yml", "results.yaml"].iter().any(|name| dir.join(name).is_file()) {
            return Err(ImportError::NoItems(dir));
        } else {
            continue;
        };
        let (record, notes) = imported;
        return Ok(Run { record, foreign: true, dir, title, notes });
    }
    Err(ImportError::NoRun(path.to_path_buf()))
}

/// A record, and what was inferred for it.
type Imported = (EvalRecord, Vec<String>);

/// The directory and those in it: lm-eval writes into one named after the model.
fn candidates(path: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let mut dirs = vec![path.to_path_buf()];
    dirs.extend(entries(path)?.into_iter().filter(|p| p.is_dir()));
    Ok(dirs)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let failed = |source| ImportError::Read { path: dir.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        found.push(entry.map_err(failed)?.path());
    }
    found.sort();
    Ok(found)
}

/// The last file by name that starts and ends so: names end in their date.
fn newest(dir: &Path, start: &str, end: &str) -> Result<Option<PathBuf>, ImportError> {
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with(start) && name.ends_with(end) && path.is_file()
    };
    Ok(entries(dir)?.into_iter().rfind(named))
}

/// The values of a JSON-lines file with their line numbers.
fn lines(path: &Path) -> Result<Vec<(usize, Value)>, ImportError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ImportError::Read { path: path.to_path_buf(), source })?;
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    numbered
        .map(|(index, line)| {
            let value = serde_json::from_str(line).map_err(|e| ImportError::Line {
                path: path.to_path_buf(),
                line: index + 1,
                what: e.to_string(),
            })?;
            Ok((index + 1, value))
        })
        .collect()
}

/// A record of another harness: `engine` as declared, and a digest over everything that names the model.
fn record(
    engine: String,
    device: &str,
    model: &Value,
    tasks: BTreeMap<String, crate::record::eval::TaskRecord>,
) -> EvalRecord {
    EvalRecord {
        schema_version: SCHEMA_VERSION,
        arm: "imported".to_owned(),
        identity: EngineIdentity {
            engine,
            device: device.to_owned(),
            kernel_path: "unknown".to_owned(),
            checkpoint_digest: Digest::of_json(model).ok(),
            identity_proven: false,
            tokenizer_digest: None,
        },
        tasks,
        groups: BTreeMap::new(),
        confirmations: Vec::new(),
        provenance: Provenance::new(Threads { count: 1, origin: "imported".to_owned() }),
    }
}
