//! Passes over batches on a device: every operation of a batch is queued on one stream, whose buffers the next batch uses
//! again.

use std::ops::Range;
use std::sync::Arc;

use super::super::decoder::RaggedBatch;
use super::super::session::{HeadAnswer, Session, Slots};
use super::CudaDecoder;
use super::head::Head;
use super::pass::Pass;
use super::steps::Steps;
use crate::device::cuda::{CudaError, DeviceBuffer, Products, Stream};
use crate::ops::cuda::Act;
use crate::ops::log_softmax::HeadQuery;

/// Slots that are taken at first: growing copies what is there, and moves what recorded steps read.
const FEWEST_SLOTS: usize = 256;

/// A model at work on a device. What it takes there is taken by the first pass.
pub(super) struct CudaSession {
    decoder: Arc<CudaDecoder>,
    /// Slots to copy before the next pass: from, to, how many.
    copies: Vec<[usize; 3]>,
    state: Option<State>,
}

/// What a session holds on its device.
struct State {
    stream: Stream,
    products: Products,
    cache: DeviceCache,
    pass: Pass,
    steps: Steps,
    head: Head,
}

/// Keys and values of every layer: \[slots, 2·kv_heads·D\] of activations.
pub(super) struct DeviceCache {
    pub layers: Vec<DeviceBuffer>,
    slot_bytes: usize,
}

impl CudaSession {
    pub fn new(decoder: &Arc<CudaDecoder>) -> Self {
        Self { decoder: Arc::clone(decoder), copies: Vec::new(), state: None }
    }

    /// Bytes of a slot of one layer.
    fn layer_slot_bytes(&self) -> usize {
        let heads = self.decoder.graph.heads;
        2 * heads.kv_heads * heads.head_dim * self.decoder.act.size()
    }
}

impl Slots for CudaSession {
    fn slot_bytes(&self) -> usize {
        self.decoder.graph.layers.len() * self.layer_slot_bytes()
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.copies.push([from, to, len]);
    }
}

impl Session for CudaSession {
    fn forward(&mut self, batch: &RaggedBatch) -> Result<(), CudaError> {
        let slot_bytes = self.layer_slot_bytes();
        let copies = std::mem::take(&mut self.copies);
        let state = match &mut self.state {
            Some(state) => state,
            none => none.insert(State::new(&self.decoder, slot_bytes)?),
        };
        let State { stream, products, cache, pass, steps, .. } = state;
        cache.prepare(stream, &copies, batch)?;
        let decoder = &self.decoder;
        match pass.prepare(decoder, stream, cache, batch)? {
            None => pass.queue(decoder, (stream, products), cache),
            Some(shape) => {
                let mut queue = || pass.queue(decoder, (stream, products), cache);
                // SAFETY: buffers are the session's, which waits for its stream before it frees them.
                unsafe { steps.run(stream, shape, &mut queue) }
            }
        }
    }

    fn log_softmax(&mut self, rows: Range<usize>, query: &HeadQuery<'_>) -> Result<HeadAnswer, CudaError> {
        let Some(state) = &mut self.state else { return Ok((Vec::new(), Vec::new())) };
        let states = state.pass.states();
        state.head.answer(&self.decoder, (&state.stream, &state.products), (states, rows), query)
    }

    fn rest(&mut self) {
        // Buffers stay for the next call: a device has its memory for this.
    }

    fn clear(&mut self) {
        self.copies.clear();
        self.state = None;
    }
}

impl State {
    fn new(decoder: &Arc<CudaDecoder>, slot_bytes: usize) -> Result<Self, CudaError> {
        let device = &decoder.device;
        let layers = decoder.graph.layers.iter().map(|_| DeviceBuffer::new(device, slot_bytes));
        Ok(Self {
            stream: Stream::new(device)?,
            products: Products::new(device)?,
            cache: DeviceCache { layers: layers.collect::<Result<_, _>>()?, slot_bytes },
            pass: Pass::new(device)?,
            steps: Steps::default(),
            head: Head::new(device)?,
        })
    }
}

impl DeviceCache {
    /// Makes room for what a batch stores, and copies slots.
    fn prepare(
        &mut self,
        stream: &Stream,
        copies: &[[usize; 3]],
        batch: &RaggedBatch,
    ) -> Result<(), CudaError> {
        let stored = batch.stored.iter().map(|s| s.first_slot + s.rows.len());
        let slots = stored.chain(copies.iter().map(|[_, to, len]| to + len)).max().unwrap_or(0);
        let bytes = self.slot_bytes;
        for layer in &mut self.layers {
            if slots * bytes > layer.len() {
                // With a reserve, so that appending one slot at a time stays linear.
                let room = (slots + slots / 4).max(FEWEST_SLOTS);
                let larger = DeviceBuffer::new(stream.device(), room * bytes)?;
                // SAFETY: both live until the stream was synchronized.
                unsafe { stream.copy((layer, 0), (&larger, 0), layer.len())? };
                stream.synchronize()?;
                *layer = larger;
            }
            for [from, to, len] in copies {
                // SAFETY: buffers live as long as the session, which waits for its stream; pages do not overlap.
                unsafe { stream.copy((layer, from * bytes), (layer, to * bytes), len * bytes)? };
            }
        }
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Nothing may be freed under a running kernel; an error was seen by whoever asked for the results.
        let _ = self.stream.synchronize();
    }
}

/// Bytes of rows of activations.
pub(super) fn row_bytes(act: Act, rows: usize, width: usize) -> usize {
    rows * width * act.size()
}
