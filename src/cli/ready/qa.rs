//! `day0 ready qa`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::base::interrupt;
use crate::cli::{Settings, output};
use crate::gate;
use crate::ready::qa::{self, ContainerPolicy, DEFAULT_OUT, QaOptions};
use crate::record::Failure;
use crate::record::qa::CheckTier;
use crate::record::verdict::exit_code;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The checks.
    #[arg(long, value_name = "FILE", default_value = "qa.yaml")]
    config: PathBuf,
    /// Run the checks of this tier and of those before it.
    #[arg(long, value_enum, default_value_t = Tier::Pr)]
    tier: Tier,
    /// Which container runtimes are tried [default: as the file says].
    #[arg(long, value_enum)]
    container: Option<Container>,
    /// Directory of the artifacts.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUT)]
    out: PathBuf,
}

/// The tiers as a flag's values.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Tier {
    /// On every change.
    Pr,
    /// Every night.
    Nightly,
    /// Before a release.
    Release,
}

impl From<Tier> for CheckTier {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Pr => Self::Pr,
            Tier::Nightly => Self::Nightly,
            Tier::Release => Self::Release,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Container {
    Auto,
    Never,
    Docker,
    Podman,
    Apptainer,
}

impl From<Container> for ContainerPolicy {
    fn from(container: Container) -> Self {
        match container {
            Container::Auto => Self::Auto,
            Container::Never => Self::Never,
            Container::Docker => Self::Docker,
            Container::Podman => Self::Podman,
            Container::Apptainer => Self::Apptainer,
        }
    }
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
    let options = QaOptions {
        config_path: arguments.config.clone(),
        container: arguments.container.map(Into::into),
        dir: qa::absolute(".".as_ref()),
        out: qa::absolute(&arguments.out),
        tier: arguments.tier.into(),
        rerun: rerun(arguments),
    };
    let outcome = qa::run(&options)?;
    if let Some(signal) = outcome.signal {
        return Ok(exit_code::interrupted(signal));
    }
    let error = outcome.error.as_ref().map(|e| e.message.as_str());
    let report = gate::qa::exit_report(&outcome.results, error);
    if !settings.json {
        output::line(&options.out.display().to_string());
    }
    super::finish(&report, false, settings)
}

/// The command that runs this gate again.
fn rerun(arguments: &Arguments) -> String {
    let tier = arguments.tier.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
    let word = |path: &Path| qa::quoted(&path.display().to_string());
    let mut command = format!("day0 ready qa --config {} --tier {tier}", word(&arguments.config));
    if let Some(value) = arguments.container.and_then(|c| c.to_possible_value()) {
        command = format!("{command} --container {}", value.get_name());
    }
    format!("{command} --out {}", word(&arguments.out))
}
