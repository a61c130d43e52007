//! What describes a batch to the kernels of a pass: lists of words, uploaded together, once a pass.
//!
//! A generation step, one new row for each of its sequences, is padded to a power of two of rows, so that few shapes of steps
//! exist (`steps`). A row of padding is a sequence of its own, of token 0 at position 0; nobody keeps or reads what comes of
//! it.

use std::sync::Arc;

use super::super::decoder::RaggedBatch;
use super::steps::StepShape;
use crate::device::cuda::{CudaError, Device, DeviceSlice, Stream, WordLists};
use crate::ops::attention::Source;
use crate::ops::cuda::{Act, AttentionLists, DeviceSequence, NO_SLOT};

/// Lists of a batch, in the order in which they are uploaded. In a step every list but the last has a length that depends on
/// its shape alone, so that all of them lie where a recording of that shape looks for them.
#[derive(Clone, Copy)]
pub(super) enum List {
    Tokens,
    Positions,
    LogitRows,
    StoredRows,
    StoredSlots,
    Sequences,
    Tasks,
    KeyRows,
}

/// A batch on a device.
pub(super) struct DeviceBatch {
    words: WordLists,
    /// Paths of its rows.
    pub paths: AttentionLists,
    /// Rows that are computed, padding among them.
    pub rows: usize,
    /// Rows that are stored, padding among them.
    pub stored: usize,
    /// Rows that are answered.
    pub logit_rows: usize,
    /// Positions of the longest path.
    pub positions: usize,
    /// Whether these are inputs of the long kind.
    pub long: bool,
    /// The shape, where it is a generation step.
    pub step: Option<StepShape>,
}

impl DeviceBatch {
    /// No rows.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            words: WordLists::new(device)?,
            paths: AttentionLists::default(),
            rows: 0,
            stored: 0,
            logit_rows: 0,
            positions: 0,
            long: false,
            step: None,
        })
    }

    /// Uploads what describes a batch.
    pub fn set(
        &mut self,
        stream: &Stream,
        of: (Act, usize),
        batch: &RaggedBatch,
        step: Option<StepShape>,
    ) -> Result<(), CudaError> {
        let words = |rows: &mut dyn Iterator<Item = usize>| rows.map(|row| row as u32).collect::<Vec<_>>();
        let mut tokens = batch.tokens.clone();
        let mut positions = batch.positions.clone();
        let mut logit_rows = words(&mut batch.logit_rows.iter().copied());
        let mut rows = words(&mut batch.stored.iter().flat_map(|s| s.rows.clone()));
        let mut slots =
            words(&mut batch.stored.iter().flat_map(|s| s.first_slot..s.first_slot + s.rows.len()));
        let (mut sequences, mut key_rows) = paths(batch);
        for row in batch.tokens.len()..step.map_or(0, |step| step.rows) {
            tokens.push(0);
            positions.push(0);
            // Nobody reads it: in a step all rows are answered, where they are.
            logit_rows.push(row as u32);
            rows.push(0);
            slots.push(NO_SLOT);
            let keys = key_rows.len() as u32;
            sequences.push(DeviceSequence { first_row: row as u32, rows: 1, first_position: 0, keys });
            key_rows.push(row as i32);
        }
        self.paths = AttentionLists::new(of, &sequences, &key_rows)?;
        let [sequences, tasks, key_rows] = self.paths.words();
        let lists = [&tokens, &positions, &logit_rows, &rows, &slots, sequences, tasks, key_rows];
        self.words.replace(stream, &lists)?;
        (self.rows, self.stored, self.logit_rows) = (tokens.len(), rows.len(), batch.logit_rows.len());
        self.positions = batch.positions.iter().max().map_or(0, |p| *p as usize + 1);
        (self.long, self.step) = (batch.long, step);
        Ok(())
    }

    /// One of its lists.
    pub fn list(&self, list: List) -> DeviceSlice<'_> {
        self.words.list(list as usize)
    }
}

/// New rows by path, and for each position of each path where its key and value lie: rows of the batch, or −1 − s in slot
/// s of the cache.
fn paths(batch: &RaggedBatch) -> (Vec<DeviceSequence>, Vec<i32>) {
    let mut key_rows: Vec<i32> = Vec::new();
    let sequences = batch.sequences.iter().map(|sequence| {
        let keys = key_rows.len() as u32;
        for segment in &batch.segments[sequence.segments.clone()] {
            let rows = segment.first_row as i32..(segment.first_row + segment.len) as i32;
            match segment.source {
                Source::Batch => key_rows.extend(rows),
                Source::Cache => key_rows.extend(rows.map(|slot| -1 - slot)),
            }
        }
        DeviceSequence {
            first_row: sequence.rows.start as u32,
            rows: sequence.rows.len() as u32,
            first_position: sequence.first_position as u32,
            keys,
        }
    });
    let sequences = sequences.collect();
    (sequences, key_rows)
}

#[cfg(test)]
mod gpu_tests {
    use super::super::steps::tests::step;
    use super::*;
    use crate::device::cuda::test_device::device;

    /// Where the lists of steps of one shape lie, whatever their numbers of rows.
    #[test]
    fn lists_of_a_shape_lie_at_the_same_addresses() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let mut on_device = DeviceBatch::new(&device).unwrap();
        let lists = [
            List::Tokens,
            List::Positions,
            List::LogitRows,
            List::StoredRows,
            List::StoredSlots,
            List::Sequences,
            List::Tasks,
            List::KeyRows,
        ];
        for rows in [16, 32, 64] {
            let mut addresses = (rows / 2 + 1..=rows).map(|count| {
                let batch = step(count);
                let shape = StepShape::of(&batch).unwrap();
                assert_eq!(shape.rows, rows);
                on_device.set(&stream, (Act::F32, 32), &batch, Some(shape)).unwrap();
                assert_eq!((on_device.rows, on_device.stored, on_device.logit_rows), (rows, rows, count));
                stream.synchronize().unwrap();
                lists.map(|list| on_device.list(list).address())
            });
            let first = addresses.next().unwrap();
            assert!(addresses.all(|others| others == first), "{rows} rows");
        }
    }
}
