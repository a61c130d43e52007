//! The tensors of a checkpoint by name, with values where its bytes are at hand.

use std::collections::BTreeMap;
use std::sync::Mutex;

use safetensors::Dtype;
use serde_json::Value;

use super::ScanError;
use super::opened::Opened;
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::{Checkpoint, QuantConfigError, QuantizationConfig, TensorView, modelopt};
use crate::recipe::assignment::TensorDecl;

/// Headers, config and, for a local checkpoint, values.
pub(super) struct Table<'a> {
    /// By name.
    pub tensors: BTreeMap<&'a str, &'a TensorInfo>,
    config: Option<&'a Value>,
    opened: Option<&'a Opened>,
    /// The first error of reading values; kept here so that lookups stay simple, and raised at the end.
    failed: Mutex<Option<ScanError>>,
}

/// The values of one tensor.
pub(super) struct Values {
    pub dtype: Dtype,
    pub data: Vec<u8>,
}

impl Values {
    pub(super) fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: Vec::new(), data: &self.data }
    }
}

impl<'a> Table<'a> {
    pub(super) fn new(opened: &'a Opened) -> Self {
        let (tensors, config): (BTreeMap<_, _>, _) = match opened {
            Opened::Dir(checkpoint, _) => {
                (checkpoint.infos().map(by_name).collect(), Some(checkpoint.config()))
            }
            Opened::File(file) => (file.header.tensors.iter().map(by_name).collect(), file.config.as_ref()),
            Opened::Remote(remote) => {
                let infos = remote.shards.iter().flat_map(|s| &s.header.tensors);
                (infos.map(by_name).collect(), remote.config.as_ref())
            }
        };
        let opened = opened.has_values().then_some(opened);
        Self { tensors, config, opened, failed: Mutex::default() }
    }

    /// Headers and config alone.
    #[cfg(test)]
    pub(super) fn of_headers(infos: &'a [TensorInfo], config: &'a Value) -> Self {
        let tensors = infos.iter().map(by_name).collect();
        Self { tensors, config: Some(config), opened: None, failed: Mutex::default() }
    }

    /// The values of a tensor; `None` when only headers are known, there is no such tensor, or it cannot be read.
    pub(super) fn values(&self, name: &str) -> Option<Values> {
        let bytes = self.tensors.get(name)?.num_bytes();
        Some(Values { dtype: self.tensors.get(name)?.dtype, data: self.bytes(name, 0, bytes)? })
    }

    /// `count` bytes of a tensor's data from `offset` on.
    pub(super) fn bytes(&self, name: &str, offset: u64, count: u64) -> Option<Vec<u8>> {
        let opened = self.opened?;
        // No longer than the file, which the header was checked against.
        let mut data = vec![0; usize::try_from(count).ok()?];
        match opened.read(name, offset, &mut data) {
            Ok(()) => Some(data),
            Err(error) => {
                if let Ok(mut failed) = self.failed.lock() {
                    failed.get_or_insert(error);
                }
                None
            }
        }
    }

    /// The error of any lookup of values so far.
    pub(super) fn failure(self) -> Result<(), ScanError> {
        let failed = self.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed.map_or(Ok(()), Err)
    }

    pub(super) fn has_values(&self) -> bool {
        self.opened.is_some()
    }

    /// The checkpoint itself, where its files are at hand.
    pub(super) fn checkpoint(&self) -> Option<&'a Checkpoint> {
        self.opened?.dir()
    }

    /// `config.json`.
    pub(super) fn config(&self) -> Option<&'a Value> {
        self.config
    }

    /// A key of `config.json`, or of its `text_config`.
    pub(super) fn config_key(&self, key: &str) -> Option<&'a Value> {
        let config = self.config?;
        config.get(key).or_else(|| config.get("text_config")?.get(key)).filter(|v| !v.is_null())
    }

    /// The object that declares the quantization.
    pub(super) fn declared(&self) -> Option<&'a Value> {
        if let Some(checkpoint) = self.checkpoint() {
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

    /// All tensors as the recipe reads them, sorted by name.
    pub(super) fn decls(&self) -> Vec<TensorDecl<'a>> {
        self.tensors.values().map(|info| decl(info)).collect()
    }
}

fn by_name(info: &TensorInfo) -> (&str, &TensorInfo) {
    (info.name.as_str(), info)
}

/// A header entry as the recipe reads it.
pub(super) fn decl(info: &TensorInfo) -> TensorDecl<'_> {
    TensorDecl { name: &info.name, dtype: info.dtype, shape: &info.shape }
}

/// `BF16 [576, 576]`.
pub(super) fn shown(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype} {shape:?}")
}
