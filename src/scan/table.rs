//! The tensors of a checkpoint by name, with values where its bytes are at hand.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::Value;

use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::modelopt;
use crate::checkpoint::remote::RemoteCheckpoint;
use crate::checkpoint::{Checkpoint, QuantConfigError, QuantizationConfig, TensorView};
use crate::recipe::assignment::TensorDecl;

/// Headers, config and, for a local checkpoint, values.
pub(super) struct Table<'a> {
    /// By name.
    pub tensors: BTreeMap<&'a str, &'a TensorInfo>,
    config: Option<&'a Value>,
    checkpoint: Option<&'a Checkpoint>,
}

impl<'a> Table<'a> {
    pub(super) fn local(checkpoint: &'a Checkpoint) -> Self {
        let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
        Self {
            tensors: infos.map(|i| (i.name.as_str(), i)).collect(),
            config: Some(checkpoint.config()),
            checkpoint: Some(checkpoint),
        }
    }

    pub(super) fn remote(remote: &'a RemoteCheckpoint) -> Self {
        let infos = remote.shards.iter().flat_map(|s| &s.header.tensors);
        Self {
            tensors: infos.map(|i| (i.name.as_str(), i)).collect(),
            config: remote.config.as_ref(),
            checkpoint: None,
        }
    }

    /// A tensor with its values; `None` when only headers are known.
    pub(super) fn view(&self, name: &str) -> Option<TensorView<'a>> {
        self.checkpoint?.get(name)
    }

    pub(super) fn has_values(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// The checkpoint itself, where its files are at hand.
    pub(super) fn checkpoint(&self) -> Option<&'a Checkpoint> {
        self.checkpoint
    }

    fn declared(&self) -> Option<&'a Value> {
        if let Some(checkpoint) = self.checkpoint {
            return checkpoint.declared_quantization().map(|(value, _)| value);
        }
        let config = self.config?;
        let declared = config.get("quantization_config").or_else(|| config.get("compression_config"));
        declared.filter(|v| !v.is_null())
    }

    pub(super) fn quantization_config(&self) -> Result<Option<QuantizationConfig>, QuantConfigError> {
        self.declared().map(QuantizationConfig::parse).transpose()
    }

    /// `quant_method` as declared, whether it is supported or not.
    pub(super) fn quant_method(&self) -> Option<String> {
        let declared = self.declared()?;
        let by_file = declared.get("quantization").is_some_and(Value::is_object).then_some(modelopt::METHOD);
        let method = declared.get("quant_method").and_then(Value::as_str).or(by_file);
        Some(method.unwrap_or("unnamed").to_owned())
    }

    /// `config.json` without its quantization: what the source's would be.
    pub(super) fn unquantized_config(&self) -> Value {
        let mut config = self.config.cloned().unwrap_or_default();
        if let Value::Object(keys) = &mut config {
            keys.remove("quantization_config");
            keys.remove("compression_config");
        }
        config
    }
}

/// A header entry as the recipe reads it.
pub(super) fn decl(info: &TensorInfo) -> TensorDecl<'_> {
    TensorDecl { name: &info.name, dtype: info.dtype, shape: &info.shape }
}

/// `BF16 [576, 576]`.
pub(super) fn shown(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype} {shape:?}")
}
