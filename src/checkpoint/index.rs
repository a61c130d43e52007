//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
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
    let pairs = shards.into_iter().flat_map(|(shard, tensors)| tensors.into_iter().map(move |t| (t, shard)));
    let mut held: Vec<(&str, &str)> = pairs.collect();
    held.sort_by(|a, b| a.0.cmp(b.0));
    check_sorted(map, &held)
}

/// As [`check`], where `held` is (tensor name, file name) in the order of the tensors' names.
pub fn check_sorted(map: &WeightMap, held: &[(&str, &str)]) -> Result<(), CheckpointError> {
    if let Some(twice) = held.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (first, second) = (twice[0].1.to_owned(), twice[1].1.to_owned());
        return Err(CheckpointError::TwoShards { tensor: twice[0].0.to_owned(), first, second });
    }
    let wrong = |tensor: &str, shard: &str, actual: Option<&str>| {
        let (index, tensor, shard) = (INDEX.to_owned(), tensor.to_owned(), shard.to_owned());
        Err(CheckpointError::WrongShard { index, tensor, shard, actual: actual.map(str::to_owned) })
    };
    // Both are sorted by tensor: one pass over both.
    let mut named = map.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str())).peekable();
    let mut unnamed = None;
    for (tensor, shard) in held {
        if let Some((tensor, shard)) = named.next_if(|(name, _)| name < tensor) {
            return wrong(tensor, shard, None);
        }
        match named.next_if(|(name, _)| name == tensor) {
            Some((_, expected)) if expected == *shard => {}
            Some((_, expected)) => return wrong(tensor, expected, Some(shard)),
            None => drop(unnamed.get_or_insert((*tensor, *shard))),
        }
    }
    if let Some((tensor, shard)) = named.next() {
        return wrong(tensor, shard, None);
    }
    match unnamed {
        Some((tensor, shard)) => Err(CheckpointError::NotInIndex {
            index: INDEX.to_owned(),
            tensor: tensor.to_owned(),
            shard: shard.to_owned(),
        }),
        None => Ok(()),
    }
}
