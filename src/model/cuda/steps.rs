//! Generation steps as recordings: all launches of a step are queued by one call, where a small model's kernels are shorter
//! than it takes to launch them one by one.
//!
//! A recording has the addresses and launch shapes of the pass it was made of. What differs between steps of one shape lies
//! in the lists of the batch, which are uploaded before it. A shape is recorded when it comes for the second time: by then
//! every buffer has its size and every kernel is loaded, as a recording must not ask for memory. Where memory of the device
//! was taken or given back since, by whomever, addresses may have changed, and all recordings are made anew.

use std::collections::HashMap;

use super::super::decoder::RaggedBatch;
use crate::base::progress;
use crate::device::cuda::{CudaError, Recording, Stream};

/// Most rows of a step that is recorded: with more, launches are few beside the work.
const MAX_ROWS: usize = 256;

/// What decides the launches of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    /// Rows, a power of two.
    pub rows: usize,
    /// Whether these are inputs of the long kind, whose angles lie elsewhere.
    pub long: bool,
}

/// Recordings of one session.
#[derive(Default)]
pub(super) struct Steps {
    known: HashMap<StepShape, Known>,
    /// Allocations of the device when the recordings were made.
    allocations: u64,
    /// Whether the driver refuses to record what a pass queues.
    refused: bool,
}

/// A shape that came before.
enum Known {
    Seen,
    Recorded(Recording),
}

impl StepShape {
    /// The shape of a batch that is a step: every row is a sequence's next, answered and kept.
    pub fn of(batch: &RaggedBatch) -> Option<Self> {
        let rows = batch.tokens.len();
        let is_step = rows <= MAX_ROWS
            && batch.sequences.len() == rows
            && batch.logit_rows.len() == rows
            && batch.stored.iter().map(|stored| stored.rows.len()).sum::<usize>() == rows
            && batch.sequences.iter().all(|sequence| sequence.rows.len() == 1);
        is_step.then(|| Self { rows: rows.next_power_of_two(), long: batch.long })
    }
}

impl Steps {
    /// Queues a step of this shape, by `queue` or from a recording of what it queued. Everything that it reads and writes has
    /// its place.
    ///
    /// # Safety
    /// Buffers that `queue` uses stay alive and untouched until the stream was synchronized.
    pub unsafe fn run(
        &mut self,
        stream: &Stream,
        shape: StepShape,
        queue: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let allocations = stream.device().counts().allocations;
        if self.allocations != allocations {
            self.clear(stream)?;
            self.allocations = allocations;
        }
        if matches!(self.known.get(&shape), Some(Known::Seen)) && !self.refused {
            match Recording::of(stream, &mut *queue) {
                Ok(recording) => drop(self.known.insert(shape, Known::Recorded(recording))),
                Err(error) => {
                    progress::detail(&format!("steps are launched kernel by kernel: {error}"));
                    // Anything else may not be so next time, when the shape is as new.
                    self.refused = error.refuses_recording();
                    self.known.remove(&shape);
                    return queue();
                }
            }
        }
        if let Some(Known::Recorded(recording)) = self.known.get(&shape) {
            // SAFETY: no memory was freed since it was recorded, the rest is the caller's promise.
            return unsafe { recording.launch(stream) };
        }
        queue()?;
        if stream.device().counts().allocations == allocations {
            self.known.insert(shape, Known::Seen);
        }
        Ok(())
    }

    /// Forgets all recordings, after the work that they queued.
    fn clear(&mut self, stream: &Stream) -> Result<(), CudaError> {
        if !self.known.is_empty() {
            stream.synchronize()?;
            self.known.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Stored;
    use crate::ops::attention::{Segment, Sequence, Source};

    /// A step of so many sequences, each of one row at position 0.
    pub fn step(rows: usize) -> RaggedBatch {
        let mut batch = batch(&vec![1; rows]);
        batch.positions = vec![0; rows];
        for (row, sequence) in batch.sequences.iter_mut().enumerate() {
            let own = Segment { source: Source::Batch, first_tile: row, first_row: row, len: 1 };
            (sequence.first_position, sequence.segments) = (0, row..row + 1);
            batch.segments.push(own);
        }
        batch
    }

    /// Sequences of so many new rows each, all of which are kept; the last row of each is answered.
    fn batch(rows: &[usize]) -> RaggedBatch {
        let mut batch = RaggedBatch::default();
        for rows in rows {
            let first = batch.tokens.len();
            batch.tokens.resize(first + rows, 1);
            let rows = first..batch.tokens.len();
            batch.sequences.push(Sequence {
                rows: rows.clone(),
                first_position: 5,
                first_tile: 0,
                segments: 0..0,
            });
            batch.stored.push(Stored { rows: rows.clone(), first_slot: first });
            batch.logit_rows.push(rows.end - 1);
        }
        batch
    }

    #[test]
    fn steps_are_single_rows_of_sequences_in_powers_of_two() {
        let rows = |batch: &RaggedBatch| StepShape::of(batch).map(|shape| shape.rows);
        assert_eq!(rows(&batch(&[1])), Some(1));
        assert_eq!(rows(&batch(&[1; 5])), Some(8));
        assert_eq!(rows(&batch(&[1; MAX_ROWS])), Some(MAX_ROWS));
        assert_eq!(rows(&batch(&[1; MAX_ROWS + 1])), None);
        assert_eq!(rows(&batch(&[1, 2, 1])), None, "a prompt is among them");
        let mut unanswered = batch(&[1, 1]);
        unanswered.logit_rows.pop();
        assert_eq!(rows(&unanswered), None);
        let mut unstored = batch(&[1, 1]);
        unstored.stored.pop();
        assert_eq!(rows(&unstored), None);
        let long = RaggedBatch { long: true, ..batch(&[1]) };
        assert_ne!(StepShape::of(&long), StepShape::of(&batch(&[1])));
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::device::cuda::DeviceBuffer;
    use crate::device::cuda::test_device::device;

    const SHAPE: StepShape = StepShape { rows: 1, long: false };

    /// The first time launched, then recorded, then repeated, until memory of the device moves.
    #[test]
    fn a_shape_is_recorded_when_it_comes_again() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let [from, to] = [1, 2].map(|byte| stream.upload(&[byte; 8]).unwrap());
        let (mut steps, mut queued) = (Steps::default(), 0);
        let mut step = |byte: u8| {
            let mut queue = || {
                queued += 1;
                // SAFETY: buffers live until the download has synchronized the stream.
                unsafe { stream.copy((&from, 0), (&to, 0), 8) }
            };
            // SAFETY: as above.
            unsafe {
                stream.fill(&from, 0, 8, byte).unwrap();
                steps.run(&stream, SHAPE, &mut queue).unwrap();
            }
            assert_eq!(stream.download(&to, 8).unwrap(), [byte; 8]);
            queued
        };
        let times: Vec<usize> = (10..14).map(&mut step).collect();
        assert_eq!(times, [1, 2, 2, 2]);
        let held = DeviceBuffer::new(&device, 100).unwrap();
        assert_eq!((step(20), step(21), step(22)), (3, 4, 4));
        drop(held);
        assert_eq!(step(23), 5);
    }

    /// What fails while a step is recorded, but for the driver's refusal, is no reason not to record the next.
    #[test]
    fn steps_are_recorded_after_another_failure() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let buffer = stream.upload(&[0; 8]).unwrap();
        let (mut steps, mut queued) = (Steps::default(), 0);
        let mut times = Vec::new();
        for byte in 1..7 {
            let mut queue = || {
                queued += 1;
                if queued == 2 {
                    return Err(CudaError::Argument { operation: "test", what: "fails once".to_owned() });
                }
                // SAFETY: the buffer lives until the stream is synchronized.
                unsafe { stream.fill(&buffer, 0, 8, byte.min(4)) }
            };
            // SAFETY: as above.
            unsafe { steps.run(&stream, SHAPE, &mut queue).unwrap() };
            assert_eq!(stream.download(&buffer, 8).unwrap(), [byte.min(4); 8]);
            times.push(queued);
        }
        assert!(!steps.refused);
        // New; fails and is launched; new again; recorded; repeated.
        assert_eq!(times, [1, 3, 4, 5, 5, 5]);
    }

    /// A step that cannot be recorded, here because it waits, is launched each time, and recording is not tried again.
    #[test]
    fn steps_that_cannot_be_recorded_are_launched() {
        let Some(device) = device() else { return };
        let stream = Stream::new(&device).unwrap();
        let buffer = stream.upload(&[0; 8]).unwrap();
        let (mut steps, mut queued) = (Steps::default(), 0);
        for byte in 1..5 {
            let mut queue = || {
                queued += 1;
                // SAFETY: the buffer lives until the stream is synchronized.
                unsafe { stream.fill(&buffer, 0, 8, byte)? };
                stream.synchronize()
            };
            // SAFETY: as above.
            unsafe { steps.run(&stream, SHAPE, &mut queue).unwrap() };
            assert_eq!(stream.download(&buffer, 8).unwrap(), [byte; 8]);
        }
        assert_eq!(queued, 1 + 2 + 1 + 1);
        assert!(steps.refused);
    }
}
