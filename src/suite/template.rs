//! Templates of a task, rendered as lm-eval renders them.
//!
//! Source: lm-eval 0.4.13, `utils.py` (`apply_template`: Jinja2 with StrictUndefined, keep_trailing_newline and the
//! filter `regex_replace`) and `api/task.py` (`doc_to_text`, `doc_to_target`, `doc_to_choice`: a template equal to a
//! column name is that column; all-digit results become numbers where there are choices; choices and bracketed
//! targets are read back as Python literals).

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

use super::config::FieldSource;
use super::function::ValueFunction;
use crate::base::python;
use crate::model::jinja;

/// One `doc_to_…` setting, ready to apply.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Template {
    /// The value of a column, whatever its type.
    Column(String),
    /// A template by its name in the environment.
    Jinja(&'static str),
    /// The same for all rows.
    Constant(Value),
    /// A built-in function.
    Function(ValueFunction),
}

/// Makes an environment with lm-eval's settings.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_unknown_method_callback(jinja::unknown_method);
    environment.set_formatter(jinja::format_value);
    environment.add_filter("regex_replace", regex_replace);
    environment.add_filter("tojson", jinja::tojson);
    Ok(environment)
}

impl Template {
    /// Compiles `source` under `name`; `columns` are those of the data set.
    pub fn compile(
        environment: &mut Environment<'static>,
        name: &'static str,
        source: &FieldSource,
        columns: &[String],
    ) -> Result<Self, Error> {
        match source {
            FieldSource::Constant(value) => Ok(Self::Constant(value.clone())),
            FieldSource::Function(function) => Ok(Self::Function(*function)),
            FieldSource::Text(text) if columns.contains(text) => Ok(Self::Column(text.clone())),
            FieldSource::Text(text) => {
                environment.add_template_owned(name, text.clone())?;
                Ok(Self::Jinja(name))
            }
        }
    }

    /// Columns that it reads.
    pub fn columns(&self, environment: &Environment<'static>) -> Vec<String> {
        match self {
            Self::Column(column) => vec![column.clone()],
            Self::Constant(_) => Vec::new(),
            Self::Function(function) => function.columns().iter().map(|c| (*c).to_owned()).collect(),
            Self::Jinja(name) => {
                let globals: Vec<&str> = environment.globals().map(|(name, _)| name).collect();
                let read = environment.get_template(name).map(|t| t.undeclared_variables(false));
                let mut names: Vec<_> = read.unwrap_or_default().into_iter().collect();
                names.retain(|n| !globals.contains(&n.as_str()));
                names.sort();
                names
            }
        }
    }

    /// The value for a row: text from a template, anything from a column or constant.
    pub fn apply(
        &self,
        environment: &Environment<'static>,
        row: &Map<String, Value>,
    ) -> Result<Value, Error> {
        match self {
            Self::Column(column) => Ok(row.get(column).cloned().unwrap_or(Value::Null)),
            Self::Constant(value) => Ok(value.clone()),
            Self::Function(function) => {
                function.apply(row).map_err(|detail| Error::new(ErrorKind::InvalidOperation, detail))
            }
            Self::Jinja(name) => {
                environment.get_template(name)?.render(jinja::from_object(row)).map(Value::String)
            }
        }
    }

    /// Whether the value is the outcome of a template, which lm-eval then reads as a literal in places.
    pub fn is_rendered(&self) -> bool {
        matches!(self, Self::Jinja(_))
    }
}

/// lm-eval's filter `regex_replace(pattern, repl, count=0)`; Python's `\1` is a group here too.
fn regex_replace(
    text: &str,
    pattern: &str,
    replacement: &str,
    count: Option<usize>,
) -> Result<String, Error> {
    let invalid = |e: regex::Error| Error::new(ErrorKind::InvalidOperation, e.to_string());
    let pattern = regex::Regex::new(pattern).map_err(invalid)?;
    let groups = regex::Regex::new(r"\\(\d)").map_err(invalid)?;
    let escaped = replacement.replace('$', "$$");
    let replacement = groups.replace_all(&escaped, "$${${1}}");
    Ok(pattern.replacen(text, count.unwrap_or(0), replacement.as_ref()).into_owned())
}

/// `text.isdigit()` and then a literal: the number in an all-digit text.
pub(super) fn digits(text: &str) -> Option<Value> {
    let all_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all_digits { python::literal_eval(text).ok() } else { None }
}
