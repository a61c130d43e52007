//! The cluster profile: what a site's Slurm wants to know, in YAML.
//!
//! ```yaml
//! partition: gpu
//! account: quant
//! gres: "gpu:h100:4"
//! cpus: 16
//! memory: 64G
//! time: "4:00:00"
//! prologue: |
//!   module load cuda/12.8
//! environment: {HF_HUB_OFFLINE: "1"}
//! stages:
//!   quantize: {time: "30:00", tasks: 4}
//!   score: {tasks: 8, throttle: 4}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::closest::suggestion;
use crate::record::Failure;

/// Resources of a job. What a stage does not name it takes from the profile's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Quality of service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<String>,
    /// Node features, e.g. `avx512`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// Generic resources, e.g. `gpu:h100:4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gres: Option<String>,
    /// GPUs of each node, e.g. `4` or `h100:4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<String>,
    /// Number of nodes; more than one only for an engine that spreads itself over them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// CPUs of each task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory of a node, e.g. `64G`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Time limit as Slurm writes it: `minutes`, `h:mm:ss`, `d-hh:mm:ss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Tasks of the array at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// Tasks of the array that run at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<u32>,
    /// More options of sbatch, e.g. `--exclusive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sbatch: Option<Vec<String>>,
}

/// A container in which the program runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Image: a file, or a reference that the runtime resolves (`docker://…`, `nvcr.io#…`).
    pub image: String,
    /// What runs it.
    pub runtime: Runtime,
    /// Directories to mount, `HOST[:CONTAINER[:OPTIONS]]`, beside those that the program reads and writes itself.
    #[serde(default)]
    pub mounts: Vec<String>,
    /// More arguments of the runtime.
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// Container runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// `apptainer exec`.
    Apptainer,
    /// `srun --container-image`, with the pyxis plugin over enroot.
    Pyxis,
}

/// The file as typed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileFile {
    partition: Option<String>,
    account: Option<String>,
    qos: Option<String>,
    constraint: Option<String>,
    gres: Option<String>,
    gpus: Option<String>,
    nodes: Option<u32>,
    cpus: Option<u32>,
    memory: Option<String>,
    time: Option<String>,
    tasks: Option<u32>,
    throttle: Option<u32>,
    sbatch: Option<Vec<String>>,
    stages: Option<BTreeMap<String, Resources>>,
    prologue: Option<String>,
    environment: Option<BTreeMap<String, String>>,
    container: Option<Container>,
    program: Option<PathBuf>,
    signal_seconds: Option<u32>,
    max_requeues: Option<u32>,
    max_resubmissions: Option<u32>,
}

/// Names of all fields of the file and of what is in it, for suggestions.
const FIELDS: [&str; 25] = [
    "partition",
    "account",
    "qos",
    "constraint",
    "gres",
    "gpus",
    "nodes",
    "cpus",
    "memory",
    "time",
    "tasks",
    "throttle",
    "sbatch",
    "stages",
    "prologue",
    "environment",
    "container",
    "program",
    "signal_seconds",
    "max_requeues",
    "max_resubmissions",
    "image",
    "runtime",
    "mounts",
    "arguments",
];

/// Options that day0 sets itself, or that the profile has a key for which other options depend on.
const RESERVED: [&str; 34] = [
    "-D",
    "-H",
    "-J",
    "-M",
    "-N",
    "-W",
    "-a",
    "-c",
    "-d",
    "-e",
    "-n",
    "-o",
    "--array",
    "--chdir",
    "--clusters",
    "--cpus-per-task",
    "--dependency",
    "--error",
    "--export",
    "--hold",
    "--job-name",
    "--kill-on-invalid-dep",
    "--no-requeue",
    "--nodes",
    "--ntasks",
    "--ntasks-per-node",
    "--open-mode",
    "--output",
    "--parsable",
    "--requeue",
    "--signal",
    "--test-only",
    "--wait",
    "--wrap",
];

/// A valid profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Resources of stages that name none.
    pub common: Resources,
    /// Resources per stage.
    pub stages: BTreeMap<String, Resources>,
    /// Lines run in the batch script before the program.
    pub prologue: String,
    /// Environment of the program.
    pub environment: BTreeMap<String, String>,
    /// Container.
    pub container: Option<Container>,
    /// The program on the nodes, inside and outside of a container; the submitting one where it is `None`. It must be the same
    /// build as the one that submits.
    pub program: Option<PathBuf>,
    /// How long before its time limit a job is warned, in seconds. Slurm may warn up to 60 s earlier.
    pub signal_seconds: u32,
    /// How often a job may put itself back into the queue.
    pub max_requeues: u32,
    /// How often closeout may submit what is left.
    pub max_resubmissions: u32,
}

impl ProfileFile {
    /// Reads a file. Unknown keys are refused with line and suggestion.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::io(path.display(), &e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses the text of a file called `name`.
    pub fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_yaml_ng::from_str(text).map_err(|e| Failure::yaml(name, &e, &FIELDS))
    }

    /// The same with another container image, of the same runtime; of apptainer where the file names no container.
    #[must_use]
    pub fn with_image(mut self, image: String) -> Self {
        let none = || Container {
            image: String::new(),
            runtime: Runtime::Apptainer,
            mounts: Vec::new(),
            arguments: Vec::new(),
        };
        self.container.get_or_insert_with(none).image = image;
        self
    }

    /// Fills in the defaults and checks every value. `stages` are the stages there are.
    pub fn validate(self, stages: &[&str]) -> Result<Profile, Failure> {
        let common = Resources {
            partition: self.partition,
            account: self.account,
            qos: self.qos,
            constraint: self.constraint,
            gres: self.gres,
            gpus: self.gpus,
            nodes: self.nodes,
            cpus: self.cpus,
            memory: self.memory,
            time: self.time,
            tasks: self.tasks,
            throttle: self.throttle,
            sbatch: self.sbatch,
        };
        let profile = Profile {
            common,
            stages: self.stages.unwrap_or_default(),
            prologue: self.prologue.unwrap_or_default(),
            environment: self.environment.unwrap_or_default(),
            container: self.container,
            program: self.program,
            signal_seconds: self.signal_seconds.unwrap_or(120),
            max_requeues: self.max_requeues.unwrap_or(20),
            max_resubmissions: self.max_resubmissions.unwrap_or(2),
        };
        check_resources("", &profile.common, profile.signal_seconds)?;
        for (stage, resources) in &profile.stages {
            if !stages.contains(&stage.as_str()) {
                return Err(Failure::config(format!("stages.{stage}: no such stage"))
                    .with_hint(suggestion(stage, stages)));
            }
            check_resources(&format!("stages.{stage}."), resources, profile.signal_seconds)?;
        }
        for name in profile.environment.keys() {
            let valid =
                |(i, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit());
            if name.is_empty() || !name.chars().enumerate().all(valid) {
                return Err(Failure::config(format!("environment.{name}: not a variable's name")));
            }
        }
        Ok(profile)
    }
}

fn check_resources(at: &str, resources: &Resources, signal_seconds: u32) -> Result<(), Failure> {
    let bad = |field: &str, problem: String| Failure::config(format!("{at}{field}: {problem}"));
    let counts = [
        ("nodes", resources.nodes),
        ("cpus", resources.cpus),
        ("tasks", resources.tasks),
        ("throttle", resources.throttle),
    ];
    if let Some((field, _)) = counts.iter().find(|(_, count)| *count == Some(0)) {
        return Err(bad(field, "0 is not enough".to_owned()));
    }
    if let Some(time) = &resources.time {
        let seconds = seconds(time).ok_or_else(|| {
            bad("time", format!("'{time}' is not a time limit"))
                .with_hint("as sbatch takes it: minutes, h:mm:ss, d-hh or d-hh:mm:ss")
        })?;
        if seconds <= u64::from(signal_seconds) {
            return Err(bad(
                "time",
                format!("{time} leaves nothing before the warning, {signal_seconds} s earlier"),
            )
            .with_hint("raise it, or lower signal_seconds"));
        }
    }
    if let Some(memory) = &resources.memory {
        let digits = memory.trim_end_matches(['K', 'M', 'G', 'T']);
        if digits.parse::<u64>().is_err() || memory.len() > digits.len() + 1 {
            return Err(bad("memory", format!("'{memory}' is not an amount of memory"))
                .with_hint("a number with K, M, G or T: 64G"));
        }
    }
    for option in resources.sbatch.iter().flatten() {
        let name = option.split(['=', ' ']).next().unwrap_or_default();
        // The value of a short option may follow it directly: `-c4`.
        let name = if name.starts_with("--") { name } else { name.get(..2).unwrap_or(name) };
        if !option.starts_with('-') || option.contains('\n') {
            return Err(bad("sbatch", format!("'{option}' is not an option"))
                .with_hint("one option an entry, as in `--exclusive`"));
        }
        // sbatch takes the beginning of a long option for the whole.
        let means = |reserved: &&&str| **reserved == name || (name.len() > 2 && reserved.starts_with(name));
        if let Some(reserved) = RESERVED.iter().find(means) {
            return Err(bad("sbatch", format!("{reserved} is set by day0 itself"))
                .with_hint("leave it out; the profile has keys for what may be chosen"));
        }
    }
    let texts = [
        ("partition", &resources.partition),
        ("account", &resources.account),
        ("qos", &resources.qos),
        ("constraint", &resources.constraint),
        ("gres", &resources.gres),
        ("gpus", &resources.gpus),
    ];
    for (field, text) in texts {
        if text.as_ref().is_some_and(|t| t.is_empty() || t.contains(['\n', '"'])) {
            return Err(bad(field, "empty, or not on one line".to_owned()));
        }
    }
    Ok(())
}

/// Seconds of a time limit: `m`, `m:s`, `h:m:s`, `d-h`, `d-h:m`, `d-h:m:s` (sbatch(1)); `UNLIMITED` is the longest.
pub(super) fn seconds(time: &str) -> Option<u64> {
    if matches!(time.to_ascii_uppercase().as_str(), "UNLIMITED" | "INFINITE") {
        return Some(u64::MAX);
    }
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n < 1_000_000 && !text.starts_with('+'));
    let (days, rest) = match time.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, time),
    };
    let parts = rest.split(':').map(number).collect::<Option<Vec<u64>>>()?;
    let within_a_day = match (days, parts.as_slice()) {
        (Some(_), [h]) => h * 3600,
        (Some(_), [h, m]) => h * 3600 + m * 60,
        (None, [m]) => m * 60,
        (None, [m, s]) => m * 60 + s,
        (_, [h, m, s]) => h * 3600 + m * 60 + s,
        _ => return None,
    };
    Some(days.unwrap_or(0) * 86_400 + within_a_day)
}

/// How much earlier than asked Slurm may send the warning, in seconds (sbatch(1), --signal).
const EARLY_SECONDS: u64 = 60;

impl Resources {
    /// Whether GPUs are asked for.
    pub fn wants_gpus(&self) -> bool {
        self.gpus.is_some() || self.gres.as_ref().is_some_and(|gres| gres.contains("gpu"))
    }
}

impl Profile {
    /// Resources of a stage.
    pub fn resources(&self, stage: &str) -> Resources {
        let own = self.stages.get(stage).cloned().unwrap_or_default();
        let all = &self.common;
        Resources {
            partition: own.partition.or_else(|| all.partition.clone()),
            account: own.account.or_else(|| all.account.clone()),
            qos: own.qos.or_else(|| all.qos.clone()),
            constraint: own.constraint.or_else(|| all.constraint.clone()),
            gres: own.gres.or_else(|| all.gres.clone()),
            gpus: own.gpus.or_else(|| all.gpus.clone()),
            nodes: own.nodes.or(all.nodes),
            cpus: own.cpus.or(all.cpus),
            memory: own.memory.or_else(|| all.memory.clone()),
            time: own.time.or_else(|| all.time.clone()),
            tasks: own.tasks.or(all.tasks),
            throttle: own.throttle.or(all.throttle),
            sbatch: own.sbatch.or_else(|| all.sbatch.clone()),
        }
    }

    /// What is valid and yet may go wrong, one line each.
    pub fn remarks(&self) -> Vec<String> {
        let named = self.stages.iter().map(|(stage, own)| (format!("stages.{stage}."), own));
        let all = std::iter::once((String::new(), &self.common)).chain(named);
        let times = all.filter_map(|(at, resources)| Some((at, resources.time.as_ref()?)));
        let short = times.filter(|(_, time)| {
            seconds(time).is_some_and(|limit| limit <= u64::from(self.signal_seconds) + EARLY_SECONDS)
        });
        short
            .map(|(at, time)| {
                format!(
                    "{at}time: {time} may leave nothing before the warning, which comes {} s earlier or up to \
                     {EARLY_SECONDS} s before that; raise it, or lower signal_seconds",
                    self.signal_seconds
                )
            })
            .collect()
    }

    /// Checks that the files it names are there.
    pub fn check_paths(&self) -> Result<(), Failure> {
        let missing = |field: &str, path: &Path| {
            Failure::config(format!("{field}: {} does not exist", path.display()))
                .with_hint("the path must be there on this host and on every node")
        };
        if let Some(program) = self.program.as_ref().filter(|p| !p.is_file()) {
            return Err(missing("program", program));
        }
        let Some(container) = &self.container else { return Ok(()) };
        let image = Path::new(&container.image);
        if (image.is_absolute() || container.image.starts_with('.')) && !image.exists() {
            return Err(missing("container.image", image));
        }
        for mount in &container.mounts {
            let host = Path::new(mount.split(':').next().unwrap_or_default());
            if !host.exists() {
                return Err(missing("container.mounts", host));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
