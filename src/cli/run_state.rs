//! `day0 status`, `day0 logs` and `day0 cancel`.

use std::path::PathBuf;

use clap::Args;

use super::{Settings, output};
use crate::record::Failure;
use crate::release::status::{self, RunState, State};

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// The run directory.
    run: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct LogsArguments {
    /// The run directory.
    run: PathBuf,
    /// Only of this stage: quantize, scan, score, compare, closeout, serve.
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// How much of the end of each log.
    #[arg(long, value_name = "N", default_value_t = 40)]
    lines: usize,
}

#[derive(Debug, Args)]
pub(super) struct CancelArguments {
    /// The run directory.
    run: PathBuf,
}

/// Bytes of a log that are read for its last lines.
const LOG_BYTES: u64 = 256 << 10;

pub(super) fn status(arguments: &StatusArguments, settings: &Settings) -> Result<u8, Failure> {
    let state = status::status(&arguments.run)?;
    if settings.json {
        output::json(&state)?;
        return Ok(0);
    }
    print(&state);
    Ok(0)
}

fn print(state: &RunState) {
    let what = match (state.state, state.verdict, state.failure_class) {
        (State::Closed, Some(verdict), None) => format!("closed: {verdict}"),
        (State::Closed, Some(verdict), Some(class)) => format!("closed: {verdict} ({class})"),
        (State::Closed, None, _) => "closed without a verdict; it resumes".to_owned(),
        (State::Running, ..) => "running".to_owned(),
        (State::Queued, ..) => "waiting for its jobs".to_owned(),
        (State::Unknown, ..) => "not closed".to_owned(),
        (State::Stopped, ..) => "stopped; it resumes".to_owned(),
    };
    output::line(&format!("{}  {what}", state.run.display()));
    let done: Vec<String> = state.done.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    output::line(&format!(
        "units done: {}",
        if done.is_empty() { "none".to_owned() } else { done.join(", ") }
    ));
    for unit in &state.running {
        let job = if unit.job.is_empty() { String::new() } else { format!(", job {}", unit.job) };
        output::line(&format!("running: {} on {} (process {}{job})", unit.unit, unit.place, unit.pid));
    }
    for (unit, why) in &state.failed {
        output::line(&format!("failed: {unit}: {why}"));
    }
    for what in state.execution.tried_again() {
        output::line(&format!("tried again: {what}"));
    }
    if let Some(why) = &state.jobs_unknown {
        output::line(&format!("its jobs are unknown: {why}"));
    }
    for job in &state.jobs {
        let r = &job.report;
        let task = r.task.map_or_else(String::new, |task| format!("_{task}"));
        let mut notes = vec![r.node.clone(), r.reason.clone()];
        notes.extend((r.restarts > 0).then(|| format!("{} restarts", r.restarts)));
        notes.retain(|note| !note.is_empty());
        let line = format!(
            "job {:<9} {:<10} {:<11} {}",
            job.stage,
            format!("{}{task}", job.id),
            r.state,
            notes.join(", ")
        );
        output::line(line.trim_end());
    }
}

pub(super) fn logs(arguments: &LogsArguments) -> Result<u8, Failure> {
    for log in status::logs(&arguments.run, arguments.stage.as_deref(), LOG_BYTES)? {
        output::line(&format!("==> {}: {} <==", log.name, log.path.display()));
        let lines: Vec<&str> = log.text.lines().collect();
        for line in &lines[lines.len().saturating_sub(arguments.lines)..] {
            output::line(line);
        }
    }
    Ok(0)
}

pub(super) fn cancel(arguments: &CancelArguments) -> Result<u8, Failure> {
    let stopped = status::cancel(&arguments.run)?;
    if stopped.is_empty() {
        output::line("nothing of this run is running or queued");
    }
    for what in stopped {
        output::line(&format!("stopped {what}"));
    }
    Ok(0)
}
