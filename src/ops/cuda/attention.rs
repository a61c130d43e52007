//! Attention on a GPU: `kernels/attention.cu`. Reference: [`crate::ops::attention`].
//!
//! In bf16 on tensor cores for head dimensions that are multiples of 16 up to 128; else on plain cores.

use super::{Act, arguments, index, one_thread_each, require};
use crate::device::cuda::{
    CudaError, DeviceBuffer, DeviceSlice, LaunchShape, Stream, Variant, kernel_source,
};
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
        variant(Act::Bf16, 80, false),
        variant(Act::Bf16, 96, false),
        variant(Act::Bf16, 96, true),
        variant(Act::Bf16, 256, false),
        variant(Act::Bf16, 256, true),
        variant(Act::F32, 64, false),
        variant(Act::F32, 128, false),
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

/// A slot of the cache for rows that are not kept.
pub const NO_SLOT: u32 = u32::MAX;

/// The paths of a batch, checked, in the words that the kernel reads for the attention of every layer.
#[derive(Debug, Default)]
pub struct AttentionLists {
    sequences: Vec<u32>,
    tasks: Vec<u32>,
    key_rows: Vec<u32>,
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
    /// New rows by path, and for each position of each path the row of its key and value: r in the batch, −1 − s in the
    /// cache.
    pub fn new(
        (act, head_dim): (Act, usize),
        sequences: &[DeviceSequence],
        key_rows: &[i32],
    ) -> Result<Self, CudaError> {
        let mut lists = Self { rows_of_task: rows_of_task(act, head_dim), ..Self::default() };
        for (index, sequence) in sequences.iter().enumerate() {
            let keys = sequence.keys as usize;
            let end = keys + sequence.first_position as usize + sequence.rows as usize;
            let Some(path) = key_rows.get(keys..end) else {
                let what = format!("{sequence:?} in a list of {}", key_rows.len());
                return Err(CudaError::Argument { operation: OPERATION, what });
            };
            lists.batch_rows = lists.batch_rows.max(sequence.first_row as usize + sequence.rows as usize);
            for row in path {
                match usize::try_from(*row) {
                    Ok(row) => lists.batch_rows = lists.batch_rows.max(row + 1),
                    Err(_) => lists.cache_rows = lists.cache_rows.max((-i64::from(*row)) as usize),
                }
            }
            let first_rows = (0..sequence.rows).step_by(lists.rows_of_task as usize);
            lists.tasks.extend(first_rows.flat_map(|row| [index as u32, row]));
        }
        lists.sequences =
            sequences.iter().flat_map(|s| [s.first_row, s.rows, s.first_position, s.keys]).collect();
        lists.key_rows = key_rows.iter().map(|row| *row as u32).collect();
        Ok(lists)
    }

    /// Sequences, tasks and key rows, to be uploaded.
    pub fn words(&self) -> [&[u32]; 3] {
        [&self.sequences, &self.tasks, &self.key_rows]
    }

    /// Blocks of one head.
    fn task_count(&self) -> usize {
        self.tasks.len() / 2
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
    /// Their words on the device.
    pub words: [DeviceSlice<'a>; 3],
}

impl AttentionInputs<'_> {
    /// Compares what the lists point at with what is there, so that the kernel need not.
    pub fn check(&self, out: &DeviceBuffer) -> Result<(), CudaError> {
        let argument = |what: String| Err(CudaError::Argument { operation: OPERATION, what });
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim == 0 {
            return argument(format!("{:?}", self.shape));
        }
        if self.lists.task_count() > 0 && self.lists.rows_of_task != rows_of_task(self.act, head_dim) {
            return argument(format!("lists of {} rows a task", self.lists.rows_of_task));
        }
        let size = self.act.size();
        for (words, there) in self.lists.words().iter().zip(&self.words) {
            require(OPERATION, &[("a list", size_of_val(*words), there)])?;
        }
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
    let job = Job {
        qkv: inputs.qkv.address(),
        cache: inputs.cache.address(),
        out: out.address(),
        sequences: inputs.words[0].address(),
        tasks: inputs.words[1].address(),
        key_rows: inputs.words[2].address(),
        heads: index(OPERATION, heads)?,
        kv_heads: index(OPERATION, kv_heads)?,
        stride: index(OPERATION, inputs.shape.qkv_columns())?,
        window: inputs.scores.window.map_or(Ok(0), |window| index(OPERATION, window))?,
        scale: inputs.scores.scale,
        cap: inputs.scores.softcap.unwrap_or(0.0),
    };
    let capped = inputs.scores.softcap.is_some();
    let kernel = stream.device().kernel(&variant(inputs.act, head_dim, capped), "attention")?;
    let grid = [index(OPERATION, inputs.lists.task_count())?, job.heads, 1];
    // SAFETY: `Job` and the lists mirror the kernel's structs; rows and sizes were checked.
    unsafe { kernel.launch(stream, LaunchShape { grid, threads: THREADS, shared_bytes: 0 }, arguments![job]) }
}

/// Copies keys and values of batch rows `rows` \[n\] to the slots `slots` \[n\] of the cache, both u32; those of [`NO_SLOT`]
/// nowhere.
///
/// # Safety
/// Every row and slot exists, no slot twice; buffers stay alive and untouched until the stream was synchronized.
pub unsafe fn store_cache(
    stream: &Stream,
    (act, shape): (Act, HeadShape),
    qkv: &DeviceBuffer,
    cache: &DeviceBuffer,
    [rows, slots]: [DeviceSlice<'_>; 2],
    count: usize,
) -> Result<(), CudaError> {
    require("store_cache", &[("rows", count * 4, &rows), ("slots", count * 4, &slots)])?;
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
