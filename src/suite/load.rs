//! From names to tasks and groups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::config::TaskConfig;
use super::data::{DataSource, RowCache};
use super::definition::{Definition, Origin};
use super::embedded;
use super::error::{Place, SuiteError};
use super::group::{GROUP_KEYS, Group};
use super::hub_data::HubData;
use super::task::Task;
use crate::base::python;
use crate::checkpoint::hub_env::HubEnv;

/// What `--suite` names: tasks in order, and the groups that some of them belong to.
#[derive(Debug, Clone, Default)]
pub struct Suite {
    /// Tasks, each once.
    pub tasks: Vec<Arc<Task>>,
    /// Groups, outer ones after the ones they contain.
    pub groups: Vec<Group>,
}

/// `dataset_path` of rows that come with the program.
pub const EMBEDDED_DATA: &str = "day0-tiny";
/// `dataset_path` of rows in files that the task itself names.
const FILE_DATA: [&str; 2] = ["json", "parquet"];

/// Loads a comma-separated list of names and YAML paths. Rows come from the directory `data` if one is given, else
/// from the hub.
pub fn load(names: &str, data: Option<&Path>) -> Result<Suite, SuiteError> {
    load_from(names, data, &HubEnv::from_env())
}

/// Like [`load`], with this hub.
pub fn load_from(names: &str, data: Option<&Path>, hub: &HubEnv) -> Result<Suite, SuiteError> {
    let mut loader = Loader {
        data,
        hub,
        suite: Suite::default(),
        open: Vec::new(),
        siblings: BTreeMap::new(),
        rows: RowCache::default(),
    };
    for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        loader.add(name, None)?;
    }
    if loader.suite.tasks.is_empty() {
        return Err(SuiteError::UnknownName { name: names.to_owned(), known: builtin_names() });
    }
    Ok(loader.suite)
}

/// Names of all built-in tasks and groups.
pub fn builtin_names() -> Vec<String> {
    let mut names: Vec<String> = builtin_index().iter().filter_map(|(keys, _)| keys.name.clone()).collect();
    names.sort();
    names
}

struct Loader<'a> {
    data: Option<&'a Path>,
    hub: &'a HubEnv,
    suite: Suite,
    /// The groups around the one that is being added, and that one.
    open: Vec<Origin>,
    siblings: BTreeMap<PathBuf, Vec<(Keys, Origin)>>,
    rows: RowCache,
}

/// What a definition can be called by.
struct Keys {
    name: Option<String>,
    tags: Vec<String>,
}

impl Loader<'_> {
    /// Adds what `name` stands for and returns the names of the tasks and groups it added directly.
    fn add(&mut self, name: &str, beside: Option<&Origin>) -> Result<Vec<String>, SuiteError> {
        let mut added = Vec::new();
        for origin in self.find(name, beside)? {
            added.push(self.add_definition(&Definition::load(&origin)?)?);
        }
        Ok(added)
    }

    fn add_definition(&mut self, definition: &Definition) -> Result<String, SuiteError> {
        if definition.get("group").is_some() && !matches!(definition.get("task"), Some(Value::String(_))) {
            self.add_group(definition)
        } else {
            self.add_task(definition)
        }
    }

    /// A path, else a file beside the one that names it (by task, group or tag), else a built-in.
    fn find(&mut self, name: &str, beside: Option<&Origin>) -> Result<Vec<Origin>, SuiteError> {
        let is_yaml = Path::new(name).extension().is_some_and(|e| e == "yaml" || e == "yml");
        if is_yaml || name.contains('/') {
            return Ok(vec![Origin::File(PathBuf::from(name))]);
        }
        let mut known = Vec::new();
        if let Some(Origin::File(path)) = beside {
            let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let index = self.siblings.entry(dir.clone()).or_insert_with(|| directory_index(&dir));
            // A group that is called like one of its tasks means that task.
            let own = Origin::File(path.clone()).identity();
            let found = matching(index.iter().filter(|(_, origin)| origin.identity() != own), name);
            if !found.is_empty() {
                return Ok(found);
            }
            known.extend(index.iter().filter_map(|(keys, _)| keys.name.clone()));
        }
        let found = matching(builtin_index().iter(), name);
        if found.is_empty() {
            known.extend(builtin_names());
            return Err(SuiteError::UnknownName { name: name.to_owned(), known });
        }
        Ok(found)
    }

    fn add_task(&mut self, definition: &Definition) -> Result<String, SuiteError> {
        let config = TaskConfig::from_definition(definition)?;
        let name = config.task.clone();
        let place = definition.place("task");
        if let Some(same) = self.suite.tasks.iter().find(|t| t.config.task == name) {
            if same.config.definition == config.definition {
                return Ok(name);
            }
            let detail = format!("{name} is defined twice, differently");
            return Err(SuiteError::Value { place, key: "task".to_owned(), detail });
        }
        let source = self.data_source(&config)?;
        let place = Place { line: None, ..place };
        self.suite.tasks.push(Arc::new(Task::load(config, source, &place)?));
        Ok(name)
    }

    fn data_source(&self, config: &TaskConfig) -> Result<DataSource, SuiteError> {
        let stem = config.data_stem.clone();
        if config.dataset_path == EMBEDDED_DATA {
            return Ok(DataSource::Embedded { stem });
        }
        if FILE_DATA.contains(&config.dataset_path.as_str()) && !config.data_files.is_empty() {
            return Ok(DataSource::Files(config.data_files.clone()));
        }
        if let Some(dir) = self.data {
            let subset = config.data_subset_column.clone().zip(config.dataset_name.clone());
            let cache = self.rows.clone();
            return Ok(DataSource::Dir { dir: dir.to_path_buf(), stem, subset, cache });
        }
        let revision = config.data_revision.as_deref();
        let found =
            HubData::resolve(&config.dataset_path, config.dataset_name.as_deref(), revision, self.hub);
        found.map(DataSource::Hub).map_err(|source| SuiteError::NoData {
            task: config.task.clone(),
            dataset: config.dataset_path.clone(),
            stem,
            splits: config.eval_splits().into_iter().map(str::to_owned).collect(),
            source: Box::new(source),
        })
    }

    fn add_group(&mut self, definition: &Definition) -> Result<String, SuiteError> {
        if let Some(unknown) = definition.values.keys().find(|k| !GROUP_KEYS.contains(&k.as_str())) {
            let place = definition.place(unknown);
            return Err(SuiteError::UnknownKey { place, key: unknown.clone(), known: GROUP_KEYS });
        }
        let listed = match definition.get("task") {
            Some(Value::Array(list)) => list.clone(),
            other => return Err(wrong_members(definition, other.unwrap_or(&Value::Null))),
        };
        self.open_group(&definition.origin)?;
        let mut members = Vec::new();
        for member in &listed {
            match member {
                Value::String(name) => members.extend(self.add(name, Some(&definition.origin))?),
                Value::Object(overrides) => members.push(self.add_inline(definition, overrides)?),
                other => return Err(wrong_members(definition, other)),
            }
        }
        self.open.pop();
        let group = Group::from_definition(definition, members, &self.suite)?;
        let name = group.name.clone();
        self.suite.groups.retain(|g| g.name != name);
        self.suite.groups.push(group);
        Ok(name)
    }

    /// Refuses a group that is reached from within itself.
    fn open_group(&mut self, origin: &Origin) -> Result<(), SuiteError> {
        let identity = origin.identity();
        if let Some(first) = self.open.iter().position(|open| *open == identity) {
            let files = self.open[first..].iter().chain([&identity]).map(Origin::display).collect();
            return Err(SuiteError::GroupCycle { files });
        }
        self.open.push(identity);
        Ok(())
    }

    /// A member written out: a known task by its name, with other settings.
    fn add_inline(&mut self, group: &Definition, values: &Map<String, Value>) -> Result<String, SuiteError> {
        let Some(Value::String(name)) = values.get("task") else {
            let feature = "a member without the name of a task".to_owned();
            return Err(SuiteError::Unsupported {
                place: group.place("task"),
                key: "task".to_owned(),
                feature,
            });
        };
        let found = self.find(name, Some(&group.origin))?;
        let mut definition = Definition::load(&found[0])?;
        definition.override_with(values);
        self.add_task(&definition)
    }
}

fn wrong_members(definition: &Definition, found: &Value) -> SuiteError {
    let detail = format!("expected a list of names, found {}", python::repr(found));
    SuiteError::Value { place: definition.place("task"), key: "task".to_owned(), detail }
}

/// Files whose task or group has this name, else all files with this tag.
fn matching<'a>(index: impl Iterator<Item = &'a (Keys, Origin)> + Clone, name: &str) -> Vec<Origin> {
    if let Some((_, origin)) = index.clone().find(|(keys, _)| keys.name.as_deref() == Some(name)) {
        return vec![origin.clone()];
    }
    let tagged = index.filter(|(keys, _)| keys.tags.iter().any(|t| t == name));
    tagged.map(|(_, origin)| origin.clone()).collect()
}

fn keys_of(origin: &Origin) -> Option<Keys> {
    // A neighbour that is broken is reported when it is asked for, not when another one is.
    let definition = Definition::load(origin).ok()?;
    let text = |key: &str| definition.get(key).and_then(Value::as_str).map(str::to_owned);
    let tags = match definition.get("tag") {
        Some(Value::String(tag)) => vec![tag.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Some(Keys { name: text("task").or_else(|| text("group")), tags })
}

fn index_of(origins: impl Iterator<Item = Origin>) -> Vec<(Keys, Origin)> {
    origins.filter_map(|origin| Some((keys_of(&origin)?, origin))).collect()
}

fn builtin_index() -> &'static [(Keys, Origin)] {
    static INDEX: LazyLock<Vec<(Keys, Origin)>> =
        LazyLock::new(|| index_of(embedded::definition_names().into_iter().map(Origin::Embedded)));
    &INDEX
}

fn directory_index(dir: &Path) -> Vec<(Keys, Origin)> {
    let entries = std::fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let mut paths: Vec<PathBuf> = entries.into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    paths.sort();
    index_of(paths.into_iter().map(Origin::File))
}
