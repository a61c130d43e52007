//! What the engine asks of a loaded model, wherever it is computed: passes over batches, each with what the cache keeps, and
//! the head's answers at their rows. Calls are per batch, so that the one indirection costs nothing.

use std::ops::Range;
use std::sync::Arc;

use super::config::ModelConfig;
use super::decoder::{Decoder, RaggedBatch, Workspace};
use super::kv_cache::KvCache;
use crate::device::cuda::CudaError;
use crate::ops::log_softmax::{HeadQuery, HeadRow};

/// Keys and values by slot.
pub trait Slots {
    /// Bytes of one slot over all layers.
    fn slot_bytes(&self) -> usize;

    /// Copies `len` slots of every layer, before the next pass reads any.
    fn copy(&mut self, from: usize, to: usize, len: usize);
}

impl<S: Slots + ?Sized> Slots for Box<S> {
    fn slot_bytes(&self) -> usize {
        (**self).slot_bytes()
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) {
        (**self).copy(from, to, len);
    }
}

/// Rows of the head, and the logit of each target.
pub type HeadAnswer = (Vec<HeadRow>, Vec<f32>);

/// A model at work: its own cache, and the hidden states of its last pass.
pub trait Session: Slots + Send {
    /// Computes a batch and stores what the cache keeps of it.
    fn forward(&mut self, batch: &RaggedBatch) -> Result<(), CudaError>;

    /// Log-probabilities at `rows` of the last batch's logit rows.
    fn log_softmax(&mut self, rows: Range<usize>, query: &HeadQuery<'_>) -> Result<HeadAnswer, CudaError>;

    /// Gives back memory that only passes need.
    fn rest(&mut self);

    /// Gives back the cache too.
    fn clear(&mut self);
}

/// A loaded model on one device.
pub trait Backend: Send + Sync {
    /// The model's configuration.
    fn config(&self) -> &ModelConfig;

    /// Begins with an empty cache.
    fn session(&self) -> Box<dyn Session>;
}

/// A model in memory and the threads that compute it.
#[derive(Clone)]
pub struct CpuBackend {
    /// The model.
    pub decoder: Arc<Decoder>,
    /// The threads.
    pub pool: Arc<rayon::ThreadPool>,
}

impl Backend for CpuBackend {
    fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    fn session(&self) -> Box<dyn Session> {
        Box::new(CpuSession {
            of: self.clone(),
            cache: self.decoder.new_cache(),
            work: Workspace::default(),
            states: Vec::new(),
        })
    }
}

struct CpuSession {
    of: CpuBackend,
    cache: KvCache,
    work: Workspace,
    /// \[R, hidden\].
    states: Vec<f32>,
}

impl Slots for CpuSession {
    fn slot_bytes(&self) -> usize {
        self.cache.slot_bytes()
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.cache.copy(from, to, len);
    }
}

impl Session for CpuSession {
    fn forward(&mut self, batch: &RaggedBatch) -> Result<(), CudaError> {
        let Self { of, cache, work, states } = self;
        *states = of.pool.install(|| of.decoder.forward(batch, cache, work));
        Ok(())
    }

    fn log_softmax(&mut self, rows: Range<usize>, query: &HeadQuery<'_>) -> Result<HeadAnswer, CudaError> {
        let hidden = self.of.decoder.config().hidden_size;
        let states = &self.states[rows.start * hidden..rows.end * hidden];
        Ok(self.of.pool.install(|| self.of.decoder.log_softmax(states, query)))
    }

    fn rest(&mut self) {
        (self.work, self.states) = (Workspace::default(), Vec::new());
    }

    fn clear(&mut self) {
        self.rest();
        self.cache = self.of.decoder.new_cache();
    }
}
