//! A task with its rows rendered and checked.

use std::sync::OnceLock;

use minijinja::Environment;
use serde_json::{Map, Value};

use super::config::{FieldSource, TaskConfig};
use super::data::{DataSource, Row, Rows};
use super::error::{Place, SuiteError};
use super::function::{ResultsFunction, mc2_labels};
use super::metric::OutputType;
use super::template::{self, Template};
use crate::base::digest::Digest;
use crate::base::python;

/// One document of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Doc {
    /// Index in the evaluated split.
    pub id: usize,
    /// Where the row is.
    pub place: Place,
    /// The row, keys in file order.
    pub fields: Map<String, Value>,
    /// `doc_to_text`: the question; the index of the right context where each choice is a context of its own.
    pub text: Value,
    /// `doc_to_target`: the answer as text, index of a choice, or list of either.
    pub target: Value,
    /// `doc_to_choice`.
    pub choices: Vec<String>,
    /// The text whose words and bytes perplexities are per; empty where the task rolls over no text.
    pub units_text: String,
}

/// A task: settings, templates, rows.
#[derive(Debug)]
pub struct Task {
    /// Settings.
    pub config: TaskConfig,
    /// Split that is evaluated.
    pub split: String,
    /// Rows of that split, rendered.
    pub docs: Vec<Doc>,
    /// Digest of the definition and of the evaluated rows.
    pub digest: Digest,
    /// What was ignored and assumed.
    pub notes: Vec<String>,
    pub(super) source: DataSource,
    environment: Environment<'static>,
    description: Template,
    own: FieldTemplates,
    fewshot: FieldTemplates,
    pool: OnceLock<Vec<Doc>>,
}

#[derive(Debug)]
struct FieldTemplates {
    text: Template,
    target: Template,
    choice: Option<Template>,
    gen_prefix: Option<Template>,
}

impl Task {
    /// Reads the rows and renders all of them, so that a row that does not fit is found before anything runs.
    pub(super) fn load(config: TaskConfig, source: DataSource, place: &Place) -> Result<Self, SuiteError> {
        let mut notes = config.notes.clone();
        let splits = config.eval_splits();
        let Some(split) = splits.iter().copied().find(|s| source.has(s)).map(str::to_owned) else {
            let expected = splits.iter().filter_map(|s| source.file(s)).collect();
            return Err(SuiteError::MissingSplit { task: config.task.clone(), expected });
        };
        if split != splits[0] {
            notes.push(format!("evaluates split '{split}': the data has no '{}'", splits[0]));
        }
        let rows = source.read(&split)?;
        rows.check_ids()?;
        let rows = processed(&config, rows)?;
        let mut task = Self::compile(config, source, split, &rows, place)?;
        task.notes = notes;
        task.docs = task.render_rows(&task.own, &rows)?;
        Ok(task)
    }

    fn compile(
        config: TaskConfig,
        source: DataSource,
        split: String,
        rows: &Rows,
        place: &Place,
    ) -> Result<Self, SuiteError> {
        let invalid = |key: &str, source| template_error(place, key, source);
        let mut environment = template::environment().map_err(|e| invalid("task", e))?;
        let columns = &rows.columns;
        let mut compile = |name: &'static str, source: &FieldSource, columns: &[String]| {
            Template::compile(&mut environment, name, source, columns).map_err(|e| invalid(name, e))
        };
        let text = |text: &String| FieldSource::Text(text.clone());
        let examples = &config.fewshot;
        let choice = examples.doc_to_choice.as_ref();
        let prefix = examples.gen_prefix.as_ref().map(text);
        let own_prefix = config.gen_prefix.as_ref().map(text);
        let own = FieldTemplates {
            text: compile("doc_to_text", &config.doc_to_text, columns)?,
            target: compile("doc_to_target", &config.doc_to_target, columns)?,
            choice: (config.doc_to_choice.as_ref())
                .map(|s| compile("doc_to_choice", s, columns))
                .transpose()?,
            gen_prefix: own_prefix.map(|s| compile("gen_prefix", &s, columns)).transpose()?,
        };
        let fewshot = FieldTemplates {
            text: compile("fewshot doc_to_text", &examples.doc_to_text, columns)?,
            target: compile("fewshot doc_to_target", &examples.doc_to_target, columns)?,
            choice: choice.map(|s| compile("fewshot doc_to_choice", s, columns)).transpose()?,
            gen_prefix: prefix.map(|s| compile("fewshot gen_prefix", &s, columns)).transpose()?,
        };
        let description = compile("description", &text(&config.description), columns)?;
        let digest = task_digest(&config, &rows.digest);
        Ok(Self {
            config,
            split,
            docs: Vec::new(),
            digest,
            notes: Vec::new(),
            source,
            environment,
            description,
            own,
            fewshot,
            pool: OnceLock::new(),
        })
    }

    /// `description` for a document.
    pub fn description(&self, doc: &Doc) -> Result<String, SuiteError> {
        self.render_text("description", &self.description, doc)
    }

    /// `gen_prefix` for a document.
    pub fn gen_prefix(&self, doc: &Doc) -> Result<Option<String>, SuiteError> {
        self.own.gen_prefix.as_ref().map(|t| self.render_text("gen_prefix", t, doc)).transpose()
    }

    /// `gen_prefix` for an example.
    pub fn fewshot_gen_prefix(&self, doc: &Doc) -> Result<Option<String>, SuiteError> {
        self.fewshot.gen_prefix.as_ref().map(|t| self.render_text("gen_prefix", t, doc)).transpose()
    }

    /// Whether each choice is a context of its own ("multiple inputs"), which lm-eval reads off the first row.
    pub fn multiple_input(&self) -> bool {
        self.config.output_type == OutputType::MultipleChoice
            && self.docs.first().is_some_and(|d| d.text.is_number())
    }

    /// The pool of examples: stated samples, else the few-shot split, else training, validation or test split.
    pub fn fewshot_pool(&self) -> Result<&[Doc], SuiteError> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let pool = self.load_pool()?;
        Ok(self.pool.get_or_init(|| pool))
    }

    /// The few-shot split that is stated and there.
    pub fn fewshot_split(&self) -> Option<&str> {
        self.config.fewshot.split.as_deref().filter(|s| self.source.has(s))
    }

    /// The commit of the hub's repository that the rows come from.
    pub fn data_revision(&self) -> Option<&str> {
        self.source.revision()
    }

    /// The test split, where it is stated and there.
    pub fn test_split(&self) -> Option<&str> {
        self.config.test_split.as_deref().filter(|s| self.source.has(s))
    }

    fn load_pool(&self) -> Result<Vec<Doc>, SuiteError> {
        let config = &self.config;
        let rows = match (self.fewshot_split(), &config.fewshot.samples) {
            (None, Some(samples)) => stated_samples(config, samples),
            (Some(split), _) => processed(config, self.source.read(split)?)?,
            (None, None) => {
                let splits = [&config.training_split, &config.validation_split, &config.test_split];
                let split = splits.into_iter().flatten().find(|s| self.source.has(s));
                processed(config, self.source.read(split.unwrap_or(&self.split))?)?
            }
        };
        let docs = self.render_rows(&self.fewshot, &rows)?;
        let Some(indices) = &config.fewshot.indices else { return Ok(docs) };
        let pick = |i: &usize| {
            docs.get(*i).cloned().ok_or_else(|| SuiteError::Row {
                place: Place::new(rows.file.clone(), None),
                detail: format!("fewshot_indices names row {i}, but there are {}", docs.len()),
            })
        };
        indices.iter().map(pick).collect()
    }

    fn render_text(&self, key: &'static str, template: &Template, doc: &Doc) -> Result<String, SuiteError> {
        let value = template.apply(&self.environment, &doc.fields);
        value.map(|v| python::str(&v)).map_err(|source| self.render_error(doc.place.clone(), key, source))
    }

    fn render_error(&self, place: Place, key: &'static str, source: minijinja::Error) -> SuiteError {
        SuiteError::Render { place, task: self.config.task.clone(), key, source }
    }

    fn render_rows(&self, templates: &FieldTemplates, rows: &Rows) -> Result<Vec<Doc>, SuiteError> {
        let needed = self.needed_columns(templates);
        let render = |(id, row): (usize, &Row)| {
            let doc = self.render_row(templates, row, id, &needed)?;
            check_doc(&self.config, &doc)
                .map_err(|detail| SuiteError::Row { place: doc.place.clone(), detail })?;
            Ok(doc)
        };
        rows.list.iter().enumerate().map(render).collect()
    }

    fn needed_columns(&self, templates: &FieldTemplates) -> Vec<(&'static str, String)> {
        let named = [
            ("doc_to_text", Some(&templates.text)),
            ("doc_to_target", Some(&templates.target)),
            ("doc_to_choice", templates.choice.as_ref()),
            ("gen_prefix", templates.gen_prefix.as_ref()),
            ("description", Some(&self.description)),
        ];
        let mut columns = Vec::new();
        for (key, template) in named {
            columns.extend(template.into_iter().flat_map(|t| t.columns(&self.environment)).map(|c| (key, c)));
        }
        columns.extend(self.config.cluster.clone().map(|c| ("cluster", c)));
        let results = self.config.process_results.map(ResultsFunction::column);
        columns.extend(results.map(|c| ("process_results", c.to_owned())));
        columns
    }

    fn render_row(
        &self,
        templates: &FieldTemplates,
        row: &Row,
        id: usize,
        needed: &[(&'static str, String)],
    ) -> Result<Doc, SuiteError> {
        let place = row.place.clone();
        for (key, column) in needed {
            if row.missing.contains(column) || !row.fields.contains_key(column) {
                let detail =
                    format!("column '{column}' is missing; {key} of task {} needs it", self.config.task);
                return Err(SuiteError::Row { place, detail });
            }
        }
        let apply = |key: &'static str, template: &Template| {
            let value = template.apply(&self.environment, &row.fields);
            value.map_err(|source| self.render_error(place.clone(), key, source))
        };
        let has_choices = templates.choice.is_some();
        let read = |key, template: &Template| {
            apply(key, template).map(|value| read_back(value, template, key, has_choices))
        };
        let bad_row = |detail: String| SuiteError::Row { place: place.clone(), detail };
        let choices = match &templates.choice {
            None => Vec::new(),
            Some(template) => {
                choice_list(apply("doc_to_choice", template)?, template.is_rendered()).map_err(bad_row)?
            }
        };
        let text = read("doc_to_text", &templates.text)?;
        let target = read("doc_to_target", &templates.target)?;
        let rolling = self.config.output_type == OutputType::LoglikelihoodRolling;
        let column = self.config.process_results.filter(|_| rolling).map(ResultsFunction::column);
        let units = column.and_then(|c| row.fields.get(c)).unwrap_or(&target);
        let units_text = if rolling { python::str(units) } else { String::new() };
        Ok(Doc { id, place: place.clone(), fields: row.fields.clone(), text, target, choices, units_text })
    }

    /// Number of examples: lm-eval lets the command line override the task, except a task that states 0.
    pub fn num_fewshot(&self, asked: Option<usize>) -> usize {
        match (self.config.num_fewshot, asked) {
            (Some(0), _) => 0,
            (_, Some(n)) => n,
            (stated, None) => stated.unwrap_or(0),
        }
    }
}

/// Rows with the columns that the task's `process_docs` adds.
fn processed(config: &TaskConfig, mut rows: Rows) -> Result<Rows, SuiteError> {
    let Some(function) = config.process_docs else { return Ok(rows) };
    for row in &mut rows.list {
        let applied = function.apply(&mut row.fields);
        applied.map_err(|detail| SuiteError::Row { place: row.place.clone(), detail })?;
    }
    rows.columns.extend(function.added().iter().map(|c| (*c).to_owned()));
    Ok(rows)
}

fn template_error(place: &Place, key: &str, source: minijinja::Error) -> SuiteError {
    SuiteError::Template { place: place.clone(), key: key.to_owned(), source }
}

fn task_digest(config: &TaskConfig, data: &Digest) -> Digest {
    let definition = python::json_dumps(&Value::Object(config.definition.clone()), None);
    let mut digest = crate::base::digest::DigestBuilder::default();
    digest.field(definition.as_bytes()).field(data.as_str().as_bytes());
    digest.finish()
}

fn stated_samples(config: &TaskConfig, samples: &[Map<String, Value>]) -> Rows {
    let file = format!("fewshot_config of {}", config.task);
    let row = |(index, fields): (usize, &Map<String, Value>)| Row {
        place: Place::new(file.clone(), Some(index + 1)),
        fields: fields.clone(),
        missing: Vec::new(),
    };
    Rows {
        list: samples.iter().enumerate().map(row).collect(),
        file: file.clone(),
        columns: Vec::new(),
        digest: Digest::of(b""),
    }
}

/// What lm-eval makes of a rendered text: a number if all digits and there are choices; a target in brackets is
/// read as a Python literal if it is one.
fn read_back(value: Value, template: &Template, key: &str, has_choices: bool) -> Value {
    let Value::String(text) = &value else { return value };
    if !template.is_rendered() {
        return value;
    }
    let number = template::digits(text).filter(|_| has_choices);
    let bracketed = key == "doc_to_target" && text.len() >= 2 && text.starts_with('[') && text.ends_with(']');
    number.or_else(|| if bracketed { python::literal_eval(text).ok() } else { None }).unwrap_or(value)
}

fn choice_list(value: Value, rendered: bool) -> Result<Vec<String>, String> {
    let list = match value {
        Value::String(text) if rendered => {
            python::literal_eval(&text).map_err(|e| format!("doc_to_choice gives {text:?}: {e}"))?
        }
        other => other,
    };
    let Value::Array(items) = list else {
        return Err(format!("doc_to_choice must give a list of texts, found {list}"));
    };
    let text = |item: Value| match item {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => {
            Err(format!("doc_to_choice must give a list of texts that are not empty, found {other} in it"))
        }
    };
    items.into_iter().map(text).collect()
}

/// Whether requests can be made of a document and its answer judged.
fn check_doc(config: &TaskConfig, doc: &Doc) -> Result<(), String> {
    let expect_text = |key: &str, value: &Value| match value {
        Value::String(text) if key == "doc_to_target" && text.is_empty() => Err(format!("{key} is empty")),
        Value::String(_) => Ok(()),
        other => Err(format!("{key} must give a text, found {other}")),
    };
    match config.output_type {
        OutputType::LoglikelihoodRolling => expect_text("doc_to_target", &doc.target),
        OutputType::Loglikelihood => {
            expect_text("doc_to_text", &doc.text)?;
            expect_text("doc_to_target", &doc.target)
        }
        OutputType::MultipleChoice if doc.choices.is_empty() => {
            Err("doc_to_choice gives no choices".to_owned())
        }
        OutputType::MultipleChoice if doc.text.is_number() => {
            expect_text("doc_to_target", &doc.target)?;
            doc.gold().map(|_| ())
        }
        OutputType::MultipleChoice => {
            expect_text("doc_to_text", &doc.text)?;
            if config.process_results == Some(ResultsFunction::TruthfulqaMc2) {
                check_mc2(doc)?;
            }
            doc.gold().map(|_| ())
        }
    }
}

fn check_mc2(doc: &Doc) -> Result<(), String> {
    let (labels, choices) = (mc2_labels(&doc.fields)?.len(), doc.choices.len());
    if labels == choices {
        Ok(())
    } else {
        Err(format!("mc2_targets: {labels} labels for {choices} choices"))
    }
}

impl Doc {
    /// Indices of the right choices; where each choice is a context, the index is in the text, else in the target.
    pub fn gold(&self) -> Result<Vec<usize>, String> {
        let value = if self.text.is_number() { &self.text } else { &self.target };
        let count = self.choices.len();
        let index = |value: &Value| match value {
            Value::String(text) => self
                .choices
                .iter()
                .position(|c| c == text)
                .ok_or_else(|| format!("the answer {text:?} is none of the {count} choices")),
            other => other
                .as_u64()
                .and_then(|i| usize::try_from(i).ok())
                .filter(|i| *i < count)
                .ok_or_else(|| format!("the answer {other} is no index of the {count} choices")),
        };
        match value {
            Value::Array(list) if list.is_empty() => Err("the list of answers is empty".to_owned()),
            Value::Array(list) => list.iter().map(index).collect(),
            one => Ok(vec![index(one)?]),
        }
    }
}
