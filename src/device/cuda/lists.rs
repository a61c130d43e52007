//! Lists of words that describe a batch, for kernels that look things up in them.

use std::ops::Range;
use std::sync::Arc;

use super::error::CudaError;
use super::memory::DeviceSlice;
use super::{Device, DeviceBuffer, Event, PinnedBuffer, Stream};

/// Lists begin at multiples of it: the widest loads of kernels are 16 bytes.
const ALIGNMENT: usize = 16;
const WORD: usize = size_of::<u32>();
/// Room that is taken at first: lists of most steps of a generation never outgrow it.
const ROOM: usize = 64 << 10;

/// Lists that one copy uploads together, while the CPU goes on. They lie in the same memory as long as they fit there.
pub struct WordLists {
    host: PinnedBuffer,
    on_device: DeviceBuffer,
    /// Passed when `host` may be written again.
    copied: Event,
    /// Bytes of each list.
    ranges: Vec<Range<usize>>,
}

impl WordLists {
    /// No lists.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            host: PinnedBuffer::new(device, ROOM)?,
            on_device: DeviceBuffer::new(device, ROOM)?,
            copied: Event::new(device)?,
            ranges: Vec::new(),
        })
    }

    /// Queues the upload of these lists in the place of those before, which earlier work of the stream may still read. Waits
    /// for nothing but the upload of the lists before.
    pub fn replace(&mut self, stream: &Stream, lists: &[&[u32]]) -> Result<(), CudaError> {
        self.ranges.clear();
        let mut end = 0;
        for list in lists {
            let start = usize::next_multiple_of(end, ALIGNMENT);
            end = start + list.len() * WORD;
            self.ranges.push(start..end);
        }
        self.copied.synchronize()?;
        // With a reserve, so that lists that grow by a step at a time stay where they are.
        let room = end.next_power_of_two();
        self.host.ensure(room)?;
        self.on_device.ensure(room)?;
        for (list, range) in lists.iter().zip(&self.ranges) {
            for (to, word) in self.host[range.clone()].as_chunks_mut::<WORD>().0.iter_mut().zip(*list) {
                *to = word.to_le_bytes();
            }
        }
        // SAFETY: both are kept, and the host's bytes unchanged, until the event behind the copy was passed.
        unsafe { stream.copy_in(&self.host[..end], &self.on_device, 0)? };
        stream.record(&self.copied)
    }

    /// One of the lists.
    pub fn list(&self, index: usize) -> DeviceSlice<'_> {
        DeviceSlice::of(&self.on_device, self.ranges.get(index).unwrap_or(&(0..0)))
    }
}

impl Drop for WordLists {
    fn drop(&mut self) {
        // Nothing may be freed under a copy; an error was seen by whoever waited for the stream.
        let _ = self.copied.synchronize();
    }
}
