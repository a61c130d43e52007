//! Why a checkpoint directory cannot be used.

use std::io;
use std::path::PathBuf;

use safetensors::Dtype;

use super::header::{HeaderError, shown};
use super::quantization_config::QuantConfigError;
use crate::record::{Classified, FailureClass};

/// A checkpoint that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is no such directory.
    #[error("{}: not a directory, expected a checkpoint directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory has no `config.json`.
    #[error("{}: no config.json, expected one beside the weights", dir.display())]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// A JSON file does not parse.
    #[error("{}: not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        source: serde_json::Error,
    },
    /// A JSON file parses, but a field is not what was expected.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, as a dotted path.
        field: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The directory has weights in a pickle-based format only.
    #[error("{}: pickle files are never read, expected *.safetensors", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The directory has no weights.
    #[error(
        "{}: no weights, expected model.safetensors or model.safetensors.index.json{}",
        dir.display(),
        found.as_ref().map(|f| format!(", found {f}")).unwrap_or_default()
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// Another weight file that lies there, if any.
        found: Option<String>,
    },
    /// Both a single file and an index that does not name it.
    #[error(
        "{}: both model.safetensors and an index that names other files, expected one of the two",
        dir.display()
    )]
    Ambiguous {
        /// The directory.
        dir: PathBuf,
    },
    /// The header of a weight file is invalid.
    #[error("{}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which tensor.
        source: HeaderError,
    },
    /// The index names a shard that is not there.
    #[error("{}: no such file, expected because {index} maps tensor {} to it", path.display(), shown(tensor))]
    MissingShard {
        /// The shard.
        path: PathBuf,
        /// The index file's name.
        index: String,
        /// A tensor that is mapped to it.
        tensor: String,
    },
    /// The index names a tensor that its shard does not hold.
    #[error(
        "{index}: tensor {} is mapped to {shard}, found {}",
        shown(tensor),
        actual.as_ref().map_or_else(|| "in no shard".to_owned(), |f| format!("in {f}"))
    )]
    WrongShard {
        /// The index file's name.
        index: String,
        /// The tensor.
        tensor: String,
        /// The shard that the index names.
        shard: String,
        /// The shard that holds it, if any.
        actual: Option<String>,
    },
    /// A shard holds a tensor that the index does not name.
    #[error("{shard}: tensor {} is not in the weight_map of {index}", shown(tensor))]
    NotInIndex {
        /// The index file's name.
        index: String,
        /// The tensor.
        tensor: String,
        /// The shard that holds it.
        shard: String,
    },
    /// Two shards hold the same tensor.
    #[error("tensor {} is in {first} and in {second}, expected in one shard only", shown(tensor))]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor that is needed is not there.
    #[error(
        "{}: no tensor {}{}",
        dir.display(),
        shown(tensor),
        closest.as_ref().map(|c| format!(" (the closest name is {})", shown(c))).unwrap_or_default()
    )]
    MissingTensor {
        /// The directory.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// The most similar name, if one is similar.
        closest: Option<String>,
    },
    /// A tensor, by name, has a problem of its own.
    #[error("{}: tensor {}", path.display(), shown(tensor))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: Box<CheckpointError>,
    },
    /// The declared quantization cannot be used.
    #[error("{}: quantization_config", path.display())]
    Quantization {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: QuantConfigError,
    },
    /// The values of a tensor were asked for as floats.
    #[error("dtype {found} of shape {shape:?}, expected F32, F16, BF16 or F64")]
    NotFloat {
        /// The dtype.
        found: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The values of a tensor were asked for as integers.
    #[error("dtype {found} of shape {shape:?}, expected I64, I32, U32, I16, I8 or U8")]
    NotInteger {
        /// The dtype.
        found: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
}

impl Classified for CheckpointError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Read { source, .. } if is_transient(source) => FailureClass::InfraTransient,
            Self::Quantization { source, .. } => source.failure_class(),
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotADirectory { path } if path.is_file() => {
                "name the directory that holds config.json and model.safetensors, or a .gguf file"
            }
            Self::NotADirectory { .. } => {
                "MODEL is a directory, a .gguf file, a hub id org/name[@revision], or day0-tiny"
            }
            Self::NoConfig { .. } => "copy config.json from the model's repository into the directory",
            Self::Pickle { .. } => {
                "pickle files can run code when loaded; convert with transformers: \
                 model.save_pretrained(DIR, safe_serialization=True)"
            }
            Self::NoWeights { .. } => {
                "the weights must be model.safetensors, or shards listed by model.safetensors.index.json"
            }
            Self::Ambiguous { .. } => "remove the one that does not belong to the checkpoint",
            Self::Header { .. } => "the file is damaged or still being written; copy or download it again",
            Self::MissingShard { .. } => "copy or download the missing shard again",
            Self::WrongShard { .. } | Self::NotInIndex { .. } | Self::TwoShards { .. } => {
                "index and shards come from different versions of the checkpoint; fetch both again"
            }
            Self::Quantization { source, .. } => return source.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Errors that may go away by themselves.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::StorageFull
            | K::QuotaExceeded
            | K::WriteZero
            | K::Interrupted
            | K::TimedOut
            | K::StaleNetworkFileHandle
    )
}
