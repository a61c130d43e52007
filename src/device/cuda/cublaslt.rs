//! Matrix products by cuBLASLt: y \[M, N\] = x \[M, K\] · wᵀ, w \[N, K\], all row-major; sums are f32, or int32 of int8.
//!
//! Read by columns, as the library does, that is yᵀ \[N, M\] = w \[K, N\]ᵀ · x \[K, M\]: the one form that its FP8 and INT8
//! products take. f32 products use no TF32. Products of FP8 may be scaled by row and column as they are written, where the
//! library has kernels that do (compute capability 9.0).
//!
//! Which kernel runs, and so in what order a sum is taken, is asked of the library's heuristic for a class of shapes: M
//! rounded up to a power of two. The same call gives the same bits. With another number of rows, in another class for
//! certain and perhaps in the same, a row's sums may be taken in another order: what is computed here depends on batches in
//! the last bits, as of any engine on GPUs.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasStatus_t as Status,
    cudaDataType_t as Type,
};

use super::counts::Asked;
use super::cublaslt_call::{Call, Library, Limits, check, library};
use super::error::CudaError;
use super::{Device, DeviceBuffer, Stream};

/// Room for partial sums: what NVIDIA recommends for sm_90 (cuBLAS documentation, `cublasSetWorkspace`).
const WORKSPACE_BYTES: usize = 32 << 20;
/// The smallest class of M.
const SMALLEST_CLASS: usize = 16;
/// What the library's vector loads of scales are sure to take.
pub const SCALES_ALIGNMENT: usize = 16;
/// What buffers are aligned to at best, as far as the library cares.
const BEST_ALIGNMENT: u64 = 256;

/// Types of x and w, and of y.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProductKind {
    /// f32 to f32.
    F32,
    /// bf16 to bf16.
    Bf16,
    /// bf16 to f32.
    Bf16ToF32,
    /// FP8 E4M3 to f32; compute capability 8.9 and newer, N and K multiples of 16.
    Fp8ToF32,
    /// The same times a scale for each row of x and one for each row of w.
    Fp8ScaledToF32,
    /// The same, rounded to bf16.
    Fp8ScaledToBf16,
    /// int8 to int32; N and K multiples of 16.
    Int8ToInt32,
}

impl ProductKind {
    /// Types of x and w, of y, of the factors, and how sums are taken.
    pub(super) fn types(self) -> (Type, Type, Type, Compute) {
        let (float, f32_sums) = (Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F);
        match self {
            Self::F32 => (float, float, float, f32_sums),
            Self::Bf16 => (Type::CUDA_R_16BF, Type::CUDA_R_16BF, float, f32_sums),
            Self::Bf16ToF32 => (Type::CUDA_R_16BF, float, float, f32_sums),
            Self::Fp8ToF32 | Self::Fp8ScaledToF32 => (Type::CUDA_R_8F_E4M3, float, float, f32_sums),
            Self::Fp8ScaledToBf16 => (Type::CUDA_R_8F_E4M3, Type::CUDA_R_16BF, float, f32_sums),
            Self::Int8ToInt32 => {
                (Type::CUDA_R_8I, Type::CUDA_R_32I, Type::CUDA_R_32I, Compute::CUBLAS_COMPUTE_32I)
            }
        }
    }

    /// Bytes of an element of x and w, and of y.
    pub fn sizes(self) -> [usize; 2] {
        match self {
            Self::F32 => [4, 4],
            Self::Bf16 => [2, 2],
            Self::Bf16ToF32 => [2, 4],
            Self::Fp8ScaledToBf16 => [1, 2],
            Self::Fp8ToF32 | Self::Fp8ScaledToF32 | Self::Int8ToInt32 => [1, 4],
        }
    }

    /// Whether products have scales.
    pub fn is_scaled(self) -> bool {
        matches!(self, Self::Fp8ScaledToF32 | Self::Fp8ScaledToBf16)
    }
}

/// A matrix in a buffer.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Where it lies.
    pub buffer: &'a DeviceBuffer,
    /// Bytes before its first element.
    pub offset: usize,
}

impl<'a> From<&'a DeviceBuffer> for Operand<'a> {
    fn from(buffer: &'a DeviceBuffer) -> Self {
        Self { buffer, offset: 0 }
    }
}

impl Operand<'_> {
    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.buffer.address() + self.offset as u64
    }

    /// The largest power of two that divides its address, at most 256.
    fn alignment(&self) -> u32 {
        let address = self.address();
        (1 << address.trailing_zeros().min(BEST_ALIGNMENT.trailing_zeros())) as u32
    }
}

/// y \[M, N\] in rows of `stride` = x \[M, K\] · w \[N, K\]ᵀ.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// Types.
    pub kind: ProductKind,
    /// x.
    pub x: Operand<'a>,
    /// w.
    pub w: Operand<'a>,
    /// y.
    pub y: Operand<'a>,
    /// M, N, K.
    pub shape: [usize; 3],
    /// Elements from a row of y to the next.
    pub stride: usize,
    /// Scales of x \[M\] and of w \[N\], f32 at multiples of 16 bytes, of a kind that has them.
    pub scales: Option<[Operand<'a>; 2]>,
}

impl Product<'_> {
    /// Refuses shapes that are empty or leave their buffers.
    fn check(&self) -> Result<(), CudaError> {
        let [m, n, k] = self.shape;
        let [input, output] = self.kind.sizes();
        let argument = |what: String| Err(CudaError::Argument { operation: "matrix product", what });
        if n == 0 || k == 0 || self.stride < n {
            return argument(format!("[{m}, {n}, {k}] in rows of {}", self.stride));
        }
        let mut needed = vec![
            ("x", m * k * input, self.x),
            ("w", n * k * input, self.w),
            ("y", ((m - 1) * self.stride + n) * output, self.y),
        ];
        match self.scales {
            Some([x, w]) if self.kind.is_scaled() => {
                needed.extend([("scales of x", m * 4, x), ("scales of w", n * 4, w)]);
                if !x.offset.is_multiple_of(SCALES_ALIGNMENT) || !w.offset.is_multiple_of(SCALES_ALIGNMENT) {
                    return argument(format!("scales at {} and {}", x.offset, w.offset));
                }
            }
            None if !self.kind.is_scaled() => {}
            _ => {
                return argument(format!(
                    "{:?} {} scales",
                    self.kind,
                    if self.scales.is_some() { "with" } else { "without" }
                ));
            }
        }
        match needed.iter().find(|(_, bytes, of)| of.offset + bytes > of.buffer.len()) {
            None => Ok(()),
            Some((what, bytes, of)) => {
                argument(format!("{what} takes {bytes} bytes at {} of {}", of.offset, of.buffer.len()))
            }
        }
    }
}

/// What decides which kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    kind: ProductKind,
    shape: [usize; 3],
    stride: usize,
    alignments: [u32; 3],
}

/// The library on one device, for the products of one stream, which share room for partial sums.
pub struct Products {
    device: Arc<Device>,
    library: &'static Library,
    handle: cublasLtHandle_t,
    workspace: DeviceBuffer,
    /// `None`: the library has no kernel.
    algorithms: Mutex<HashMap<Key, Option<cublasLtMatmulAlgo_t>>>,
}

// SAFETY: a handle may be used from any thread; what changes is behind a mutex.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Products {
    /// Opens the library on a device.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let (library, _) = library()?;
        device.enter()?;
        let workspace = DeviceBuffer::new(device, WORKSPACE_BYTES)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        check(device, "cublasLtCreate", unsafe { (library.cublasLtCreate)(&raw mut handle) })?;
        Ok(Self { device: Arc::clone(device), library, handle, workspace, algorithms: Mutex::default() })
    }

    /// Queues a product. Nothing is queued where M is 0, and where the library has no kernel ([`CudaError::NoProduct`]).
    ///
    /// # Safety
    /// All products go to one stream. Buffers stay alive and untouched, and `self` alive, until it was synchronized.
    pub unsafe fn run(&self, stream: &Stream, product: &Product<'_>) -> Result<(), CudaError> {
        let [m, n, k] = product.shape;
        if m == 0 {
            return Ok(());
        }
        product.check()?;
        self.device.enter_for(Asked::Launch)?;
        let scales = product.scales.map_or([0; 2], |scales| scales.map(|of| of.address()));
        let call = self.call(product.kind, product.shape, product.stride, scales)?;
        let class = m.next_power_of_two().max(SMALLEST_CLASS);
        let key = Key {
            kind: product.kind,
            shape: [class, n, k],
            stride: product.stride,
            alignments: [product.w.alignment(), product.x.alignment(), product.y.alignment()],
        };
        let algorithm = self.algorithm(key, scales)?;
        // SAFETY: the caller's promise.
        match unsafe { self.launch(stream, product, &call, &algorithm) } {
            // Documented for no kernel, but nothing promises that one for the class takes every M of it.
            Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE if class != m => {
                let algorithm = self.algorithm(Key { shape: product.shape, ..key }, scales)?;
                // SAFETY: as above.
                let status = unsafe { self.launch(stream, product, &call, &algorithm) };
                check(&self.device, "cublasLtMatmul", status)
            }
            status => check(&self.device, "cublasLtMatmul", status),
        }
    }

    fn call(
        &self,
        kind: ProductKind,
        shape: [usize; 3],
        stride: usize,
        scales: [u64; 2],
    ) -> Result<Call<'_>, CudaError> {
        Call::new((self.library, &self.device), kind, shape, stride, scales)
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn launch(
        &self,
        stream: &Stream,
        product: &Product<'_>,
        call: &Call<'_>,
        algorithm: &cublasLtMatmulAlgo_t,
    ) -> Status {
        // 1 and 0 as f32 and as int32.
        let factors = match product.kind {
            ProductKind::Int8ToInt32 => [1, 0],
            _ => [1f32.to_bits(), 0],
        };
        let pointer = |operand: Operand<'_>| operand.address() as *mut c_void;
        let y = pointer(product.y);
        // SAFETY: descriptors and handle are alive, ranges were checked, the rest is the caller's promise.
        unsafe {
            (self.library.cublasLtMatmul)(
                self.handle,
                call.description,
                (&raw const factors[0]).cast(),
                pointer(product.w),
                call.layouts[0],
                pointer(product.x),
                call.layouts[1],
                (&raw const factors[1]).cast(),
                y,
                call.layouts[2],
                y,
                call.layouts[2],
                algorithm,
                self.workspace.address() as *mut c_void,
                self.workspace.len(),
                stream.raw().cast(),
            )
        }
    }

    /// The heuristic's first choice, for scales at some addresses.
    fn algorithm(&self, key: Key, scales: [u64; 2]) -> Result<cublasLtMatmulAlgo_t, CudaError> {
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match algorithms.get(&key) {
            Some(known) => *known,
            None => *algorithms.entry(key).insert_entry(self.choose(key, scales)?).get(),
        };
        found.ok_or_else(|| CudaError::NoProduct { product: format!("{key:?}") })
    }

    /// Asks the heuristic; `None` where the library has no kernel.
    fn choose(&self, key: Key, scales: [u64; 2]) -> Result<Option<cublasLtMatmulAlgo_t>, CudaError> {
        let call = self.call(key.kind, key.shape, key.stride, scales)?;
        let limits = Limits::new((self.library, &self.device), self.workspace.len(), key.alignments)?;
        let [w, x, y] = call.layouts;
        let mut found = std::mem::MaybeUninit::uninit();
        let mut count = 0;
        // SAFETY: descriptors and handle are alive; there is room for the one result asked for.
        let status = unsafe {
            (self.library.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                call.description,
                w,
                x,
                y,
                y,
                limits.raw,
                1,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        match status {
            Status::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(None),
            // A mode of scales that the device does not have is a value that it does not know.
            Status::CUBLAS_STATUS_INVALID_VALUE if key.kind.is_scaled() => return Ok(None),
            status => check(&self.device, "cublasLtMatmulAlgoGetHeuristic", status)?,
        }
        if count == 0 {
            return Ok(None);
        }
        // SAFETY: the library wrote the one result that it counted.
        let found = unsafe { found.assume_init() };
        check(&self.device, "cublasLtMatmulAlgoGetHeuristic", found.state)?;
        Ok(Some(found.algo))
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: created in `new` and destroyed once.
            unsafe { (self.library.cublasLtDestroy)(self.handle) };
        }
    }
}
