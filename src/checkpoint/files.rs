//! Which file of a checkpoint directory is what, by name.

use std::path::{Path, PathBuf};

use super::error::CheckpointError;

/// The architecture and quantization of the model.
pub const CONFIG: &str = "config.json";
/// The weights in one file.
pub const SINGLE: &str = "model.safetensors";
/// The map from tensors to shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// Extensions of formats that may execute code when loaded.
const PICKLE: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];
/// Extensions of other weight formats, which are neither read nor copied.
const OTHER_WEIGHTS: [&str; 6] = ["gguf", "h5", "msgpack", "onnx", "onnx_data", "npz"];
/// Files that decide what the model computes or which tokens it sees, besides the weights.
const IDENTITY: [&str; 16] = [
    CONFIG,
    INDEX,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "hf_quant_config.json",
];

/// Whether a file name or path has this extension, in any case.
pub fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Whether a file of this name is a pickle.
pub fn is_pickle(name: &str) -> bool {
    PICKLE.iter().any(|extension| has_extension(name, extension))
}

/// Whether a file of this name holds weights in any format, or maps them.
pub fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
        || name.ends_with(".index.json")
        || is_pickle(name)
        || OTHER_WEIGHTS.iter().any(|extension| has_extension(name, extension))
}

/// Whether the file takes part in the checkpoint's digest (the weights themselves do, besides these).
pub fn is_identity(name: &str) -> bool {
    IDENTITY.contains(&name) || name.ends_with(".tiktoken")
}

/// The names of the regular files of a directory, hidden ones left out, sorted. Symbolic links are followed: the
/// hub's cache consists of them.
pub fn list(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let read = |source| CheckpointError::Read { path: dir.to_path_buf(), source };
    if !dir.is_dir() {
        return Err(CheckpointError::NotADirectory { path: dir.to_path_buf() });
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        // A name that is not Unicode cannot be one of ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with('.') && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Refuses shard names that leave the directory.
pub fn plain_name(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let mut parts = path.components();
    let only = matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none();
    (only && !name.contains('\0')).then(|| path.to_path_buf())
}
