//! The plan: which tensors each output shard holds, in which order, and where each comes from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use safetensors::Dtype;

use super::QuantizeError;
use super::calibration::{CalibrationError, InputScales};
use super::shard::{self, Durability, ShardTarget};
use crate::checkpoint::Checkpoint;
use crate::dense::{DenseSource, DenseTensor};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::quantize_weight::Arithmetic;
use crate::recipe::assignment::{AssignedModule, Assignment, ScalarTensor};
use crate::recipe::{Recipe, fused_sets};
use crate::record::calibration::{CalibrationRecord, CalibrationSummary};
use crate::record::quantize::ShardRecord;

/// Everything decided before anything is written.
#[derive(Debug)]
pub struct QuantizePlan {
    pub(super) source: Arc<DenseSource>,
    pub(super) recipe: Recipe,
    pub(super) arithmetic: Arithmetic,
    pub(super) assignment: Assignment,
    /// One list of tensors for each source shard, in the order of their data.
    pub(super) shards: Vec<Vec<OutputTensor>>,
    /// Modules that share a largest magnitude, by [`amax_key`], and that magnitude once it is needed.
    shared: BTreeMap<String, (Vec<usize>, OnceLock<f32>)>,
    /// Index of the module whose weight a tensor of the source is.
    by_weight: BTreeMap<String, usize>,
    /// Static input scales, once calibration found them.
    input_scales: OnceLock<InputScales>,
}

/// One tensor of an output shard.
#[derive(Debug, Clone)]
pub(super) struct OutputTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub content: Content,
}

/// Where the data of an output tensor comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content {
    /// The source's tensors.
    Source,
    /// One number of the recipe.
    Number(f32),
    /// One number that calibration finds.
    Calibrated,
}

impl OutputTensor {
    pub(super) fn num_bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|d| *d as u64).product();
        (elements * self.dtype.bitsize() as u64).div_ceil(8)
    }
}

impl QuantizePlan {
    /// Plans the quantization and checks every precondition that headers can tell.
    pub fn new(
        source: Arc<Checkpoint>,
        recipe: Recipe,
        arithmetic: Arithmetic,
    ) -> Result<Self, QuantizeError> {
        let model = source.dir().to_path_buf();
        let mut source = DenseSource::open(source)?;
        let assignment = Assignment::of_source(&mut source, &recipe)
            .and_then(|assignment| assignment.refuse_unknown_scales(&recipe).map(|()| assignment))
            .map_err(|error| QuantizeError::Assignment { model, source: error })?;
        let by_weight: BTreeMap<String, usize> =
            assignment.modules.iter().enumerate().map(|(i, m)| (m.weight(), i)).collect();
        let shards = (0..source.checkpoint().shards().len())
            .map(|shard| output_tensors(source.shard(shard), &assignment, &by_weight))
            .collect();
        let mut shared: BTreeMap<String, (Vec<usize>, OnceLock<f32>)> = BTreeMap::new();
        for (i, module) in assignment.modules.iter().enumerate().filter(|(_, m)| m.layout.needs_tensor_amax())
        {
            shared.entry(amax_key(module)).or_default().0.push(i);
        }
        let source = Arc::new(source);
        Ok(Self {
            source,
            recipe,
            arithmetic,
            assignment,
            shards,
            shared,
            by_weight,
            input_scales: OnceLock::new(),
        })
    }

    /// Whether static input scales have to be calibrated before shards can be written.
    pub fn needs_calibration(&self) -> bool {
        self.assignment.calibrated().next().is_some()
    }

    /// Takes the static input scales from a calibration of the source. A second call must bring the same.
    pub fn calibrate(&self, record: &CalibrationRecord) -> Result<(), QuantizeError> {
        let scales = InputScales::new(&self.assignment, &self.recipe, record)?;
        if *self.input_scales.get_or_init(|| scales.clone()) == scales {
            return Ok(());
        }
        Err(CalibrationError::Order { found: "other ones than before" }.into())
    }

    /// Puts numbers in the place of scales that are not calibrated.
    pub(super) fn assume_scales(&self) {
        self.input_scales.get_or_init(|| InputScales::placeholders(&self.assignment));
    }

    /// The value of a calibrated scale.
    pub(super) fn calibrated_scale(&self, tensor: &str) -> Result<f32, CalibrationError> {
        let scale = self.input_scales.get().and_then(|scales| scales.values.get(tensor));
        scale.copied().ok_or(CalibrationError::Order { found: "none" })
    }

    /// The calibration, for the record.
    pub(super) fn calibration_summary(&self) -> Option<CalibrationSummary> {
        self.input_scales.get().and_then(|scales| scales.summary.clone())
    }

    /// Bytes of all tensors that will be written.
    pub fn predicted_tensor_bytes(&self) -> u64 {
        self.assignment.predicted_bytes
    }

    /// Bytes of all tensors of the source.
    pub fn source_tensor_bytes(&self) -> u64 {
        self.assignment.source_bytes
    }

    /// The modules that will be quantized, sorted by name.
    pub fn modules(&self) -> &[AssignedModule] {
        &self.assignment.modules
    }

    /// Linear-like modules left as they are, with the reason.
    pub fn excluded_modules(&self) -> BTreeMap<String, String> {
        self.assignment.excluded.iter().map(|(name, e)| (name.clone(), e.reason.clone())).collect()
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// In which precision elements are divided by their scale.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Number of output shards, the same as the source's.
    pub fn num_shards(&self) -> usize {
        self.shards.len()
    }

    /// File name of an output shard, the same as the source's.
    pub fn shard_file_name(&self, shard: usize) -> &str {
        &self.source.checkpoint().shards()[shard].file
    }

    /// Bytes of the source's tensors in one shard, dense: what `progress` of [`Self::write_shard`] adds up to.
    pub fn shard_source_bytes(&self, shard: usize) -> u64 {
        self.source.shard(shard).map(DenseTensor::num_bytes).sum()
    }

    /// Writes one shard into `staging`, under its name only when complete and stored; `progress` is called with numbers
    /// of source bytes done.
    pub fn write_shard(
        &self,
        shard: usize,
        staging: &Path,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<ShardRecord, QuantizeError> {
        let target = ShardTarget { plan: self, staging };
        let mut records = shard::write_shards(&[target], shard, Durability::Sync, None, progress)?;
        records
            .pop()
            .ok_or_else(|| QuantizeError::Shards { found: String::new(), expected: shard.to_string() })
    }

    /// The module whose weight this tensor of the source is.
    pub(super) fn module_of(&self, tensor: &str) -> Option<usize> {
        self.by_weight.get(tensor).copied()
    }

    /// What a module's scales depend on besides its own rows, if anything: the modules that share its largest magnitude
    /// (its fused set under NVFP4, itself with one scale a tensor), and that magnitude once it is known.
    pub(super) fn shared_amax(&self, module: usize) -> Option<(&[usize], &OnceLock<f32>)> {
        let module = &self.assignment.modules[module];
        let (members, cell) =
            self.shared.get(&amax_key(module)).filter(|_| module.layout.needs_tensor_amax())?;
        Some((members, cell))
    }
}

/// Modules with the same key share a largest magnitude.
fn amax_key(module: &AssignedModule) -> String {
    use crate::ops::weight_layout::ScaleKind;
    let fused =
        (module.layout.scale == ScaleKind::E4m3UnderGlobal).then(|| fused_sets::key(&module.name)).flatten();
    fused.unwrap_or_else(|| module.name.clone())
}

/// The tensors of one output shard in the order of their data: that of the source, a module's codes before its scales.
///
/// Readers that map the file want each tensor aligned to its element size, and the format allows no holes. Tensors of
/// whole eight-byte words keep that for what follows; all others are moved to the end, widest elements first.
fn output_tensors<'a>(
    source: impl Iterator<Item = &'a DenseTensor>,
    assignment: &Assignment,
    by_weight: &BTreeMap<String, usize>,
) -> Vec<OutputTensor> {
    let modules = &assignment.modules;
    let mut scalars: BTreeMap<&str, Vec<&ScalarTensor>> = BTreeMap::new();
    for scalar in &assignment.scalars {
        scalars.entry(scalar.after.as_str()).or_default().push(scalar);
    }
    let mut tensors = Vec::new();
    for tensor in source {
        if let Some(index) = by_weight.get(&tensor.name) {
            let module = &modules[*index];
            tensors.extend(module.tensors().into_iter().map(|spec| OutputTensor {
                name: format!("{}.{}", module.name, spec.suffix),
                dtype: spec.dtype,
                shape: spec.shape,
                content: Content::Source,
            }));
        } else {
            let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
            tensors.push(OutputTensor { name: tensor.name.clone(), dtype, shape, content: Content::Source });
        }
        let scalar = |s: &&ScalarTensor| {
            let (name, dtype, shape) = (s.name.clone(), s.dtype, s.shape.clone());
            let content = s.value.map_or(Content::Calibrated, Content::Number);
            OutputTensor { name, dtype, shape, content }
        };
        tensors.extend(scalars.get(tensor.name.as_str()).into_iter().flatten().map(scalar));
    }
    let (mut aligned, mut ragged): (Vec<_>, Vec<_>) =
        tensors.into_iter().partition(|t| t.num_bytes() % 8 == 0);
    ragged.sort_by_key(|t| std::cmp::Reverse(t.dtype.bitsize()));
    aligned.extend(ragged);
    aligned
}

/// The float type of a copied tensor whose values are checked, i.e. of any `.weight`.
pub(super) fn checked_dtype(name: &str, dtype: Dtype) -> Option<FloatDtype> {
    FloatDtype::of(dtype).filter(|_| name.ends_with(".weight"))
}
