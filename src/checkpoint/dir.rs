//! A Hugging Face checkpoint directory: `config.json`, weights in one or more safetensors files, tokenizer files.
//!
//! Everything is validated when the directory is opened: headers, the index against the shards, the config. After
//! that, tensors are slices of the mapped files.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;
use serde_json::Value;

use super::declaration::{Declaration, declared};
use super::error::CheckpointError;
use super::files::{self, CONFIG, INDEX, SINGLE};
use super::header::{self, Header, TensorInfo};
use super::modelopt;
use super::quantization_config::QuantizationConfig;
use super::tensor::TensorView;
use super::{file_digest, index};
use crate::base::closest::closest;
use crate::base::digest::{Digest, DigestBuilder};

/// An opened and validated checkpoint directory.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    modelopt_file: Option<Value>,
    files: Vec<String>,
    shards: Vec<ShardInfo>,
    maps: Vec<Mapped>,
    /// Every tensor as (shard, tensor within the shard's header), in the order of the names.
    by_name: Vec<(usize, usize)>,
    digest: OnceLock<Digest>,
}

/// One weight file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// File name within the directory.
    pub file: String,
    /// The tensors in the order of their data.
    pub tensors: Vec<String>,
}

/// Where the bytes of a tensor lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLocation {
    /// The file.
    pub path: PathBuf,
    /// Position of the first byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub num_bytes: u64,
}

#[derive(Debug)]
struct Mapped {
    header: Header,
    map: Mmap,
}

impl Checkpoint {
    /// Opens a directory that holds `model.safetensors`, or shards with `model.safetensors.index.json`.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let files = files::list(dir)?;
        let (shard_names, weight_map) = weight_files(dir, &files)?;
        let config = read_config(dir, &files)?;
        let modelopt_file = read_modelopt_file(dir, &files)?;
        // A damaged checkpoint gives the error of its first bad file whichever thread found one first.
        let maps: Vec<Result<Mapped, CheckpointError>> =
            shard_names.par_iter().map(|name| map_file(&dir.join(name))).collect();
        let maps = maps.into_iter().collect::<Result<Vec<_>, _>>()?;
        let shards: Vec<ShardInfo> = shard_names
            .into_iter()
            .zip(&maps)
            .map(|(file, m)| ShardInfo {
                file,
                tensors: m.header.tensors.iter().map(|t| t.name.clone()).collect(),
            })
            .collect();
        let mut by_name: Vec<(usize, usize)> = shards
            .iter()
            .enumerate()
            .flat_map(|(s, shard)| (0..shard.tensors.len()).map(move |t| (s, t)))
            .collect();
        let name = |(shard, tensor): (usize, usize)| shards[shard].tensors[tensor].as_str();
        by_name.par_sort_unstable_by(|a, b| name(*a).cmp(name(*b)).then(a.cmp(b)));
        if let Some(map) = weight_map {
            let held: Vec<(&str, &str)> =
                by_name.iter().map(|place| (name(*place), shards[place.0].file.as_str())).collect();
            index::check_sorted(&map, &held)?;
        }
        let dir = dir.to_path_buf();
        Ok(Self { dir, config, modelopt_file, files, shards, maps, by_name, digest: OnceLock::new() })
    }

    /// The directory, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json` verbatim; always an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.iter().map(|(shard, tensor)| self.shards[*shard].tensors[*tensor].as_str())
    }

    /// Dtype, shape and offsets of all tensors, sorted by name.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.by_name.iter().map(|(shard, tensor)| &self.maps[*shard].header.tensors[*tensor])
    }

    /// Elements of all tensors.
    pub fn num_elements(&self) -> u64 {
        self.infos().map(|info| info.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// The weight files, in the order of their names.
    pub fn shards(&self) -> &[ShardInfo] {
        &self.shards
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (mapped, info) = self.find(name)?;
        let start = mapped.header.data_start;
        // The header was validated against the length of this very map.
        let data = &mapped.map[(start + info.begin) as usize..(start + info.end) as usize];
        Some(TensorView { dtype: info.dtype, shape: info.shape.clone(), data })
    }

    /// The tensor of this name; its absence is an error.
    pub fn require(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        self.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            dir: self.dir.clone(),
            tensor: name.to_owned(),
            closest: closest(name, self.names()).map(str::to_owned),
        })
    }

    /// The values of a floating-point tensor; errors name file and tensor.
    pub fn require_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let path = || self.location(name).map(|l| l.path).unwrap_or_default();
        self.require(name)?.to_f32().map_err(|source| CheckpointError::Tensor {
            path: path(),
            tensor: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// Decodes values of a floating-point tensor from element `first` on into `out`; errors name file and tensor.
    pub fn require_f32_at(&self, name: &str, first: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let path = || self.location(name).map(|l| l.path).unwrap_or_default();
        self.require(name)?.read_f32(first, out).map_err(|source| CheckpointError::Tensor {
            path: path(),
            tensor: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// Dtype, shape and offsets without touching the data.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.find(name).map(|(_, info)| info)
    }

    /// Where the bytes of a tensor lie, for readers that must not map them.
    pub fn location(&self, name: &str) -> Option<TensorLocation> {
        let (shard, tensor) = self.place(name)?;
        let header = &self.maps[shard].header;
        let info = &header.tensors[tensor];
        let path = self.dir.join(&self.shards[shard].file);
        Some(TensorLocation { path, offset: header.data_start + info.begin, num_bytes: info.num_bytes() })
    }

    /// Lets the system take back the memory of a tensor's pages. They are read again when touched again.
    pub fn release(&self, name: &str) {
        self.release_bytes(name, 0..u64::MAX);
    }

    /// As [`Self::release`], for some of the tensor's bytes.
    pub fn release_bytes(&self, name: &str, range: Range<u64>) {
        let Some((mapped, info)) = self.find(name) else { return };
        let end = range.end.min(info.num_bytes());
        let first = range.start.min(end);
        let begin = (mapped.header.data_start + info.begin + first) as usize;
        let len = (end - first) as usize;
        // SAFETY: the map is a read-only file mapping, whose pages are refilled from the file: nothing can be lost.
        // Failure only means that the memory stays in use.
        let _ = unsafe { mapped.map.unchecked_advise_range(UncheckedAdvice::DontNeed, begin, len) };
    }

    /// The quantization that `config.json` or, where that has none, `hf_quant_config.json` declares, verbatim.
    pub fn declared_quantization(&self) -> Option<(&Value, &'static str)> {
        let by_file = || self.modelopt_file.as_ref().map(|value| (value, modelopt::FILE));
        declared(&self.config).map(|value| (value, CONFIG)).or_else(by_file)
    }

    /// `hf_quant_config.json` verbatim, if there is one.
    pub fn modelopt_file(&self) -> Option<&Value> {
        self.modelopt_file.as_ref()
    }

    /// The declared quantization, if any, where it is one of groups of modules.
    pub fn quantization_config(&self) -> Result<Option<QuantizationConfig>, CheckpointError> {
        let Some((value, file)) = self.declared_quantization() else { return Ok(None) };
        QuantizationConfig::parse(value).map(Some).map_err(|error| error.in_file(self.dir.join(file)))
    }

    /// The quantization that the checkpoint declares, whichever tool wrote it.
    pub fn declaration(&self) -> Result<Option<Declaration>, CheckpointError> {
        let Some((value, file)) = self.declared_quantization() else { return Ok(None) };
        Declaration::parse(value).map(Some).map_err(|error| error.in_file(self.dir.join(file)))
    }

    /// Every regular file that holds no weights (hidden files left out), sorted.
    pub fn metadata_files(&self) -> Vec<PathBuf> {
        self.files.iter().filter(|n| !files::is_weights(n)).map(|n| self.dir.join(n)).collect()
    }

    /// The `.safetensors` files that are no part of the checkpoint: no index names them, or they lie beside the only one.
    pub fn stray_weights(&self) -> impl Iterator<Item = &str> {
        let is_shard = |name: &str| self.shards.iter().any(|s| s.file == name);
        self.files.iter().map(String::as_str).filter(move |n| n.ends_with(".safetensors") && !is_shard(n))
    }

    /// BLAKE3 over the sorted (file name, file digest) of weights, config and tokenizer files. Computed once; digests
    /// of large files are kept in the cache directory.
    pub fn digest(&self) -> Result<Digest, CheckpointError> {
        self.digest_knowing(&BTreeMap::new())
    }

    /// [`Self::digest`] where the digests of some files, by name, are known and not computed again.
    pub fn digest_knowing(&self, known: &BTreeMap<&str, &Digest>) -> Result<Digest, CheckpointError> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest.clone());
        }
        let weights: BTreeSet<&str> = self.shards.iter().map(|s| s.file.as_str()).collect();
        let names: Vec<&str> = self
            .files
            .iter()
            .map(String::as_str)
            .filter(|n| weights.contains(n) || files::is_identity(n))
            .collect();
        let unknown: Vec<&str> = names.iter().copied().filter(|n| !known.contains_key(n)).collect();
        let mut computed = file_digest::of_files(&self.dir, &unknown)?.into_iter();
        let mut all = DigestBuilder::default();
        for name in names {
            let computed = if known.contains_key(name) { None } else { computed.next() };
            if let Some(digest) = known.get(name).copied().or(computed.as_ref()) {
                all.field(name.as_bytes()).field(digest.as_str().as_bytes());
            }
        }
        Ok(self.digest.get_or_init(|| all.finish()).clone())
    }

    fn find(&self, name: &str) -> Option<(&Mapped, &TensorInfo)> {
        let (shard, tensor) = self.place(name)?;
        let mapped = &self.maps[shard];
        Some((mapped, &mapped.header.tensors[tensor]))
    }

    fn place(&self, name: &str) -> Option<(usize, usize)> {
        let found =
            |(shard, tensor): &(usize, usize)| self.shards[*shard].tensors[*tensor].as_str().cmp(name);
        self.by_name.binary_search_by(found).ok().map(|at| self.by_name[at])
    }
}

/// The names of the weight files, sorted, and the index's map when there is one.
fn weight_files(
    dir: &Path,
    files: &[String],
) -> Result<(Vec<String>, Option<index::WeightMap>), CheckpointError> {
    let names: HashSet<&str> = files.iter().map(String::as_str).collect();
    let has = |name: &str| names.contains(name);
    if has(INDEX) {
        let path = dir.join(INDEX);
        let map = index::parse(&path, &read(&path)?)?;
        let shards: BTreeSet<&String> = map.values().collect();
        if has(SINGLE) && !shards.contains(&SINGLE.to_owned()) {
            return Err(CheckpointError::Ambiguous { dir: dir.to_path_buf() });
        }
        if let Some((tensor, shard)) = map.iter().find(|(_, shard)| !has(shard)) {
            let index = INDEX.to_owned();
            return Err(CheckpointError::MissingShard {
                path: dir.join(shard),
                index,
                tensor: tensor.clone(),
            });
        }
        return Ok((shards.into_iter().cloned().collect(), Some(map)));
    }
    if has(SINGLE) {
        return Ok((vec![SINGLE.to_owned()], None));
    }
    // A stray safetensors file is more interesting than a pickle beside it.
    if let Some(found) = files.iter().find(|f| f.ends_with(".safetensors")) {
        return Err(CheckpointError::NoWeights { dir: dir.to_path_buf(), found: Some(found.clone()) });
    }
    if let Some(pickle) = files.iter().find(|f| files::is_pickle(f)) {
        return Err(CheckpointError::Pickle { path: dir.join(pickle) });
    }
    let found = files.iter().find(|f| files::is_weights(f)).cloned();
    Err(CheckpointError::NoWeights { dir: dir.to_path_buf(), found })
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_path_buf(), source })
}

fn read_config(dir: &Path, files: &[String]) -> Result<Value, CheckpointError> {
    if !files.iter().any(|f| f == CONFIG) {
        return Err(CheckpointError::NoConfig { dir: dir.to_path_buf() });
    }
    let path = dir.join(CONFIG);
    let config = crate::base::json::parse_unique(&read(&path)?)
        .map_err(|source| CheckpointError::Json { path: path.clone(), source })?;
    if config.is_object() {
        return Ok(config);
    }
    Err(CheckpointError::Field {
        path,
        field: "the whole file".to_owned(),
        expected: "an object".to_owned(),
        found: super::quantization_config::kind(&config).to_owned(),
    })
}

fn read_modelopt_file(dir: &Path, files: &[String]) -> Result<Option<Value>, CheckpointError> {
    if !files.iter().any(|f| f == modelopt::FILE) {
        return Ok(None);
    }
    let path = dir.join(modelopt::FILE);
    let value = crate::base::json::parse_unique(&read(&path)?)
        .map_err(|source| CheckpointError::Json { path, source })?;
    Ok(Some(value))
}

fn map_file(path: &Path) -> Result<Mapped, CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the map is only read. Another process that shortens the file meanwhile would end this one by SIGBUS, as
    // it would any program that maps its model; the digest shows other changes.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    let header = header::parse_file(&map)
        .map_err(|source| CheckpointError::Header { path: path.to_path_buf(), source })?;
    Ok(Mapped { header, map })
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;
