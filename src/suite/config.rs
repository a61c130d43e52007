//! A task's settings: lm-eval's `TaskConfig` as far as it concerns log-likelihoods, typed and checked.
//!
//! Source: lm-eval 0.4.13, `config/task.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::definition::{Definition, FUNCTION_TAG};
use super::error::{Place, SuiteError};
use super::function::{self, ResultsFunction, RowFunction, ValueFunction};
use super::metric::{MetricKind, OutputType};
use crate::base::python;

/// Every key a task file may have: lm-eval's, then day0's own.
pub(super) const TASK_KEYS: &[&str] = &[
    "task",
    "task_alias",
    "tag",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "process_docs",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "process_results",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "fewshot_config",
    "num_fewshot",
    "metric_list",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "gen_prefix",
    "metadata",
    "include",
    "custom_dataset",
    "doc_to_image",
    "doc_to_audio",
    "unsafe_code",
    "use_prompt",
    "group",
    "group_alias",
    "primary_metric",
    "data_stem",
    "data_subset_column",
    "cluster",
];

/// Keys that say nothing about log-likelihoods; a note records that they were there.
const IGNORED: [&str; 7] = [
    "tag",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "generation_kwargs",
    "unsafe_code",
    "group",
    "group_alias",
];

/// Keys whose features day0 does not have.
const REFUSED: [&str; 5] = ["custom_dataset", "filter_list", "doc_to_image", "doc_to_audio", "use_prompt"];

const FEWSHOT_KEYS: &[&str] = &[
    "sampler",
    "split",
    "process_docs",
    "fewshot_indices",
    "samples",
    "doc_to_text",
    "doc_to_choice",
    "doc_to_target",
    "gen_prefix",
    "fewshot_delimiter",
    "target_delimiter",
];

/// `weight_by_size` belongs to groups; some tasks of lm-eval carry it all the same, without effect.
const METRIC_KEYS: &[&str] = &["metric", "aggregation", "higher_is_better", "weight_by_size"];

/// A `doc_to_…` setting as written.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldSource {
    /// A column name or a Jinja template.
    Text(String),
    /// The same value for every document.
    Constant(Value),
    /// A built-in function.
    Function(ValueFunction),
}

/// How few-shot examples are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// At random for each document.
    Random,
    /// The first n rows of the pool.
    FirstN,
}

/// Settings of the few-shot examples; unset ones are those of the evaluated document.
#[derive(Debug, Clone, PartialEq)]
pub struct FewshotConfig {
    /// Sampler.
    pub sampler: Sampler,
    /// Split of the pool, where it is stated.
    pub split: Option<String>,
    /// Rows of the pool to use, where they are stated.
    pub indices: Option<Vec<usize>>,
    /// The examples themselves, where they are stated.
    pub samples: Option<Vec<Map<String, Value>>>,
    /// Question of an example.
    pub doc_to_text: FieldSource,
    /// Choices of an example.
    pub doc_to_choice: Option<FieldSource>,
    /// Answer of an example.
    pub doc_to_target: FieldSource,
    /// Start of an example's answer.
    pub gen_prefix: Option<String>,
    /// Between question and answer of an example.
    pub target_delimiter: String,
    /// After each example.
    pub fewshot_delimiter: String,
}

/// A task's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskConfig {
    /// Name.
    pub task: String,
    /// Name to show.
    pub alias: Option<String>,
    /// Data set by its hub name; `day0-tiny` for embedded rows, `json` for files named in `dataset_kwargs`.
    pub dataset_path: String,
    /// Subset of the data set.
    pub dataset_name: Option<String>,
    /// Files of each split, from `dataset_kwargs: {data_files: …}`.
    pub data_files: BTreeMap<String, Vec<PathBuf>>,
    /// Revision of the data set on the hub, from `dataset_kwargs: {revision: …}`; the main branch if not stated.
    pub data_revision: Option<String>,
    /// Column that holds `dataset_name` where the subsets of a data set share one local file.
    pub data_subset_column: Option<String>,
    /// Stem of the data files in a `--data` directory.
    pub data_stem: String,
    /// Split to train on; here only a pool of examples.
    pub training_split: Option<String>,
    /// Split that is evaluated where there is no test split.
    pub validation_split: Option<String>,
    /// Split that is evaluated.
    pub test_split: Option<String>,
    /// What is asked of the model.
    pub output_type: OutputType,
    /// The question.
    pub doc_to_text: FieldSource,
    /// The answer: a text, or the index of a choice.
    pub doc_to_target: FieldSource,
    /// The choices.
    pub doc_to_choice: Option<FieldSource>,
    /// Adds columns to each row.
    pub process_docs: Option<RowFunction>,
    /// Computes metrics in its own way.
    pub process_results: Option<ResultsFunction>,
    /// Text before everything else; a template.
    pub description: String,
    /// Between question and answer.
    pub target_delimiter: String,
    /// Between description and system instruction.
    pub fewshot_delimiter: String,
    /// Start of the answer, given to the model; a template.
    pub gen_prefix: Option<String>,
    /// Number of examples; `Some(0)` cannot be overridden, as in lm-eval.
    pub num_fewshot: Option<usize>,
    /// Settings of the examples.
    pub fewshot: FewshotConfig,
    /// Metrics to compute.
    pub metrics: Vec<MetricKind>,
    /// The metric that decides.
    pub primary_metric: MetricKind,
    /// Column that names the cluster a row belongs to.
    pub cluster: Option<String>,
    /// `metadata.version` as written.
    pub version: Value,
    /// The whole definition after includes, for the digest and the results file.
    pub definition: Map<String, Value>,
    /// What was ignored and assumed.
    pub notes: Vec<String>,
}

impl TaskConfig {
    pub(super) fn from_definition(def: &Definition) -> Result<Self, SuiteError> {
        let fields = Fields { def };
        fields.check_known()?;
        // What the task does is named before the settings that only such tasks have.
        let output_type = fields.output_type()?;
        fields.check_supported()?;
        let metrics = fields.metrics(output_type)?;
        let task = fields.required_text("task")?;
        let doc_to_choice = fields.source("doc_to_choice")?;
        if output_type == OutputType::MultipleChoice && doc_to_choice.is_none() {
            return Err(fields.missing("doc_to_choice", "multiple_choice needs it"));
        }
        let doc_to_text = fields.source("doc_to_text")?;
        let mut config = Self {
            alias: fields.text("task_alias")?,
            dataset_path: fields.required_text("dataset_path")?,
            dataset_name: fields.text("dataset_name")?,
            data_files: fields.data_files()?,
            data_revision: fields.data_revision()?,
            data_subset_column: fields.text("data_subset_column")?,
            data_stem: fields.text("data_stem")?.unwrap_or_else(|| task.clone()),
            training_split: fields.text("training_split")?,
            validation_split: fields.text("validation_split")?,
            test_split: fields.text("test_split")?,
            output_type,
            doc_to_text: match (doc_to_text, output_type) {
                (Some(source), _) => source,
                (None, OutputType::LoglikelihoodRolling) => FieldSource::Text(String::new()),
                (None, _) => return Err(fields.missing("doc_to_text", "every question needs it")),
            },
            doc_to_target: fields
                .source("doc_to_target")?
                .ok_or_else(|| fields.missing("doc_to_target", "it names the answer"))?,
            doc_to_choice,
            process_docs: fields.process_docs()?,
            process_results: fields.process_results(output_type)?,
            description: fields.text("description")?.unwrap_or_default(),
            target_delimiter: fields.text("target_delimiter")?.unwrap_or_else(|| " ".to_owned()),
            fewshot_delimiter: fields.text("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".to_owned()),
            gen_prefix: fields.text("gen_prefix")?,
            num_fewshot: fields.number("num_fewshot")?,
            fewshot: FewshotConfig::placeholder(),
            primary_metric: fields.primary_metric(output_type, &metrics)?,
            metrics,
            cluster: fields.text("cluster")?,
            version: fields.version(),
            definition: def.values.clone(),
            notes: fields.notes(),
            task,
        };
        if config.test_split.is_none() && config.validation_split.is_none() {
            return Err(
                fields.missing("test_split", "there is no validation_split either: nothing to evaluate")
            );
        }
        config.fewshot = fields.fewshot(&config)?;
        Ok(config)
    }

    /// Splits in the order in which they are tried for evaluation.
    pub fn eval_splits(&self) -> Vec<&str> {
        [&self.test_split, &self.validation_split].into_iter().flatten().map(String::as_str).collect()
    }
}

impl FewshotConfig {
    /// Stands in until the task's own settings, which these fall back to, are read.
    fn placeholder() -> Self {
        Self {
            sampler: Sampler::Random,
            split: None,
            indices: None,
            samples: None,
            doc_to_text: FieldSource::Text(String::new()),
            doc_to_choice: None,
            doc_to_target: FieldSource::Text(String::new()),
            gen_prefix: None,
            target_delimiter: String::new(),
            fewshot_delimiter: String::new(),
        }
    }
}

/// Typed access to a definition's keys.
struct Fields<'a> {
    def: &'a Definition,
}

impl Fields<'_> {
    fn wrong(&self, key: &str, expected: &str, found: &Value) -> SuiteError {
        let detail = format!("expected {expected}, found {found}");
        SuiteError::Value { place: self.def.place(key), key: key.to_owned(), detail }
    }

    fn missing(&self, key: &str, why: &str) -> SuiteError {
        let place = Place { line: None, ..self.def.place("task") };
        SuiteError::Value { place, key: key.to_owned(), detail: format!("missing; {why}") }
    }

    fn unsupported(&self, key: &str, feature: impl Into<String>) -> SuiteError {
        SuiteError::Unsupported { place: self.def.place(key), key: key.to_owned(), feature: feature.into() }
    }

    fn check_known(&self) -> Result<(), SuiteError> {
        match self.def.values.keys().find(|key| !TASK_KEYS.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let place = self.def.place(key);
                Err(SuiteError::UnknownKey { place, key: key.clone(), known: TASK_KEYS })
            }
        }
    }

    fn check_supported(&self) -> Result<(), SuiteError> {
        for key in REFUSED {
            if let Some(value) = self.def.get(key) {
                return Err(self.unsupported(key, function_name(value).unwrap_or_else(|| key.to_owned())));
            }
        }
        match self.def.get("repeats") {
            None => Ok(()),
            Some(value) if value.as_u64() == Some(1) => Ok(()),
            Some(value) => Err(self.unsupported("repeats", format!("repeating a request {value} times"))),
        }
    }

    fn notes(&self) -> Vec<String> {
        let ignored = IGNORED.iter().filter(|key| self.def.get(key).is_some());
        ignored.map(|key| format!("ignored '{key}': it does not change log-likelihoods")).collect()
    }

    fn text(&self, key: &str) -> Result<Option<String>, SuiteError> {
        match self.def.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => match function_name(value) {
                Some(name) => Err(self.unsupported(key, name)),
                None => Err(self.wrong(key, "a text", value)),
            },
        }
    }

    fn required_text(&self, key: &str) -> Result<String, SuiteError> {
        self.text(key)?.ok_or_else(|| self.missing(key, "every task needs it"))
    }

    fn number(&self, key: &str) -> Result<Option<usize>, SuiteError> {
        let Some(value) = self.def.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| self.wrong(key, "a whole number ≥ 0", value))
    }

    fn source(&self, key: &str) -> Result<Option<FieldSource>, SuiteError> {
        self.def.get(key).map(|value| self.source_of(key, value)).transpose()
    }

    /// The built-in function that a `!function` tag stands for: day0's name of it, or lm-eval's where the module
    /// beside the file that names it is lm-eval's own.
    fn function<T>(&self, key: &str, tag: &str, known: fn(&str) -> Option<T>) -> Result<T, SuiteError> {
        let name = tag.trim_start_matches("!function ");
        let ours = function::of_module(Path::new(&self.def.place(key).file), name);
        known(ours.unwrap_or(name)).ok_or_else(|| self.unsupported(key, tag.to_owned()))
    }

    fn source_of(&self, key: &str, value: &Value) -> Result<FieldSource, SuiteError> {
        if let Some(tag) = function_name(value) {
            return self.function(key, &tag, ValueFunction::from_name).map(FieldSource::Function);
        }
        match value {
            Value::String(text) => Ok(FieldSource::Text(text.clone())),
            Value::Number(_) | Value::Array(_) => Ok(FieldSource::Constant(value.clone())),
            // A mapping of choices counts as the list of its values.
            Value::Object(map) => Ok(FieldSource::Constant(map.values().cloned().collect())),
            other => Err(self.wrong(key, "a column name, a template, a number or a list", other)),
        }
    }

    fn process_docs(&self) -> Result<Option<RowFunction>, SuiteError> {
        let Some(value) = self.def.get("process_docs") else { return Ok(None) };
        let tag = function_name(value).unwrap_or_else(|| value.to_string());
        self.function("process_docs", &tag, RowFunction::from_name).map(Some)
    }

    fn process_results(&self, output_type: OutputType) -> Result<Option<ResultsFunction>, SuiteError> {
        let key = "process_results";
        let Some(value) = self.def.get(key) else { return Ok(None) };
        let tag = function_name(value).unwrap_or_else(|| value.to_string());
        let function = self.function(key, &tag, ResultsFunction::from_name)?;
        if function.output_type() == output_type {
            return Ok(Some(function));
        }
        Err(self.wrong(key, &format!("a function for {}", output_type.name()), value))
    }

    fn output_type(&self) -> Result<OutputType, SuiteError> {
        let name = self.text("output_type")?.unwrap_or_else(|| "generate_until".to_owned());
        if name == "generate_until" {
            return Err(self.unsupported("output_type", "generate_until"));
        }
        OutputType::from_name(&name).ok_or_else(|| {
            let expected = "multiple_choice, loglikelihood or loglikelihood_rolling";
            self.wrong("output_type", expected, &name.clone().into())
        })
    }

    fn metrics(&self, output_type: OutputType) -> Result<Vec<MetricKind>, SuiteError> {
        let key = "metric_list";
        let Some(list) = self.def.get(key) else { return Ok(output_type.default_metrics().to_vec()) };
        let entries = list.as_array().filter(|l| !l.is_empty());
        let entries = entries.ok_or_else(|| self.wrong(key, "a list of metrics", list))?;
        let mut metrics = Vec::new();
        for entry in entries {
            metrics.push(self.metric(output_type, entry)?);
        }
        // lm-eval writes a sample's metrics in its own order, whatever the order of the list.
        Ok(output_type.metrics().into_iter().filter(|m| metrics.contains(m)).collect())
    }

    fn metric(&self, output_type: OutputType, entry: &Value) -> Result<MetricKind, SuiteError> {
        let key = "metric_list";
        let map = entry.as_object().ok_or_else(|| self.wrong(key, "a mapping with 'metric'", entry))?;
        let value = map.get("metric").unwrap_or(&Value::Null);
        if let Some(function) = function_name(value) {
            return Err(self.unsupported(key, function));
        }
        let name = value.as_str().ok_or_else(|| self.wrong(key, "the name of a metric", value))?;
        let kind = MetricKind::from_name(name, output_type).ok_or_else(|| {
            let known: Vec<_> = output_type.metrics().iter().map(|m| m.name()).collect();
            self.wrong(key, &format!("one of {} for {}", known.join(", "), output_type.name()), value)
        })?;
        if let Some(unknown) = map.keys().find(|k| !METRIC_KEYS.contains(&k.as_str())) {
            let place = self.def.place(&format!("{key}.{unknown}"));
            return Err(SuiteError::UnknownKey { place, key: unknown.clone(), known: METRIC_KEYS });
        }
        let aggregation = map.get("aggregation").filter(|a| !a.is_null());
        if let Some(other) = aggregation.filter(|a| a.as_str() != Some(kind.aggregation().name())) {
            return Err(self.unsupported(key, format!("{name} with aggregation {}", python::str(other))));
        }
        match map.get("higher_is_better") {
            None => Ok(kind),
            Some(value) if value.as_bool() == Some(kind.higher_is_better()) => Ok(kind),
            Some(value) => {
                Err(self.wrong(key, &format!("higher_is_better: {}", kind.higher_is_better()), value))
            }
        }
    }

    /// The declared metric, else the last of acc, acc_norm, bits_per_byte that the task computes, else its first.
    fn primary_metric(&self, output: OutputType, metrics: &[MetricKind]) -> Result<MetricKind, SuiteError> {
        use MetricKind as K;
        let Some(name) = self.text("primary_metric")? else {
            let usual = [K::BitsPerByte, K::AccNorm, K::Acc].into_iter().find(|m| metrics.contains(m));
            return Ok(usual.unwrap_or(metrics[0]));
        };
        MetricKind::from_name(&name, output).filter(|m| metrics.contains(m)).ok_or_else(|| {
            let known: Vec<_> = metrics.iter().map(|m| m.name()).collect();
            self.wrong("primary_metric", &format!("one of metric_list ({})", known.join(", ")), &name.into())
        })
    }

    fn version(&self) -> Value {
        let version = self.def.get("metadata").and_then(|m| m.get("version"));
        version.cloned().unwrap_or_else(|| "Yaml".into())
    }

    fn data_files(&self) -> Result<BTreeMap<String, Vec<PathBuf>>, SuiteError> {
        let Some(files) = self.def.get("dataset_kwargs").and_then(|k| k.get("data_files")) else {
            return Ok(BTreeMap::new());
        };
        let wrong = || self.wrong("dataset_kwargs", "data_files with file names for each split", files);
        let paths = |value: &Value| match value {
            Value::String(path) => Ok(vec![PathBuf::from(path)]),
            Value::Array(list) if !list.is_empty() => {
                list.iter().map(|p| p.as_str().map(PathBuf::from).ok_or_else(wrong)).collect()
            }
            _ => Err(wrong()),
        };
        match files {
            Value::Object(map) => map.iter().map(|(split, v)| Ok((split.clone(), paths(v)?))).collect(),
            // Files without a split are the training split, as in `datasets`.
            other => Ok(BTreeMap::from([("train".to_owned(), paths(other)?)])),
        }
    }

    fn data_revision(&self) -> Result<Option<String>, SuiteError> {
        match self.def.get("dataset_kwargs").and_then(|k| k.get("revision")) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(revision)) => Ok(Some(revision.clone())),
            Some(other) => Err(self.wrong("dataset_kwargs", "revision as a text", other)),
        }
    }

    fn fewshot(&self, task: &TaskConfig) -> Result<FewshotConfig, SuiteError> {
        let key = "fewshot_config";
        let empty = Value::Object(Map::new());
        let value = self.def.get(key).unwrap_or(&empty);
        let map = value.as_object().ok_or_else(|| self.wrong(key, "a mapping", value))?;
        if let Some(unknown) = map.keys().find(|k| !FEWSHOT_KEYS.contains(&k.as_str())) {
            let place = self.def.place(&format!("{key}.{unknown}"));
            return Err(SuiteError::UnknownKey { place, key: unknown.clone(), known: FEWSHOT_KEYS });
        }
        let get = |name: &str| map.get(name).filter(|v| !v.is_null());
        if let Some(value) = get("process_docs") {
            return Err(self.unsupported(key, function_name(value).unwrap_or_else(|| "process_docs".into())));
        }
        let text = |name: &str| -> Result<Option<String>, SuiteError> {
            let Some(value) = get(name) else { return Ok(None) };
            match (value.as_str(), function_name(value)) {
                (Some(text), _) => Ok(Some(text.to_owned())),
                (_, Some(function)) => Err(self.unsupported(key, function)),
                _ => Err(self.wrong(key, &format!("{name} as a text"), value)),
            }
        };
        let source = |name: &str| get(name).map(|v| self.source_of(key, v)).transpose();
        Ok(FewshotConfig {
            sampler: match text("sampler")?.as_deref() {
                None | Some("default") => Sampler::Random,
                Some("first_n") => Sampler::FirstN,
                Some(other) => return Err(self.unsupported(key, format!("sampler {other}"))),
            },
            split: text("split")?.or(self.text("fewshot_split")?),
            indices: get("fewshot_indices")
                .map(|v| {
                    serde_json::from_value(v.clone()).map_err(|_| self.wrong(key, "a list of row numbers", v))
                })
                .transpose()?,
            samples: get("samples")
                .map(|v| serde_json::from_value(v.clone()).map_err(|_| self.wrong(key, "a list of rows", v)))
                .transpose()?,
            doc_to_text: source("doc_to_text")?.unwrap_or_else(|| task.doc_to_text.clone()),
            doc_to_choice: source("doc_to_choice")?.or_else(|| task.doc_to_choice.clone()),
            doc_to_target: source("doc_to_target")?.unwrap_or_else(|| task.doc_to_target.clone()),
            gen_prefix: text("gen_prefix")?.or_else(|| task.gen_prefix.clone()),
            target_delimiter: text("target_delimiter")?.unwrap_or_else(|| task.target_delimiter.clone()),
            fewshot_delimiter: text("fewshot_delimiter")?.unwrap_or_else(|| task.fewshot_delimiter.clone()),
        })
    }
}

/// `!function name` for a value that stands for a function.
fn function_name(value: &Value) -> Option<String> {
    let name = value.as_object()?.get(FUNCTION_TAG)?.as_str()?;
    Some(format!("!function {name}"))
}
