//! `day0 ready`: the readiness gates.

mod diff;
mod qa;
mod ratchet;
mod repro;

use clap::{Args, Subcommand};

use super::{Settings, output};
use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass, GateReport};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    gate: Ready,
}

#[derive(Debug, Subcommand)]
enum Ready {
    /// Run the candidate, or a training, under several seeds.
    #[command(subcommand)]
    Repro(repro::Command),
    /// Run the project's own checks, in containers where there are any.
    Qa(qa::Arguments),
    /// Compare the repository's counts, and a release, with a captured baseline.
    #[command(subcommand)]
    Diff(diff::Command),
    /// Hold thresholds that only tighten.
    #[command(subcommand)]
    Ratchet(ratchet::Command),
}

pub(super) fn run(arguments: Arguments, settings: &Settings) -> Result<u8, Failure> {
    match arguments.gate {
        Ready::Repro(command) => repro::run(command, settings),
        Ready::Qa(arguments) => qa::run(&arguments, settings),
        Ready::Diff(command) => diff::run(command, settings),
        Ready::Ratchet(command) => ratchet::run(command, settings),
    }
}

/// Prints a gate's report and returns its exit code; an advisory one fails nothing, visibly.
fn finish(report: &GateReport, advisory: bool, settings: &Settings) -> Result<u8, Failure> {
    if settings.json {
        output::json(report)?;
    } else {
        for finding in &report.findings {
            let class = finding.failure_class;
            let kind = if finding.decides() { class.to_string() } else { format!("note ({class})") };
            output::line(&format!("{kind:<22} {finding}"));
        }
        let verdict = report.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string());
        output::line(&format!("{} {verdict}: {}", report.gate, report.detail));
    }
    if advisory && !report.pass && report.failure_class != Some(FailureClass::UserConfigError) {
        crate::base::progress::note(&format!("{}: advisory, so this fails nothing", report.gate));
        return Ok(exit_code::ACCEPT);
    }
    Ok(report.outcome().exit_code())
}
