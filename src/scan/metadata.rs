//! Metadata files against the source's: a changed tokenizer or chat template damages a model as rounding never does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::ScanError;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::declaration::without_declaration;
use crate::checkpoint::files::{self, CONFIG, INDEX};
use crate::checkpoint::modelopt;
use crate::record::scan::{DiffKind, MetadataDiff};

/// The key under which a declared quantization is reported.
const DECLARATION: &str = "quantization_config";
/// Keys that may differ: the quantization itself and what tools stamp into files.
const MAY_DIFFER: [&str; 4] = [DECLARATION, "compression_config", "transformers_version", "_name_or_path"];
/// The chat template as a file, and as a key of the tokenizer's config.
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_KEY: &str = "chat_template";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Longest value that is shown.
const SHOWN_CHARS: usize = 120;

/// Differences of all files that decide what the model computes or which tokens it sees.
pub(super) fn compare(source: &Checkpoint, output: &Checkpoint) -> Result<Vec<MetadataDiff>, ScanError> {
    let mut diffs = Vec::new();
    let templates = (chat_template(source)?, chat_template(output)?);
    if templates.0 != templates.1 {
        diffs.push(MetadataDiff {
            file: "chat template".to_owned(),
            field: "content".to_owned(),
            source: shown(templates.0.as_ref()),
            output: shown(templates.1.as_ref()),
            kind: DiffKind::Blocking,
        });
    }
    // A declaration is named once, wherever it stands.
    let config = |checkpoint: &Checkpoint| {
        let mut keys = normalized(&without_declaration(checkpoint.config()));
        if let Some((declared, _)) = checkpoint.declared_quantization() {
            keys.insert(DECLARATION.to_owned(), declared.clone());
        }
        keys
    };
    fields(CONFIG, &config(source), &config(output), &mut diffs);
    let names: BTreeSet<String> = [source, output].into_iter().flat_map(identity_files).collect();
    for name in names {
        let (a, b) = (read(source.dir(), &name)?, read(output.dir(), &name)?);
        let whole = |a: &str, b: &str| MetadataDiff {
            file: name.clone(),
            field: "content".to_owned(),
            source: a.to_owned(),
            output: b.to_owned(),
            kind: DiffKind::Blocking,
        };
        match (a, b) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                if let (Some(a), Some(b)) = (parse(&a), parse(&b)) {
                    fields(&name, &a, &b, &mut diffs);
                } else {
                    diffs.push(whole(&format!("{} bytes", a.len()), &format!("{} bytes", b.len())));
                }
            }
            (Some(_), None) => diffs.push(whole("present", "missing")),
            (None, Some(_)) => diffs.push(whole("missing", "present")),
            (None, None) => {}
        }
    }
    Ok(diffs)
}

/// The chat template, wherever it lies: `chat_template.jinja` (transformers 5), else in `tokenizer_config.json`.
fn chat_template(checkpoint: &Checkpoint) -> Result<Option<Value>, ScanError> {
    if let Some(bytes) = read(checkpoint.dir(), TEMPLATE_FILE)? {
        return Ok(Some(Value::String(String::from_utf8_lossy(&bytes).into_owned())));
    }
    let config = read(checkpoint.dir(), TOKENIZER_CONFIG)?;
    Ok(config.and_then(|bytes| parse(&bytes)?.remove(TEMPLATE_KEY)).filter(|v| !v.is_null()))
}

fn identity_files(checkpoint: &Checkpoint) -> Vec<String> {
    let names = checkpoint.metadata_files();
    let names = names.iter().filter_map(|p| p.file_name()?.to_str());
    names
        .filter(|n| files::is_identity(n) && ![CONFIG, INDEX, TEMPLATE_FILE, modelopt::FILE].contains(n))
        .map(str::to_owned)
        .collect()
}

fn read(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, ScanError> {
    let path = dir.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ScanError::Read { path, source }),
    }
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<String, Value>> {
    serde_json::from_slice(bytes).ok()
}

/// `config.json` without what may differ, in one spelling of the data type (`torch_dtype` became `dtype`).
fn normalized(config: &Value) -> BTreeMap<String, Value> {
    let mut keys: BTreeMap<String, Value> =
        config.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(dtype) = keys.remove("torch_dtype") {
        keys.entry("dtype".to_owned()).or_insert(dtype);
    }
    if let Some(Value::String(dtype)) = keys.get_mut("dtype") {
        *dtype = dtype.trim_start_matches("torch.").to_owned();
    }
    keys
}

/// Differences field by field at the top level; the chat template of the tokenizer's config is compared by itself.
fn fields(
    file: &str,
    source: &BTreeMap<String, Value>,
    output: &BTreeMap<String, Value>,
    diffs: &mut Vec<MetadataDiff>,
) {
    let keys: BTreeSet<&String> = source.keys().chain(output.keys()).collect();
    for key in keys.into_iter().filter(|k| (file, k.as_str()) != (TOKENIZER_CONFIG, TEMPLATE_KEY)) {
        let (a, b) = (source.get(key), output.get(key));
        if a != b {
            let may_differ = MAY_DIFFER.contains(&key.as_str());
            diffs.push(MetadataDiff {
                file: file.to_owned(),
                field: key.clone(),
                source: shown(a),
                output: shown(b),
                kind: if may_differ { DiffKind::Expected } else { DiffKind::Blocking },
            });
        }
    }
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "missing".to_owned() };
    let text = value.to_string();
    if text.chars().count() <= SHOWN_CHARS {
        return text;
    }
    text.chars().take(SHOWN_CHARS).collect::<String>() + "…"
}
