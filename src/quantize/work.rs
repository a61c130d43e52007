//! What is to be done with one shard of the source, cut into tiles: whole rows of one tensor, read once for all outputs.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::QuantizeError;
use super::plan::{QuantizePlan, checked_dtype};
use crate::checkpoint::quant_args::{Observer, Strategy};
use crate::checkpoint::{CheckpointError, TensorLocation};
use crate::dense::{DenseSource, DenseTensor};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::quantize_weight::{Arithmetic, WeightQuantizer, least_common_multiple, tile_rows};
use crate::recipe::assignment::AssignedModule;

/// A tensor of the source, and what every output makes of it.
pub(super) struct TensorWork {
    pub input: Input,
    /// One for each output, in their order.
    pub actions: Vec<Action>,
    /// Rows in one tile; a tensor that nobody quantizes counts as rows of one byte.
    tile_rows: usize,
    row_bytes: usize,
    num_rows: usize,
}

/// What one output makes of a tensor.
pub(super) enum Action {
    /// Copied; the type if its values are checked.
    Copy { checked: Option<FloatDtype> },
    /// Quantized as this module of its plan's assignment.
    Quantize {
        module: usize,
        /// Index of the amax its scales depend on.
        shared: Option<usize>,
        /// Made by the first tile, when that amax is known.
        quantizer: OnceLock<WeightQuantizer>,
    },
}

/// A step; steps are begun in order.
pub(super) enum Step {
    /// Part of the search for a shared amax: these bytes of this tensor of any shard.
    Amax { shared: usize, member: usize, bytes: Range<u64> },
    /// Rows of a tensor of this shard, to be read once and delivered to every output; tiles are numbered from 0.
    Tile { number: usize, work: usize, rows: Range<usize>, is_last: bool },
}

/// The largest magnitude of several weights while it is being searched.
pub(super) struct SharedAmax<'a> {
    pub cell: &'a OnceLock<f32>,
    pub members: Vec<Member<'a>>,
    pub arithmetic: Arithmetic,
    remaining: AtomicUsize,
    /// The bits of the largest magnitude so far, which are ordered as magnitudes are.
    largest: AtomicU32,
}

/// A weight that takes part in a shared amax.
pub(super) struct Member<'a> {
    pub module: &'a AssignedModule,
    pub input: Input,
}

/// A dense tensor of the source, and where it lies if it need not be made.
pub(super) struct Input {
    pub tensor: DenseTensor,
    source: Arc<DenseSource>,
    location: Option<TensorLocation>,
}

impl Input {
    fn new(source: &Arc<DenseSource>, tensor: &DenseTensor) -> Self {
        Self { tensor: tensor.clone(), source: Arc::clone(source), location: source.location(tensor) }
    }

    /// Reads `range` of the dense bytes into `buffer`, which takes its size.
    pub(super) fn read(
        &self,
        files: &Files,
        range: &Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), QuantizeError> {
        match &self.location {
            Some(at) => Ok(files.read(at, range, buffer)?),
            None => Ok(self.source.read(&self.tensor, range.clone(), buffer)?),
        }
    }

    /// As [`Self::read`] into memory of the right size; `made` is used where the bytes must be made.
    pub(super) fn read_into(
        &self,
        files: &Files,
        range: &Range<u64>,
        to: &mut [u8],
        made: &mut Vec<u8>,
    ) -> Result<(), QuantizeError> {
        if let Some(at) = &self.location {
            return Ok(files.read_into(at, range, to)?);
        }
        self.source.read(&self.tensor, range.clone(), made)?;
        to.copy_from_slice(made);
        Ok(())
    }

    /// Bytes in whose multiples reading is cheap: whole rows where they are made, else any.
    fn unit_bytes(&self) -> usize {
        if self.location.is_some() { 1 } else { self.tensor.row_bytes().max(1) }
    }
}

impl SharedAmax<'_> {
    /// Adds the amax of one step; `true` for the last.
    pub(super) fn add(&self, amax: f32) -> bool {
        self.largest.fetch_max(amax.to_bits(), Ordering::AcqRel);
        if self.remaining.fetch_sub(1, Ordering::AcqRel) > 1 {
            return false;
        }
        self.cell.get_or_init(|| f32::from_bits(self.largest.load(Ordering::Acquire)));
        true
    }
}

impl TensorWork {
    /// The bytes of the tensor in which `rows` lie.
    pub(super) fn bytes(&self, rows: &Range<usize>) -> Range<u64> {
        (rows.start * self.row_bytes) as u64..(rows.end * self.row_bytes) as u64
    }

    /// Bytes of the largest tile.
    pub(super) fn tile_bytes(&self) -> usize {
        self.tile_rows.min(self.num_rows) * self.row_bytes
    }
}

/// Everything to be done for one shard.
pub(super) struct ShardWork<'a> {
    pub works: Vec<TensorWork>,
    pub steps: Vec<Step>,
    pub shared: Vec<SharedAmax<'a>>,
    num_tiles: usize,
    /// About how many bytes of the source make a tile.
    tile_bytes: usize,
}

impl<'a> ShardWork<'a> {
    /// The work of one shard for several plans of the same source.
    pub(super) fn new(
        plans: &[&'a QuantizePlan],
        shard: usize,
        tile_bytes: usize,
    ) -> Result<Self, QuantizeError> {
        let (works, steps, shared) = (Vec::new(), Vec::new(), Vec::new());
        let mut all = Self { works, steps, shared, num_tiles: 0, tile_bytes };
        let Some(first) = plans.first() else { return Ok(all) };
        let source = &first.source;
        refuse_different_splits(plans)?;
        for tensor in source.shard(shard) {
            let mut actions = Vec::new();
            let mut band = 1;
            for plan in plans {
                let Some(module) = plan.module_of(&tensor.name) else {
                    actions.push(Action::Copy { checked: checked_dtype(&tensor.name, tensor.dtype) });
                    continue;
                };
                let assigned = &plan.assignment.modules[module];
                let block = assigned.layout.block(assigned.shape)[0];
                if assigned.layout.strategy != Strategy::Tensor {
                    band = least_common_multiple(band, block);
                }
                let shared = all.search_amax(plan, module)?;
                actions.push(Action::Quantize { module, shared, quantizer: OnceLock::new() });
            }
            all.add_tiles(Input::new(source, tensor), actions, band);
        }
        Ok(all)
    }

    /// Adds the steps that find the amax a module's scales depend on, unless it needs none or is known.
    fn search_amax(&mut self, plan: &'a QuantizePlan, module: usize) -> Result<Option<usize>, QuantizeError> {
        let Some((members, cell)) = plan.shared_amax(module) else { return Ok(None) };
        if let Some(known) = self.shared.iter().position(|s| std::ptr::eq(s.cell, cell)) {
            return Ok(Some(known));
        }
        let shared = self.shared.len();
        let mut remaining = 0;
        let mut found = Vec::new();
        for (member, index) in members.iter().enumerate() {
            let module = &plan.assignment.modules[*index];
            let name = module.weight();
            let tensor = plan.source.get(&name).ok_or_else(|| missing(&plan.source, &name))?;
            let (input, num_bytes) = (Input::new(&plan.source, tensor), tensor.num_bytes());
            if cell.get().is_none() {
                let step = match module.observer {
                    Observer::MinMax => {
                        let unit = module.dtype.size().max(input.unit_bytes());
                        ((self.tile_bytes / unit).max(1) * unit) as u64
                    }
                    // The search sees the weight as a whole.
                    Observer::Mse => num_bytes.max(1),
                };
                for start in (0..num_bytes).step_by(step as usize) {
                    let bytes = start..(start + step).min(num_bytes);
                    self.steps.push(Step::Amax { shared, member, bytes });
                    remaining += 1;
                }
            }
            found.push(Member { module, input });
        }
        if remaining == 0 {
            // Known already, or nothing but weights without elements.
            cell.get_or_init(|| 0.0);
        }
        let (remaining, largest) = (AtomicUsize::new(remaining), AtomicU32::new(0));
        let arithmetic = plan.arithmetic;
        self.shared.push(SharedAmax { cell, members: found, arithmetic, remaining, largest });
        Ok(Some(shared))
    }

    fn add_tiles(&mut self, input: Input, actions: Vec<Action>, band: usize) {
        let quantized = actions.iter().any(|a| matches!(a, Action::Quantize { .. }));
        let num_bytes = input.tensor.num_bytes() as usize;
        let (num_rows, row_bytes) = match input.tensor.shape[..] {
            [n, _] if (quantized || input.location.is_none()) && n > 0 => (n, num_bytes / n),
            _ => (num_bytes, 1),
        };
        let tile_rows = tile_rows(self.tile_bytes, row_bytes, band);
        let work = self.works.len();
        let mut start = 0;
        // A tensor without data is delivered too.
        loop {
            let end = (start + tile_rows).min(num_rows);
            let number = self.num_tiles;
            self.steps.push(Step::Tile { number, work, rows: start..end, is_last: end == num_rows });
            self.num_tiles += 1;
            start = end;
            if start == num_rows {
                break;
            }
        }
        self.works.push(TensorWork { input, actions, tile_rows, row_bytes, num_rows });
    }
}

/// One pass reads each tensor once, so all plans must see the same tensors.
fn refuse_different_splits(plans: &[&QuantizePlan]) -> Result<(), QuantizeError> {
    let Some((first, others)) = plans.split_first() else { return Ok(()) };
    match others.iter().find(|other| !other.source.fused().keys().eq(first.source.fused().keys())) {
        None => Ok(()),
        Some(other) => {
            Err(QuantizeError::Split { first: first.recipe.name.clone(), other: other.recipe.name.clone() })
        }
    }
}

pub(super) fn missing(source: &DenseSource, tensor: &str) -> CheckpointError {
    CheckpointError::MissingTensor {
        dir: source.checkpoint().dir().to_path_buf(),
        tensor: tensor.to_owned(),
        closest: None,
    }
}

/// Reads parts of files. One for all threads: what the system reads ahead is then one sequence for each file.
#[derive(Default)]
pub(super) struct Files(Mutex<Vec<(PathBuf, Arc<File>)>>);

/// Files kept open at a time: the shard itself and those that hold the rest of fused sets.
const OPEN_FILES: usize = 4;

impl Files {
    /// Reads `range` of a tensor into `buffer`, which takes its size.
    pub(super) fn read(
        &self,
        at: &TensorLocation,
        range: &Range<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        buffer.resize((range.end - range.start) as usize, 0);
        self.read_into(at, range, buffer)
    }

    /// As [`Self::read`] into memory of the right size.
    fn read_into(
        &self,
        at: &TensorLocation,
        range: &Range<u64>,
        to: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let failed = |source| CheckpointError::Read { path: at.path.clone(), source };
        let file = self.file(at).map_err(failed)?;
        read_exact_at(&file, to, at.offset + range.start).map_err(failed)
    }

    fn file(&self, at: &TensorLocation) -> std::io::Result<Arc<File>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = open.iter().find(|(path, _)| *path == at.path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(&at.path)?);
        if open.len() == OPEN_FILES {
            open.remove(0);
        }
        open.push((at.path.clone(), Arc::clone(&file)));
        Ok(file)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        offset += n as u64;
    }
    Ok(())
}
