//! Quantizes one shard for one or several recipes: every thread takes the next step (tile of rows), reads it into its
//! own buffer, quantizes it there for each output and delivers the result.
//!
//! # Where the time goes
//! Time of one core in ns per byte of bf16 input, on a 2.6 GHz Zen 4 with AVX-512 (`cargo bench --bench quantize`, and
//! `perf record day0 quantize` for what is not a kernel):
//!
//! | step | FP8, INT8 | W4A16 g128 | MXFP4 | NVFP4 |
//! |---|---|---|---|---|
//! | read(2) from the page cache into the second-level cache | 0.10 | 0.10 | 0.10 | 0.20 (twice) |
//! | amax, scale, division, rounding, packing, error | 0.18, 0.13 | 0.13 | 0.19 | 0.20 |
//! | BLAKE3 of the output | 0.11 | 0.06 | 0.06 | 0.06 |
//! | write(2) into the page cache | 0.20 | 0.10 | 0.10 | 0.11 |
//!
//! So the formats of one byte an element are bound by moving bytes, those of half a byte by arithmetic: an exact f32
//! division of 16 elements takes 10 cycles of the divider, and everything else fits beside it.
//!
//! # Memory
//! A tile and its codes for each thread, at most [`READY_BYTES`] of tiles that wait for earlier ones, and the scales of
//! one module for each output, whatever the size of the checkpoint. Nothing is mapped, but for weights whose ranges are
//! searched by error, which the search sees as a whole.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::QuantizeError;
use super::gpu::{self, Gpus, Room};
use super::output::{Output, Part};
use super::plan::QuantizePlan;
use super::work::{Action, Files, ShardWork, Step, TensorWork, missing};
use crate::checkpoint::quant_args::Observer;
use crate::dense::{DenseSource, DenseTensor};
use crate::ops::cuda::CudaQuantizeError;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::observer_mse;
use crate::ops::quantize_weight::{
    self, Arithmetic, QuantizeWeightError, Quantized, Tile, Weight, WeightQuantizer,
};
use crate::recipe::assignment::AssignedModule;
use crate::record::quantize::ShardRecord;

/// Bytes of tiles that may wait for earlier ones to be written.
const READY_BYTES: usize = 64 << 20;

/// One of the outputs made from one read of the source.
#[derive(Debug, Clone, Copy)]
pub struct ShardTarget<'a> {
    /// What is done to which tensors.
    pub plan: &'a QuantizePlan,
    /// Directory in which the shard appears under its name when it is complete.
    pub staging: &'a Path,
}

/// When written data goes to storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Each file before it gets its name.
    Sync,
    /// Storage is begun early, so that a later sync is short; nothing waits for it.
    Early,
    /// Left to the system.
    None,
}

/// Writes one shard of several outputs of the same source, quantized on GPUs where there are some. `progress` is called
/// with numbers of source bytes done.
pub fn write_shards(
    targets: &[ShardTarget<'_>],
    shard: usize,
    durability: Durability,
    gpus: Option<&Gpus>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<ShardRecord>, QuantizeError> {
    let plans: Vec<&QuantizePlan> = targets.iter().map(|t| t.plan).collect();
    let work = ShardWork::new(&plans, shard, gpu::tile_bytes(gpus))?;
    let outputs = targets
        .iter()
        .enumerate()
        .map(|(i, t)| Output::new(t.plan, i, shard, t.staging, durability != Durability::None))
        .collect::<Result<Vec<_>, _>>()?;
    let threads = gpu::threads(gpus);
    let largest_tile = work.works.iter().map(TensorWork::tile_bytes).max().unwrap_or(0);
    let Some(first) = plans.first() else { return Ok(Vec::new()) };
    let run = Run {
        source: &first.source,
        work: &work,
        outputs: &outputs,
        gpus,
        progress,
        files: Files::default(),
        next_step: AtomicUsize::new(0),
        window: (READY_BYTES / largest_tile.max(1)).clamp(2 * threads, 16 * threads),
        spare: Mutex::default(),
        state: Mutex::new(State { error: None }),
        changed: Condvar::new(),
        stopped: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let run = &run;
        for worker in 1..threads {
            scope.spawn(move || run.work(worker, largest_tile));
        }
        run.work(0, largest_tile);
    });
    if let Some(error) = run.state.into_inner().unwrap_or_else(PoisonError::into_inner).error {
        return Err(error);
    }
    outputs.into_iter().map(|output| output.finish(durability == Durability::Sync)).collect()
}

/// One pass over a shard; shared by its threads.
struct Run<'a> {
    source: &'a DenseSource,
    work: &'a ShardWork<'a>,
    outputs: &'a [Output<'a>],
    gpus: Option<&'a Gpus>,
    progress: &'a (dyn Fn(u64) + Sync),
    files: Files,
    next_step: AtomicUsize,
    /// A tile is begun only when fewer than this many before it are unwritten.
    window: usize,
    /// Buffers to be used again: memory that was touched before costs no page faults.
    spare: Mutex<Vec<Tile>>,
    state: Mutex<State>,
    /// A part was written, an amax found, or the run stopped.
    changed: Condvar,
    stopped: AtomicBool,
}

struct State {
    /// The first error.
    error: Option<QuantizeError>,
}

impl Run<'_> {
    /// Takes steps until none is left.
    fn work(&self, worker: usize, largest_tile: usize) {
        let mut room = match Room::new(self.gpus, worker, largest_tile) {
            Ok(room) => room,
            Err(error) => return self.stop(error.into()),
        };
        while !self.stopped.load(Ordering::Acquire) {
            let at = self.next_step.fetch_add(1, Ordering::AcqRel);
            let Some(step) = self.work.steps.get(at) else { return };
            if let Err(error) = self.step(step, &mut room) {
                self.stop(error);
            }
        }
    }

    /// Keeps the first error and lets all threads end.
    fn stop(&self, error: QuantizeError) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).error.get_or_insert(error);
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    fn step(&self, step: &Step, room: &mut Room<'_>) -> Result<(), QuantizeError> {
        match step {
            Step::Amax { shared, member, bytes } => {
                let shared = &self.work.shared[*shared];
                let member = &shared.members[*member];
                let module = member.module;
                let amax = match module.observer {
                    Observer::MinMax => {
                        room.read(&member.input, &self.files, bytes)?;
                        let (tensor, dtype) = (&member.input.tensor, module.dtype);
                        finite_amax(tensor, dtype, room.amax(dtype)?, (room.bytes(), bytes.start))?
                    }
                    Observer::Mse => {
                        let search = |weight: Weight<'_>| {
                            observer_mse::shared_amax(weight, &module.layout, shared.arithmetic)
                        };
                        self.on_whole(module, search)?
                    }
                };
                if shared.add(amax) {
                    self.wake();
                }
                Ok(())
            }
            Step::Tile { number, work, rows, is_last } => {
                let tensor = &self.work.works[*work];
                self.wait_until(|| self.outputs.iter().all(|o| *number < o.next_part() + self.window));
                let bytes = tensor.bytes(rows);
                room.read(&tensor.input, &self.files, &bytes)?;
                for (output, action) in self.outputs.iter().zip(&tensor.actions) {
                    let mut tile =
                        self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
                    let mut searched = None;
                    match action {
                        Action::Copy { checked } => {
                            copy(tensor, *checked, bytes.start, room.bytes(), &mut tile)?;
                        }
                        Action::Quantize { module, shared, quantizer } => {
                            let module = &output.plan.assignment.modules[*module];
                            let Some(amax) = self.wait_for_amax(*shared) else { return Ok(()) };
                            let arithmetic = output.plan.arithmetic;
                            if module.observer == Observer::Mse {
                                searched = self.search(module, arithmetic, amax, *is_last, &mut tile)?;
                            } else {
                                let new = || {
                                    let (shape, layout) = (module.shape, &module.layout);
                                    WeightQuantizer::new(shape, module.dtype, layout, arithmetic, amax)
                                };
                                let done = room.quantize(quantizer.get_or_init(new), rows.start, &mut tile);
                                done.map_err(|error| device_error(&tensor.input.tensor.name, error))?;
                            }
                        }
                    }
                    let part = Part { work: *work, is_last: *is_last, tile, searched };
                    let mut written = |part: Part| {
                        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(part.tile);
                        self.wake();
                    };
                    room.delivering(|| output.deliver(*number, part, &self.work.works, &mut written))?;
                }
                (self.progress)(bytes.end - bytes.start);
                Ok(())
            }
        }
    }

    /// The amax with this index, 0 without one; `None` when the run stopped before it was found.
    fn wait_for_amax(&self, shared: Option<usize>) -> Option<f32> {
        let Some(index) = shared else { return Some(0.0) };
        let cell = self.work.shared[index].cell;
        self.wait_until(|| cell.get().is_some());
        cell.get().copied()
    }

    /// Quantizes a weight whose ranges are searched, which takes all of it: with its last tile.
    fn search(
        &self,
        module: &AssignedModule,
        arithmetic: Arithmetic,
        amax: f32,
        is_last: bool,
        tile: &mut Tile,
    ) -> Result<Option<Quantized>, QuantizeError> {
        tile.clear();
        if !is_last {
            return Ok(None);
        }
        let mut sink = |codes: &[u8]| {
            tile.codes.extend_from_slice(codes);
            Ok(())
        };
        let run = |weight: Weight<'_>| {
            observer_mse::quantize_weight(weight, &module.layout, arithmetic, amax, &mut sink)
        };
        self.on_whole(module, run).map(Some)
    }

    /// Runs `work` on a whole weight, mapped if it is stored as it is, and gives the memory of its pages back.
    fn on_whole<T>(
        &self,
        module: &AssignedModule,
        work: impl FnOnce(Weight<'_>) -> Result<T, QuantizeWeightError>,
    ) -> Result<T, QuantizeError> {
        let name = module.weight();
        let tensor = self.source.get(&name).ok_or_else(|| missing(self.source, &name))?;
        let mut made = Vec::new();
        let data = if tensor.is_plain() {
            self.source.checkpoint().require(&name)?.data
        } else {
            self.source.read(tensor, 0..tensor.num_bytes(), &mut made)?;
            &made
        };
        let done = work(Weight { data, dtype: module.dtype, shape: module.shape });
        self.source.release(tensor);
        done.map_err(|error| weight_error(&name, &error))
    }

    /// Waits for something that other threads bring about; `false` when the run stopped first.
    fn wait_until(&self, holds: impl Fn() -> bool) -> bool {
        if holds() {
            return true;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return false;
            }
            if holds() {
                return true;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        // Taking the lock keeps the signal from falling between another thread's look and its wait.
        drop(self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

/// Copies part of a tensor, which begins at byte `start`, and checks its values if it has a type for that.
fn copy(
    tensor: &TensorWork,
    checked: Option<FloatDtype>,
    start: u64,
    bytes: &[u8],
    tile: &mut Tile,
) -> Result<(), QuantizeError> {
    if let Some(dtype) = checked {
        finite_amax(&tensor.input.tensor, dtype, dtype.amax(bytes), (bytes, start))?;
    }
    tile.clear();
    tile.codes.extend_from_slice(bytes);
    Ok(())
}

/// The largest magnitude of part of a tensor, which begins at byte `start`; for NaN and infinity the element at fault.
fn finite_amax(
    tensor: &DenseTensor,
    dtype: FloatDtype,
    amax: f32,
    (bytes, start): (&[u8], u64),
) -> Result<f32, QuantizeError> {
    if amax.is_finite() {
        return Ok(amax);
    }
    let weight = Weight { data: bytes, dtype, shape: [1, bytes.len() / dtype.size()] };
    match quantize_weight::amax(weight) {
        Err(QuantizeWeightError::NonFinite { column, value, .. }) => {
            let index = column + start as usize / dtype.size();
            let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
            let (row, column) = (index / columns, index % columns);
            Err(weight_error(&tensor.name, &QuantizeWeightError::NonFinite { row, column, value }))
        }
        _ => Ok(amax),
    }
}

/// Names the tensor if it is at fault.
fn device_error(tensor: &str, error: CudaQuantizeError) -> QuantizeError {
    match error {
        CudaQuantizeError::Weight(error) => weight_error(tensor, &error),
        CudaQuantizeError::Device(error) => error.into(),
        differs @ CudaQuantizeError::Differs { .. } => {
            QuantizeError::WrongDevice { tensor: tensor.to_owned(), what: differs.to_string() }
        }
    }
}

/// Names the tensor in an error of its quantization.
fn weight_error(tensor: &str, error: &QuantizeWeightError) -> QuantizeError {
    let at = match error {
        QuantizeWeightError::NonFinite { .. } => Some(error.to_string()),
        QuantizeWeightError::Sink(_) => None,
    };
    QuantizeError::NonFinite { tensor: tensor.to_owned(), at }
}
