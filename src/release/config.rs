//! `day0.yaml`: everything a release needs. What was typed ([`ConfigFile`]) and what is valid ([`ReleaseConfig`]) are
//! two types; only the second goes down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::launch::EngineCommand;
use crate::device::cuda::DeviceChoice;
use crate::gate::{CompareOptions, Margin, Published, TaskOptions};
pub use crate::gate::{Policy, Tier};
use crate::ops::kernel_path::ComputeDtype;
use crate::quantize::calibration::CalibrationConfig;
use crate::ready::config::QualityConfig;
use crate::record::Failure;
use crate::record::eval::{EvalRecord, GroupRecord, MetricInfo};
use crate::suite::DEFAULT_FEWSHOT_SEED;

pub use super::readiness::{Level, ReadinessConfig};

/// Default margin: share of the scale for 0/1 metrics, relative for unbounded ones.
pub const DEFAULT_MARGIN: f64 = 0.01;
/// Default seed of the item permutation.
pub const DEFAULT_SEED: u64 = 1234;

/// Settings of one task, or of a suite: then of all its tasks, or of their common score where they are decided by one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Margin: share of the scale (relative for unbounded metrics).
    pub margin: Option<f64>,
    /// Whether the margin is a share of the baseline's value although the metric has a scale.
    pub relative: Option<bool>,
    /// Whether the task decides; default required.
    pub tier: Option<Tier>,
    /// Published score of the original model on this task's primary metric.
    pub published: Option<f64>,
    /// How far the measured baseline may be from it: share of the scale (relative for unbounded metrics); default 0.05.
    pub published_tolerance: Option<f64>,
    /// Of a suite with a score of its own (mmlu): whether that score is decided, which is the default, or each task.
    pub pooled: Option<bool>,
}

/// Engines that day0 does not start itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// OpenAI-compatible endpoint that serves the candidate.
    pub endpoint: Option<String>,
    /// OpenAI-compatible endpoint that serves the baseline; the built-in engine serves it otherwise.
    pub baseline_endpoint: Option<String>,
    /// File holding the API key of the endpoints.
    pub api_key_file: Option<PathBuf>,
}

/// How day0 starts an engine itself, as typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineFile {
    /// Command with `{model}`, `{port}`, `{host}`, `{name}` and `{arm}`.
    pub command: Option<String>,
    /// How long it may take to become healthy, in seconds.
    pub startup_seconds: Option<u64>,
    /// How long it may take to end after SIGTERM, in seconds; then it is killed.
    pub stop_seconds: Option<u64>,
    /// Whether both arms' engines fit beside each other.
    pub both_at_once: Option<bool>,
}

/// How arms are served, as typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeFile {
    /// An engine to start for each arm.
    pub engine: Option<EngineFile>,
}

/// How arms are served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// An engine to start for each arm; the built-in one where it is `None`.
    pub engine: Option<EngineCommand>,
}

/// Where the work runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorFile {
    /// `local` or `slurm`.
    pub name: Option<ExecutorName>,
    /// Cluster profile.
    pub profile: Option<PathBuf>,
}

/// Executors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorName {
    /// This process.
    Local,
    /// Slurm jobs.
    Slurm,
}

/// Longest time that a large model takes to load from a shared file system, with room.
const STARTUP_SECONDS: u64 = 1800;
/// Longest time that an engine takes to free GPUs and shared memory, with room.
const STOP_SECONDS: u64 = 20;

impl ServeFile {
    fn validate(self) -> Result<ServeConfig, Failure> {
        let Some(typed) = self.engine else { return Ok(ServeConfig::default()) };
        let command = typed.command.ok_or_else(|| {
            Failure::config("serve.engine.command: is missing")
                .with_hint("for example: vllm serve {model} --port {port} --served-model-name {name}")
        })?;
        let engine = EngineCommand {
            command,
            startup_seconds: typed.startup_seconds.unwrap_or(STARTUP_SECONDS),
            stop_seconds: typed.stop_seconds.unwrap_or(STOP_SECONDS),
            both_at_once: typed.both_at_once.unwrap_or(false),
        };
        engine.check()?;
        Ok(ServeConfig { engine: Some(engine) })
    }
}

/// The file as typed; absent fields keep their defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Model to release.
    pub model: Option<String>,
    /// Recipe name or file.
    pub recipe: Option<String>,
    /// Suite or task names or files.
    pub suites: Option<Vec<String>>,
    /// Directory of local evaluation data.
    pub data: Option<PathBuf>,
    /// Policy of the compare gate.
    pub policy: Option<Policy>,
    /// Margin of every task that names none.
    pub margin: Option<f64>,
    /// Settings per task.
    pub tasks: Option<BTreeMap<String, TaskConfig>>,
    /// At most this many items a task.
    pub limit: Option<usize>,
    /// Whether certify may stop a task as soon as it is decided.
    pub early_stop: Option<bool>,
    /// Whether to score part of the baseline again on other kernels.
    pub noise_floor: Option<bool>,
    /// Seed of the item permutation.
    pub seed: Option<u64>,
    /// Number of examples before each question, over the tasks' own.
    pub num_fewshot: Option<usize>,
    /// Seed that draws the examples.
    pub fewshot_seed: Option<u64>,
    /// Whether prompts are put into the model's chat template.
    pub apply_chat_template: Option<bool>,
    /// System instruction before a task's description.
    pub system_instruction: Option<String>,
    /// What the built-in engine's linear layers multiply.
    pub dtype: Option<ComputeDtype>,
    /// Where the built-in engine computes.
    pub device: Option<DeviceChoice>,
    /// External engines.
    pub engine: Option<EngineConfig>,
    /// Readiness gates.
    pub readiness: Option<ReadinessConfig>,
    /// What `diff` and `ratchet` count, and whether they decide.
    pub quality: Option<QualityConfig>,
    /// What static input scales are calibrated on.
    pub calibration: Option<CalibrationConfig>,
    /// How arms are served.
    pub serve: Option<ServeFile>,
    /// Where the work runs; no part of what a run is, so the run directory does not keep it here.
    #[serde(skip_serializing)]
    pub executor: Option<ExecutorFile>,
}

/// Field names, for suggestions.
const FIELDS: [&str; 28] = [
    "model",
    "recipe",
    "suites",
    "data",
    "policy",
    "margin",
    "tasks",
    "limit",
    "early_stop",
    "noise_floor",
    "seed",
    "num_fewshot",
    "fewshot_seed",
    "apply_chat_template",
    "system_instruction",
    "dtype",
    "device",
    "engine",
    "readiness",
    "quality",
    "calibration",
    "serve",
    "executor",
    "command",
    "startup_seconds",
    "stop_seconds",
    "both_at_once",
    "profile",
];

/// A valid release configuration. This is what the run directory keeps as `day0.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseConfig {
    /// Model to release.
    pub model: String,
    /// Recipe name or file.
    pub recipe: String,
    /// Suite or task names or files.
    pub suites: Vec<String>,
    /// Directory of local evaluation data.
    pub data: Option<PathBuf>,
    /// Policy of the compare gate.
    pub policy: Policy,
    /// Margin of every task that names none.
    pub margin: f64,
    /// Settings per task.
    pub tasks: BTreeMap<String, TaskConfig>,
    /// At most this many items a task.
    pub limit: Option<usize>,
    /// Whether certify may stop a task as soon as it is decided.
    pub early_stop: bool,
    /// Whether to score part of the baseline again on other kernels.
    pub noise_floor: bool,
    /// Seed of the item permutation.
    pub seed: u64,
    /// Number of examples before each question, over the tasks' own.
    #[serde(default)]
    pub num_fewshot: Option<usize>,
    /// Seed that draws the examples.
    #[serde(default = "default_fewshot_seed")]
    pub fewshot_seed: u64,
    /// Whether prompts are put into the model's chat template.
    #[serde(default)]
    pub apply_chat_template: bool,
    /// System instruction before a task's description.
    #[serde(default)]
    pub system_instruction: Option<String>,
    /// What the built-in engine's linear layers multiply.
    #[serde(default)]
    pub dtype: ComputeDtype,
    /// Where the built-in engine computes.
    #[serde(default = "default_device", skip_serializing_if = "is_cpu")]
    pub device: DeviceChoice,
    /// External engines.
    pub engine: EngineConfig,
    /// Readiness gates.
    pub readiness: ReadinessConfig,
    /// What `diff` and `ratchet` count, and whether they decide.
    pub quality: QualityConfig,
    /// What static input scales are calibrated on.
    pub calibration: CalibrationConfig,
    /// How arms are served.
    #[serde(default)]
    pub serve: ServeConfig,
}

impl ConfigFile {
    /// Reads a file. Unknown keys are refused with line and suggestion.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::io(path.display(), &e)
                .with_hint("`day0 init` writes a commented day0.yaml to start from")
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses the text of a file called `name`.
    pub fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_yaml_ng::from_str(text).map_err(|e| Failure::yaml(name, &e, &FIELDS))
    }

    /// `self`, with every field that `over` sets taken from there.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        let engine = match (self.engine, over.engine) {
            (Some(a), Some(b)) => Some(EngineConfig {
                endpoint: b.endpoint.or(a.endpoint),
                baseline_endpoint: b.baseline_endpoint.or(a.baseline_endpoint),
                api_key_file: b.api_key_file.or(a.api_key_file),
            }),
            (a, b) => b.or(a),
        };
        let calibration = match (self.calibration, over.calibration) {
            (Some(a), Some(b)) => Some(a.overridden_by(b)),
            (a, b) => b.or(a),
        };
        Self {
            model: over.model.or(self.model),
            recipe: over.recipe.or(self.recipe),
            suites: over.suites.or(self.suites),
            data: over.data.or(self.data),
            policy: over.policy.or(self.policy),
            margin: over.margin.or(self.margin),
            tasks: over.tasks.or(self.tasks),
            limit: over.limit.or(self.limit),
            early_stop: over.early_stop.or(self.early_stop),
            noise_floor: over.noise_floor.or(self.noise_floor),
            seed: over.seed.or(self.seed),
            num_fewshot: over.num_fewshot.or(self.num_fewshot),
            fewshot_seed: over.fewshot_seed.or(self.fewshot_seed),
            apply_chat_template: over.apply_chat_template.or(self.apply_chat_template),
            system_instruction: over.system_instruction.or(self.system_instruction),
            dtype: over.dtype.or(self.dtype),
            device: over.device.or(self.device),
            engine,
            readiness: over.readiness.or(self.readiness),
            quality: over.quality.or(self.quality),
            calibration,
            serve: over.serve.or(self.serve),
            executor: over.executor.or(self.executor),
        }
    }

    /// Fills in the defaults and checks every value.
    pub fn validate(self) -> Result<ReleaseConfig, Failure> {
        let quality = self.quality.unwrap_or_default();
        quality.check("day0.yaml")?;
        let config = ReleaseConfig {
            model: self.model.unwrap_or_else(|| "day0-tiny".to_owned()),
            recipe: self.recipe.unwrap_or_else(|| "fp8_dynamic".to_owned()),
            suites: self.suites.unwrap_or_else(|| vec!["day0-tiny".to_owned()]),
            data: self.data,
            policy: self.policy.unwrap_or(Policy::Certify),
            margin: self.margin.unwrap_or(DEFAULT_MARGIN),
            tasks: self.tasks.unwrap_or_default(),
            limit: self.limit,
            early_stop: self.early_stop.unwrap_or(true),
            noise_floor: self.noise_floor.unwrap_or(false),
            seed: self.seed.unwrap_or(DEFAULT_SEED),
            num_fewshot: self.num_fewshot,
            fewshot_seed: self.fewshot_seed.unwrap_or(DEFAULT_FEWSHOT_SEED),
            apply_chat_template: self.apply_chat_template.unwrap_or(false),
            system_instruction: self.system_instruction,
            dtype: self.dtype.unwrap_or_default(),
            device: self.device.unwrap_or(DeviceChoice::Cpu),
            engine: self.engine.unwrap_or_default(),
            readiness: self.readiness.unwrap_or_default().validate(&quality)?,
            quality,
            calibration: self.calibration.unwrap_or_default(),
            serve: self.serve.unwrap_or_default().validate()?,
        };
        let endpoints = [&config.engine.endpoint, &config.engine.baseline_endpoint];
        if config.serve.engine.is_some() && endpoints.iter().any(|e| e.is_some()) {
            return Err(Failure::config("serve.engine: an endpoint is named, too")
                .with_hint("an arm is served by an engine that day0 starts, or by one that runs already"));
        }
        check_margin("margin", config.margin)?;
        for (task, settings) in &config.tasks {
            if let Some(margin) = settings.margin {
                check_margin(&format!("tasks.{task}.margin"), margin)?;
            }
            if settings.published.is_some_and(|p| !p.is_finite()) {
                return Err(Failure::config(format!("tasks.{task}.published: not a finite number")));
            }
            if let Some(tolerance) = settings.published_tolerance {
                check_margin(&format!("tasks.{task}.published_tolerance"), tolerance)?;
                if settings.published.is_none() {
                    return Err(Failure::config(format!(
                        "tasks.{task}.published_tolerance: of no published score"
                    ))
                    .with_hint("it stands beside the published score it belongs to"));
                }
            }
        }
        if config.suites.is_empty() {
            return Err(Failure::config("suites: at least one suite or task is needed"));
        }
        if config.limit == Some(0) {
            return Err(Failure::config("limit: 0 items cannot be evaluated")
                .with_hint("leave it out for the full split"));
        }
        Ok(config)
    }
}

fn default_device() -> DeviceChoice {
    DeviceChoice::Cpu
}

/// Files of runs on the CPU are as they were before there was a choice.
fn is_cpu(device: &DeviceChoice) -> bool {
    *device == DeviceChoice::Cpu
}

fn default_fewshot_seed() -> u64 {
    DEFAULT_FEWSHOT_SEED
}

fn check_margin(field: &str, margin: f64) -> Result<(), Failure> {
    if margin > 0.0 && margin < 1.0 {
        return Ok(());
    }
    Err(Failure::config(format!("{field}: {margin} is not between 0 and 1"))
        .with_hint("a margin is a share of the metric's scale: 0.01 is one point of accuracy"))
}

impl ReleaseConfig {
    /// Whether the built-in engine serves both arms.
    pub fn uses_own_engine(&self) -> bool {
        self.engine.endpoint.is_none()
            && self.engine.baseline_endpoint.is_none()
            && self.serve.engine.is_none()
    }

    /// What the compare gate is asked about the tasks of `baseline`.
    pub fn compare_options(&self, baseline: &EvalRecord) -> CompareOptions {
        let metrics =
            baseline.tasks.iter().map(|(name, t)| (name.clone(), t.primary_metric.clone())).collect();
        self.options_for(&metrics, &baseline.groups)
    }

    /// What the compare gate is asked about tasks with these metrics: a margin is a share of the scale where the metric
    /// has one, and relative to the baseline otherwise. What a task does not set for itself it takes from the smallest
    /// suite around it that does; a tier that nobody sets is the one that the suites state.
    pub fn options_for(
        &self,
        metrics: &BTreeMap<String, MetricInfo>,
        groups: &BTreeMap<String, GroupRecord>,
    ) -> CompareOptions {
        let mut suites: Vec<(&String, &GroupRecord)> = groups.iter().collect();
        suites.sort_by_key(|(name, group)| (group.tasks.len(), *name));
        let options = |name: &String| {
            let tasks = groups.get(name).map(|group| &group.tasks);
            let around = suites.iter().filter(|(other, group)| match tasks {
                Some(tasks) => *other != name && tasks.iter().all(|task| group.tasks.contains(task)),
                None => group.tasks.contains(name),
            });
            let settings: Vec<&TaskConfig> = std::iter::once(name)
                .chain(around.map(|(name, _)| *name))
                .filter_map(|n| self.tasks.get(n))
                .collect();
            let metric = metrics.get(name).or_else(|| metrics.get(tasks?.first()?));
            let set = settings.iter().find(|s| s.margin.is_some());
            let value = set.and_then(|s| s.margin).unwrap_or(self.margin);
            let relative = settings.iter().find_map(|s| s.relative).unwrap_or(false);
            let bounded = metric.is_none_or(|m| m.scale.is_some());
            let margin = if bounded && !relative { Margin::Absolute(value) } else { Margin::Relative(value) };
            let advisory = || groups.values().any(|group| group.advisory.contains(name));
            let stated = || if advisory() { Tier::Advisory } else { Tier::Required };
            let tier = settings.iter().find_map(|s| s.tier).unwrap_or_else(stated);
            let pooled = self.tasks.get(name).and_then(|s| s.pooled).unwrap_or(true);
            (name.clone(), TaskOptions { margin: Some(margin), tier, pooled })
        };
        let names: BTreeSet<&String> = metrics.keys().chain(groups.keys()).chain(self.tasks.keys()).collect();
        let published = |settings: &TaskConfig| {
            let tolerance = settings.published_tolerance.unwrap_or(Published::TOLERANCE);
            Some(Published { score: settings.published?, tolerance })
        };
        let published = self.tasks.iter().filter_map(|(name, s)| Some((name.clone(), published(s)?)));
        CompareOptions {
            policy: self.policy,
            tasks: names.into_iter().map(options).collect(),
            published: published.collect(),
            ..CompareOptions::default()
        }
    }
}

/// The commented `day0.yaml` that `day0 init` writes.
pub const TEMPLATE: &str = include_str!("day0.template.yaml");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::{Facts, TaskFacts};

    #[test]
    fn template_is_valid_and_says_the_defaults() {
        let typed = ConfigFile::parse(TEMPLATE, "day0.yaml").unwrap();
        assert_eq!(typed.validate().unwrap(), ConfigFile::default().validate().unwrap());
    }

    #[test]
    fn effective_config_reads_back() {
        let config = ConfigFile::default().validate().unwrap();
        let text = serde_yaml_ng::to_string(&config).unwrap();
        assert_eq!(ConfigFile::parse(&text, "x").unwrap().validate().unwrap(), config);
    }

    #[test]
    fn unknown_key_is_refused_with_line_and_suggestion() {
        let failure = ConfigFile::parse("model: x\nrecipee: y\n", "day0.yaml").unwrap_err();
        assert!(failure.message.contains("day0.yaml") && failure.message.contains("line 2"), "{failure}");
        assert_eq!(failure.hint.as_deref(), Some("did you mean 'recipe'?"));
    }

    #[test]
    fn bad_values_are_refused() {
        for text in [
            "margin: 1.5",
            "margin: 0",
            "suites: []",
            "limit: 0",
            "tasks: {a: {margin: -1}}",
            "tasks: {a: {published: 0.5, published_tolerance: 0}}",
            "tasks: {a: {published_tolerance: 0.02}}",
            "num_fewshot: -1",
            "policy: maybe",
        ] {
            assert!(ConfigFile::parse(text, "x").and_then(ConfigFile::validate).is_err(), "{text}");
        }
    }

    #[test]
    fn a_margin_may_be_relative_to_the_baseline() {
        let metric = MetricInfo { name: "acc".to_owned(), higher_is_better: true, scale: Some(1.0) };
        let metrics = BTreeMap::from([("a".to_owned(), metric.clone()), ("b".to_owned(), metric)]);
        let text = "margin: 0.02\ntasks: {a: {margin: 0.03, relative: true}, b: {tier: advisory}}";
        let config = ConfigFile::parse(text, "x").unwrap().validate().unwrap();
        let options = config.options_for(&metrics, &BTreeMap::new());
        assert_eq!(options.tasks["a"].margin, Some(Margin::Relative(0.03)));
        assert_eq!(
            (options.tasks["b"].margin, options.tier("b")),
            (Some(Margin::Absolute(0.02)), Tier::Advisory)
        );
        // Only items whose outcomes count alike may be looked at early.
        let fact = |metric| TaskFacts { metric, clustered: false, whole: true, binary: true };
        let facts: Facts<'_> = metrics.iter().map(|(name, metric)| (name.as_str(), fact(metric))).collect();
        let rules = options.stop_rules(&options.subjects(&BTreeMap::new(), &facts), &facts);
        assert_eq!(rules.into_keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_suite_sets_what_its_tasks_do_not() {
        let metric = MetricInfo { name: "acc".to_owned(), higher_is_better: true, scale: Some(1.0) };
        let metrics = ["a", "b", "c"].map(|name| (name.to_owned(), metric.clone())).into();
        let group = |tasks: &[&str]| GroupRecord {
            tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            metrics: BTreeMap::new(),
            advisory: tasks.iter().filter(|task| **task == "c").map(|task| (*task).to_owned()).collect(),
        };
        let groups = [("all", group(&["a", "b", "c"])), ("two", group(&["a", "b"]))];
        let groups = groups.map(|(name, group)| (name.to_owned(), group)).into();
        let text = "tasks: {all: {margin: 0.02, tier: advisory}, two: {tier: critical}, b: {margin: 0.03}}";
        let config = ConfigFile::parse(text, "x").unwrap().validate().unwrap();
        let options = config.options_for(&metrics, &groups);
        let found = |name: &str| (options.tasks[name].margin.unwrap().value(), options.tier(name));
        assert_eq!(found("a"), (0.02, Tier::Required));
        assert_eq!(found("b"), (0.03, Tier::Required));
        assert_eq!(found("c"), (0.02, Tier::Advisory));
        assert_eq!(found("two"), (0.02, Tier::Required));
        // What the suite itself calls advisory is so where nobody sets a tier.
        let plain = ConfigFile::default().validate().unwrap().options_for(&metrics, &groups);
        assert_eq!((plain.tier("a"), plain.tier("c")), (Tier::Required, Tier::Advisory));
        let strict = ConfigFile::parse("tasks: {c: {tier: critical}}", "x").unwrap().validate().unwrap();
        assert_eq!(strict.options_for(&metrics, &groups).tier("c"), Tier::Required);
    }

    #[test]
    fn a_published_score_has_its_own_tolerance() {
        let text = "tasks: {a: {published: 0.5, published_tolerance: 0.02}, b: {published: 0.4}}";
        let config = ConfigFile::parse(text, "x").unwrap().validate().unwrap();
        let published = config.options_for(&BTreeMap::new(), &BTreeMap::new()).published;
        assert_eq!(published["a"], Published { score: 0.5, tolerance: 0.02 });
        assert_eq!(published["b"], Published { score: 0.4, tolerance: 0.05 });
    }

    #[test]
    fn flags_override_the_file() {
        let file = ConfigFile::parse("recipe: w8a8\nlimit: 5\nengine: {endpoint: a}", "x").unwrap();
        let flags = ConfigFile { recipe: Some("w4a16".to_owned()), ..ConfigFile::default() };
        let config = file.overridden_by(flags).validate().unwrap();
        assert_eq!((config.recipe.as_str(), config.limit), ("w4a16", Some(5)));
        assert_eq!(config.engine.endpoint.as_deref(), Some("a"));
        let file =
            ConfigFile::parse("num_fewshot: 5\napply_chat_template: true\nfewshot_seed: 7", "x").unwrap();
        let flags = ConfigFile { num_fewshot: Some(2), ..ConfigFile::default() };
        let config = file.overridden_by(flags).validate().unwrap();
        assert_eq!((config.num_fewshot, config.fewshot_seed), (Some(2), 7));
        assert!(config.apply_chat_template && config.system_instruction.is_none());
    }
}
