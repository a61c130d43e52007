//! `day0 ready diff`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::base::interrupt;
use crate::cli::{Settings, output};
use crate::gate;
use crate::ready::config::QualityConfig;
use crate::ready::{release_metrics, snapshot};
use crate::record::snapshot::Snapshot;
use crate::record::{Failure, FailureClass};
use crate::report;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Count now and keep the counts.
    Capture {
        #[command(flatten)]
        source: Source,
        /// Replace a baseline that is there.
        #[arg(long)]
        force: bool,
    },
    /// Count again and compare.
    Check {
        #[command(flatten)]
        source: Source,
        /// Do not count: print what whoever works next should know.
        #[arg(long)]
        brief: bool,
        /// Warn instead of failing.
        #[arg(long)]
        advisory: bool,
    },
}

/// Where counts come from.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// The captured counts.
    #[arg(long, value_name = "FILE", default_value = snapshot::BASELINE_FILE)]
    pub baseline: PathBuf,
    #[command(flatten)]
    pub measure: Measure,
}

/// What is measured.
#[derive(Debug, Args)]
pub(super) struct Measure {
    /// File with a section `quality` [default: qa.yaml, else day0.yaml, else the package manager's scripts].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Take the measurements of this release as well; where no file has a section `quality`, them alone.
    #[arg(long, value_name = "RUN")]
    pub run: Option<PathBuf>,
    /// Take the counts of this file, as `capture` wrote it, instead of running commands.
    #[arg(long, value_name = "FILE")]
    pub counts: Option<PathBuf>,
}

impl Measure {
    /// The section `quality`, if a file has one.
    fn quality(&self) -> Result<Option<QualityConfig>, Failure> {
        QualityConfig::find(self.config.as_deref(), Path::new("."))
    }

    /// Measures now: counts, and what the release measured.
    pub fn take(&self) -> Result<Snapshot, Failure> {
        let release = self.run.as_deref().map(of_release).transpose()?;
        let quality = self.quality()?;
        let counted = match (&self.counts, &release) {
            (Some(counts), _) => snapshot::read(counts)?,
            (None, Some(release)) if quality.is_none() => release.clone(),
            (None, _) => {
                interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
                snapshot::take(&quality.unwrap_or_default().counted(), Path::new("."))?
            }
        };
        Ok(match release {
            Some(measured) => Snapshot { release: measured.release, ..counted },
            None => counted,
        })
    }
}

/// What the release in `run` measured.
fn of_release(run: &Path) -> Result<Snapshot, Failure> {
    if !run.join("run.json").is_file() {
        let message = format!("{}: is not a run directory (no run.json)", run.display());
        return Err(Failure::config(message).with_hint("`day0 runs` lists the runs below ./runs"));
    }
    release_metrics::of_run(run)
}

pub(super) fn run(command: Command, settings: &Settings) -> Result<u8, Failure> {
    match command {
        Command::Capture { source, force } => capture(&source, force, settings),
        Command::Check { source, brief, .. } if brief => print_brief(&source),
        Command::Check { source, advisory, .. } => check(&source, advisory, settings),
    }
}

fn capture(source: &Source, force: bool, settings: &Settings) -> Result<u8, Failure> {
    // Before hours of tests, not after them.
    if source.baseline.exists() && !force {
        return snapshot::store(&source.baseline, &Snapshot::default(), force).map(|()| 0);
    }
    let taken = source.measure.take()?;
    snapshot::store(&source.baseline, &taken, force)?;
    if settings.json {
        output::json(&taken)?;
    } else {
        output::line(&source.baseline.display().to_string());
    }
    match taken.failed_commands.iter().next() {
        None => Ok(0),
        Some((what, why)) => Err(Failure::new(FailureClass::InsufficientEvidence, format!("{what}: {why}"))
            .with_hint("the baseline was stored without it; fix the command and capture again with --force")),
    }
}

fn read_baseline(source: &Source) -> Result<Option<Snapshot>, Failure> {
    source.baseline.is_file().then(|| snapshot::read(&source.baseline)).transpose()
}

fn print_brief(source: &Source) -> Result<u8, Failure> {
    let quality = source.measure.quality()?.unwrap_or_default();
    let baseline = read_baseline(source)?.unwrap_or_default();
    output::line(report::brief(&baseline, quality.tdd_workflow, quality.boyscout_rule).trim_end());
    Ok(0)
}

fn check(source: &Source, advisory: bool, settings: &Settings) -> Result<u8, Failure> {
    let Some(baseline) = read_baseline(source)? else {
        return super::finish(&gate::diff::check(None, &Snapshot::default()), advisory, settings);
    };
    let current = source.measure.take()?;
    let decided = gate::diff::check(Some(&baseline), &current);
    if !settings.json {
        let delta = gate::diff::delta(&baseline, &current);
        output::line(&report::diff(&baseline, &current, &delta, &decided));
    }
    super::finish(&decided, advisory, settings)
}
