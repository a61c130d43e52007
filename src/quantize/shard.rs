//! Writes one output shard as a stream: one thread quantizes (on all cores), another hashes and writes.
//!
//! Memory is bounded by a batch of tiles and the scales of one module, not by the tensor.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::QuantizeError;
use super::plan::{Origin, OutputTensor, QuantizePlan, checked_dtype};
use crate::base::atomic::AtomicFile;
use crate::base::digest::Digest;
use crate::checkpoint::quant_args::Observer;
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::observer_mse;
use crate::ops::quantize_weight::{QuantizeWeightError, Weight, amax, quantize_weight};
use crate::recipe::assignment::AssignedModule;
use crate::record::quantize::{ModuleRecord, ShardRecord};

/// Chunks on their way to the writer; each is one tile of codes or a slice of a copied tensor.
const CHUNKS_IN_FLIGHT: usize = 64;
/// Size of the slices in which copied tensors go to the writer.
const COPY_BYTES: usize = 1 << 20;

/// Part of a tensor's data.
enum Chunk<'a> {
    Made(Vec<u8>),
    Copied(&'a [u8]),
}

/// A chunk of the tensor with this index.
type Message<'a> = (usize, Chunk<'a>);

/// See [`QuantizePlan::write_shard`].
pub(super) fn write(
    plan: &QuantizePlan,
    shard: usize,
    staging: &Path,
    progress: &dyn Fn(u64),
) -> Result<ShardRecord, QuantizeError> {
    let file = plan.shard_file_name(shard).to_owned();
    let path = staging.join(&file);
    let tensors = &plan.shards[shard];
    let failed = |source| QuantizeError::Write { path: path.clone(), source };
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let out = AtomicFile::create(&path).map_err(failed)?;
    let writer = ShardWriter::new(out, &specs, &metadata).map_err(failed)?;
    let (modules, written) = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(CHUNKS_IN_FLIGHT);
        let consumer = scope.spawn(move || consume(writer, tensors, &receiver));
        let produced =
            Producer { plan, tensors, sender, progress, pending: HashMap::new(), modules: Vec::new() }.run();
        let written = match consumer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A writer that failed stops the producer, whose own error then only says that nobody listens.
        match (produced, written) {
            (Err(Stop::Error(error)), _) => Err(error),
            (_, Err(source)) => Err(failed(source)),
            (Err(Stop::NobodyListens), Ok(_)) => Err(failed(io::ErrorKind::BrokenPipe.into())),
            (Ok(modules), Ok(written)) => Ok((modules, written)),
        }
    })?;
    let (out, digest, bytes) = written;
    out.commit().map_err(failed)?;
    Ok(ShardRecord {
        file,
        digest,
        bytes,
        tensors: tensors.iter().map(|t| t.name.clone()).collect(),
        tensor_bytes: tensors.iter().map(OutputTensor::num_bytes).sum(),
        modules,
    })
}

/// Appends chunks until the producer is done.
fn consume(
    mut writer: ShardWriter<AtomicFile>,
    tensors: &[OutputTensor],
    chunks: &Receiver<Message<'_>>,
) -> io::Result<(AtomicFile, Digest, u64)> {
    for (tensor, chunk) in chunks {
        let bytes = match &chunk {
            Chunk::Made(bytes) => bytes.as_slice(),
            Chunk::Copied(bytes) => bytes,
        };
        writer.append(&tensors[tensor].name, bytes)?;
    }
    writer.finish()
}

/// Why the producer stopped.
enum Stop {
    Error(QuantizeError),
    NobodyListens,
}

impl<E: Into<QuantizeError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Makes the data of all tensors, in order.
struct Producer<'a> {
    plan: &'a QuantizePlan,
    tensors: &'a [OutputTensor],
    sender: SyncSender<Message<'a>>,
    progress: &'a dyn Fn(u64),
    /// Finished tensors whose place in the file comes later, by name.
    pending: HashMap<String, Vec<u8>>,
    modules: Vec<ModuleRecord>,
}

impl<'a> Producer<'a> {
    fn run(mut self) -> Result<Vec<ModuleRecord>, Stop> {
        for (index, tensor) in self.tensors.iter().enumerate() {
            match tensor.origin {
                Origin::Source => self.copy(index, tensor)?,
                Origin::Scalar(value) => {
                    let mut bytes = Vec::new();
                    FloatDtype::of(tensor.dtype).unwrap_or(FloatDtype::F32).write(value, &mut bytes);
                    self.send(index, Chunk::Made(bytes))?;
                }
                Origin::Codes(module) | Origin::Rest(module) => {
                    if let Some(bytes) = self.pending.remove(&tensor.name) {
                        self.send(index, Chunk::Made(bytes))?;
                        continue;
                    }
                    let module = &self.plan.assignment.modules[module];
                    let streams = matches!(tensor.origin, Origin::Codes(_));
                    self.quantize(index, module, streams)?;
                    if let Some(bytes) = self.pending.remove(&tensor.name) {
                        self.send(index, Chunk::Made(bytes))?;
                    }
                }
            }
        }
        self.modules.sort_by(|a, b| a.module.cmp(&b.module));
        Ok(self.modules)
    }

    fn send(&self, index: usize, chunk: Chunk<'a>) -> Result<(), Stop> {
        self.sender.send((index, chunk)).map_err(|_| Stop::NobodyListens)
    }

    /// Sends a tensor of the source as it is.
    fn copy(&self, index: usize, tensor: &OutputTensor) -> Result<(), Stop> {
        let view = self.plan.source.require(&tensor.name)?;
        if let Some(dtype) = checked_dtype(tensor) {
            // The shape does not matter for the search of the bad element: one row.
            let weight = Weight { data: view.data, dtype, shape: [1, view.num_elements()] };
            amax(weight).map_err(|error| weight_error(&tensor.name, &error))?;
        }
        if view.data.is_empty() {
            return self.send(index, Chunk::Copied(view.data));
        }
        for slice in view.data.chunks(COPY_BYTES) {
            self.send(index, Chunk::Copied(slice))?;
            (self.progress)(slice.len() as u64);
        }
        Ok(())
    }

    /// Quantizes a module. Its codes are sent as they come if it is their turn, else they are kept; the other tensors
    /// are always kept.
    fn quantize(&mut self, index: usize, module: &AssignedModule, streams: bool) -> Result<(), Stop> {
        let weight = self.plan.weight(module)?;
        let shared_amax = self.plan.shared_amax(module)?;
        let (sender, progress) = (&self.sender, self.progress);
        let mut kept = Vec::new();
        let mut nobody_listens = false;
        let [n, k] = module.shape;
        let source_bytes = (n * k * module.dtype.size()) as u64;
        let code_bytes = module.layout.codes(module.shape).num_bytes().max(1);
        let mut sink = |codes: Vec<u8>| {
            progress((codes.len() as u64 * source_bytes) / code_bytes);
            if !streams {
                kept.extend_from_slice(&codes);
                return Ok(());
            }
            sender.send((index, Chunk::Made(codes))).map_err(|_| {
                nobody_listens = true;
                io::ErrorKind::BrokenPipe.into()
            })
        };
        let run = match module.observer {
            Observer::MinMax => quantize_weight,
            Observer::Mse => observer_mse::quantize_weight,
        };
        let done = run(weight, &module.layout, self.plan.arithmetic, shared_amax, &mut sink);
        if nobody_listens {
            return Err(Stop::NobodyListens);
        }
        let done = done.map_err(|error| weight_error(&module.weight(), &error))?;
        self.modules.push(ModuleRecord {
            module: module.name.clone(),
            precision: module.layout.precision(),
            sqnr_db: done.sqnr_db(),
        });
        if !streams {
            let name = format!("{}.{}", module.name, module.layout.codes(module.shape).suffix);
            self.pending.insert(name, kept);
        }
        for (suffix, bytes) in done.tensors {
            self.pending.insert(format!("{}.{suffix}", module.name), bytes);
        }
        self.plan.source.release(&module.weight());
        Ok(())
    }
}

/// Names the tensor in an error of its quantization.
pub(super) fn weight_error(tensor: &str, error: &QuantizeWeightError) -> QuantizeError {
    let at = match error {
        QuantizeWeightError::NonFinite { .. } => Some(error.to_string()),
        QuantizeWeightError::Sink(_) => None,
    };
    QuantizeError::NonFinite { tensor: tensor.to_owned(), at }
}
