//! What follows the shards: index, `config.json`, every other file of the source, and the record.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};

use super::{QuantizeError, QuantizePlan, config};
use crate::base::atomic::{self, AtomicFile};
use crate::checkpoint::files::{CONFIG, INDEX, SINGLE};
use crate::checkpoint::modelopt;
use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::record::quantize::{QuantizeRecord, ShardRecord};
use crate::record::{Provenance, SCHEMA_VERSION};

impl QuantizePlan {
    /// Completes the checkpoint in `staging` after all shards are there. `shards` are their records in any order; the
    /// caller waits for storage and gives the directory its final name.
    pub fn finish(
        &self,
        staging: &Path,
        mut shards: Vec<ShardRecord>,
        mut provenance: Provenance,
    ) -> Result<QuantizeRecord, QuantizeError> {
        shards.sort_by(|a, b| a.file.cmp(&b.file));
        self.check_records(&shards)?;
        atomic::remove_leftovers(staging).map_err(|source| write_failed(staging, source))?;
        Self::write_index(staging, &shards)?;
        self.write_config(staging)?;
        self.copy_files(staging)?;
        let source_digest = self.source.checkpoint().digest()?;
        provenance.inputs.entry("source".to_owned()).or_insert_with(|| source_digest.clone());
        provenance.inputs.entry("recipe".to_owned()).or_insert_with(|| self.recipe.digest.clone());
        // Opening validates what was written: headers, index and config.
        let written = Checkpoint::open(staging)?;
        // Taken while the shards were written.
        let known = shards.iter().map(|s| (s.file.as_str(), &s.digest)).collect();
        let output_digest = written.digest_knowing(&known)?;
        Ok(QuantizeRecord {
            schema_version: SCHEMA_VERSION,
            recipe: self.recipe.name.clone(),
            recipe_version: self.recipe.version,
            source_digest,
            output_digest,
            source_tensor_bytes: self.source_tensor_bytes(),
            predicted_tensor_bytes: self.predicted_tensor_bytes(),
            output_tensor_bytes: shards.iter().map(|s| s.tensor_bytes).sum(),
            quantized_modules: self.modules().len(),
            excluded_modules: self.excluded_modules(),
            calibration: self.calibration_summary(),
            shards,
            sync_s: None,
            device_seconds: None,
            provenance,
        })
    }

    /// Deletes everything in `staging` but the shards of this plan and what is being written: a killed run with another
    /// source or recipe may have left its own. What belongs beside the shards is written by [`Self::finish`].
    pub fn keep_only_shards(&self, staging: &Path) -> Result<(), QuantizeError> {
        let failed = |source| write_failed(staging, source);
        let own: BTreeSet<&str> = (0..self.num_shards()).map(|i| self.shard_file_name(i)).collect();
        for entry in std::fs::read_dir(staging).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| own.contains(name)) || atomic::is_temporary(&name) {
                continue;
            }
            let is_dir = entry.file_type().map_err(failed)?.is_dir();
            let path = entry.path();
            let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|source| write_failed(&path, source))?;
        }
        Ok(())
    }

    /// One record for each shard of the plan, with its tensors.
    fn check_records(&self, shards: &[ShardRecord]) -> Result<(), QuantizeError> {
        let found: Vec<&str> = shards.iter().map(|s| s.file.as_str()).collect();
        let mut expected: Vec<&str> = (0..self.num_shards()).map(|i| self.shard_file_name(i)).collect();
        expected.sort_unstable();
        if found != expected {
            return Err(QuantizeError::Shards { found: found.join(", "), expected: expected.join(", ") });
        }
        Ok(())
    }

    /// `model.safetensors.index.json`, unless there is only `model.safetensors`.
    fn write_index(staging: &Path, shards: &[ShardRecord]) -> Result<(), QuantizeError> {
        if let [only] = shards
            && only.file == SINGLE
        {
            return Ok(());
        }
        let weight_map: BTreeMap<&str, &str> =
            shards.iter().flat_map(|s| s.tensors.iter().map(|t| (t.as_str(), s.file.as_str()))).collect();
        let total: u64 = shards.iter().map(|s| s.tensor_bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let path = staging.join(INDEX);
        let failed = |source| write_failed(&path, source);
        let text = crate::base::json::pretty(&index).map_err(|e| failed(e.into()))?;
        atomic::write_without_sync(&path, text.as_bytes()).map_err(failed)
    }

    /// The source's config with `quantization_config` added; every other key keeps its value and place.
    fn write_config(&self, staging: &Path) -> Result<(), QuantizeError> {
        let mut config = self.source.config().clone();
        let declared = match self.recipe.dialect {
            Dialect::CompressedTensors => config::quantization_config(&self.recipe, &self.assignment),
            Dialect::Modelopt => {
                let (declared, file) = super::modelopt::declarations(&self.recipe, &self.assignment);
                crate::base::json::write(&staging.join(modelopt::FILE), &file)?;
                declared
            }
        };
        if let Value::Object(keys) = &mut config {
            keys.insert("quantization_config".to_owned(), declared);
        }
        let path = staging.join(CONFIG);
        let failed = |source| write_failed(&path, source);
        let text = serde_json::to_string_pretty(&config).map_err(|e| failed(e.into()))? + "\n";
        atomic::write_without_sync(&path, text.as_bytes()).map_err(failed)
    }

    /// Tokenizer, generation config, licence, …: unchanged.
    fn copy_files(&self, staging: &Path) -> Result<(), QuantizeError> {
        for path in self.source.checkpoint().metadata_files() {
            let Some(name) = path.file_name().filter(|n| *n != CONFIG && *n != modelopt::FILE) else {
                continue;
            };
            let mut from =
                File::open(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
            let to = staging.join(name);
            let copied = AtomicFile::create(&to).and_then(|mut file| {
                std::io::copy(&mut from, &mut file)?;
                file.commit_without_sync()
            });
            copied.map_err(|source| write_failed(&to, source))?;
        }
        Ok(())
    }
}

fn write_failed(path: &Path, source: std::io::Error) -> QuantizeError {
    QuantizeError::Write { path: path.to_path_buf(), source }
}
