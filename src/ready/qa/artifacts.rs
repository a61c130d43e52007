//! The artifacts. They are complete at every moment: written before the first check with what is known then (nothing ran
//! yet, the runner has not finished), and replaced as the run goes on. A runner that is killed leaves them so.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::base::{atomic, json};
use crate::record::Failure;
use crate::record::qa::{QaError, QaMode, QaResults, QaRun, QaState};

/// Where artifacts go unless told otherwise (document 002: `/outputs/qa/`).
pub const DEFAULT_OUT: &str = "outputs/qa";

/// Names of all artifacts.
const NAMES: [&str; 6] =
    ["run.json", "stdout.log", "stderr.log", "results.json", "error.json", "RUN_INSTRUCTIONS.md"];
/// Directory of each check's own output.
const CHECKS: &str = "checks";
/// What a check prints to; the endings of its files there.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The artifact directory of one run.
pub struct Artifacts {
    dir: PathBuf,
}

impl Artifacts {
    /// Clears what an earlier run left in `dir` and writes the first version of everything.
    pub fn begin(dir: &Path, run: &QaRun, results: &QaResults, rerun: &str) -> Result<Self, Failure> {
        let io = |e: io::Error| Failure::io(dir.display(), &e);
        std::fs::create_dir_all(dir.join(CHECKS)).map_err(io)?;
        for name in NAMES {
            atomic::remove(&dir.join(name)).map_err(io)?;
        }
        remove_check_logs(&dir.join(CHECKS)).map_err(io)?;
        atomic::remove_leftovers(dir).map_err(io)?;
        let artifacts = Self { dir: dir.to_path_buf() };
        for name in ["stdout.log", "stderr.log"] {
            File::create(dir.join(name)).map_err(io)?;
        }
        artifacts.instructions(run, rerun)?;
        artifacts.settled(run, results)?;
        Ok(artifacts)
    }

    /// Replaces `run.json` and `results.json`.
    pub fn progress(&self, run: &QaRun, results: &QaResults) -> Result<(), Failure> {
        json::write(&self.dir.join("run.json"), run)?;
        Ok(json::write(&self.dir.join("results.json"), results)?)
    }

    /// Says how the checks run, once that is known and before the first of them runs.
    pub fn settled(&self, run: &QaRun, results: &QaResults) -> Result<(), Failure> {
        self.error(&unfinished(run))?;
        self.progress(run, results)
    }

    /// Replaces `error.json`.
    fn error(&self, error: &QaError) -> Result<(), Failure> {
        Ok(json::write(&self.dir.join("error.json"), error)?)
    }

    /// Ends the run: `error.json` stays only where it was not a plain success.
    pub fn finish(
        &self,
        run: &QaRun,
        results: &QaResults,
        error: Option<&QaError>,
        rerun: &str,
    ) -> Result<(), Failure> {
        self.instructions(run, rerun)?;
        if let Some(error) = error {
            self.error(error)?;
        } else {
            let path = self.dir.join("error.json");
            atomic::remove(&path).map_err(|e| Failure::io(path.display(), &e))?;
        }
        self.progress(run, results)
    }

    /// Appends a heading to both logs.
    pub fn heading(&self, text: &str) -> Result<(), Failure> {
        for name in ["stdout.log", "stderr.log"] {
            let path = self.dir.join(name);
            let written = self.append(name).and_then(|mut f| writeln!(f, "== {text}"));
            written.map_err(|e| Failure::io(path.display(), &e))?;
        }
        Ok(())
    }

    /// A log, opened to be appended to.
    pub fn append(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).open(self.dir.join(name))
    }

    /// A new file for one stream of one check.
    pub fn check_log(&self, label: &str, stream: &str) -> io::Result<File> {
        File::create(self.dir.join(CHECKS).join(format!("{label}.{stream}")))
    }

    fn instructions(&self, run: &QaRun, rerun: &str) -> Result<(), Failure> {
        let path = self.dir.join("RUN_INSTRUCTIONS.md");
        let text = instructions(run, rerun);
        atomic::write(&path, text.as_bytes()).map_err(|e| Failure::io(path.display(), &e))
    }
}

/// Removes what checks of an earlier run printed, and nothing that this gate did not write.
fn remove_check_logs(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| STREAMS.iter().any(|stream| e == *stream)) {
            atomic::remove(&path)?;
        }
    }
    Ok(())
}

/// What `error.json` says until the runner knows better.
fn unfinished(run: &QaRun) -> QaError {
    QaError {
        schema_version: run.schema_version,
        kind: "unfinished".to_owned(),
        message: format!("the runner (process {}) has not finished: it is running, or was killed", run.pid),
        mode: run.mode,
        failed_checks: Vec::new(),
        attempts: Vec::new(),
        hint: "results.json says how far it came; RUN_INSTRUCTIONS.md says how to run it again".to_owned(),
    }
}

/// How to run this exact gate again.
fn instructions(run: &QaRun, rerun: &str) -> String {
    let mode = match (run.state, run.mode, &run.runtime) {
        (_, QaMode::Container, Some(runtime)) => format!("The last run used containers ({runtime})."),
        (QaState::Running, ..) | (_, QaMode::Container, None) => {
            "The mode of this run was not settled when this was written.".to_owned()
        }
        (_, QaMode::Local, _) => {
            "The last run used this machine: the file declares `container: never`.".to_owned()
        }
        (_, QaMode::Failsafe, _) => format!(
            "The last run used the failsafe, a reduced set without a container: {}.",
            run.fallback_reason
        ),
    };
    let mut text = format!(
        "# How to run this gate again\n\n```\ncd {}\n{rerun}\n```\n\n{mode}\n\n## The checks one by one\n\n",
        super::config::quoted(&run.directory)
    );
    let line = |(label, command): (&String, &String)| format!("- {label}: `{command}`\n");
    text.extend(run.commands.iter().map(line));
    text += "\nrun.json says what ran, results.json what came of it, stdout.log and stderr.log what was printed; \
             error.json is there unless everything passed as declared.\n";
    text
}
