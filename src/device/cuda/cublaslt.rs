//! Matrix products by cuBLASLt: y \[M, N\] = x \[M, K\] · wᵀ, w \[N, K\], all row-major; sums are f32, or int32 of int8.
//!
//! Read by columns, as the library does, that is yᵀ \[N, M\] = w \[K, N\]ᵀ · x \[K, M\]: the one form that its FP8 and INT8
//! products take. f32 products use no TF32.
//!
//! Which kernel runs, and so in what order a sum is taken, is asked of the library's heuristic for a class of shapes: M
//! rounded up to a power of two. The same call gives the same bits. With another number of rows, in another class for
//! certain and perhaps in the same, a row's sums may be taken in another order: what is computed here depends on batches in
//! the last bits, as of any engine on GPUs.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasStatus_t as Status, cudaDataType_t as Type,
};

use super::counts::Asked;
use super::error::CudaError;
use super::{Device, DeviceBuffer, Stream, library};
use crate::base::env_vars;

/// Functions of the library that day0 calls.
const SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// The major version whose functions cudarc declares (feature `cuda-13000`).
const MAJOR: usize = 13;
/// Room for partial sums: what NVIDIA recommends for sm_90 (cuBLAS documentation, `cublasSetWorkspace`).
const WORKSPACE_BYTES: usize = 32 << 20;
/// The smallest class of M.
const SMALLEST_CLASS: usize = 16;
/// What buffers are aligned to at best, as far as the library cares.
const BEST_ALIGNMENT: u64 = 256;
/// The value of an attribute that transposes (`CUBLAS_OP_T`).
static TRANSPOSED: i32 = 1;

/// Version of the library as it counts itself, e.g. 130002; an error if there is none, or none of the major version whose
/// functions are called. Asked once.
pub fn products_version() -> Result<usize, CudaError> {
    static VERSION: OnceLock<Result<usize, CudaError>> = OnceLock::new();
    let load = || {
        let asked = env_vars::get_os(env_vars::DAY0_CUBLASLT).map(PathBuf::from);
        let at = asked.as_ref().map(|path| path.display().to_string());
        let library = library::find(asked.as_deref(), "cublasLt", None);
        let library = library.ok_or_else(|| CudaError::NoProducts { at: at.clone() })?;
        if let Some(symbol) = library::missing(&library, SYMBOLS) {
            return Err(CudaError::ProductsSymbol { symbol });
        }
        // SAFETY: the library is present with all its symbols; cudarc opens it by the same names and keeps it for good.
        let version = unsafe { sys::cublasLtGetVersion() };
        let [major, minor, patch] = parts(version);
        if major == MAJOR {
            return Ok(version);
        }
        Err(CudaError::ProductsVersion { found: format!("{major}.{minor}.{patch}"), expected: MAJOR, at })
    };
    VERSION.get_or_init(load).clone()
}

/// Major, minor and patch of a version as the library counts it: 10000 · major + 100 · minor + patch, up to version 11
/// 1000 · major (`CUBLAS_VERSION` of cublas_api.h).
fn parts(version: usize) -> [usize; 3] {
    let unit = if version < 100_000 { 1000 } else { 10_000 };
    [version / unit, version % unit / 100, version % 100]
}

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
    /// int8 to int32; N and K multiples of 16.
    Int8ToInt32,
}

impl ProductKind {
    /// Types of x and w, of y, of the factors, and how sums are taken.
    fn types(self) -> (Type, Type, Type, Compute) {
        let (float, f32_sums) = (Type::CUDA_R_32F, Compute::CUBLAS_COMPUTE_32F);
        match self {
            Self::F32 => (float, float, float, f32_sums),
            Self::Bf16 => (Type::CUDA_R_16BF, Type::CUDA_R_16BF, float, f32_sums),
            Self::Bf16ToF32 => (Type::CUDA_R_16BF, float, float, f32_sums),
            Self::Fp8ToF32 => (Type::CUDA_R_8F_E4M3, float, float, f32_sums),
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
            Self::Fp8ToF32 | Self::Int8ToInt32 => [1, 4],
        }
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
        let needed = [
            ("x", m * k * input, self.x),
            ("w", n * k * input, self.w),
            ("y", ((m - 1) * self.stride + n) * output, self.y),
        ];
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
    handle: sys::cublasLtHandle_t,
    workspace: DeviceBuffer,
    algorithms: Mutex<HashMap<Key, cublasLtMatmulAlgo_t>>,
}

// SAFETY: a handle may be used from any thread; what changes is behind a mutex.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Products {
    /// Opens the library on a device.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        products_version()?;
        device.enter()?;
        let workspace = DeviceBuffer::new(device, WORKSPACE_BYTES)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library is present with all its symbols; the pointer is valid for the call.
        check("cublasLtCreate", unsafe { sys::cublasLtCreate(&raw mut handle) })?;
        Ok(Self { device: Arc::clone(device), handle, workspace, algorithms: Mutex::default() })
    }

    /// Queues a product. Nothing is queued where M is 0.
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
        let call = Call::new(product.kind, product.shape, product.stride)?;
        let class = m.next_power_of_two().max(SMALLEST_CLASS);
        let key = Key {
            kind: product.kind,
            shape: [class, n, k],
            stride: product.stride,
            alignments: [product.w.alignment(), product.x.alignment(), product.y.alignment()],
        };
        let algorithm = self.algorithm(key)?;
        // SAFETY: the caller's promise.
        match unsafe { self.launch(stream, product, &call, &algorithm) } {
            // Documented for no kernel, but nothing promises that one for the class takes every M of it.
            Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE if class != m => {
                let algorithm = self.algorithm(Key { shape: product.shape, ..key })?;
                // SAFETY: as above.
                check("cublasLtMatmul", unsafe { self.launch(stream, product, &call, &algorithm) })
            }
            status => check("cublasLtMatmul", status),
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn launch(
        &self,
        stream: &Stream,
        product: &Product<'_>,
        call: &Call,
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
            sys::cublasLtMatmul(
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

    /// The heuristic's first choice.
    fn algorithm(&self, key: Key) -> Result<cublasLtMatmulAlgo_t, CudaError> {
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = algorithms.get(&key) {
            return Ok(*algorithm);
        }
        let call = Call::new(key.kind, key.shape, key.stride)?;
        let preference = Limits::new(self.workspace.len(), key.alignments)?;
        let [w, x, y] = call.layouts;
        let mut found = std::mem::MaybeUninit::uninit();
        let mut count = 0;
        // SAFETY: descriptors and handle are alive; there is room for the one result asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                call.description,
                w,
                x,
                y,
                y,
                preference.0,
                1,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == Status::CUBLAS_STATUS_NOT_SUPPORTED || count == 0 {
            return Err(CudaError::NoProduct { product: format!("{key:?}") });
        }
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        // SAFETY: the library wrote the one result that it counted.
        let found = unsafe { found.assume_init() };
        check("cublasLtMatmulAlgoGetHeuristic", found.state)?;
        algorithms.insert(key, found.algo);
        Ok(found.algo)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: created in `new` and destroyed once.
            unsafe { sys::cublasLtDestroy(self.handle) };
        }
    }
}

/// The library's description of a product: types and transposition, and the layouts of w, x and y.
struct Call {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl Call {
    fn new(kind: ProductKind, [m, n, k]: [usize; 3], stride: usize) -> Result<Self, CudaError> {
        let (input, output, factors, compute) = kind.types();
        let mut call = Self { description: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3] };
        // SAFETY: the pointers are valid for the calls; what they make is destroyed in `drop`.
        unsafe {
            let made = sys::cublasLtMatmulDescCreate(&raw mut call.description, compute, factors);
            check("cublasLtMatmulDescCreate", made)?;
            let set = sys::cublasLtMatmulDescSetAttribute(
                call.description,
                Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const TRANSPOSED).cast(),
                size_of_val(&TRANSPOSED),
            );
            check("cublasLtMatmulDescSetAttribute", set)?;
            let of_layouts = [(input, k, n, k), (input, k, m, k), (output, n, m, stride)];
            for (layout, (of, rows, columns, leading)) in call.layouts.iter_mut().zip(of_layouts) {
                let made =
                    sys::cublasLtMatrixLayoutCreate(layout, of, rows as u64, columns as u64, leading as i64);
                check("cublasLtMatrixLayoutCreate", made)?;
            }
        }
        Ok(call)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: each was created once, or is null.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                sys::cublasLtMatrixLayoutDestroy(layout);
            }
            if !self.description.is_null() {
                sys::cublasLtMatmulDescDestroy(self.description);
            }
        }
    }
}

/// What a kernel may count on: room, and alignments in bytes of w, x and y.
struct Limits(sys::cublasLtMatmulPreference_t);

impl Limits {
    fn new(workspace: usize, [w, x, y]: [u32; 3]) -> Result<Self, CudaError> {
        let mut limits = Self(std::ptr::null_mut());
        let alignments = [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y),
        ];
        // SAFETY: the pointer is valid for the call; what it makes is destroyed in `drop`.
        let made = unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut limits.0) };
        check("cublasLtMatmulPreferenceCreate", made)?;
        limits.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        for (which, bytes) in alignments {
            limits.set(which, &bytes)?;
        }
        Ok(limits)
    }

    /// Sets a limit, in the type that the library expects of it.
    fn set<T>(&mut self, which: Preference, value: &T) -> Result<(), CudaError> {
        let (at, size) = (std::ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the preference is alive, and the value for the call.
        let set = unsafe { sys::cublasLtMatmulPreferenceSetAttribute(self.0, which, at, size) };
        check("cublasLtMatmulPreferenceSetAttribute", set)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: created once in `new`.
            unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
        }
    }
}

/// `Ok` for success.
fn check(call: &'static str, status: Status) -> Result<(), CudaError> {
    if status == Status::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Call { call, code: format!("{status:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_the_library_counts_them() {
        assert_eq!(parts(130_002), [13, 0, 2]);
        assert_eq!(parts(120_103), [12, 1, 3]);
        assert_eq!(parts(11_401), [11, 4, 1]);
    }
}
