//! A task or group file: YAML with `include` resolved, each key remembering the file and line it came from.
//!
//! Source: lm-eval 0.4.13, `tasks/_yaml_loader.py` (keys of the including file win; later includes win over
//! earlier ones).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use serde_yaml_ng::Value as Yaml;

use super::embedded;
use super::error::{Place, SuiteError};

/// The key of the object that stands for a `!function` tag: `{"!function": "module.name"}`.
pub(super) const FUNCTION_TAG: &str = "!function";

/// Where a definition is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A file of this program, by its path under `suites/`.
    Embedded(&'static str),
    /// A file of the user.
    File(PathBuf),
}

impl Origin {
    /// As messages name it.
    pub fn display(&self) -> String {
        match self {
            Self::Embedded(name) => format!("built-in/{name}"),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// The same for the same file, however its path is written.
    pub fn identity(&self) -> Self {
        match self {
            Self::Embedded(name) => Self::Embedded(name),
            Self::File(path) => Self::File(path.canonicalize().unwrap_or_else(|_| path.clone())),
        }
    }

    fn read(&self) -> Result<String, SuiteError> {
        match self {
            Self::Embedded(name) => Ok(embedded::definition(name).unwrap_or_default().to_owned()),
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|source| SuiteError::Read { path: path.clone(), source }),
        }
    }

    /// The file that this one calls `name`.
    fn beside(&self, name: &str) -> Result<Self, SuiteError> {
        match self {
            Self::Embedded(own) => {
                let path = Path::new(own).with_file_name(name);
                let known = embedded::definition_names();
                let found = known.iter().find(|k| Path::new(k) == path);
                found.map(|k| Self::Embedded(k)).ok_or_else(|| SuiteError::UnknownName {
                    name: name.to_owned(),
                    known: known.iter().map(|k| (*k).to_owned()).collect(),
                })
            }
            Self::File(own) => Ok(Self::File(own.parent().unwrap_or(Path::new("")).join(name))),
        }
    }
}

/// A definition after includes.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    /// The file that was asked for.
    pub origin: Origin,
    /// Keys and values; `null` stands for an unset key, as in lm-eval.
    pub values: Map<String, Value>,
    places: HashMap<String, Place>,
}

impl Definition {
    /// Reads a file and what it includes.
    pub fn load(origin: &Origin) -> Result<Self, SuiteError> {
        Self::load_below(origin, &mut Vec::new())
    }

    fn load_below(origin: &Origin, above: &mut Vec<Origin>) -> Result<Self, SuiteError> {
        let file = origin.display();
        let identity = origin.identity();
        if above.contains(&identity) {
            return Err(SuiteError::IncludeCycle { file });
        }
        let own = Self::parse(origin, &origin.read()?)?;
        let mut merged = Self { origin: origin.clone(), values: Map::new(), places: HashMap::new() };
        above.push(identity);
        for name in own.includes()? {
            merged.update(Self::load_below(&origin.beside(&name)?, above)?);
        }
        above.pop();
        merged.update(own);
        merged.values.shift_remove("include");
        Ok(merged)
    }

    /// Parses one file without its includes.
    fn parse(origin: &Origin, text: &str) -> Result<Self, SuiteError> {
        let file = origin.display();
        let fail = |detail: String| SuiteError::Yaml { file: file.clone(), detail };
        let yaml: Yaml = serde_yaml_ng::from_str(text).map_err(|e| fail(e.to_string()))?;
        let Yaml::Mapping(mapping) = yaml else { return Err(fail("the top level is no mapping".to_owned())) };
        let mut values = Map::new();
        let mut places = HashMap::new();
        for (key, value) in mapping {
            let key = key_text(&key).map_err(fail)?;
            let value = to_json(value).map_err(|e| fail(format!("{key}: {e}")))?;
            places.insert(key.clone(), Place::new(file.clone(), line_of(text, &key, true)));
            values.insert(key, value);
        }
        for (key, value) in &values {
            collect_nested(text, &file, key, value, &mut places);
        }
        Ok(Self { origin: origin.clone(), values, places })
    }

    fn includes(&self) -> Result<Vec<String>, SuiteError> {
        let wrong = |found: &Value| SuiteError::Value {
            place: self.place("include"),
            key: "include".to_owned(),
            detail: format!("expected a file name or a list of them, found {found}"),
        };
        match self.values.get("include") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(list @ Value::Array(names)) => {
                names.iter().map(|n| n.as_str().map(str::to_owned).ok_or_else(|| wrong(list))).collect()
            }
            Some(other) => Err(wrong(other)),
        }
    }

    /// Puts the keys of `other` over these.
    pub fn update(&mut self, other: Self) {
        self.values.extend(other.values);
        self.places.extend(other.places);
    }

    /// Puts inline overrides over these keys.
    pub fn override_with(&mut self, values: &Map<String, Value>) {
        for (key, value) in values {
            self.values.insert(key.clone(), value.clone());
        }
    }

    /// The value of a key that is set.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// Where a key is written; nested keys are named `outer.inner`.
    pub fn place(&self, key: &str) -> Place {
        self.places.get(key).cloned().unwrap_or_else(|| Place::new(self.origin.display(), None))
    }
}

fn key_text(key: &Yaml) -> Result<String, String> {
    match key {
        Yaml::String(s) => Ok(s.clone()),
        Yaml::Number(n) => Ok(n.to_string()),
        Yaml::Bool(b) => Ok(b.to_string()),
        other => Err(format!("a key must be a text, found {other:?}")),
    }
}

fn to_json(yaml: Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => b.into(),
        Yaml::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), ..) => i.into(),
            (_, Some(u), _) => u.into(),
            (.., f) => f.and_then(serde_json::Number::from_f64).ok_or("not a finite number")?.into(),
        },
        Yaml::String(s) => s.into(),
        Yaml::Sequence(list) => list.into_iter().map(to_json).collect::<Result<Vec<_>, _>>()?.into(),
        Yaml::Mapping(mapping) => {
            let mut map = Map::new();
            for (key, value) in mapping {
                map.insert(key_text(&key)?, to_json(value)?);
            }
            map.into()
        }
        Yaml::Tagged(tagged) if tagged.tag == "function" => {
            let name = tagged.value.as_str().ok_or("!function takes a name")?;
            Value::Object(Map::from_iter([(FUNCTION_TAG.to_owned(), name.into())]))
        }
        Yaml::Tagged(tagged) => return Err(format!("unknown tag {}", tagged.tag)),
    })
}

/// Lines of the keys inside lists and mappings, by their first occurrence with indentation.
fn collect_nested(text: &str, file: &str, outer: &str, value: &Value, places: &mut HashMap<String, Place>) {
    match value {
        Value::Object(map) => {
            for key in map.keys() {
                let place = Place::new(file, line_of(text, key, false));
                places.entry(format!("{outer}.{key}")).or_insert(place);
            }
        }
        Value::Array(list) => list.iter().for_each(|v| collect_nested(text, file, outer, v, places)),
        _ => {}
    }
}

/// The first line that begins with `key:`, plain or quoted; the YAML parser gives no positions of keys.
fn line_of(text: &str, key: &str, top_level: bool) -> Option<usize> {
    let starts = |line: &str| {
        ["", "\"", "'"].iter().any(|quote| {
            let rest = line.strip_prefix(quote).and_then(|l| l.strip_prefix(key));
            rest.and_then(|l| l.strip_prefix(quote)).is_some_and(|l| l.trim_start().starts_with(':'))
        })
    };
    let position = text.lines().position(|line| {
        if top_level { starts(line) } else { starts(line.trim_start().trim_start_matches("- ").trim_start()) }
    });
    position.map(|i| i + 1)
}
