//! The tensors that a source has once nothing is quantized or fused, as far as it can be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::ScanError;
use super::modules;
use super::opened::Opened;
use super::table::{Table, decl};
use crate::dense::DenseSource;
use crate::recipe::assignment::TensorDecl;

/// A source to compare with.
pub(super) enum SourceView<'a> {
    /// A directory: quantized weights are seen as what they stand for, fused experts one by one.
    Dense(DenseSource),
    /// One file or an address: tensors are seen as they are stored.
    Headers(&'a Table<'a>),
}

impl<'a> SourceView<'a> {
    pub(super) fn open(opened: &Opened, table: &'a Table<'a>) -> Result<Self, ScanError> {
        Ok(match opened {
            Opened::Dir(checkpoint, _) => Self::Dense(DenseSource::open(Arc::clone(checkpoint))?),
            _ => Self::Headers(table),
        })
    }

    /// All tensors, sorted by name.
    pub(super) fn decls(&self) -> Vec<TensorDecl<'_>> {
        match self {
            Self::Dense(dense) => dense.tensors().map(TensorDecl::from).collect(),
            Self::Headers(table) => table.decls(),
        }
    }

    /// The tensor of this name.
    pub(super) fn get(&self, name: &str) -> Option<TensorDecl<'_>> {
        match self {
            Self::Dense(dense) => dense.get(name).map(TensorDecl::from),
            Self::Headers(table) => table.tensors.get(name).map(|info| decl(info)),
        }
    }

    /// `config.json` without a quantization.
    pub(super) fn config(&self) -> &Value {
        match self {
            Self::Dense(dense) => dense.config(),
            Self::Headers(table) => table.config().unwrap_or(&Value::Null),
        }
    }

    /// Bytes of the tensors as they are stored.
    pub(super) fn stored_bytes(&self) -> u64 {
        match self {
            Self::Dense(dense) => dense.stored_bytes(),
            Self::Headers(table) => table.tensors.values().map(|info| info.num_bytes()).sum(),
        }
    }

    /// Whether it declares or holds a quantization.
    pub(super) fn is_quantized(&self) -> bool {
        match self {
            Self::Dense(dense) => dense.is_quantized(),
            Self::Headers(table) => {
                table.declared().is_some()
                    || modules::find(table, None).iter().any(|m| m.found.is_quantized())
            }
        }
    }

    /// Leaves experts fused that `tensors` have fused.
    pub(super) fn fuse_as_in<T>(&mut self, tensors: &BTreeMap<&str, T>) {
        if let Self::Dense(dense) = self {
            let is_fused = |(_, names): &(&String, &Vec<String>)| {
                names.iter().any(|name| tensors.contains_key(name.as_str()))
            };
            let fused: Vec<String> = dense.fused().iter().filter(is_fused).map(|(m, _)| m.clone()).collect();
            dense.keep_fused(&fused);
        }
    }
}
