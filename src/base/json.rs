//! JSON artifacts: sorted keys, trailing newline, written atomically; errors name the file and the place.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A JSON file that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The content is not the JSON that was expected; the source names line, column and field.
    #[error("{}: unexpected content", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Compact JSON text with all object keys sorted: the form that is hashed.
pub fn canonical(value: &impl Serialize) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    serde_json::to_string(&value)
}

/// Indented JSON text with all object keys sorted and a trailing newline: the form of every artifact.
pub fn pretty(value: &impl Serialize) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// Writes `value` to `path` atomically, as [`pretty`].
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), JsonError> {
    let text = pretty(value).map_err(|source| JsonError::Parse { path: path.to_path_buf(), source })?;
    super::atomic::write(path, text.as_bytes())
        .map_err(|source| JsonError::Write { path: path.to_path_buf(), source })
}

/// Reads `path` as a `T`.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, JsonError> {
    let bytes = std::fs::read(path).map_err(|source| JsonError::Read { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| JsonError::Parse { path: path.to_path_buf(), source })
}

/// Parses a value in which no object has a key twice. Which of two values a reader takes is up to the reader, so a file
/// that decides what a model is must not have any.
pub fn parse_unique(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Unique>(text).map(|unique| unique.0)
}

/// A value in which no object has a key twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(element)) = elements.next_element()? {
            list.push(element);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                let shown: String = key.chars().take(120).flat_map(char::escape_debug).collect();
                return Err(A::Error::custom(format_args!("key '{shown}' occurs twice")));
            }
            let Unique(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

impl JsonError {
    /// The underlying I/O error, if that is what failed.
    pub fn io(&self) -> Option<&std::io::Error> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => Some(source),
            Self::Parse { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_values_are_those_of_serde_json() {
        let text =
            r#"{"b": [1, -2, 3.5, 1e300, 18446744073709551615, "x\u00e9", null, true], "a": {"b": {}}}"#;
        assert_eq!(parse_unique(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_key_that_occurs_twice_is_named_with_its_place() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"{"x": [{"a": {}, "b": 2, "a": null}]}"#] {
            let error = parse_unique(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("key 'a' occurs twice") && error.contains("line 1 column"), "{error}");
        }
        assert!(parse_unique(b"{\"a\": 1} x").is_err());
        assert!(parse_unique("[".repeat(100_000).as_bytes()).is_err());
    }
}
