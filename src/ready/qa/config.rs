//! `qa.yaml`: check sets, image and policies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::closest::suggestion;
use crate::ready::config::MAX_TIMEOUT_S;
use crate::record::Failure;
use crate::record::qa::CheckTier;

/// The file. What is typed here is checked by [`QaConfig::read`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QaConfig {
    /// Which runtimes are tried.
    #[serde(default)]
    pub container: ContainerPolicy,
    /// The image; needed unless `container: never`.
    pub image: Option<Image>,
    /// How runtimes are called, where their plain name is not enough.
    #[serde(default)]
    pub runtimes: BTreeMap<RuntimeName, Runtime>,
    /// Whether a failsafe that passed is enough for exit code 0. A release says QA_DEGRADED all the same.
    #[serde(default = "yes")]
    pub failsafe_is_enough: bool,
    /// Environment variables of every check.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Bytes kept of each stream of each check; of longer output the beginning and the end.
    #[serde(default = "default_log_bytes")]
    pub max_log_bytes: u64,
    /// The full set.
    pub full: Vec<Check>,
    /// The reduced set: fast, deterministic, without network.
    #[serde(default)]
    pub reduced: Vec<Check>,
    /// The section of `day0 ready diff` and `ratchet`.
    #[serde(default)]
    pub quality: Option<serde_yaml_ng::Value>,
}

fn yes() -> bool {
    true
}

fn default_log_bytes() -> u64 {
    64 << 20
}

/// Where checks run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerPolicy {
    /// docker, then podman, then apptainer, by running a trivial container; else the failsafe.
    #[default]
    Auto,
    /// The full set on this machine, by declaration: nothing is degraded.
    Never,
    /// docker or the failsafe.
    Docker,
    /// podman or the failsafe.
    Podman,
    /// apptainer or the failsafe.
    Apptainer,
}

impl ContainerPolicy {
    /// The runtimes to try, in order.
    pub fn runtimes(self) -> &'static [RuntimeName] {
        use RuntimeName::{Apptainer, Docker, Podman};
        match self {
            Self::Auto => &[Docker, Podman, Apptainer],
            Self::Never => &[],
            Self::Docker => &[Docker],
            Self::Podman => &[Podman],
            Self::Apptainer => &[Apptainer],
        }
    }
}

/// The container runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeName {
    /// docker.
    Docker,
    /// podman.
    Podman,
    /// apptainer.
    Apptainer,
}

impl RuntimeName {
    /// The program and the name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Apptainer => "apptainer",
        }
    }
}

/// How a runtime is called.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// The words in front of its arguments, e.g. `[sudo, docker]`; its name by default.
    #[serde(default)]
    pub command: Vec<String>,
    /// Arguments of `run` (of `exec` for apptainer), e.g. `[--network=none]`.
    #[serde(default)]
    pub run_args: Vec<String>,
    /// Arguments of `build`.
    #[serde(default)]
    pub build_args: Vec<String>,
}

/// The image: a known toolchain.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its name: what is pulled, or what the build is called.
    pub name: String,
    /// Directory that is built, if it is.
    pub context: Option<PathBuf>,
    /// Build file within or beside the context; the runtime's default otherwise.
    pub file: Option<PathBuf>,
    /// The trivial command by which a runtime is probed.
    #[serde(default = "trivial")]
    pub probe: Vec<String>,
    /// Where the working directory is mounted.
    #[serde(default = "work_dir")]
    pub workdir: String,
    /// Longest time to pull or build it, in seconds.
    #[serde(default = "default_build_timeout")]
    pub timeout_s: f64,
}

fn trivial() -> Vec<String> {
    vec!["true".to_owned()]
}

fn work_dir() -> String {
    "/work".to_owned()
}

fn default_build_timeout() -> f64 {
    1800.0
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Unique label.
    pub label: String,
    /// Shell command, or a list of words that no shell reads.
    pub command: CheckCommand,
    /// Longest time it may take, in seconds.
    pub timeout_s: f64,
    /// When it is run.
    #[serde(default)]
    pub tier: CheckTier,
    /// Whether it decides.
    #[serde(default = "yes")]
    pub required: bool,
}

/// A command as declared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CheckCommand {
    /// A line for the shell.
    Shell(String),
    /// Program and arguments.
    Words(Vec<String>),
}

impl CheckCommand {
    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
            Self::Words(words) => words.clone(),
        }
    }

    /// As a person would type it.
    pub fn display(&self) -> String {
        match self {
            Self::Shell(line) => line.clone(),
            Self::Words(words) => words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "),
        }
    }
}

/// A word for a POSIX shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Field names, for suggestions.
const FIELDS: [&str; 9] = [
    "container",
    "image",
    "runtimes",
    "failsafe_is_enough",
    "env",
    "max_log_bytes",
    "full",
    "reduced",
    "quality",
];

impl QaConfig {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::io(path.display(), &e).with_hint("docs/readiness.md shows what a qa.yaml holds")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses the text of a file called `name`.
    pub fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        let config: Self = serde_yaml_ng::from_str(text).map_err(|e| {
            let message = e.to_string();
            let failure = Failure::config(format!("{name}: {message}"));
            match message.split('`').nth(1).filter(|_| message.contains("unknown field")) {
                Some(field) => failure.with_hint(suggestion(field, &FIELDS)),
                None => failure,
            }
        })?;
        config.check(name)?;
        Ok(config)
    }

    /// Checks every value of a file called `name`.
    pub fn check(&self, name: &str) -> Result<(), Failure> {
        self.problems().map_err(|problem| Failure::config(format!("{name}: {problem}")))
    }

    fn problems(&self) -> Result<(), String> {
        if self.full.is_empty() {
            return Err("full: no checks".to_owned());
        }
        for (set, checks) in [("full", &self.full), ("reduced", &self.reduced)] {
            let mut labels = BTreeSet::new();
            for (index, check) in checks.iter().enumerate() {
                let field = format!("{set}[{index}] ({})", check.label);
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if check.label.is_empty() || !check.label.chars().all(plain) || check.label.starts_with('.') {
                    return Err(format!("{field}: a label has letters, digits, '-', '_' and '.'"));
                }
                if !labels.insert(&check.label) {
                    return Err(format!("{field}: the label occurs twice"));
                }
                if check.command.argv().first().is_none_or(|w| w.trim().is_empty())
                    || check.command.display().trim().is_empty()
                {
                    return Err(format!("{field}: the command is empty"));
                }
                timeout(&field, check.timeout_s)?;
            }
        }
        if self.container == ContainerPolicy::Never {
            return Ok(());
        }
        let image = self.image.as_ref().ok_or("image: containers need one (or container: never)")?;
        timeout("image", image.timeout_s)?;
        if image.probe.is_empty() {
            return Err("image.probe: no command".to_owned());
        }
        if self.reduced.is_empty() {
            return Err("reduced: no checks to fall back to".to_owned());
        }
        Ok(())
    }
}

fn timeout(field: &str, seconds: f64) -> Result<(), String> {
    if seconds > 0.0 && seconds <= MAX_TIMEOUT_S {
        return Ok(());
    }
    Err(format!("{field}.timeout_s: {seconds}, expected more than 0 and at most {MAX_TIMEOUT_S}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
image: {name: qa, context: ., probe: [/day0, --version]}
full:
  - {label: lint, command: cargo clippy, timeout_s: 600}
  - {label: smoke, command: [/day0, list, recipes], timeout_s: 60, tier: nightly, required: false}
reduced:
  - {label: version, command: [/day0, --version], timeout_s: 5}
";

    /// Document 002, "Extending": a command, an expected timeout and a clear label for each check.
    #[test]
    fn a_check_has_command_timeout_label_tier_and_weight() {
        let config = QaConfig::parse(FILE, "qa.yaml").unwrap();
        assert_eq!(config.full[0].command.argv(), ["/bin/sh", "-c", "cargo clippy"]);
        assert_eq!(config.full[1].command.argv(), ["/day0", "list", "recipes"]);
        assert_eq!((config.full[1].tier, config.full[1].required), (CheckTier::Nightly, false));
        assert_eq!((config.full[0].tier, config.full[0].required), (CheckTier::Pr, true));
        assert_eq!(config.container, ContainerPolicy::Auto);
        let order = [RuntimeName::Docker, RuntimeName::Podman, RuntimeName::Apptainer];
        assert_eq!(config.container.runtimes(), order);
        assert!(ContainerPolicy::Never.runtimes().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, says) in [
            ("label: smoke", "label: lint", "occurs twice"),
            ("label: smoke", "label: ../x", "a label has"),
            ("timeout_s: 600", "timeout_s: 0", "full[0] (lint).timeout_s: 0"),
            ("timeout_s: 600", "timeout_s: .inf", "timeout_s"),
            ("timeout_s: 600", "", "timeout_s"),
            ("command: cargo clippy", "command: ''", "command is empty"),
            ("command: cargo clippy", "command: []", "command is empty"),
            ("tier: nightly", "tier: weekly", "weekly"),
            ("image:", "imag:", "unknown field"),
            ("  - {label: version, command: [/day0, --version], timeout_s: 5}", "  []", "fall back to"),
            ("full:", "full: [", "line"),
        ] {
            let failure = QaConfig::parse(&FILE.replacen(from, to, 1), "qa.yaml").unwrap_err();
            assert!(
                failure.message.starts_with("qa.yaml: ") && failure.message.contains(says),
                "{to}: {failure}"
            );
        }
        let failure = QaConfig::parse(&FILE.replace("image:", "imag:"), "qa.yaml").unwrap_err();
        assert_eq!(failure.hint.as_deref(), Some("did you mean 'image'?"));
    }

    #[test]
    fn commands_are_shown_as_they_can_be_typed() {
        let words = CheckCommand::Words(vec!["a".into(), "b c".into(), "it's".into(), String::new()]);
        assert_eq!(words.display(), "a 'b c' 'it'\\''s' ''");
    }
}
