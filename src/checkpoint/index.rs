//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;

use super::error::CheckpointError;
use super::files::{INDEX, plain_name};
use super::header::UniqueStrings;

/// Tensor name to shard file name.
pub type WeightMap = BTreeMap<String, String>;

/// Parses an index file. Shard names must be plain file names ending in `.safetensors`.
pub fn parse(path: &Path, text: &[u8]) -> Result<WeightMap, CheckpointError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: UniqueStrings,
    }
    let index: Index = serde_json::from_slice(text)
        .map_err(|source| CheckpointError::Json { path: path.to_path_buf(), source })?;
    for (tensor, shard) in &index.weight_map.0 {
        if plain_name(shard).is_none() || !shard.ends_with(".safetensors") {
            return Err(CheckpointError::Field {
                path: path.to_path_buf(),
                field: format!("weight_map.{}", super::header::shown(tensor)),
                expected: "the name of a .safetensors file in this directory".to_owned(),
                found: super::header::shown(shard),
            });
        }
    }
    if index.weight_map.0.is_empty() {
        return Err(CheckpointError::Field {
            path: path.to_path_buf(),
            field: "weight_map".to_owned(),
            expected: "at least one tensor".to_owned(),
            found: "none".to_owned(),
        });
    }
    Ok(index.weight_map.0)
}

/// Checks the map against what the shards hold: `shards` are (file name, tensor names).
pub fn check<'a>(
    map: &WeightMap,
    shards: impl IntoIterator<Item = (&'a str, Vec<&'a str>)>,
) -> Result<(), CheckpointError> {
    let index = INDEX.to_owned();
    let mut holder: HashMap<&str, &str> = HashMap::with_capacity(map.len());
    for (shard, tensors) in shards {
        for tensor in tensors {
            if let Some(first) = holder.insert(tensor, shard) {
                let (first, second) = (first.to_owned(), shard.to_owned());
                return Err(CheckpointError::TwoShards { tensor: tensor.to_owned(), first, second });
            }
        }
    }
    for (tensor, shard) in map {
        let actual = holder.remove(tensor.as_str());
        if actual != Some(shard) {
            return Err(CheckpointError::WrongShard {
                index,
                tensor: tensor.clone(),
                shard: shard.clone(),
                actual: actual.map(str::to_owned),
            });
        }
    }
    match holder.iter().min() {
        Some((tensor, shard)) => Err(CheckpointError::NotInIndex {
            index,
            tensor: (*tensor).to_owned(),
            shard: (*shard).to_owned(),
        }),
        None => Ok(()),
    }
}
