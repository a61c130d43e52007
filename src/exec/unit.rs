//! The unit of work.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::digest::{Digest, DigestBuilder};
use crate::record::Failure;

/// Content-addressed key of a unit: the digest of everything its output depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnitKey(Digest);

impl UnitKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for UnitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.short(16))
    }
}

/// Builds a key from named parts.
pub struct KeyBuilder(DigestBuilder);

impl KeyBuilder {
    /// Starts the key of a `kind` of unit. The kind carries a version: raise it when the unit's output changes.
    pub fn new(kind: &str) -> Self {
        let mut digest = DigestBuilder::default();
        digest.field(kind.as_bytes());
        Self(digest)
    }

    /// Adds a named part.
    #[must_use]
    pub fn part(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.field(name.as_bytes()).field(value.to_string().as_bytes());
        self
    }

    /// The key.
    pub fn finish(self) -> UnitKey {
        UnitKey(self.0.finish())
    }
}

/// What follows from a unit's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flow {
    /// Dependents may run.
    Continue,
    /// Nothing after this unit runs, except nodes that always run (a gate that is not ACCEPT).
    Halt,
}

/// Output of a finished unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The result, kept in the ledger.
    pub value: Value,
    /// What follows.
    pub flow: Flow,
    /// Whether it holds for this run only, although the node's results may serve other runs.
    pub private: bool,
}

impl Output {
    /// An output after which the graph goes on.
    pub fn of(value: &impl Serialize) -> Result<Self, Failure> {
        Self::with(value, Flow::Continue)
    }

    /// An output with an explicit flow.
    pub fn with(value: &impl Serialize, flow: Flow) -> Result<Self, Failure> {
        let value = serde_json::to_value(value).map_err(|e| {
            Failure::new(crate::record::FailureClass::Unknown, format!("a unit's output is not JSON: {e}"))
        })?;
        Ok(Self { value, flow, private: false })
    }

    /// An output that must not serve other runs.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }
}

/// What a running unit may ask of its executor.
pub struct Context<'a> {
    outputs: &'a BTreeMap<String, Value>,
}

impl<'a> Context<'a> {
    pub(super) fn new(outputs: &'a BTreeMap<String, Value>) -> Self {
        Self { outputs }
    }

    /// Output of the node called `name`, which must be done.
    pub fn output<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let unknown = |m: String| Failure::new(crate::record::FailureClass::Unknown, m);
        let value =
            self.outputs.get(name).ok_or_else(|| unknown(format!("unit '{name}' has no output yet")))?;
        T::deserialize(value)
            .map_err(|e| unknown(format!("output of unit '{name}' is not what was expected: {e}")))
    }
}

/// A piece of work that is done once.
pub trait Unit: Send + Sync {
    /// Its key.
    fn key(&self) -> &UnitKey;

    /// Does the work. Every artifact must be complete and under its final name when this returns.
    fn run(&self, context: &Context<'_>) -> Result<Output, Failure>;

    /// Whether a recorded output still holds, e.g. whether the files it names are there with the recorded digest.
    fn verify(&self, output: &Value) -> bool {
        let _ = output;
        true
    }

    /// Nodes whose outputs can become others under the same key (an item that failed is scored again): what was made of
    /// them is made again then.
    fn reads(&self) -> &[String] {
        &[]
    }

    /// Whether it is done again wherever the graph runs, on what is there then: it decides, and keeps nothing that others
    /// wait for.
    fn is_repeated(&self) -> bool {
        false
    }
}

/// A unit made of closures.
pub struct FnUnit<R, V> {
    key: UnitKey,
    run: R,
    verify: V,
    reads: Vec<String>,
    is_repeated: bool,
}

impl<R> FnUnit<R, fn(&Value) -> bool>
where
    R: Fn(&Context<'_>) -> Result<Output, Failure> + Send + Sync,
{
    /// A unit whose recorded output always holds.
    pub fn new(key: UnitKey, run: R) -> Self {
        Self { key, run, verify: |_| true, reads: Vec::new(), is_repeated: false }
    }
}

impl<R, V> FnUnit<R, V> {
    /// Sets the check of recorded outputs.
    pub fn verified_by<W: Fn(&Value) -> bool + Send + Sync>(self, verify: W) -> FnUnit<R, W> {
        let Self { key, run, reads, is_repeated, .. } = self;
        FnUnit { key, run, verify, reads, is_repeated }
    }

    /// Names the nodes whose outputs can become others.
    #[must_use]
    pub fn reading(self, reads: Vec<String>) -> Self {
        Self { reads, ..self }
    }

    /// Is done again wherever the graph runs.
    #[must_use]
    pub fn repeated(self) -> Self {
        Self { is_repeated: true, ..self }
    }
}

impl<R, V> Unit for FnUnit<R, V>
where
    R: Fn(&Context<'_>) -> Result<Output, Failure> + Send + Sync,
    V: Fn(&Value) -> bool + Send + Sync,
{
    fn key(&self) -> &UnitKey {
        &self.key
    }

    fn run(&self, context: &Context<'_>) -> Result<Output, Failure> {
        (self.run)(context)
    }

    fn verify(&self, output: &Value) -> bool {
        (self.verify)(output)
    }

    fn reads(&self) -> &[String] {
        &self.reads
    }

    fn is_repeated(&self) -> bool {
        self.is_repeated
    }
}
