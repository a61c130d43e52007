//! Attention on a GPU: `kernels/attention.cu`. Reference: [`crate::ops::attention`].
//!
//! In bf16 on tensor cores for head dimensions that are multiples of 16 up to 128; else on plain cores.

use std::sync::Arc;

use super::{Act, arguments, index, one_thread_each, require};
use crate::device::cuda::{CudaError, Device, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};
use crate::ops::attention::{HeadShape, Scores};

const OPERATION: &str = "attention";
/// Threads of a block of the kernel.
const THREADS: u32 = 128;
/// Largest head dimension whose sums fit the registers.
const MAX_TENSOR_CORE_DIM: usize = 128;

fn variant(act: Act, head_dim: usize, capped: bool) -> Variant {
    Variant::plain(kernel_source!("attention.cu"))
        .define("ACT", act.name())
        .define("HEAD_DIM", head_dim)
        .define("CAPPED", capped)
        .define("TENSOR_CORES", tensor_cores(act, head_dim))
}

/// Whether the matrix instructions take it.
fn tensor_cores(act: Act, head_dim: usize) -> bool {
    act == Act::Bf16 && head_dim.is_multiple_of(16) && head_dim <= MAX_TENSOR_CORE_DIM
}

pub(super) fn variants() -> Vec<Variant> {
    vec![
        variant(Act::Bf16, 64, false),
        variant(Act::Bf16, 128, false),
        variant(Act::Bf16, 64, true),
        variant(Act::Bf16, 128, true),
        variant(Act::F32, 64, false),
        variant(Act::Bf16, 256, true),
    ]
}

/// Mirrors `Sequence` of the kernel: consecutive new rows of one path.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSequence {
    /// Its first row in the batch.
    pub first_row: u32,
    /// How many.
    pub rows: u32,
    /// Position of the first of them.
    pub first_position: u32,
    /// Where its path begins in the list of key rows.
    pub keys: u32,
}

/// Mirrors `Attention` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Job {
    qkv: u64,
    cache: u64,
    out: u64,
    sequences: u64,
    tasks: u64,
    key_rows: u64,
    heads: u32,
    kv_heads: u32,
    stride: u32,
    window: u32,
    scale: f32,
    cap: f32,
}

/// The paths of a batch on the device, for the attention of every layer: checked and uploaded once.
pub struct AttentionLists {
    sequences: DeviceBuffer,
    tasks: DeviceBuffer,
    key_rows: DeviceBuffer,
    task_count: usize,
    rows_of_task: u32,
    /// Rows of the batch that sequences and lists point at.
    batch_rows: usize,
    /// Slots of the cache that lists point at.
    cache_rows: usize,
}

/// Rows that one block computes.
fn rows_of_task(act: Act, head_dim: usize) -> u32 {
    if tensor_cores(act, head_dim) { 64 } else { 4 }
}

impl AttentionLists {
    /// No paths yet.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            sequences: DeviceBuffer::new(device, 1)?,
            tasks: DeviceBuffer::new(device, 1)?,
            key_rows: DeviceBuffer::new(device, 1)?,
            task_count: 0,
            rows_of_task: 0,
            batch_rows: 0,
            cache_rows: 0,
        })
    }

    /// Uploads new rows by path, and for each position of each path the row of its key and value: r in the batch, −1 − s in
    /// the cache. Waits for the stream, whose earlier launches used the lists before.
    pub fn set(
        &mut self,
        stream: &Stream,
        (act, head_dim): (Act, usize),
        sequences: &[DeviceSequence],
        key_rows: &[i32],
    ) -> Result<(), CudaError> {
        let mut tasks = Vec::new();
        (self.rows_of_task, self.batch_rows, self.cache_rows) = (rows_of_task(act, head_dim), 0, 0);
        for (index, sequence) in sequences.iter().enumerate() {
            let keys = sequence.keys as usize;
            let end = keys + sequence.first_position as usize + sequence.rows as usize;
            let Some(path) = key_rows.get(keys..end) else {
                let what = format!("{sequence:?} in a list of {}", key_rows.len());
                return Err(CudaError::Argument { operation: OPERATION, what });
            };
            self.batch_rows = self.batch_rows.max(sequence.first_row as usize + sequence.rows as usize);
            for row in path {
                match usize::try_from(*row) {
                    Ok(row) => self.batch_rows = self.batch_rows.max(row + 1),
                    Err(_) => self.cache_rows = self.cache_rows.max((-i64::from(*row)) as usize),
                }
            }
            let first_rows = (0..sequence.rows).step_by(self.rows_of_task as usize);
            tasks.extend(first_rows.flat_map(|row| [index as u32, row]));
        }
        self.task_count = tasks.len() / 2;
        let sequences: Vec<u32> =
            sequences.iter().flat_map(|s| [s.first_row, s.rows, s.first_position, s.keys]).collect();
        let key_rows: Vec<u32> = key_rows.iter().map(|row| *row as u32).collect();
        stream.replace(&mut self.sequences, &sequences)?;
        stream.replace(&mut self.tasks, &tasks)?;
        stream.replace(&mut self.key_rows, &key_rows)
    }
}

/// What attention reads.
pub struct AttentionInputs<'a> {
    /// Type of activations.
    pub act: Act,
    /// Heads.
    pub shape: HeadShape,
    /// Scale, cap and window.
    pub scores: Scores,
    /// Queries, keys and values of the new rows: \[T, (heads + 2·kv_heads)·D\], rotated.
    pub qkv: &'a DeviceBuffer,
    /// Keys and values from before: \[S, 2·kv_heads·D\].
    pub cache: &'a DeviceBuffer,
    /// New rows by path.
    pub lists: &'a AttentionLists,
}

impl AttentionInputs<'_> {
    /// Compares what the lists point at with what is there, so that the kernel need not.
    fn check(&self, out: &DeviceBuffer) -> Result<(), CudaError> {
        let argument = |what: String| Err(CudaError::Argument { operation: OPERATION, what });
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim == 0 {
            return argument(format!("{:?}", self.shape));
        }
        if self.lists.task_count > 0 && self.lists.rows_of_task != rows_of_task(self.act, head_dim) {
            return argument(format!("lists of {} rows a task", self.lists.rows_of_task));
        }
        let size = self.act.size();
        require(
            OPERATION,
            &[
                ("qkv", self.lists.batch_rows * self.shape.qkv_columns() * size, self.qkv),
                ("the cache", self.lists.cache_rows * 2 * kv_heads * head_dim * size, self.cache),
                ("out", self.lists.batch_rows * heads * head_dim * size, out),
            ],
        )
    }
}

/// out \[T, heads·D\].
///
/// # Safety
/// `inputs`' and `out`'s buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn attention(
    stream: &Stream,
    inputs: &AttentionInputs<'_>,
    out: &DeviceBuffer,
) -> Result<(), CudaError> {
    inputs.check(out)?;
    let HeadShape { heads, kv_heads, head_dim } = inputs.shape;
    let lists = inputs.lists;
    let job = Job {
        qkv: inputs.qkv.address(),
        cache: inputs.cache.address(),
        out: out.address(),
        sequences: lists.sequences.address(),
        tasks: lists.tasks.address(),
        key_rows: lists.key_rows.address(),
        heads: index(OPERATION, heads)?,
        kv_heads: index(OPERATION, kv_heads)?,
        stride: index(OPERATION, inputs.shape.qkv_columns())?,
        window: inputs.scores.window.map_or(Ok(0), |window| index(OPERATION, window))?,
        scale: inputs.scores.scale,
        cap: inputs.scores.softcap.unwrap_or(0.0),
    };
    let capped = inputs.scores.softcap.is_some();
    let kernel = stream.device().kernel(&variant(inputs.act, head_dim, capped), "attention")?;
    let grid = [index(OPERATION, lists.task_count)?, job.heads, 1];
    // SAFETY: `Job` and the lists mirror the kernel's structs; rows and sizes were checked.
    unsafe { kernel.launch(stream, LaunchShape { grid, threads: THREADS, shared_bytes: 0 }, arguments![job]) }
}

/// Copies keys and values of batch rows `rows` \[n\] to the slots `slots` \[n\] of the cache, both u32.
///
/// # Safety
/// Every row and slot exists, no slot twice; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn store_cache(
    stream: &Stream,
    (act, shape): (Act, HeadShape),
    qkv: &DeviceBuffer,
    cache: &DeviceBuffer,
    (rows, slots): (&DeviceBuffer, &DeviceBuffer),
    count: usize,
) -> Result<(), CudaError> {
    require("store_cache", &[("rows", count * 4, rows), ("slots", count * 4, slots)])?;
    let kernel = stream.device().kernel(&variant(act, shape.head_dim, false), "store_cache")?;
    let width = 2 * shape.kv_heads * shape.head_dim;
    let mut numbers = [0; 4];
    for (to, n) in numbers.iter_mut().zip([count, shape.key_column(), width, shape.qkv_columns()]) {
        *to = index("store_cache", n)?;
    }
    let launch = one_thread_each("store_cache", count * width)?;
    // SAFETY: types as in the source, the rest is the caller's promise.
    unsafe {
        kernel.launch(
            stream,
            launch,
            arguments![
                qkv.address(),
                cache.address(),
                rows.address(),
                slots.address(),
                numbers[0],
                numbers[1],
                numbers[2],
                numbers[3]
            ],
        )
    }
}
