//! The output head on a device: the twin of [`crate::ops::log_softmax`]. Logits are taken and read tile by tile.

use std::ops::Range;
use std::sync::Arc;

use super::super::session::HeadAnswer;
use super::CudaDecoder;
use super::linear::{LinearRoom, On};
use super::session::row_bytes;
use crate::device::cuda::{CudaError, Device, DeviceBuffer, Products, Stream, WordLists};
use crate::ops::cuda::{Act, LogitTile, RowState, log_softmax_tile};
use crate::ops::kernel_path::KernelPath;
use crate::ops::log_softmax::{HeadQuery, HeadRow, largest};

/// Rows and tokens of a tile of logits: 256 MiB.
const ROWS: usize = 4096;
const TOKENS: usize = 16_384;

/// Buffers of the head, used again by the next answer.
pub(super) struct Head {
    /// Hidden states of the rows asked for.
    x: DeviceBuffer,
    room: LinearRoom,
    logits: DeviceBuffer,
    states: DeviceBuffer,
    /// Targets of a block, and where those of each row begin.
    lists: WordLists,
    target_logits: DeviceBuffer,
}

impl Head {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let empty = || DeviceBuffer::new(device, 1);
        Ok(Self {
            x: empty()?,
            room: LinearRoom::new(device)?,
            logits: empty()?,
            states: empty()?,
            lists: WordLists::new(device)?,
            target_logits: empty()?,
        })
    }

    /// Rows of the head at `rows` of hidden states \[R, hidden\], and the logit of each target.
    pub fn answer(
        &mut self,
        decoder: &CudaDecoder,
        (stream, products): (&Stream, &Products),
        (hidden, rows): (&DeviceBuffer, Range<usize>),
        query: &HeadQuery<'_>,
    ) -> Result<HeadAnswer, CudaError> {
        let on = On { replica: decoder.replica, stream, products, act: decoder.act };
        let mut answer = (Vec::with_capacity(rows.len()), Vec::with_capacity(query.targets.len()));
        for first in (0..rows.len()).step_by(ROWS) {
            let block = first..(first + ROWS).min(rows.len());
            let bounds = query.offsets[block.start]..query.offsets[block.end];
            let offsets: Vec<usize> =
                query.offsets[block.start..=block.end].iter().map(|o| o - bounds.start).collect();
            let of_block =
                HeadQuery { targets: &query.targets[bounds], offsets: &offsets, top_n: query.top_n };
            let block = rows.start + block.start..rows.start + block.end;
            self.answer_block(decoder, on, (hidden, block), &of_block, &mut answer)?;
        }
        Ok(answer)
    }

    fn answer_block(
        &mut self,
        decoder: &CudaDecoder,
        on: On<'_>,
        (hidden, rows): (&DeviceBuffer, Range<usize>),
        query: &HeadQuery<'_>,
        (answers, logits): &mut HeadAnswer,
    ) -> Result<(), CudaError> {
        let (head, width, count) = (&decoder.graph.head, decoder.graph.config.hidden_size, rows.len());
        let vocab = head.n();
        let offsets: Vec<u32> = query.offsets.iter().map(|o| *o as u32).collect();
        self.x.ensure(row_bytes(on.act, count, width))?;
        self.logits.ensure(count * TOKENS.min(vocab) * size_of::<f32>())?;
        self.states.ensure(count * size_of::<RowState>())?;
        self.lists.replace(on.stream, &[query.targets, &offsets])?;
        self.target_logits.ensure(size_of_val(query.targets))?;
        let mut tops = vec![Vec::new(); count];
        let from = row_bytes(on.act, rows.start, width);
        // SAFETY: buffers are the session's, which waits for its stream before it frees them; targets lie within offsets.
        unsafe { on.stream.copy((hidden, from), (&self.x, 0), row_bytes(on.act, count, width))? };
        for first in (0..vocab).step_by(TOKENS) {
            let tokens = first..(first + TOKENS).min(vocab);
            let columns = tokens.len();
            let tile =
                LogitTile { logits: &self.logits, rows: count, stride: columns, columns, first_token: first };
            let lists = [0, 1].map(|list| self.lists.list(list));
            // SAFETY: as above.
            unsafe {
                let y = (&self.logits, Act::F32);
                head.forward_columns(on, (&self.x, count), tokens, &mut self.room, y)?;
                let map = decoder.graph.config.logit_map;
                log_softmax_tile(on.stream, tile, map, &self.states, lists, &self.target_logits)?;
            }
            if query.top_n > 1 {
                self.keep_largest(decoder, on.stream, (first, columns), query.top_n, &mut tops)?;
            }
        }
        let mut states = vec![0; count * size_of::<RowState>()];
        let mut found = vec![0; size_of_val(query.targets)];
        // SAFETY: all live until the stream is synchronized below.
        unsafe {
            on.stream.copy_out(&self.states, 0, &mut states)?;
            on.stream.copy_out(&self.target_logits, 0, &mut found)?;
        }
        on.stream.synchronize()?;
        for (state, mut top) in RowState::read(&states).into_iter().zip(tops) {
            if query.top_n == 1 && state.largest > f32::NEG_INFINITY {
                top.push((state.token, state.largest));
            }
            answers.push(HeadRow::new(state.largest, f64::from(state.sum), top));
        }
        logits.extend(found.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        Ok(())
    }

    /// Merges the most likely tokens of a tile, whose logits are read for it, into those of the tiles before.
    fn keep_largest(
        &self,
        decoder: &CudaDecoder,
        stream: &Stream,
        (first, columns): (usize, usize),
        top_n: usize,
        tops: &mut [Vec<(u32, f32)>],
    ) -> Result<(), CudaError> {
        let bytes = stream.download(&self.logits, tops.len() * columns * size_of::<f32>())?;
        let mut logits: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        decoder.graph.config.logit_map.apply(KernelPath::detect(), &mut logits);
        for (logits, top) in logits.chunks_exact(columns).zip(tops) {
            top.extend(largest(logits, first, top_n));
            // Stable, and tiles come in token order: ties stay ordered by token.
            top.sort_by(|a, b| b.1.total_cmp(&a.1));
            top.truncate(top_n);
        }
        Ok(())
    }
}
