//! `day0 import`: a GGUF file becomes a checkpoint directory, tensor by tensor, atomically.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::super::files::{CONFIG, SINGLE};
use super::super::writer::{ShardWriter, TensorSpec};
use super::error::{GgufError, GgufProblem};
use super::hparams::Hparams;
use super::plan::{self, PlannedTensor, RowOrder};
use super::reader::{self, Gguf, GgufTensor};
use super::tokenizer::{self, ImportedTokenizer, SpecialIds};
use crate::base::atomic::{self, AtomicFile, StagingDir};
use crate::base::digest::Digest;
use crate::base::progress::Progress;

/// Elements that are dequantized before they are written: bounds memory at about 64 MiB.
const TILE_ELEMENTS: usize = 8 << 20;
/// Elements of one piece of parallel work.
const PIECE_ELEMENTS: usize = 1 << 18;

/// Element type of the imported weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImportDtype {
    /// bfloat16, rounded to nearest even.
    #[default]
    Bf16,
    /// float32, exact.
    F32,
}

/// What can be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// Element type of all weights.
    pub dtype: ImportDtype,
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSummary {
    /// Number of tensors.
    pub num_tensors: usize,
    /// Number of weights.
    pub num_parameters: u64,
    /// Element type.
    pub dtype: ImportDtype,
    /// Size of `model.safetensors` in bytes.
    pub weights_bytes: u64,
    /// Digest of `model.safetensors`.
    pub weights_digest: Digest,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Whether the embedding is the output layer too.
    pub tie_word_embeddings: bool,
    /// Number of the file's tensors by GGUF type.
    pub source_types: BTreeMap<String, usize>,
    /// What the file does not say, and what was taken for it.
    pub notes: Vec<String>,
}

impl ImportDtype {
    fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
        }
    }

    /// The values in this type, little-endian.
    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Self::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// Imports `gguf` into the directory `out`, which must not exist or be empty. It appears only when complete.
pub fn import(gguf: &Path, out: &Path, options: ImportOptions) -> Result<ImportSummary, GgufError> {
    import_file(gguf, out, options).map_err(|problem| GgufError { path: gguf.to_path_buf(), problem })
}

fn import_file(path: &Path, out: &Path, options: ImportOptions) -> Result<ImportSummary, GgufProblem> {
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file() {
        return Err(GgufProblem::OutputExists { path: out.to_path_buf() });
    }
    let file = File::open(path).map_err(io(path))?;
    // SAFETY: the map is only read; see `checkpoint::dir` on files that change meanwhile.
    let map = unsafe { Mmap::map(&file) }.map_err(io(path))?;
    let gguf = reader::parse(&map)?;
    // Everything is checked before the first byte is written.
    let config = Hparams::read(&gguf, &map)?;
    let plan = plan::plan(&config, &gguf)?;
    let tokenizer = tokenizer::read(&gguf.metadata, config.max_position_embeddings)?;
    if tokenizer.vocab_size != config.vocab_size {
        let expected = format!("{} tokens as rows of token_embd.weight", config.vocab_size);
        return Err(GgufProblem::field("tokenizer.ggml.tokens", &expected, tokenizer.vocab_size));
    }
    let staging = StagingDir::open(out).map_err(io(out))?;
    let dir = staging.path();
    write_configs(dir, &config, &tokenizer, options.dtype)?;
    let source = Source { map: &map, gguf: &gguf, path };
    let (weights_digest, weights_bytes) = source.write_weights(&dir.join(SINGLE), &plan, options.dtype)?;
    staging.commit().map_err(io(out))?;
    Ok(ImportSummary {
        num_tensors: plan.len(),
        num_parameters: plan.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum(),
        dtype: options.dtype,
        weights_bytes,
        weights_digest,
        vocab_size: config.vocab_size,
        tie_word_embeddings: config.tie_word_embeddings,
        source_types: gguf.tensors.values().fold(BTreeMap::new(), |mut types, tensor| {
            *types.entry(tensor.block_type.name.to_owned()).or_default() += 1;
            types
        }),
        notes: notes(&config),
    })
}

/// What llama.cpp's files of an architecture leave out; llama.cpp itself computes with these.
fn notes(config: &Hparams) -> Vec<String> {
    let unsaid = match config.architecture.name {
        "llama" => "a sliding window, which llama.cpp ignores: Mistral 7B v0.1 has one of 4096",
        "qwen2" | "qwen3" => "a sliding window, which llama.cpp ignores: taken as unused",
        "qwen2moe" | "qwen3moe" => "dense layers and norm_topk_prob: taken as llama.cpp's graph has them",
        "gemma2" | "gemma3" => {
            "query_pre_attn_scalar and which layers have a window: taken as llama.cpp's graph has them"
        }
        "smollm3" => "no_rope_layers: every fourth, as llama.cpp's graph has it",
        _ => return Vec::new(),
    };
    vec![format!("{} files do not record {unsaid}", config.architecture.name)]
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> GgufProblem {
    let path: PathBuf = path.to_path_buf();
    move |source| GgufProblem::Io { path, source }
}

fn write_configs(
    dir: &Path,
    config: &Hparams,
    tokenizer: &ImportedTokenizer,
    dtype: ImportDtype,
) -> Result<(), GgufProblem> {
    let mut model = config.to_json(dtype.torch_name());
    add_ids(&mut model, &tokenizer.ids, false);
    let mut generation = json!({"_from_model_config": true});
    add_ids(&mut generation, &tokenizer.ids, true);
    for (name, value) in [
        (CONFIG, &model),
        ("generation_config.json", &generation),
        ("tokenizer.json", &tokenizer.tokenizer),
        ("tokenizer_config.json", &tokenizer.config),
    ] {
        let path = dir.join(name);
        // Keys keep their order: the vocabulary is listed by id, and merges refer to it.
        let text = format!("{value:#}\n");
        atomic::write(&path, text.as_bytes()).map_err(io(&path))?;
    }
    Ok(())
}

fn add_ids(object: &mut Json, ids: &SpecialIds, all_ends: bool) {
    let eos = match ids.eos {
        Some(eos) if all_ends && !ids.more_eos.is_empty() => {
            Some(json!(std::iter::once(eos).chain(ids.more_eos.iter().copied()).collect::<Vec<_>>()))
        }
        other => other.map(|id| json!(id)),
    };
    let fields = [
        ("bos_token_id", ids.bos.map(|id| json!(id))),
        ("eos_token_id", eos),
        ("pad_token_id", ids.pad.map(|id| json!(id))),
    ];
    for (key, value) in fields {
        if let Some(value) = value {
            object[key] = value;
        }
    }
}

/// The mapped file and its header.
struct Source<'a> {
    map: &'a Mmap,
    gguf: &'a Gguf,
    path: &'a Path,
}

impl Source<'_> {
    fn write_weights(
        &self,
        path: &Path,
        plan: &[PlannedTensor],
        dtype: ImportDtype,
    ) -> Result<(Digest, u64), GgufProblem> {
        let specs: Vec<TensorSpec> = plan
            .iter()
            .map(|t| TensorSpec { name: t.name.clone(), dtype: dtype.dtype(), shape: t.shape.clone() })
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let file = AtomicFile::create(path).map_err(io(path))?;
        let mut writer = ShardWriter::new(file, &specs, &metadata).map_err(io(path))?;
        let progress = Progress::new("import", plan.len() as u64, "tensors");
        for planned in plan {
            let tensor = &self.gguf.tensors[&planned.source];
            self.write_tensor(&mut writer, planned, tensor, dtype, path)?;
            progress.inc(1);
        }
        let (file, digest, bytes) = writer.finish().map_err(io(path))?;
        file.commit().map_err(io(path))?;
        Ok((digest, bytes))
    }

    /// Dequantizes, reorders and writes a tensor, a tile of whole rows (or heads) at a time.
    fn write_tensor<W: Write>(
        &self,
        writer: &mut ShardWriter<W>,
        planned: &PlannedTensor,
        tensor: &GgufTensor,
        dtype: ImportDtype,
        path: &Path,
    ) -> Result<(), GgufProblem> {
        // Parts are whole rows of blocks, one after the other.
        let (part, parts) = planned.part;
        let part_bytes = (tensor.end - tensor.begin) / parts;
        let begin = tensor.begin + part * part_bytes;
        let data = &self.map[begin..begin + part_bytes];
        let (row, unit_rows) = match (planned.rows, planned.shape.as_slice()) {
            (RowOrder::Same, _) => (tensor.row_elements(), 1),
            // A bias is a column of rows of one element.
            (RowOrder::Rotary { head_dim }, [_]) => (1, head_dim),
            (RowOrder::Rotary { head_dim }, _) => (tensor.row_elements(), head_dim),
        };
        if (row * unit_rows) % tensor.block_type.block_elements != 0 {
            let found = format!("{} of rows of {row}", tensor.block_type.name);
            return Err(GgufProblem::unsupported(&planned.source, "blocks within rows", found));
        }
        let unit_bytes = data.len() / (planned.shape.iter().product::<usize>() / (row * unit_rows)).max(1);
        let piece_units = (PIECE_ELEMENTS / (row * unit_rows)).max(1);
        let tile_units = (TILE_ELEMENTS / (row * unit_rows)).max(1).next_multiple_of(piece_units);
        let kind = tensor.block_type;
        for tile in data.chunks(tile_units * unit_bytes) {
            let pieces: Vec<Vec<u8>> = tile
                .par_chunks(piece_units * unit_bytes)
                .map(|piece| {
                    let mut values = kind.to_f32(piece)?;
                    if planned.offset != 0.0 {
                        for value in &mut values {
                            *value -= planned.offset;
                        }
                    }
                    Ok(dtype.encode(&reorder(values, row, planned.rows)))
                })
                .collect::<candle_core::Result<_>>()
                .map_err(|error| GgufProblem::tensor(&planned.source, "readable blocks", error))?;
            for piece in pieces {
                writer.append(&planned.name, &piece).map_err(io(path))?;
            }
        }
        // SAFETY: a read-only file mapping: released pages are read again from the file.
        // Failure only means that the memory stays in use.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, begin, part_bytes) };
        if data.is_empty() {
            return Err(GgufProblem::tensor(
                &planned.source,
                "data",
                format_args!("none in {}", self.path.display()),
            ));
        }
        Ok(())
    }
}

/// Brings the rows of whole heads into Hugging Face's order: row 2i + j of a head (pair i, part j) becomes row
/// j·D/2 + i. `values`: [heads · D, row].
fn reorder(values: Vec<f32>, row: usize, order: RowOrder) -> Vec<f32> {
    let RowOrder::Rotary { head_dim } = order else { return values };
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim * row) {
        for part in 0..2 {
            for pair in 0..head_dim / 2 {
                let from = (2 * pair + part) * row;
                out.extend_from_slice(&head[from..from + row]);
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
