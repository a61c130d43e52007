//! Attention on a GPU: `kernels/attention.cu`. Reference: [`crate::ops::attention`].
//!
//! In bf16 on tensor cores for head dimensions that are multiples of 16 up to 128; in f32 on plain cores for any.

use super::{Act, arguments, index, one_thread_each, require};
use crate::device::cuda::{CudaError, DeviceBuffer, LaunchShape, Stream, Variant, kernel_source};
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
}

pub(super) fn variants() -> Vec<Variant> {
    vec![
        variant(Act::Bf16, 64, false),
        variant(Act::Bf16, 128, false),
        variant(Act::Bf16, 64, true),
        variant(Act::Bf16, 128, true),
        variant(Act::F32, 64, false),
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

/// Mirrors `Task` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Task {
    sequence: u32,
    row: u32,
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

/// What attention reads: paths on the host, rows on the device.
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
    pub sequences: &'a [DeviceSequence],
    /// For each position of each path the row of its key and value: r in the batch, −1 − s in the cache.
    pub key_rows: &'a [i32],
}

impl AttentionInputs<'_> {
    /// Compares what sequences and lists point at with what is there, so that the kernel need not.
    fn check(&self, out: &DeviceBuffer) -> Result<(), CudaError> {
        let argument = |what: String| Err(CudaError::Argument { operation: OPERATION, what });
        let HeadShape { heads, kv_heads, head_dim } = self.shape;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim == 0 {
            return argument(format!("{:?}", self.shape));
        }
        if self.act == Act::Bf16 && (!head_dim.is_multiple_of(16) || head_dim > MAX_TENSOR_CORE_DIM) {
            return argument(format!(
                "head dimension {head_dim} in bf16, expected a multiple of 16 up to {MAX_TENSOR_CORE_DIM}"
            ));
        }
        let size = self.act.size();
        let batch_rows = self.qkv.len() / (self.shape.qkv_columns() * size);
        let cache_rows = self.cache.len() / (2 * kv_heads * head_dim * size);
        for sequence in self.sequences {
            let keys = sequence.keys as usize;
            let end = keys + sequence.first_position as usize + sequence.rows as usize;
            let Some(path) = self.key_rows.get(keys..end) else {
                return argument(format!("{sequence:?} in a list of {}", self.key_rows.len()));
            };
            let last_row = sequence.first_row as usize + sequence.rows as usize;
            if last_row > batch_rows || last_row * heads * head_dim * size > out.len() {
                return argument(format!("{sequence:?} in {batch_rows} rows"));
            }
            let exists = |row: i32| match usize::try_from(row) {
                Ok(row) => row < batch_rows,
                Err(_) => ((-1 - row) as usize) < cache_rows,
            };
            if let Some(row) = path.iter().find(|row| !exists(**row)) {
                return argument(format!("key row {row} of {batch_rows} in the batch and {cache_rows} kept"));
            }
        }
        Ok(())
    }
}

/// out \[T, heads·D\]. Lists are copied to the device; the returned buffers hold them.
///
/// # Safety
/// `inputs`' and `out`'s buffers, and the returned ones, stay alive and untouched until the stream was synchronized.
pub unsafe fn attention(
    stream: &Stream,
    inputs: &AttentionInputs<'_>,
    out: &DeviceBuffer,
) -> Result<[DeviceBuffer; 3], CudaError> {
    inputs.check(out)?;
    let HeadShape { heads, kv_heads, head_dim } = inputs.shape;
    let rows_of_block: u32 = if inputs.act == Act::Bf16 { 64 } else { 4 };
    let mut tasks = Vec::new();
    for (sequence, of) in inputs.sequences.iter().enumerate() {
        let first_rows = (0..of.rows).step_by(rows_of_block as usize);
        tasks.extend(first_rows.map(|row| Task { sequence: sequence as u32, row }));
    }
    let words =
        |words: &mut dyn Iterator<Item = u32>| -> Vec<u8> { words.flat_map(u32::to_le_bytes).collect() };
    let lists = [
        words(&mut inputs.sequences.iter().flat_map(|s| [s.first_row, s.rows, s.first_position, s.keys])),
        words(&mut tasks.iter().flat_map(|t| [t.sequence, t.row])),
        words(&mut inputs.key_rows.iter().map(|row| *row as u32)),
    ];
    let [sequences, tasks_on_device, key_rows] = lists.map(|bytes| stream.upload(&bytes));
    let (sequences, tasks_on_device, key_rows) = (sequences?, tasks_on_device?, key_rows?);
    let job = Job {
        qkv: inputs.qkv.address(),
        cache: inputs.cache.address(),
        out: out.address(),
        sequences: sequences.address(),
        tasks: tasks_on_device.address(),
        key_rows: key_rows.address(),
        heads: index(OPERATION, heads)?,
        kv_heads: index(OPERATION, kv_heads)?,
        stride: index(OPERATION, inputs.shape.qkv_columns())?,
        window: inputs.scores.window.map_or(Ok(0), |window| index(OPERATION, window))?,
        scale: inputs.scores.scale,
        cap: inputs.scores.softcap.unwrap_or(0.0),
    };
    let capped = inputs.scores.softcap.is_some();
    let kernel = stream.device().kernel(&variant(inputs.act, head_dim, capped), "attention")?;
    let grid = [index(OPERATION, tasks.len())?, job.heads, 1];
    // SAFETY: `Job` and the lists mirror the kernel's structs; rows and sizes were checked.
    unsafe {
        kernel.launch(stream, LaunchShape { grid, threads: THREADS, shared_bytes: 0 }, arguments![job])?;
    };
    Ok([sequences, tasks_on_device, key_rows])
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
