//! The tensors that a checkpoint would have if nothing were quantized or fused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use super::{DenseError, experts, quantized, shapes};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::declaration::without_declaration;
use crate::checkpoint::header::TensorInfo;
use crate::ops::dequantize::StoredWeight;
use crate::ops::float_dtype::FloatDtype;

/// A checkpoint seen as dense tensors.
#[derive(Debug)]
pub struct DenseSource {
    pub(super) checkpoint: Arc<Checkpoint>,
    config: Value,
    tensors: BTreeMap<String, DenseTensor>,
    /// Names by shard of the checkpoint, in the order of the data.
    shards: Vec<Vec<String>>,
    quantized: bool,
    /// Fused tensors by the modules of their experts, e.g. `model.layers.0.mlp.experts`.
    fused: BTreeMap<String, Vec<String>>,
    unclear: BTreeMap<String, String>,
}

/// One dense tensor.
#[derive(Debug, Clone)]
pub struct DenseTensor {
    /// Name.
    pub name: String,
    /// Element type of what is read: the stored one, or the model's float type for a quantized weight.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    pub(super) storage: Storage,
}

/// What a dense tensor is made from.
#[derive(Debug, Clone)]
pub(super) enum Storage {
    /// The tensor of the same name, as it is.
    Plain,
    /// Codes and scales.
    Quantized(Box<StoredWeight>),
    /// Elements of a larger tensor: element (row, column) lies at `offset + row · strides[0] + column · strides[1]`.
    Part { base: String, offset: usize, strides: [usize; 2] },
}

impl DenseTensor {
    /// Elements of a row: the product of all dimensions but the first.
    pub fn row_elements(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Bytes of a dense row.
    pub fn row_bytes(&self) -> usize {
        self.row_elements() * self.dtype.bitsize() / 8
    }

    /// Bytes of the whole tensor.
    pub fn num_bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|d| *d as u64).product();
        (elements * self.dtype.bitsize() as u64).div_ceil(8)
    }

    /// The float type of its elements, if it is one that weights are quantized from.
    pub fn float_dtype(&self) -> Option<FloatDtype> {
        FloatDtype::of(self.dtype)
    }

    /// Whether the bytes on disk are those that are read.
    pub fn is_plain(&self) -> bool {
        matches!(self.storage, Storage::Plain)
    }

    /// Whether it is dequantized.
    pub fn is_dequantized(&self) -> bool {
        matches!(self.storage, Storage::Quantized(_))
    }

    /// The tensor of the checkpoint whose bytes it stands on.
    pub fn stored_name(&self) -> &str {
        match &self.storage {
            Storage::Plain => &self.name,
            Storage::Quantized(stored) => stored.codes(),
            Storage::Part { base, .. } => base,
        }
    }
}

impl DenseSource {
    /// Finds all tensors, from headers and config; values of global scales and zero points are read too.
    pub fn open(checkpoint: Arc<Checkpoint>) -> Result<Self, DenseError> {
        let found = quantized::find(&checkpoint)?;
        let config = without_declaration(checkpoint.config());
        let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
        let left: Vec<&TensorInfo> = infos.filter(|i| !found.absorbed.contains(&i.name)).collect();
        let split = experts::split(&left, &config);
        let fused: BTreeSet<&str> = split.fused.values().flatten().map(String::as_str).collect();
        let plain = left.iter().filter(|i| !fused.contains(i.name.as_str())).map(|i| plain(i));
        let mut tensors: BTreeMap<String, DenseTensor> = BTreeMap::new();
        for tensor in plain.chain(found.weights).chain(split.parts) {
            let base = tensor.stored_name().to_owned();
            if let Some(other) = tensors.insert(tensor.name.clone(), tensor) {
                return Err(DenseError::NameTaken { tensor: other.name, base });
            }
        }
        shapes::check(tensors.values(), &config)?;
        let shards = in_order(&checkpoint, &tensors);
        Ok(Self {
            config,
            tensors,
            shards,
            quantized: found.declared,
            fused: split.fused,
            unclear: split.unclear,
            checkpoint,
        })
    }

    /// The checkpoint underneath.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// `config.json` as it would be without a quantization.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Whether the checkpoint is quantized itself.
    pub fn is_quantized(&self) -> bool {
        self.quantized
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &DenseTensor> {
        self.tensors.values()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&DenseTensor> {
        self.tensors.get(name)
    }

    /// The tensors that stand on one shard of the checkpoint, in the order of its data.
    pub fn shard(&self, shard: usize) -> impl Iterator<Item = &DenseTensor> {
        self.shards.get(shard).into_iter().flatten().filter_map(|name| self.tensors.get(name))
    }

    /// Modules of experts that are stored fused and were split, each with the names of its fused tensors.
    pub fn fused(&self) -> &BTreeMap<String, Vec<String>> {
        &self.fused
    }

    /// Takes back the splitting of these modules of experts: their fused tensors stand as they are stored. For experts of
    /// which none is quantized, whose model expects them so.
    pub fn keep_fused(&mut self, modules: &[String]) {
        let names: BTreeSet<String> = modules.iter().filter_map(|m| self.fused.remove(m)).flatten().collect();
        if names.is_empty() {
            return;
        }
        self.tensors.retain(|_, t| t.is_plain() || !names.contains(t.stored_name()));
        let kept = names.iter().filter_map(|name| self.checkpoint.info(name)).map(plain);
        self.tensors.extend(kept.map(|t| (t.name.clone(), t)));
        self.shards = in_order(&self.checkpoint, &self.tensors);
    }

    /// Fused experts that were not split because their layout is not certain, with the reason.
    pub fn unclear(&self) -> &BTreeMap<String, String> {
        &self.unclear
    }

    /// Bytes of the checkpoint's tensors as they are stored.
    pub fn stored_bytes(&self) -> u64 {
        self.checkpoint.names().filter_map(|name| self.checkpoint.info(name)).map(TensorInfo::num_bytes).sum()
    }
}

/// The names of the tensors that stand on each shard, in the order of its data.
fn in_order(checkpoint: &Checkpoint, tensors: &BTreeMap<String, DenseTensor>) -> Vec<Vec<String>> {
    let mut standing: BTreeMap<&str, Vec<&DenseTensor>> = BTreeMap::new();
    for tensor in tensors.values() {
        standing.entry(tensor.stored_name()).or_default().push(tensor);
    }
    for parts in standing.values_mut() {
        parts.sort_by_key(|t| if let Storage::Part { offset, .. } = t.storage { offset } else { 0 });
    }
    let of_shard = |names: &[String]| {
        let standing = names.iter().filter_map(|name| standing.get(name.as_str())).flatten();
        standing.map(|t| t.name.clone()).collect()
    };
    checkpoint.shards().iter().map(|shard| of_shard(&shard.tensors)).collect()
}

fn plain(info: &TensorInfo) -> DenseTensor {
    DenseTensor {
        name: info.name.clone(),
        dtype: info.dtype,
        shape: info.shape.clone(),
        storage: Storage::Plain,
    }
}
