//! The run directory: one place that holds everything a release did.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::ReleaseConfig;
use crate::base::digest::Digest;
use crate::base::{clock, json};
use crate::record::{Failure, SCHEMA_VERSION};

/// `run.json`: what the run was asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Schema of this record.
    pub schema_version: u32,
    /// Default name of the directory.
    pub run_id: String,
    /// Digest over the effective configuration and the digests of model, recipe and tasks.
    pub input_digest: Digest,
    /// Creation, ISO 8601 UTC.
    pub created_at: String,
    /// Version of the program that created it.
    pub tool_version: String,
}

const CONFIG_FILE: &str = "day0.yaml";

/// What a CI system shows of a run, in its directory.
pub const JUNIT_FILE: &str = "junit.xml";
/// The same as Markdown.
pub const SUMMARY_FILE: &str = "summary.md";

/// Whether `path` holds anything but what a run with this `config` leaves when it is killed while being created, or ends with
/// an error before it begins.
fn holds_something_else(path: &Path, config: &str) -> bool {
    let ours = |entry: std::fs::DirEntry| {
        crate::base::atomic::is_temporary(&entry.file_name())
            || [JUNIT_FILE, SUMMARY_FILE].iter().any(|name| entry.file_name() == *name)
            || (entry.file_name() == CONFIG_FILE
                && std::fs::read_to_string(entry.path()).is_ok_and(|text| text == config))
    };
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.any(|entry| !entry.is_ok_and(ours)))
}

/// Paths of a run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Creates the run directory: `out`, or `runs/<UTC time>-<6 hex of the input digest>`.
    pub fn create(
        out: Option<&Path>,
        input_digest: &Digest,
        config: &ReleaseConfig,
    ) -> Result<(Self, RunRecord), Failure> {
        let run_id = format!("{}-{}", clock::now_compact(), input_digest.short(6));
        let path = out.map_or_else(|| Path::new("runs").join(&run_id), Path::to_path_buf);
        if path.join("run.json").exists() {
            return Err(Failure::config(format!("{}: holds a run already", path.display())).with_hint(
                format!(
                    "continue it with `day0 release --resume {}`, or choose another --out",
                    path.display()
                ),
            ));
        }
        let text = serde_yaml_ng::to_string(config)
            .map_err(|e| Failure::config(format!("the configuration cannot be written as YAML: {e}")))?;
        if holds_something_else(&path, &text) {
            return Err(Failure::config(format!("{}: is not empty", path.display()))
                .with_hint("--out names the run directory itself; choose a new one"));
        }
        std::fs::create_dir_all(&path)
            .and_then(|()| crate::base::atomic::remove_leftovers(&path))
            .map_err(|e| Failure::io(path.display(), &e))?;
        let run = Self { path };
        let config_path = run.config();
        crate::base::atomic::write(&config_path, text.as_bytes())
            .map_err(|e| Failure::io(config_path.display(), &e))?;
        let record = RunRecord {
            schema_version: SCHEMA_VERSION,
            run_id,
            input_digest: input_digest.clone(),
            created_at: clock::now_iso8601(),
            tool_version: crate::record::provenance::TOOL_VERSION.to_owned(),
        };
        // Last: a directory with run.json is a complete run directory that can be resumed.
        json::write(&run.path.join("run.json"), &record)?;
        Ok((run, record))
    }

    /// Opens an existing run directory that nobody else works on: what killed processes left half-written is removed.
    pub fn open(path: &Path) -> Result<(Self, RunRecord), Failure> {
        let opened = Self::join_existing(path)?;
        crate::base::atomic::remove_leftovers(path).map_err(|e| Failure::io(path.display(), &e))?;
        Ok(opened)
    }

    /// Opens an existing run directory, on which other processes may be working.
    pub fn join_existing(path: &Path) -> Result<(Self, RunRecord), Failure> {
        if !path.join("run.json").is_file() {
            return Err(Failure::config(format!("{}: is not a run directory (no run.json)", path.display()))
                .with_hint("`day0 runs` lists the runs below ./runs"));
        }
        let record = json::read(&path.join("run.json"))?;
        Ok((Self { path: path.to_path_buf() }, record))
    }

    /// A run directory that is only planned: nothing is created.
    pub fn planned(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path below the run directory.
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    /// The effective configuration.
    pub fn config(&self) -> PathBuf {
        self.join(CONFIG_FILE)
    }

    /// The ledger.
    pub fn ledger(&self) -> PathBuf {
        self.join("ledger.jsonl")
    }

    /// The quantized checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.join("quantize/checkpoint")
    }

    /// Appends one event. Events are for people: losing one to a full disk does not stop the run.
    pub fn event(&self, kind: &str, subject: &str, detail: &str) {
        let line = serde_json::json!({"at": clock::now_iso8601(), "detail": detail, "event": kind, "subject": subject});
        let written = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.join("events.jsonl"))
            .and_then(|mut file| writeln!(file, "{line}"));
        if let Err(error) = written {
            crate::base::progress::detail(&format!("events.jsonl: {error}"));
        }
    }
}
