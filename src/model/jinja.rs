//! Jinja as Python renders it, over minijinja: values print as `str()` would print them, texts and lists have
//! Python's methods, `tojson` is `json.dumps`.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};
use serde_json::{Map, Number};

use crate::base::python;

/// A JSON value as a template value; object keys keep their order.
pub fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), ..) => Value::from(i),
            (_, Some(u), _) => Value::from(u),
            (.., f) => Value::from(f.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(list) => Value::from(list.iter().map(from_json).collect::<Vec<_>>()),
        serde_json::Value::Object(map) => from_object(map),
    }
}

/// A JSON object as template variables.
pub fn from_object(map: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(k, v)| (Value::from(k.as_str()), from_json(v))))
}

/// A template value as JSON; functions and other objects have none.
pub fn to_json(value: &Value) -> Result<serde_json::Value, Error> {
    Ok(match value.kind() {
        ValueKind::None => serde_json::Value::Null,
        ValueKind::Bool => value.is_true().into(),
        ValueKind::Number if value.is_integer() => {
            value.as_i64().map(Number::from).map_or(serde_json::Value::Null, serde_json::Value::Number)
        }
        ValueKind::Number => {
            let f: f64 = value.clone().try_into()?;
            Number::from_f64(f).map_or(serde_json::Value::Null, serde_json::Value::Number)
        }
        ValueKind::String => value.as_str().unwrap_or_default().into(),
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.map(|v| to_json(&v)).collect::<Result<Vec<_>, _>>()?.into()
        }
        ValueKind::Map => {
            let mut map = Map::new();
            for key in value.try_iter()? {
                map.insert(key.to_string(), to_json(&value.get_item(&key)?)?);
            }
            map.into()
        }
        kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} has no JSON form"))),
    })
}

/// Formatter of an environment: `{{ x }}` prints `str(x)`.
pub fn format_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::String | ValueKind::Plain | ValueKind::Bytes | ValueKind::Invalid => value.to_string(),
        _ => python::str(&to_json(value)?),
    };
    out.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot write the rendered text"))
}

/// Filter `tojson(indent=None)` as `json.dumps(ensure_ascii=False)`.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a minijinja filter")]
pub fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // transformers also lets templates pass these; their defaults are the only values supported.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    Ok(python::json_dumps(&to_json(value)?, indent))
}

/// Python's methods on texts, lists and dicts.
pub fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.kind(), method) {
        (ValueKind::Seq, "index") => list_index(value, args),
        (ValueKind::String, "index") => text_index(value, args),
        (ValueKind::String, "rsplit") => rsplit(value, args),
        (ValueKind::String, "removeprefix" | "removesuffix") => remove_end(value, method, args),
        (ValueKind::String, "strip" | "lstrip" | "rstrip") if args.is_empty() => Ok(strip(value, method)),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

fn list_index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    let position = list.try_iter()?.position(|item| item == *wanted);
    position.map(Value::from).ok_or_else(|| invalid(format!("{wanted} is not in the list {list}")))
}

fn text_index(text: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&str,) = from_args(args)?;
    let text = text.as_str().unwrap_or_default();
    let byte = text.find(wanted).ok_or_else(|| invalid(format!("{wanted:?} is not in the text {text:?}")))?;
    Ok(Value::from(text[..byte].chars().count()))
}

/// `str.rsplit(sep, maxsplit)`; without a separator, at runs of white space.
fn rsplit(text: &Value, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let text = text.as_str().unwrap_or_default();
    let limit = most.filter(|m| *m >= 0).map_or(usize::MAX, |m| m as usize);
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(invalid("empty separator".to_owned())),
        Some(separator) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        None => rsplit_space(text, limit),
    };
    parts.reverse();
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

/// Words from the right, and what is left of them as one part after `limit` words.
fn rsplit_space(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = python::rstrip(text);
    while !rest.is_empty() {
        let start = if parts.len() == limit {
            None
        } else {
            rest.rfind(python::is_space).map(|i| i + rest[i..].chars().next().map_or(1, char::len_utf8))
        };
        parts.push(&rest[start.unwrap_or(0)..]);
        rest = python::rstrip(&rest[..start.unwrap_or(0)]);
    }
    parts
}

fn remove_end(text: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (end,): (&str,) = from_args(args)?;
    let text = text.as_str().unwrap_or_default();
    let cut = if method == "removeprefix" { text.strip_prefix(end) } else { text.strip_suffix(end) };
    Ok(Value::from(cut.unwrap_or(text)))
}

fn strip(text: &Value, method: &str) -> Value {
    let text = text.as_str().unwrap_or_default();
    Value::from(match method {
        "strip" => text.trim_matches(python::is_space),
        "lstrip" => text.trim_start_matches(python::is_space),
        _ => text.trim_end_matches(python::is_space),
    })
}
