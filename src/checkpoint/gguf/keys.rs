//! Metadata keys of one architecture, `<architecture>.<key>`, with a note of which were read.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::error::GgufProblem;
use super::value::{Metadata, Value, required};

/// Keys that say nothing about the computation, or what tensors say too.
const HARMLESS: &[&str] = &["vocab_size", "rope.scaling.finetuned", "tensor_data_layout"];

/// Access to `<architecture>.*`.
pub(super) struct Keys<'a> {
    meta: &'a Metadata,
    architecture: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub fn of(meta: &'a Metadata, architecture: &'a str) -> Self {
        Self { meta, architecture, read: RefCell::default() }
    }

    /// The whole key.
    pub fn name(&self, key: &str) -> String {
        let name = format!("{}.{key}", self.architecture);
        self.read.borrow_mut().insert(name.clone());
        name
    }

    pub fn count(&self, key: &str) -> Result<Option<usize>, GgufProblem> {
        self.meta.count(&self.name(key))
    }

    /// A number above 0.
    pub fn positive(&self, key: &str) -> Result<usize, GgufProblem> {
        let name = self.name(key);
        match required(self.meta.count(&name), &name)? {
            0 => Err(GgufProblem::field(&name, "a positive number", 0)),
            n => Ok(n),
        }
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufProblem> {
        self.meta.float(&self.name(key))
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufProblem> {
        self.meta.bool(&self.name(key))
    }

    pub fn required_float(&self, key: &str) -> Result<f64, GgufProblem> {
        let name = self.name(key);
        required(self.meta.float(&name), &name)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufProblem> {
        self.meta.text(&self.name(key))
    }

    /// Refuses a number other than the one that is implemented.
    pub fn only(&self, key: &str, value: usize) -> Result<(), GgufProblem> {
        match self.meta.get(&self.name(key)) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Int(n)) if usize::try_from(*n) == Ok(value) => Ok(()),
            Some(other) => {
                Err(GgufProblem::unsupported(&self.name(key), &value.to_string(), other.describe()))
            }
        }
    }

    /// Refuses keys that were not read and say something: what they change is not known.
    pub fn refuse_unread(&self) -> Result<(), GgufProblem> {
        let read = self.read.borrow();
        let prefix = format!("{}.", self.architecture);
        for (name, value) in &self.meta.0 {
            let Some(key) = name.strip_prefix(&prefix) else { continue };
            let nothing = match value {
                Value::Int(n) => *n == 0,
                Value::F32(x) => *x == 0.0,
                Value::F64(x) => *x == 0.0,
                Value::Bool(b) => !b,
                Value::Text(s) => s.is_empty(),
                Value::List(items) => items.is_empty(),
            };
            if !nothing && !read.contains(name) && !HARMLESS.contains(&key) {
                return Err(GgufProblem::unsupported(name, "no such key", value.describe()));
            }
        }
        Ok(())
    }
}
