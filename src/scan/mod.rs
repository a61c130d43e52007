//! Layer 5: the checkpoint verifier: what a checkpoint holds, against what it declares, its source and its recipe.
//!
//! It reads headers, config and the values of scales; never codes, except those of groups whose scale looks wrong. It
//! works on names and shapes alone, whoever wrote the checkpoint. It only reports; the gate decides.

mod coverage;
mod error;
mod fused;
mod metadata;
mod modelopt;
mod modules;
mod size;
mod source;
mod table;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, remote};
use crate::dense::DenseSource;
use crate::recipe::Recipe;
use crate::record::scan::{CoverageScan, Defect, ScanRecord};
use crate::record::{FailureClass, Provenance, SCHEMA_VERSION};

pub use error::ScanError;
use source::SourceCheck;
use table::Table;

/// Scans a checkpoint directory, optionally against the unquantized source and the recipe it was made with.
pub fn scan(
    checkpoint: &Path,
    against: Option<&Path>,
    recipe: Option<&Recipe>,
    provenance: Provenance,
) -> Result<ScanRecord, ScanError> {
    let opened = Checkpoint::open(checkpoint)?;
    let source = against.map(open_source).transpose()?;
    let original = source.as_ref().map(|s| Arc::clone(s.checkpoint()));
    let mut record = inspect(&Table::local(&opened), source, recipe, provenance)?;
    record.checkpoint_digest = Some(opened.digest()?);
    record.checkpoint = checkpoint.display().to_string();
    if let Some(original) = &original {
        record.metadata_diffs = metadata::compare(original, &opened)?;
    } else {
        record.not_checked.insert("metadata".to_owned(), "no source to compare with".to_owned());
    }
    Ok(record)
}

/// Scans the headers of a checkpoint on a web server. What needs values or files is recorded as not checked.
pub fn scan_remote(
    url: &str,
    against: Option<&Path>,
    recipe: Option<&Recipe>,
    provenance: Provenance,
) -> Result<ScanRecord, ScanError> {
    let headers = remote::open(url)?;
    let source = against.map(open_source).transpose()?;
    let mut record = inspect(&Table::remote(&headers), source, recipe, provenance)?;
    record.checkpoint.clone_from(&headers.url);
    for (check, reason) in [
        ("scales", "a remote scan reads headers only, so the values of scales are unknown"),
        ("metadata", "a remote scan reads no tokenizer and generation files"),
        ("digest", "a remote scan does not read the weights"),
    ] {
        record.not_checked.insert(check.to_owned(), reason.to_owned());
    }
    if headers.config.is_none() {
        record.not_checked.insert("declaration".to_owned(), "the server has no config.json".to_owned());
    }
    Ok(record)
}

/// The source, whatever it is stored as.
fn open_source(dir: &Path) -> Result<DenseSource, ScanError> {
    Ok(DenseSource::open(Arc::new(Checkpoint::open(dir)?))?)
}

/// Everything that headers, config and (where at hand) values tell.
fn inspect(
    table: &Table<'_>,
    source: Option<DenseSource>,
    recipe: Option<&Recipe>,
    mut provenance: Provenance,
) -> Result<ScanRecord, ScanError> {
    let mut findings = Findings::default();
    let declared = findings.declaration(table);
    modelopt::check(table, &mut findings);
    let mut modules = modules::find(table, source.as_ref());
    coverage::judge(&mut modules, declared.as_ref(), table.has_values(), &mut findings);
    values::check(table, &modules, &mut findings);
    fused::check(table, &modules, &mut findings);
    // The same recipe in the layout that is there.
    let dialect = declared.as_ref().map(|d| d.dialect).unwrap_or_default();
    let in_layout = recipe.map(|recipe| recipe.clone().in_dialect(dialect));
    if let Some(Err(error)) = &in_layout {
        findings.not_checked.insert("recipe".to_owned(), error.to_string());
    }
    let in_layout = in_layout.and_then(Result::ok);
    let check = SourceCheck::new(table, &modules, source, in_layout.as_ref());
    check.names_and_shapes(&modules, &mut findings);
    check.coverage(&modules, &mut findings);
    let source = check.source().map(DenseSource::checkpoint);
    let source_digest = source.map(|s| s.digest()).transpose()?;
    if let Some(digest) = &source_digest {
        provenance.inputs.entry("source".to_owned()).or_insert_with(|| digest.clone());
    }
    if let Some(recipe) = recipe {
        provenance.inputs.entry("recipe".to_owned()).or_insert_with(|| recipe.digest.clone());
    }
    findings.finish();
    Ok(ScanRecord {
        schema_version: SCHEMA_VERSION,
        checkpoint: String::new(),
        checkpoint_digest: None,
        source: source.map(|s| s.dir().display().to_string()),
        source_digest,
        size: size::measure(table, &modules, &check),
        quant_method: table.quant_method(),
        coverage: findings.coverage,
        metadata_diffs: Vec::new(),
        defects: findings.defects,
        not_checked: findings.not_checked,
        dtype_counts: dtype_counts(table),
        provenance,
    })
}

fn dtype_counts(table: &Table<'_>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for tensor in table.tensors.values() {
        *counts.entry(dtype_name(tensor.dtype)).or_default() += 1;
    }
    counts
}

fn dtype_name(dtype: Dtype) -> String {
    dtype.to_string()
}

/// What the checks collect.
#[derive(Default)]
struct Findings {
    coverage: CoverageScan,
    defects: Vec<Defect>,
    not_checked: BTreeMap<String, String>,
}

impl Findings {
    fn defect(
        &mut self,
        check: &str,
        tensor: impl Into<String>,
        observed: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.defects.push(Defect {
            check: check.to_owned(),
            failure_class: FailureClass::QuantCoverageFailure,
            tensor: tensor.into(),
            observed: observed.into(),
            expected: expected.into(),
        });
    }

    /// The declared quantization, if it can be understood.
    fn declaration(&mut self, table: &Table<'_>) -> Option<crate::checkpoint::QuantizationConfig> {
        match table.quantization_config() {
            Ok(config) => {
                let status = config.as_ref().and_then(|c| c.quantization_status.as_deref());
                let by_status = config.as_ref().is_some_and(|c| c.dialect == Dialect::CompressedTensors);
                if by_status && status != Some("compressed") {
                    // transformers builds the packed layout for this status only.
                    let observed = status.unwrap_or("nothing");
                    self.defect("declaration", "config.json quantization_status", observed, "compressed");
                }
                config
            }
            Err(error) => {
                use crate::checkpoint::QuantConfigError as E;
                match error {
                    E::UnsupportedMethod { .. } | E::Unsupported { .. } => {
                        self.not_checked.insert("declaration".to_owned(), error.to_string());
                    }
                    E::Field { field, expected, found } => {
                        self.defect("declaration", format!("config.json {field}"), found, expected);
                    }
                }
                None
            }
        }
    }

    /// Sorted and without repetitions, so that the same checkpoint gives the same record.
    fn finish(&mut self) {
        let coverage = &mut self.coverage;
        for names in
            [&mut coverage.excluded, &mut coverage.unexpected_unquantized, &mut coverage.declaration_mismatch]
        {
            names.sort();
            names.dedup();
        }
        self.defects
            .sort_by(|a, b| (&a.check, &a.tensor, &a.observed).cmp(&(&b.check, &b.tensor, &b.observed)));
        self.defects.dedup();
    }
}
