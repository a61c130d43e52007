//! A mixture of experts on a device: the twin of [`super::super::experts`]. Router logits are read and experts chosen in
//! memory by the code that chooses them for the CPU; rows are sorted by expert on the device, and each expert's rows are
//! multiplied together.

use std::sync::Arc;

use super::super::experts::{ExpertBlock, choose};
use super::super::layer::GatedMlp;
use super::linear::{LinearRoom, On};
use super::place::OnDevices;
use super::session::row_bytes;
use crate::device::cuda::{CudaError, Device, DeviceBuffer, WordLists};
use crate::ops::cuda::{Act, ExpertChoice, gated, moe_add_shared, moe_combine, moe_scatter};
use crate::ops::gated::Activation;
use crate::ops::kernel_path::KernelPath;

/// Room for what lies between the input of an MLP and its output.
pub(super) struct MlpRoom {
    pub linear: LinearRoom,
    /// \[T, 2·inner\] and \[T, inner\] of activations.
    pub gate_up: DeviceBuffer,
    pub gated: DeviceBuffer,
}

/// Room for a mixture of experts.
pub(super) struct ExpertRoom {
    /// Router logits \[T, E\], or the shared expert's gate \[T\], f32.
    logits: DeviceBuffer,
    /// Experts of each row and their weights: \[T, per_token\] u32 and f32.
    choices: WordLists,
    /// Where each copy of a row went: \[T, per_token\] u32.
    places: DeviceBuffer,
    /// \[E\] u32.
    counts: DeviceBuffer,
    /// Rows by expert, then what the experts make of them: \[T·per_token, hidden\].
    sorted: DeviceBuffer,
    /// Input and output of one expert: \[T, hidden\].
    x: DeviceBuffer,
    y: DeviceBuffer,
}

impl MlpRoom {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            linear: LinearRoom::new(device)?,
            gate_up: DeviceBuffer::new(device, 1)?,
            gated: DeviceBuffer::new(device, 1)?,
        })
    }

    /// y \[rows, hidden\] = down(act(gate(x)) · up(x)).
    ///
    /// # Safety
    /// Buffers stay alive and untouched until the stream was synchronized.
    pub unsafe fn forward(
        &mut self,
        (on, activation): (On<'_>, Activation),
        mlp: &GatedMlp<OnDevices>,
        (x, rows): (&DeviceBuffer, usize),
        y: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        self.gate_up.ensure(row_bytes(on.act, rows, 2 * mlp.inner))?;
        self.gated.ensure(row_bytes(on.act, rows, mlp.inner))?;
        // SAFETY: the caller's promise.
        unsafe {
            mlp.gate_up.forward(on, x, rows, &mut self.linear, &self.gate_up)?;
            gated(on.stream, on.act, activation, &self.gate_up, &self.gated, [rows, mlp.inner])?;
            mlp.down.forward(on, &self.gated, rows, &mut self.linear, y)
        }
    }
}

impl ExpertRoom {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let empty = || DeviceBuffer::new(device, 1);
        Ok(Self {
            logits: empty()?,
            choices: WordLists::new(device)?,
            places: empty()?,
            counts: empty()?,
            sorted: empty()?,
            x: empty()?,
            y: empty()?,
        })
    }

    /// y \[rows, hidden\] from h \[rows, hidden\]. Waits for the router.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn forward(
        &mut self,
        (on, activation): (On<'_>, Activation),
        block: &ExpertBlock<OnDevices>,
        (h, rows, hidden): (&DeviceBuffer, usize, usize),
        room: &mut MlpRoom,
        y: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let (stream, top, count) = (on.stream, block.config.per_token, block.config.count);
        self.reserve(on.act, (rows, hidden), (top, count))?;
        let row = row_bytes(on.act, 1, hidden);
        // SAFETY: the caller's promise; experts exist.
        unsafe {
            let logits = (&self.logits, Act::F32);
            block.router.forward_columns(on, (h, rows), 0..count, &mut room.linear, logits)?;
            let chosen = self.route(on, block, rows)?;
            let [experts, weights] = [0, 1].map(|list| self.choices.list(list));
            let choice = ExpertChoice { act: on.act, experts, rows, top, count, k: hidden };
            moe_scatter(stream, choice, h, (&self.counts, &self.places, &self.sorted))?;
            let mut first = 0;
            for (mlp, rows) in block.experts.iter().zip(chosen).filter(|(_, rows)| *rows > 0) {
                stream.copy((&self.sorted, first * row), (&self.x, 0), rows * row)?;
                room.forward((on, activation), mlp, (&self.x, rows), &self.y)?;
                stream.copy((&self.y, 0), (&self.sorted, first * row), rows * row)?;
                first += rows;
            }
            moe_combine(stream, choice, (&self.sorted, &self.places, weights), y)?;
            let Some((gate, shared)) = &block.shared else { return Ok(()) };
            gate.forward_columns(on, (h, rows), 0..1, &mut room.linear, (&self.logits, Act::F32))?;
            room.forward((on, activation), shared, (h, rows), &self.y)?;
            moe_add_shared(stream, on.act, (&self.y, &self.logits), y, [rows, hidden])
        }
    }

    /// Chooses experts and uploads them with their weights, ascending within a row as the CPU adds them up. Returns how many
    /// rows each expert has.
    fn route(
        &mut self,
        on: On<'_>,
        block: &ExpertBlock<OnDevices>,
        rows: usize,
    ) -> Result<Vec<usize>, CudaError> {
        let count = block.config.count;
        let bytes = on.stream.download(&self.logits, rows * count * size_of::<f32>())?;
        let mut logits: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let (mut experts, mut weights, mut counts) = (Vec::new(), Vec::new(), vec![0; count]);
        for logits in logits.chunks_exact_mut(count) {
            let mut chosen = choose(KernelPath::detect(), block.config, logits);
            chosen.sort_by_key(|(expert, _)| *expert);
            for (expert, weight) in chosen {
                counts[expert] += 1;
                experts.push(expert as u32);
                weights.push(weight.to_bits());
            }
        }
        self.choices.replace(on.stream, &[&experts, &weights])?;
        Ok(counts)
    }

    fn reserve(
        &mut self,
        act: Act,
        (rows, hidden): (usize, usize),
        (top, count): (usize, usize),
    ) -> Result<(), CudaError> {
        self.logits.ensure(rows * count * size_of::<f32>())?;
        self.places.ensure(rows * top * size_of::<u32>())?;
        self.counts.ensure(count * size_of::<u32>())?;
        self.sorted.ensure(row_bytes(act, rows * top, hidden))?;
        self.x.ensure(row_bytes(act, rows, hidden))?;
        self.y.ensure(row_bytes(act, rows, hidden))
    }
}
