//! `day0 ready ratchet`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::diff::Measure;
use crate::base::clock;
use crate::cli::{Settings, output};
use crate::gate::ratchet::{self, Change, RatchetError};
use crate::ready::ratchet::{RATCHET_FILE, load, store};
use crate::record::ratchet::Ratchet;
use crate::record::{Failure, FailureClass};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write the first thresholds from what is measured now.
    Init {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        measure: Measure,
        /// Only these metrics, comma-separated.
        #[arg(long, value_name = "METRIC", value_delimiter = ',')]
        metrics: Vec<String>,
        /// Replace a ratchet that is there; what it recorded of loosenings stays.
        #[arg(long)]
        force: bool,
        /// Why thresholds of the ratchet that is replaced are loosened or go; it is kept in the file.
        #[arg(long, value_name = "TEXT", requires = "force")]
        reason: Option<String>,
    },
    /// Fail where a threshold is violated.
    Check {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        measure: Measure,
        /// Warn instead of failing, and do not ask for metrics that are not measured.
        #[arg(long)]
        advisory: bool,
    },
    /// Tighten the thresholds that are improved on; a violation changes nothing and fails.
    Update {
        #[command(flatten)]
        file: File,
        #[command(flatten)]
        measure: Measure,
        /// Set one threshold, also to a weaker value.
        #[arg(long, value_name = "METRIC=VALUE", requires = "reason")]
        set: Option<String>,
        /// Why a threshold is loosened; it is kept in the file.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct File {
    /// The ratchet.
    #[arg(long, value_name = "FILE", default_value = RATCHET_FILE)]
    file: PathBuf,
    /// Who changes it: a ticket, a branch [default: the commit].
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl File {
    fn by(&self, commit: &str) -> String {
        let unknown = || if commit.is_empty() { "unknown".to_owned() } else { commit.to_owned() };
        self.by.clone().unwrap_or_else(unknown)
    }

    fn require(&self) -> Result<Ratchet, Failure> {
        load(&self.file)?.ok_or_else(|| {
            Failure::config(format!("{}: is not there", self.file.display()))
                .with_hint("`day0 ready ratchet init` writes it")
        })
    }

    fn mistake(&self, error: &RatchetError) -> Failure {
        let failure = Failure::config(format!("{}: {error}", self.file.display()));
        match error {
            RatchetError::NoReason { .. } => failure.with_hint("--reason says why, and is kept in the file"),
            _ => failure,
        }
    }
}

pub(super) fn run(command: Command, settings: &Settings) -> Result<u8, Failure> {
    match command {
        Command::Init { file, measure, metrics, force, reason } => {
            init(&file, &measure, &metrics, force.then(|| reason.unwrap_or_default()), settings)
        }
        Command::Check { file, measure, advisory } => {
            let ratchet = file.require()?;
            let report = ratchet::check(&ratchet, &measure.take()?, advisory);
            super::finish(&report, advisory, settings)
        }
        Command::Update { file, set: Some(set), reason, .. } => {
            change(&file, &set, reason.as_deref(), settings)
        }
        Command::Update { file, measure, .. } => update(&file, &measure, settings),
    }
}

/// Starts a ratchet; `replacing` one that is there, for this reason, which may be empty where nothing is loosened.
fn init(
    file: &File,
    measure: &Measure,
    metrics: &[String],
    replacing: Option<String>,
    settings: &Settings,
) -> Result<u8, Failure> {
    let old = match replacing {
        Some(_) => load(&file.file)?,
        None if file.file.exists() => {
            return Err(Failure::config(format!("{}: holds a ratchet already", file.file.display()))
                .with_hint("`day0 ready ratchet update` tightens it; --force starts again"));
        }
        None => None,
    };
    let current = measure.take()?;
    if let Some((what, why)) = current.failed_commands.iter().next() {
        return Err(Failure::new(FailureClass::InsufficientEvidence, format!("{what}: {why}")));
    }
    let by = file.by(&current.commit_sha);
    let reason = replacing.unwrap_or_default();
    let change = Change { at: &current.timestamp, by: &by, reason: &reason };
    let mut new = ratchet::init(&current, &by, metrics).map_err(|e| file.mistake(&e))?;
    if let Some(old) = old {
        new = ratchet::replace(&old, new, change).map_err(|e| file.mistake(&e))?;
    }
    written(file, &new, settings)
}

fn update(file: &File, measure: &Measure, settings: &Settings) -> Result<u8, Failure> {
    let old = file.require()?;
    let current = measure.take()?;
    let report = ratchet::check(&old, &current, false);
    if !report.pass {
        return super::finish(&report, false, settings);
    }
    match ratchet::update(&old, &current, &file.by(&current.commit_sha)).map_err(|e| file.mistake(&e))? {
        Some(new) => written(file, &new, settings),
        None if settings.json => output::json(&old).map(|()| 0),
        None => {
            output::line(&format!("{}: nothing to tighten", file.file.display()));
            Ok(0)
        }
    }
}

fn change(file: &File, set: &str, reason: Option<&str>, settings: &Settings) -> Result<u8, Failure> {
    let parsed =
        set.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
    let (metric, value): (&str, f64) = parsed.ok_or_else(|| {
        Failure::config(format!("--set {set}: expected METRIC=VALUE")).with_hint("e.g. testCount=840")
    })?;
    let commit = crate::ready::snapshot::commit(".".as_ref());
    let (at, by) = (clock::now_iso8601(), file.by(&commit));
    let change = Change { at: &at, by: &by, reason: reason.unwrap_or_default() };
    let new = ratchet::set(&file.require()?, metric, value, change);
    written(file, &new.map_err(|e| file.mistake(&e))?, settings)
}

fn written(file: &File, new: &Ratchet, settings: &Settings) -> Result<u8, Failure> {
    store(&file.file, new)?;
    if settings.json {
        output::json(new)?;
    } else {
        for (metric, threshold) in &new.thresholds {
            let (side, limit) = match (threshold.min, threshold.max) {
                (Some(min), _) => ("≥", min),
                (None, max) => ("≤", max.unwrap_or(f64::NAN)),
            };
            output::line(&format!("{metric:<24} {side} {limit}"));
        }
    }
    Ok(0)
}
