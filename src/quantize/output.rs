//! One output of a shard: parts come from any thread in any order and are hashed and written in theirs.
//!
//! No thread waits for its turn: whoever finds the next part there writes all that follow it, the others go on with the
//! next tile. What lies ready is bounded by the caller.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::QuantizeError;
use super::plan::{Content, OutputTensor, QuantizePlan};
use super::work::{Action, TensorWork};
use crate::base::atomic::AtomicFile;
use crate::checkpoint::writer::{ShardWriter, TensorSpec};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::quantize_weight::{Collected, Quantized, Tile};
use crate::record::quantize::{ModuleRecord, ShardRecord};

/// What one step yields for one output.
pub(super) struct Part {
    /// Index of the tensor.
    pub work: usize,
    pub is_last: bool,
    pub tile: Tile,
    /// What a search over the whole weight found; such a weight's codes come all in its last part.
    pub searched: Option<Quantized>,
}

/// One shard of one output.
pub(super) struct Output<'a> {
    pub plan: &'a QuantizePlan,
    /// Which of a tensor's actions is this output's.
    index: usize,
    tensors: &'a [OutputTensor],
    path: PathBuf,
    queue: Mutex<Queue>,
    /// Locked by the thread that writes, which [`Queue::is_draining`] keeps to one.
    writing: Mutex<Writing>,
}

#[derive(Default)]
struct Queue {
    ready: BTreeMap<usize, Part>,
    /// The part that is written next.
    next: usize,
    is_draining: bool,
}

struct Writing {
    writer: ShardWriter<AtomicFile>,
    /// The tensor that is written next.
    next: usize,
    by_name: HashMap<String, usize>,
    /// Data of tensors that come later in the file, and whether it is complete.
    pending: BTreeMap<usize, (Vec<u8>, bool)>,
    collected: Collected,
    modules: Vec<ModuleRecord>,
}

impl<'a> Output<'a> {
    /// Begins the shard's file in `staging`.
    pub(super) fn new(
        plan: &'a QuantizePlan,
        index: usize,
        shard: usize,
        staging: &Path,
        early_write_back: bool,
    ) -> Result<Self, QuantizeError> {
        let path = staging.join(plan.shard_file_name(shard));
        let tensors = &plan.shards[shard];
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .map(|t| TensorSpec { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() })
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let begun = AtomicFile::create(&path).and_then(|mut file| {
            file.set_early_write_back(early_write_back);
            ShardWriter::new(file, &specs, &metadata)
        });
        let writer = begun.map_err(|source| QuantizeError::Write { path: path.clone(), source })?;
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let mut pending = BTreeMap::new();
        for (i, tensor) in tensors.iter().enumerate() {
            let number = match tensor.content {
                Content::Source => continue,
                Content::Number(number) => number,
                Content::Calibrated => plan.calibrated_scale(&tensor.name)?,
            };
            let mut bytes = Vec::new();
            FloatDtype::of(tensor.dtype).unwrap_or(FloatDtype::F32).write(number, &mut bytes);
            pending.insert(i, (bytes, true));
        }
        let writing = Mutex::new(Writing {
            writer,
            next: 0,
            by_name,
            pending,
            collected: Collected::default(),
            modules: Vec::new(),
        });
        Ok(Self { plan, index, tensors, path, queue: Mutex::default(), writing })
    }

    /// The part that is written next: all before it are.
    pub(super) fn next_part(&self) -> usize {
        lock(&self.queue).next
    }

    /// Delivers a part, and writes it and what follows if it is its turn. `written` gets each part that was.
    pub(super) fn deliver(
        &self,
        number: usize,
        part: Part,
        works: &[TensorWork],
        written: &mut dyn FnMut(Part),
    ) -> Result<(), QuantizeError> {
        let mut queue = lock(&self.queue);
        queue.ready.insert(number, part);
        if queue.is_draining {
            return Ok(());
        }
        queue.is_draining = true;
        loop {
            let next = queue.next;
            let Some(mut part) = queue.ready.remove(&next) else {
                queue.is_draining = false;
                return Ok(());
            };
            drop(queue);
            // After an error nobody drains any more: the shard is given up.
            let searched = part.searched.take();
            self.write(&part, searched, &works[part.work])?;
            queue = lock(&self.queue);
            queue.next += 1;
            drop(queue);
            written(part);
            queue = lock(&self.queue);
        }
    }

    /// The file's digest and the modules' errors; the file gets its name.
    pub(super) fn finish(self, sync: bool) -> Result<ShardRecord, QuantizeError> {
        let path = self.path;
        let failed = |source| QuantizeError::Write { path: path.clone(), source };
        let mut writing = self.writing.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (file, digest, bytes) = writing.writer.finish().map_err(failed)?;
        if sync { file.commit() } else { file.commit_without_sync() }.map_err(failed)?;
        writing.modules.sort_by(|a, b| a.module.cmp(&b.module));
        Ok(ShardRecord {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            digest,
            bytes,
            tensors: self.tensors.iter().map(|t| t.name.clone()).collect(),
            tensor_bytes: self.tensors.iter().map(OutputTensor::num_bytes).sum(),
            modules: writing.modules,
        })
    }

    fn write(
        &self,
        part: &Part,
        searched: Option<Quantized>,
        work: &TensorWork,
    ) -> Result<(), QuantizeError> {
        let mut writing = lock(&self.writing);
        let failed = |source| QuantizeError::Write { path: self.path.clone(), source };
        let codes = match &work.actions[self.index] {
            Action::Copy { .. } => work.input.tensor.name.clone(),
            Action::Quantize { module, .. } => {
                let module = &self.plan.assignment.modules[*module];
                format!("{}.{}", module.name, module.layout.codes(module.shape).suffix)
            }
        };
        writing.put(self.tensors, &codes, &part.tile.codes, part.is_last).map_err(failed)?;
        let Action::Quantize { module, quantizer, .. } = &work.actions[self.index] else { return Ok(()) };
        writing.collected.add(&part.tile);
        if !part.is_last {
            return Ok(());
        }
        let module = &self.plan.assignment.modules[*module];
        let collected = std::mem::take(&mut writing.collected);
        let done = match (searched, quantizer.get()) {
            (Some(done), _) => done,
            (None, Some(quantizer)) => quantizer.finish(collected),
            (None, None) => return Ok(()),
        };
        writing.modules.push(ModuleRecord {
            module: module.name.clone(),
            precision: module.layout.precision(),
            sqnr_db: done.sqnr_db(),
        });
        for (suffix, bytes) in done.tensors {
            writing.put(self.tensors, &format!("{}.{suffix}", module.name), &bytes, true).map_err(failed)?;
        }
        Ok(())
    }
}

impl Writing {
    /// Writes part of a tensor's data if it is its turn, else keeps it; `is_last` completes the tensor.
    fn put(&mut self, tensors: &[OutputTensor], name: &str, bytes: &[u8], is_last: bool) -> io::Result<()> {
        let at = *self
            .by_name
            .get(name)
            .ok_or_else(|| io::Error::other(format!("tensor {name} is not planned")))?;
        self.write_pending(tensors)?;
        if at != self.next {
            let (kept, complete) = self.pending.entry(at).or_default();
            kept.extend_from_slice(bytes);
            *complete = is_last;
            return Ok(());
        }
        if let Some((kept, _)) = self.pending.remove(&at) {
            self.writer.append(name, &kept)?;
        }
        // Empty data completes nothing but a tensor without any.
        if !bytes.is_empty() || tensors[at].num_bytes() == 0 {
            self.writer.append(name, bytes)?;
        }
        self.next += usize::from(is_last);
        self.write_pending(tensors)
    }

    /// Writes the tensors whose turn it is and whose data is complete.
    fn write_pending(&mut self, tensors: &[OutputTensor]) -> io::Result<()> {
        while let Some((kept, true)) = self.pending.get(&self.next) {
            self.writer.append(&tensors[self.next].name, kept)?;
            self.pending.remove(&self.next);
            self.next += 1;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
