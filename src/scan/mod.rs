//! Layer 5: the checkpoint verifier: what a checkpoint holds, against what it declares, its source and its recipe.
//!
//! It reads headers, config and the values of scales; codes only of groups whose scale looks wrong, and where all
//! values are asked for. It works on names and shapes alone, whoever wrote the checkpoint, and replays what the loaders
//! of engines demand ([`engines`] says which load it). It only reports; the gate decides.

mod all_values;
mod coverage;
pub mod engines;
mod error;
mod errors;
mod fused;
mod metadata;
mod modelopt;
mod modules;
mod opened;
mod rules;
mod size;
mod source;
mod source_view;
mod table;
pub mod tensor_parallel;
mod values;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use crate::checkpoint::quant_args::Dialect;
use crate::checkpoint::{Checkpoint, QuantizationConfig};
use crate::recipe::Recipe;
use crate::record::scan::{CoverageScan, Defect, ScanRecord, TensorError, ValueRange};
use crate::record::{FailureClass, Provenance, SCHEMA_VERSION};

pub use error::ScanError;
pub use errors::worst;
use opened::Opened;
pub use opened::Target;
use source::SourceCheck;
use source_view::SourceView;
use table::Table;

/// How deep a scan looks. Headers, config and the values of scales are always looked at, where they are at hand.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanOptions {
    /// Read every value: NaN, infinity, tensors of zeros.
    pub values: bool,
    /// Take the digests of checkpoint and source, which reads every byte of files whose digest is not known yet.
    pub digests: bool,
    /// Measure the error of every quantized weight, which reads both checkpoints whole. Needs a source with values.
    pub errors: bool,
}

/// Scans a checkpoint directory with digests, optionally against the source and the recipe it was made with.
pub fn scan(
    checkpoint: &Path,
    against: Option<&Path>,
    recipe: Option<&Recipe>,
    provenance: Provenance,
) -> Result<ScanRecord, ScanError> {
    let options = ScanOptions { digests: true, ..ScanOptions::default() };
    scan_target(Target::Path(checkpoint), against.map(Target::Path), recipe, options, provenance)
}

/// Scans a checkpoint wherever it lies. What cannot be checked there is recorded with its reason.
pub fn scan_target(
    target: Target<'_>,
    against: Option<Target<'_>>,
    recipe: Option<&Recipe>,
    options: ScanOptions,
    mut provenance: Provenance,
) -> Result<ScanRecord, ScanError> {
    let opened = Opened::open(target)?;
    let source = against.map(Opened::open).transpose()?;
    let digest = |opened: &Opened| {
        let dir = opened.dir().filter(|_| options.digests);
        dir.map(Checkpoint::digest).transpose()
    };
    let source_digest = source.as_ref().map(digest).transpose()?.flatten();
    if let Some(digest) = &source_digest {
        provenance.inputs.entry("source".to_owned()).or_insert_with(|| digest.clone());
    }
    if let Some(recipe) = recipe {
        provenance.inputs.entry("recipe".to_owned()).or_insert_with(|| recipe.digest.clone());
    }
    let source_table = source.as_ref().map(Table::new);
    let sides = Sides { output: &opened, source: source.as_ref().zip(source_table.as_ref()) };
    let mut record = inspect(Table::new(&opened), &sides, recipe, options, provenance)?;
    record.checkpoint = opened.name();
    record.checkpoint_digest = digest(&opened)?;
    record.source = source.as_ref().map(Opened::name);
    record.source_digest = source_digest;
    match (source.as_ref().map(Opened::dir), opened.dir()) {
        (Some(Some(source)), Some(output)) => record.metadata_diffs = metadata::compare(source, output)?,
        (None, _) => record.left_out("metadata", "no source to compare with"),
        _ => record.left_out("metadata", "the tokenizer and generation files are not at hand"),
    }
    if let Opened::Remote(remote) = &opened {
        record.transfer = Some(remote.transfer);
        if options.values {
            record.left_out("values", "a scan by address reads headers only");
        }
    }
    Ok(record)
}

impl ScanRecord {
    fn left_out(&mut self, check: &str, reason: &str) {
        self.not_checked.insert(check.to_owned(), reason.to_owned());
    }
}

/// What is scanned and what it is compared with.
struct Sides<'a> {
    output: &'a Opened,
    source: Option<(&'a Opened, &'a Table<'a>)>,
}

impl Sides<'_> {
    /// Errors of all weights; empty where a side's values are not at hand.
    fn errors(
        &self,
        table: &Table<'_>,
        modules: &[modules::Module<'_>],
        config: &QuantizationConfig,
    ) -> Result<Vec<TensorError>, ScanError> {
        let (Some((source, before)), Some(output)) = (self.source, self.output.dir()) else {
            return Ok(Vec::new());
        };
        if !source.has_values() {
            return Ok(Vec::new());
        }
        errors::Pair { source, before, output, after: table, config }.errors(modules)
    }
}

/// Everything that headers, config and (where at hand) values tell.
fn inspect(
    table: Table<'_>,
    sides: &Sides<'_>,
    recipe: Option<&Recipe>,
    options: ScanOptions,
    provenance: Provenance,
) -> Result<ScanRecord, ScanError> {
    let mut findings = Findings::default();
    let declared = findings.declaration(&table);
    modelopt::check(&table, &mut findings);
    findings.stray_weights(&table);
    let source = sides.source.map(|(opened, table)| SourceView::open(opened, table)).transpose()?;
    let mut modules = modules::find(&table, source.as_ref());
    coverage::judge(&mut modules, declared.as_ref(), table.has_values(), &mut findings);
    values::check(&table, &modules, &mut findings);
    fused::check(&table, &modules, &mut findings);
    if let Some(config) = &declared {
        rules::check(&table, &modules, config, &mut findings);
    }
    let values = (options.values && table.has_values()).then(|| all_values::read(&table, &mut findings));
    // The same recipe in the layout that is there.
    let dialect = declared.as_ref().map(|d| d.dialect).unwrap_or_default();
    let in_layout = recipe.map(|recipe| recipe.clone().in_dialect(dialect));
    if let Some(Err(error)) = &in_layout {
        findings.not_checked.insert("recipe".to_owned(), error.to_string());
    }
    let in_layout = in_layout.and_then(Result::ok);
    let check = SourceCheck::new(&table, &modules, source, in_layout.as_ref());
    check.names_and_shapes(&modules, &mut findings);
    check.coverage(&modules, &mut findings);
    let size = size::measure(&table, &modules, &check);
    let engines = declared.as_ref().map_or_else(Vec::new, |config| engines_of(&table, &modules, config));
    let errors = match declared.as_ref().filter(|_| options.errors) {
        Some(config) => sides.errors(&table, &modules, config)?,
        None => Vec::new(),
    };
    if !table.has_values() {
        let reason = "a scan of headers alone does not see the values of scales";
        findings.not_checked.insert("scales".to_owned(), reason.to_owned());
    }
    if table.config().is_none() {
        let reason = "there is no config.json".to_owned();
        findings.not_checked.insert("declaration".to_owned(), reason);
    }
    findings.finish();
    let record = ScanRecord {
        schema_version: SCHEMA_VERSION,
        checkpoint: String::new(),
        checkpoint_digest: None,
        source: None,
        source_digest: None,
        size,
        quant_method: table.quant_method(),
        coverage: findings.coverage,
        metadata_diffs: Vec::new(),
        defects: findings.defects,
        not_checked: findings.not_checked,
        dtype_counts: dtype_counts(&table),
        notes: findings.notes,
        engines,
        scale_ranges: findings.scale_ranges,
        errors,
        values,
        transfer: None,
        provenance,
    };
    drop(modules);
    table.failure()?;
    Ok(record)
}

/// Which engines load what is declared, on one device.
fn engines_of(
    table: &Table<'_>,
    modules: &[modules::Module<'_>],
    config: &QuantizationConfig,
) -> Vec<crate::record::engine::EngineSupport> {
    let linears: Vec<tensor_parallel::Linear<'_>> = modules
        .iter()
        .filter_map(|m| {
            let declared = m.declared.as_ref()?;
            Some(tensor_parallel::Linear { name: m.name, shape: m.shape?, layout: &declared.layout })
        })
        .collect();
    let uses: Vec<engines::Use<'_>> = config
        .groups
        .iter()
        .filter_map(|group| {
            let mut members = modules
                .iter()
                .filter(|m| m.declared.as_ref().is_some_and(|d| d.group == group.name))
                .peekable();
            members.peek()?;
            let (experts, dense): (Vec<_>, Vec<_>) = members.partition(|m| engines::is_expert(m.name));
            let (has_experts, has_dense) = (!experts.is_empty(), !dense.is_empty());
            Some(engines::Use { scheme: &group.scheme, format: group.format, has_experts, has_dense })
        })
        .collect();
    let problems = tensor_parallel::check(&linears, table.config(), 1);
    engines::support(&uses, &problems, config.dialect)
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
    notes: Vec<Defect>,
    scale_ranges: BTreeMap<String, ValueRange>,
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

    /// As [`Self::defect`], for what nothing refuses.
    fn note(
        &mut self,
        check: &str,
        subject: impl Into<String>,
        observed: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.defect(check, subject, observed, expected);
        self.notes.extend(self.defects.pop());
    }

    /// The declared quantization, if it can be understood.
    fn declaration(&mut self, table: &Table<'_>) -> Option<QuantizationConfig> {
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

    /// Weight files that are no part of the checkpoint: a loader without an index reads every file there is.
    fn stray_weights(&mut self, table: &Table<'_>) {
        for file in table.checkpoint().into_iter().flat_map(Checkpoint::stray_weights) {
            let expected = "only weight files that hold the checkpoint's tensors";
            // Mistral publishes the whole model a second time in its own format, whose loaders look for this name.
            if file.starts_with("consolidated") {
                self.note("names", file, "a weight file of another format", expected);
            } else {
                self.defect("names", file, "a weight file that is no part of the checkpoint", expected);
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
        for list in [&mut self.defects, &mut self.notes] {
            list.sort_by(|a, b| (&a.check, &a.tensor, &a.observed).cmp(&(&b.check, &b.tensor, &b.observed)));
            list.dedup();
        }
    }
}
