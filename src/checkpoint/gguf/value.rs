//! Metadata values of a GGUF file, and typed access to them by key.

use std::collections::BTreeMap;

use super::error::GgufProblem;

/// A metadata value. Integers of all widths are kept as `i128`: what counts is the number, not its storage.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// u8 to u64, i8 to i64.
    Int(i128),
    /// f32.
    F32(f32),
    /// f64.
    F64(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    List(Vec<Value>),
}

impl Value {
    /// The value as messages show it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Int(n) => n.to_string(),
            Self::F32(x) => x.to_string(),
            Self::F64(x) => x.to_string(),
            Self::Bool(b) => b.to_string(),
            Self::Text(s) => format!("'{}'", super::super::header::shown(s)),
            Self::List(items) => format!("a list of {}", items.len()),
        }
    }
}

/// All metadata of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub(crate) BTreeMap<String, Value>);

type Found<T> = Result<Option<T>, GgufProblem>;

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Text.
    pub fn text(&self, key: &str) -> Found<&str> {
        self.typed(key, "a string", |v| if let Value::Text(s) = v { Some(s.as_str()) } else { None })
    }

    /// A number that counts something.
    pub fn count(&self, key: &str) -> Found<usize> {
        self.typed(key, "a number, 0 to 2^31 − 1", |v| match v {
            Value::Int(n) => i32::try_from(*n).ok().and_then(|n| usize::try_from(n).ok()),
            _ => None,
        })
    }

    /// A finite number, as the shortest decimal that denotes it: 1e-5 stored as f32 is 1e-5 and not
    /// 9.999999747378752e-6.
    pub fn float(&self, key: &str) -> Found<f64> {
        self.typed(key, "a finite number", |v| match v {
            Value::F32(x) => x.to_string().parse::<f64>().ok().filter(|x| x.is_finite()),
            Value::F64(x) => Some(*x).filter(|x| x.is_finite()),
            Value::Int(n) => Some(*n as f64),
            _ => None,
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Found<bool> {
        self.typed(key, "a boolean", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Found<Vec<&str>> {
        self.list(key, "a list of strings", |v| if let Value::Text(s) = v { Some(s.as_str()) } else { None })
    }

    /// A list of integers.
    pub fn ints(&self, key: &str) -> Found<Vec<i64>> {
        self.list(key, "a list of integers", |v| {
            if let Value::Int(n) = v { i64::try_from(*n).ok() } else { None }
        })
    }

    /// A list of f32.
    pub fn floats(&self, key: &str) -> Found<Vec<f32>> {
        self.list(key, "a list of f32", |v| if let Value::F32(x) = v { Some(*x) } else { None })
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: impl Fn(&'a Value) -> Option<T>,
    ) -> Found<Vec<T>> {
        self.typed(key, expected, |v| {
            if let Value::List(items) = v { items.iter().map(&pick).collect() } else { None }
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Found<T> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match pick(value) {
            Some(picked) => Ok(Some(picked)),
            None => Err(GgufProblem::field(key, expected, value.describe())),
        }
    }
}

/// A key that must be there.
pub(crate) fn required<T>(found: Found<T>, key: &str) -> Result<T, GgufProblem> {
    found?.ok_or_else(|| GgufProblem::MissingKey { key: key.to_owned() })
}
