//! Groups of tasks and how their metrics are combined.
//!
//! Source: lm-eval 0.4.13, `config/group.py` and `api/group.py`.

use serde_json::Value;

use super::definition::Definition;
use super::error::SuiteError;
use super::load::Suite;
use crate::base::python;

pub(super) const GROUP_KEYS: &[&str] =
    &["group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "include"];

const AGGREGATE_KEYS: &[&str] = &["metric", "filter_list", "aggregation", "weight_by_size"];

/// A group of tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Name to show.
    pub alias: String,
    /// Direct members: tasks and groups.
    pub members: Vec<String>,
    /// All tasks below.
    pub tasks: Vec<String>,
    /// Metrics combined over the tasks.
    pub aggregates: Vec<GroupMetric>,
    /// Members, or tasks and groups below them, that decide nothing of a release unless its configuration says so:
    /// `metadata.advisory`, an extension that lm-eval passes over.
    pub advisory: Vec<String>,
    /// `metadata.version`, `N/A` where there is none.
    pub version: String,
}

/// One metric of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMetric {
    /// Name, e.g. `acc`.
    pub metric: String,
    /// Whether tasks count by their number of items; else each counts the same.
    pub weight_by_size: bool,
}

impl Group {
    pub(super) fn from_definition(
        definition: &Definition,
        members: Vec<String>,
        suite: &Suite,
    ) -> Result<Self, SuiteError> {
        let text = |key: &str| definition.get(key).and_then(Value::as_str).map(str::to_owned);
        let name =
            text("group").ok_or_else(|| wrong(definition, "group", "a name", &definition.values["group"]))?;
        let mut tasks: Vec<String> = Vec::new();
        for member in &members {
            let group = suite.groups.iter().find(|g| g.name == *member);
            let below = group.map_or_else(|| std::slice::from_ref(member), |group| group.tasks.as_slice());
            // A task that is in two groups of this one counts once.
            let new: Vec<String> = below.iter().filter(|task| !tasks.contains(task)).cloned().collect();
            tasks.extend(new);
        }
        let version = definition.get("metadata").and_then(|m| m.get("version"));
        Ok(Self {
            alias: text("group_alias").unwrap_or_else(|| name.clone()),
            name,
            members,
            tasks,
            aggregates: aggregates(definition)?,
            advisory: advisory(definition, suite)?,
            version: version.map_or_else(|| "N/A".to_owned(), python::str),
        })
    }
}

fn wrong(definition: &Definition, key: &str, expected: &str, found: &Value) -> SuiteError {
    let detail = format!("expected {expected}, found {found}");
    SuiteError::Value { place: definition.place(key), key: key.to_owned(), detail }
}

/// Names under `metadata.advisory`; each is a task or a group of the suite, so that a misspelt one does not decide.
fn advisory(definition: &Definition, suite: &Suite) -> Result<Vec<String>, SuiteError> {
    let Some(value) = definition.get("metadata").and_then(|metadata| metadata.get("advisory")) else {
        return Ok(Vec::new());
    };
    let known = |name: &str| {
        suite.tasks.iter().any(|t| t.config.task == name) || suite.groups.iter().any(|g| g.name == name)
    };
    let names: Option<Option<Vec<String>>> = value.as_array().map(|list| {
        list.iter().map(|name| name.as_str().filter(|name| known(name)).map(str::to_owned)).collect()
    });
    names
        .flatten()
        .ok_or_else(|| wrong(definition, "metadata", "advisory: a list of its tasks or groups", value))
}

fn aggregates(definition: &Definition) -> Result<Vec<GroupMetric>, SuiteError> {
    let key = "aggregate_metric_list";
    let entries = match definition.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.clone(),
        Some(one @ Value::Object(_)) => vec![one.clone()],
        Some(other) => return Err(wrong(definition, key, "a list of metrics", other)),
    };
    let metric = |entry: &Value| {
        let map =
            entry.as_object().ok_or_else(|| wrong(definition, key, "a mapping with 'metric'", entry))?;
        if let Some(unknown) = map.keys().find(|k| !AGGREGATE_KEYS.contains(&k.as_str())) {
            let place = definition.place(&format!("{key}.{unknown}"));
            return Err(SuiteError::UnknownKey { place, key: unknown.clone(), known: AGGREGATE_KEYS });
        }
        if let Some(other) = map.get("aggregation").filter(|a| a.as_str() != Some("mean")) {
            return Err(wrong(definition, key, "aggregation: mean", other));
        }
        let name = map.get("metric").and_then(Value::as_str);
        Ok(GroupMetric {
            metric: name.ok_or_else(|| wrong(definition, key, "the name of a metric", entry))?.to_owned(),
            weight_by_size: map.get("weight_by_size").and_then(Value::as_bool).unwrap_or(true),
        })
    };
    entries.iter().map(metric).collect()
}
