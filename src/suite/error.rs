//! What can be wrong with a suite, a task file or its data.

use std::fmt;
use std::path::PathBuf;

use crate::base::closest::suggestion;
use crate::checkpoint::hub::HubError;
use crate::record::{Classified, FailureClass};

/// A place in a file; lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File, or `built-in/<name>` for embedded ones.
    pub file: String,
    /// Line, if known.
    pub line: Option<usize>,
}

impl Place {
    /// A line of a file.
    pub fn new(file: impl Into<String>, line: Option<usize>) -> Self {
        Self { file: file.into(), line }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// A suite that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// No task, group or file has this name.
    #[error("unknown suite '{name}'")]
    UnknownName {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{file}: not a YAML mapping: {detail}")]
    Yaml {
        /// The file.
        file: String,
        /// What the parser says, with line and column.
        detail: String,
    },
    /// A key that neither lm-eval nor day0 knows.
    #[error("{place}: unknown key '{key}'")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// Keys that are known there.
        known: &'static [&'static str],
    },
    /// A value that is not what the key takes.
    #[error("{place}: {key}: {detail}")]
    Value {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// What was expected and found.
        detail: String,
    },
    /// A feature of lm-eval that day0 does not have.
    #[error("{place}: {key}: {feature} is not supported")]
    Unsupported {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// The feature by name.
        feature: String,
    },
    /// `include` goes round in a circle.
    #[error("{file}: included by itself")]
    IncludeCycle {
        /// The file.
        file: String,
    },
    /// Groups contain each other in a circle.
    #[error("{}: groups that contain each other", files.join(" -> "))]
    GroupCycle {
        /// Their files, the first one again at the end.
        files: Vec<String>,
    },
    /// A template does not compile.
    #[error("{place}: {key}: not a valid template")]
    Template {
        /// Where.
        place: Place,
        /// The key.
        key: String,
        /// Why.
        source: minijinja::Error,
    },
    /// The task needs data from outside, and the hub does not give it.
    #[error(
        "task {task}: its data set {dataset} is not to be had from the hub, and no data directory was given"
    )]
    NoData {
        /// Task.
        task: String,
        /// Data set by its hub name.
        dataset: String,
        /// Stem of the files.
        stem: String,
        /// Splits that the task evaluates.
        splits: Vec<String>,
        /// Why.
        source: Box<SuiteError>,
    },
    /// The hub does not give a file.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The name of a data set is no name of a repository.
    #[error("'{name}' is no data set on the hub: expected org/name")]
    NoHubName {
        /// As the task writes it.
        name: String,
    },
    /// No file of the repository can be told to hold a split.
    #[error("{dataset}@{commit}: no JSON lines or Parquet files for the subset '{subset}'")]
    NoSplits {
        /// Data set.
        dataset: String,
        /// Subset.
        subset: String,
        /// Commit.
        commit: String,
    },
    /// The data directory has none of the splits that the task evaluates.
    #[error("task {task}: none of {} found", expected.join(", "))]
    MissingSplit {
        /// Task.
        task: String,
        /// Files that would have done.
        expected: Vec<String>,
    },
    /// A row of the data cannot be used.
    #[error("{place}: {detail}")]
    Row {
        /// Where.
        place: Place,
        /// What is wrong with it.
        detail: String,
    },
    /// A row does not render.
    #[error("{place}: {key} of task {task}")]
    Render {
        /// Where.
        place: Place,
        /// Task.
        task: String,
        /// `doc_to_text`, …
        key: &'static str,
        /// Why.
        source: minijinja::Error,
    },
    /// A file without rows.
    #[error("{file}: holds no rows")]
    NoRows {
        /// The file.
        file: String,
    },
}

impl Classified for SuiteError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Hub(error) => error.failure_class(),
            Self::NoData { source, .. } => source.failure_class(),
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownName { name, known } => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                Some(format!("{}; a path to a task or group YAML works too", suggestion(name, &known)))
            }
            Self::UnknownKey { key, known, .. } => Some(suggestion(key, known)),
            Self::NoData { stem, splits, .. } => Some(format!(
                "put the rows as JSON lines or Parquet into DIR/{stem}.{}.jsonl (or .parquet) and pass --data DIR",
                splits.first().map_or("test", String::as_str)
            )),
            Self::Hub(error) => error.hint(),
            Self::NoSplits { .. } => Some("download the rows and pass --data DIR".to_owned()),
            Self::GroupCycle { .. } => {
                Some("give the group a name of its own, or list tasks where it lists itself".to_owned())
            }
            Self::Unsupported { .. } => {
                Some("write it as a Jinja template, or run this task with lm-eval".to_owned())
            }
            _ => None,
        }
    }
}
