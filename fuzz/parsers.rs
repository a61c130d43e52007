//! What is fuzzed: every parser of files that decide what a checkpoint is. Whatever the bytes, a parser returns a value or
//! an error that can be shown; it never panics, and what it accepts keeps its promises.
//!
//! One file for three drivers: the fuzz target (`cargo fuzz run parsers`, nightly), the bounded test of the suite
//! (`tests/it/fuzz.rs`) and the long run on a stable compiler (`cargo run --release --example fuzz -- SECONDS`).

use std::path::Path;

use day0::checkpoint::declaration::{Declaration, declared, without_declaration};
use day0::checkpoint::{gguf, header, index};
use day0::model::config::ModelConfig;
use day0::record::Failure;

/// The parsers, by the first byte of an input.
pub const PARSERS: [fn(&[u8]); 5] = [parse_header, parse_index, parse_config, parse_recipe, parse_gguf];

/// Feeds one input to the parser that its first byte names.
pub fn parse(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    PARSERS[usize::from(*first) % PARSERS.len()](rest);
}

/// A whole safetensors file.
fn parse_header(file: &[u8]) {
    let Ok(header) = header::parse_file(file).map_err(|error| error.to_string()) else { return };
    let data = file.len() as u64 - header.data_start;
    let mut covered = 0;
    for tensor in &header.tensors {
        assert_eq!(tensor.begin, covered, "tensors cover the data without holes");
        covered = tensor.end;
        assert_eq!(tensor.num_bytes() * 8, tensor.num_elements() as u64 * tensor.dtype.bitsize() as u64);
        assert_eq!(header.get(&tensor.name), Some(tensor));
    }
    assert_eq!(covered, data, "tensors cover all data");
}

/// `model.safetensors.index.json`.
fn parse_index(text: &[u8]) {
    match index::parse(Path::new("index"), text) {
        Ok(map) => {
            assert!(map.values().all(|shard| !shard.contains('/')), "shards stay in their directory");
            let held = map.iter().map(|(tensor, shard)| (shard.as_str(), vec![tensor.as_str()]));
            assert!(index::check(&map, held).is_ok());
        }
        Err(error) => drop(Failure::from(error)),
    }
}

/// `config.json` with whatever quantization it declares.
fn parse_config(text: &[u8]) {
    let Ok(config) = day0::base::json::parse_unique(text) else { return };
    assert_eq!(Some(&config), serde_json::from_slice(text).ok().as_ref(), "unique keys change no value");
    drop(ModelConfig::parse(&config).map_err(Failure::from));
    if let Some(value) = declared(&config) {
        match Declaration::parse(value) {
            Ok(Declaration::Groups(parsed)) => {
                let scheme = parsed.scheme_for("model.layers.0.mlp.up_proj");
                assert!(scheme.is_none_or(|group| parsed.groups.iter().any(|g| g.name == group.name)));
            }
            Ok(Declaration::Fp8(_)) => {}
            Err(error) => drop(Failure::from(error)),
        }
        assert!(declared(&without_declaration(&config)).is_none());
    }
}

/// A recipe.
fn parse_recipe(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match day0::recipe::file::parse("recipe.yaml", text) {
        Ok(recipe) => assert!(!recipe.groups.is_empty(), "a recipe quantizes something"),
        Err(error) => drop(Failure::from(error)),
    }
}

/// A GGUF file.
fn parse_gguf(file: &[u8]) {
    if let Ok(gguf) = gguf::reader::parse(file) {
        for tensor in gguf.tensors.values() {
            assert!(tensor.begin <= tensor.end && tensor.end <= file.len(), "tensors lie in the file");
        }
    }
}
