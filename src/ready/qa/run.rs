//! The runner: containers, else the failsafe; every check to its end; artifacts complete whatever happens.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::artifacts::Artifacts;
use super::config::{Check, ContainerPolicy, QaConfig};
use super::container::{self, Container, Ran};
use crate::base::units::human_seconds;
use crate::base::{clock, digest::Digest, interrupt, progress};
use crate::ready::process::{self, Bounded, End, Ended, RunError, Spec};
use crate::record::provenance::{GIT_HASH, TOOL_VERSION};
use crate::record::qa::{
    CheckResult, CheckStatus, CheckTier, ContainerAttempt, QaError, QaMode, QaResults, QaRun, QaState,
};
use crate::record::{Failure, SCHEMA_VERSION};

/// What a run of the gate was asked.
pub struct QaOptions {
    /// The configuration file.
    pub config_path: PathBuf,
    /// Which runtimes are tried, in place of what the file says.
    pub container: Option<ContainerPolicy>,
    /// Working directory of the checks.
    pub dir: PathBuf,
    /// Artifact directory.
    pub out: PathBuf,
    /// Tier.
    pub tier: CheckTier,
    /// The command that runs this gate again.
    pub rerun: String,
}

/// A finished run.
pub struct QaOutcome {
    /// `run.json`.
    pub run: QaRun,
    /// `results.json`.
    pub results: QaResults,
    /// `error.json`, unless everything passed as declared.
    pub error: Option<QaError>,
    /// The signal that stopped it, if one did.
    pub signal: Option<i32>,
}

/// Output kept in memory of each stream, for `results.json`.
const TAIL_BYTES: usize = 8 << 10;
/// The end of each stream that is kept after a flood.
const FLOOD_TAIL_BYTES: usize = 1 << 20;

/// Runs the gate.
///
/// # Errors
/// The file cannot be used, which the artifacts say too, or the artifacts cannot be written. A signal is no
/// error: the outcome says so.
pub fn run(options: &QaOptions) -> Result<QaOutcome, Failure> {
    let config = match configuration(options) {
        Ok(config) => config,
        Err(failure) => {
            refuse(options, &failure)?;
            return Err(failure);
        }
    };
    let mut runner = Runner::begin(&config, options)?;
    let done = runner.everything();
    let failure = done.as_ref().err().map(ToString::to_string);
    runner.finish(failure.as_deref())?;
    done?;
    let Runner { run, results, error, signal, .. } = runner;
    Ok(QaOutcome { run, results, error, signal })
}

fn configuration(options: &QaOptions) -> Result<QaConfig, Failure> {
    let mut config = QaConfig::read(&options.config_path)?;
    if let Some(container) = options.container {
        config.container = container;
        config.check(&options.config_path.display().to_string())?;
    }
    Ok(config)
}

/// Leaves the artifacts of a gate whose file cannot be used in place of an earlier run's.
fn refuse(options: &QaOptions, failure: &Failure) -> Result<(), Failure> {
    let mode = QaMode::Container;
    let mut run = run_record(options, mode, &[]);
    let results = results_record(options, mode, &[], false);
    let artifacts = Artifacts::begin(&options.out, &run, &results, &options.rerun)?;
    (run.state, run.ended_at) = (QaState::Aborted, clock::now_iso8601());
    artifacts.heading(&failure.message)?;
    let error = QaError {
        schema_version: SCHEMA_VERSION,
        kind: "runner".to_owned(),
        message: failure.message.clone(),
        mode,
        failed_checks: Vec::new(),
        attempts: Vec::new(),
        hint: failure.hint.clone().unwrap_or_else(|| "correct the file, then run the gate again".to_owned()),
    };
    artifacts.finish(&run, &results, Some(&error), &options.rerun)
}

/// `run.json` before anything ran.
fn run_record(options: &QaOptions, mode: QaMode, checks: &[Check]) -> QaRun {
    let started_at = clock::now_iso8601();
    let pid = std::process::id();
    let run_id = Digest::of(format!("{started_at} {pid} {}", options.out.display()).as_bytes());
    QaRun {
        schema_version: SCHEMA_VERSION,
        run_id: run_id.short(12).to_owned(),
        state: QaState::Running,
        mode,
        runtime: None,
        fallback_reason: String::new(),
        attempts: Vec::new(),
        tier: options.tier,
        config: absolute(&options.config_path).display().to_string(),
        directory: options.dir.display().to_string(),
        commands: commands(checks),
        started_at,
        ended_at: String::new(),
        pid,
        versions: BTreeMap::from([("day0".to_owned(), format!("{TOOL_VERSION} ({GIT_HASH})"))]),
        environment: environment(),
    }
}

/// `results.json` before anything ran.
fn results_record(
    options: &QaOptions,
    mode: QaMode,
    checks: &[Check],
    failsafe_is_enough: bool,
) -> QaResults {
    QaResults {
        schema_version: SCHEMA_VERSION,
        mode,
        complete: false,
        counts: BTreeMap::new(),
        checks: planned(checks, options.tier),
        lost: Vec::new(),
        failsafe_is_enough,
    }
}

struct Runner<'a> {
    config: &'a QaConfig,
    options: &'a QaOptions,
    artifacts: Artifacts,
    run: QaRun,
    results: QaResults,
    error: Option<QaError>,
    signal: Option<i32>,
}

impl<'a> Runner<'a> {
    fn begin(config: &'a QaConfig, options: &'a QaOptions) -> Result<Self, Failure> {
        let mode = if config.container == ContainerPolicy::Never { QaMode::Local } else { QaMode::Container };
        let run = run_record(options, mode, &config.full);
        let results = results_record(options, mode, &config.full, config.failsafe_is_enough);
        let artifacts = Artifacts::begin(&options.out, &run, &results, &options.rerun)?;
        Ok(Self { config, options, artifacts, run, results, error: None, signal: None })
    }

    fn everything(&mut self) -> Result<(), Failure> {
        if self.run.mode == QaMode::Local {
            return self.checks(&self.config.full, None).map(|_| ());
        }
        let (dir, out) = (&self.options.dir, &self.options.out);
        let (container, attempts) = container::find(self.config, dir, out, &self.run.run_id);
        self.run.attempts = attempts;
        let Some(container) = container else { return self.failsafe(&none_works(&self.run.attempts)) };
        self.run.runtime = Some(container.name.as_str().to_owned());
        self.run.versions.insert(container.name.as_str().to_owned(), container.version.clone());
        self.artifacts.settled(&self.run, &self.results)?;
        progress::note(&format!("qa: in containers ({})", container.version));
        match self.checks(&self.config.full, Some(&container))? {
            None => Ok(()),
            Some(lost) => self.failsafe(&lost),
        }
    }

    /// The reduced set, because of `reason`.
    fn failsafe(&mut self, reason: &str) -> Result<(), Failure> {
        self.signal = self.signal.or_else(interrupt::received);
        if self.signal.is_some() {
            return Ok(());
        }
        progress::note(&format!("qa: no container ({reason}); the failsafe runs the reduced set"));
        reason.clone_into(&mut self.run.fallback_reason);
        self.run.mode = QaMode::Failsafe;
        self.results.mode = QaMode::Failsafe;
        let ran = |c: &CheckResult| !matches!(c.status, CheckStatus::Skipped | CheckStatus::NotRun);
        let reduced = planned(&self.config.reduced, self.options.tier);
        let before = std::mem::replace(&mut self.results.checks, reduced);
        self.results.lost = before.into_iter().filter(ran).collect();
        self.run.commands = commands(&self.config.reduced);
        self.artifacts.settled(&self.run, &self.results)?;
        self.checks(&self.config.reduced, None).map(|_| ())
    }

    /// Runs every check of this tier; returns why the container was lost, if it was.
    fn checks(
        &mut self,
        checks: &[Check],
        container: Option<&Container<'_>>,
    ) -> Result<Option<String>, Failure> {
        for (index, check) in checks.iter().enumerate() {
            if self.results.checks[index].status == CheckStatus::Skipped {
                continue;
            }
            self.signal = self.signal.or_else(interrupt::received);
            if self.signal.is_some() {
                return Ok(None);
            }
            let lost = self.check(index, check, container)?;
            self.artifacts.progress(&self.run, &self.results)?;
            let result = &self.results.checks[index];
            say(result);
            if let Some(why) = lost {
                let step = check.label.clone();
                let runtime = self.run.runtime.clone().unwrap_or_default();
                let attempt = ContainerAttempt { runtime, step, ok: false, detail: why.clone() };
                self.run.attempts.push(attempt);
                return Ok(Some(format!("the container of '{}' was lost: {why}", check.label)));
            }
        }
        Ok(None)
    }

    fn check(
        &mut self,
        index: usize,
        check: &Check,
        container: Option<&Container<'_>>,
    ) -> Result<Option<String>, Failure> {
        let command = check.command.display();
        let where_ = self.run.mode;
        self.artifacts.heading(&format!("{} ({where_}): {command}", check.label))?;
        progress::note(&format!("== {}: {command}", check.label));
        let io_failure = |e: io::Error| Failure::io(self.options.out.display(), &e);
        let mut stdout = self.sink(check, "stdout").map_err(io_failure)?;
        let mut stderr = self.sink(check, "stderr").map_err(io_failure)?;
        let ran = match container {
            Some(container) => {
                let env: Vec<(String, String)> = self.config.env.clone().into_iter().collect();
                container.run(check, &env, &mut stdout, &mut stderr)
            }
            None => process::run(&self.spec(check), &mut stdout, &mut stderr).map(Ran::Check),
        };
        let (out, err) = (stdout.finish().map_err(io_failure)?, stderr.finish().map_err(io_failure)?);
        let result = &mut self.results.checks[index];
        result.tail = [out, err].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n");
        let (ended, lost) = match ran {
            Ok(Ran::Check(ended)) => (ended, None),
            Ok(Ran::Lost(ended, why)) => (ended, Some(why)),
            Err(RunError::Output(error)) => return Err(io_failure(error)),
            Err(error) => {
                result.status = CheckStatus::Failed;
                result.detail = error.to_string();
                return Ok(None);
            }
        };
        fill(result, ended, lost.as_deref());
        if let End::Interrupted(signal) = ended.end {
            self.signal = Some(signal);
        }
        Ok(lost)
    }

    fn spec(&self, check: &Check) -> Spec {
        Spec {
            argv: check.command.argv(),
            dir: self.options.dir.clone(),
            env: self.config.env.clone(),
            timeout: Duration::from_secs_f64(check.timeout_s),
            cookie: Some(self.run.run_id.clone()),
            interruptible: true,
        }
    }

    /// Where one stream of a check goes: the common log, the check's own, and the end of it into memory.
    fn sink(&self, check: &Check, stream: &str) -> io::Result<Sink> {
        let both = Both {
            common: self.artifacts.append(&format!("{stream}.log"))?,
            own: self.artifacts.check_log(&check.label, stream)?,
        };
        Ok(Sink {
            log: Bounded::new(both, self.config.max_log_bytes, FLOOD_TAIL_BYTES),
            tail: Bounded::new(Vec::new(), 0, TAIL_BYTES),
        })
    }

    /// Writes the last version of everything.
    fn finish(&mut self, failure: Option<&str>) -> Result<(), Failure> {
        self.run.ended_at = clock::now_iso8601();
        let aborted = failure.is_some() || self.signal.is_some();
        self.run.state = if aborted { QaState::Aborted } else { QaState::Finished };
        self.results.complete = !aborted;
        self.results.counts = counts(&self.results.checks);
        self.error = self.error_record(failure);
        self.artifacts.finish(&self.run, &self.results, self.error.as_ref(), &self.options.rerun)
    }

    /// What went wrong, unless everything passed as declared.
    fn error_record(&self, failure: Option<&str>) -> Option<QaError> {
        let bad =
            |c: &&CheckResult| c.required && !matches!(c.status, CheckStatus::Passed | CheckStatus::Skipped);
        let before = self.results.failed_before();
        let failed = self.results.checks.iter().filter(bad).chain(before.filter(|c| c.required));
        let failed: Vec<String> = failed.map(|c| c.label.clone()).collect();
        let ran = self.results.checks.iter().filter(|c| c.status != CheckStatus::Skipped);
        let started = ran.clone().any(|c| !c.detail.starts_with("cannot be started"));
        let (kind, message, hint) = if let Some(failure) = failure {
            ("runner", failure.to_owned(), "make room or choose another --out, then run the gate again")
        } else if let Some(signal) = self.signal {
            ("interrupted", format!("stopped by signal {signal}"), "run the gate again")
        } else if self.run.mode == QaMode::Failsafe && !started {
            let message =
                format!("neither containers nor the failsafe can execute: {}", self.run.fallback_reason);
            ("runner", message, "make a container runtime work, or fix the reduced set's commands")
        } else if !failed.is_empty() {
            ("checks_failed", format!("did not pass: {}", failed.join(", ")), "read the named checks' logs")
        } else if self.run.mode == QaMode::Failsafe {
            let message = format!("only the reduced set ran: {}", self.run.fallback_reason);
            ("fallback", message, "make a container runtime work for the full set")
        } else {
            return None;
        };
        Some(QaError {
            schema_version: SCHEMA_VERSION,
            kind: kind.to_owned(),
            message,
            mode: self.run.mode,
            failed_checks: failed,
            attempts: self.run.attempts.clone(),
            hint: hint.to_owned(),
        })
    }
}

fn fill(result: &mut CheckResult, ended: Ended, lost: Option<&str>) {
    result.elapsed_s = ended.elapsed.as_secs_f64();
    result.output_bytes = ended.output_bytes;
    (result.status, result.detail) = match (lost, ended.end) {
        (Some(why), _) => (CheckStatus::Lost, why.to_owned()),
        (None, End::Exited(0)) => (CheckStatus::Passed, String::new()),
        (None, End::Exited(code)) => (CheckStatus::Failed, format!("exit code {code}")),
        (None, End::Signaled(signal)) => (CheckStatus::Failed, format!("killed by signal {signal}")),
        (None, End::TimedOut) => (CheckStatus::TimedOut, format!("killed after {} s", result.timeout_s)),
        (None, End::Interrupted(_)) => (CheckStatus::NotRun, "interrupted".to_owned()),
    };
    result.exit_code = if let End::Exited(code) = ended.end { Some(code) } else { None };
    result.signal = if let End::Signaled(signal) = ended.end { Some(signal) } else { None };
}

fn say(result: &CheckResult) {
    let status = serde_json::to_value(result.status).ok();
    let status = status.as_ref().and_then(|s| s.as_str()).unwrap_or("unknown");
    let passed = result.status == CheckStatus::Passed;
    if !passed && !result.tail.is_empty() {
        progress::note(&result.tail);
    }
    let detail = if result.detail.is_empty() { String::new() } else { format!(" ({})", result.detail) };
    progress::note(&format!("== {}: {status}{detail} in {}", result.label, human_seconds(result.elapsed_s)));
}

fn commands(checks: &[Check]) -> BTreeMap<String, String> {
    checks.iter().map(|c| (c.label.clone(), c.command.display())).collect()
}

/// Every check as it stands before it ran.
fn planned(checks: &[Check], tier: CheckTier) -> Vec<CheckResult> {
    let plan = |check: &Check| CheckResult {
        label: check.label.clone(),
        command: check.command.display(),
        tier: check.tier,
        required: check.required,
        status: if check.tier <= tier { CheckStatus::NotRun } else { CheckStatus::Skipped },
        exit_code: None,
        signal: None,
        elapsed_s: 0.0,
        timeout_s: check.timeout_s,
        output_bytes: 0,
        tail: String::new(),
        detail: String::new(),
    };
    checks.iter().map(plan).collect()
}

fn counts(checks: &[CheckResult]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::from([("attempted".to_owned(), 0)]);
    for check in checks {
        let name = serde_json::to_value(check.status).ok();
        let name = name.as_ref().and_then(|n| n.as_str()).unwrap_or("unknown").to_owned();
        *counts.entry(name).or_default() += 1;
        let attempted = !matches!(check.status, CheckStatus::Skipped | CheckStatus::NotRun);
        *counts.entry("attempted".to_owned()).or_default() += usize::from(attempted);
    }
    counts
}

/// Why no runtime works, in one line.
fn none_works(attempts: &[ContainerAttempt]) -> String {
    let failed: Vec<String> = attempts
        .iter()
        .filter(|a| !a.ok)
        .map(|a| format!("{} {}: {}", a.runtime, a.step, a.detail.lines().next_back().unwrap_or_default()))
        .collect();
    if failed.is_empty() { "no runtime is configured".to_owned() } else { failed.join("; ") }
}

/// Hints about the machine.
fn environment() -> BTreeMap<String, String> {
    let mut hints = BTreeMap::new();
    let mut hint = |name: &str, value: String| hints.insert(name.to_owned(), value);
    hint("cpus", std::thread::available_parallelism().map_or_else(|_| "unknown".into(), |n| n.to_string()));
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let line = |text: &str, key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key))
            .unwrap_or("unknown")
            .trim()
            .trim_matches('"')
            .to_owned()
    };
    hint("memory", line(&read("/proc/meminfo"), "MemTotal:"));
    hint("os", line(&read("/etc/os-release"), "PRETTY_NAME="));
    hint("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned());
    hints
}

/// Two files at once.
struct Both {
    common: File,
    own: File,
}

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.common.write_all(bytes)?;
        self.own.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.common.flush()?;
        self.own.flush()
    }
}

struct Sink {
    log: Bounded<Both>,
    tail: Bounded<Vec<u8>>,
}

impl Sink {
    /// The end of what was written, as text.
    fn finish(self) -> io::Result<String> {
        self.log.finish()?;
        let (bytes, _) = self.tail.finish()?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.write_all(bytes)?;
        self.log.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}

/// The directory a path lies in, made absolute, so that the artifacts say where the checks ran.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
