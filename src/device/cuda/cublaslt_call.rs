//! cuBLASLt's functions, and its descriptions of products.

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulMatrixScale_t as Scale, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cublasStatus_t as Status,
    cudaDataType as Type, cudaStream_t,
};

use super::Device;
use super::cublaslt::ProductKind;
use super::error::CudaError;
use super::library::{self, MAJOR};
use crate::base::env_vars;

library::functions! {
    /// Functions of the library that day0 calls.
    Library:
    cublasLtCreate(*mut cublasLtHandle_t) -> Status;
    cublasLtDestroy(cublasLtHandle_t) -> Status;
    cublasLtGetVersion() -> usize;
    cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, *const c_void, cublasLtMatrixLayout_t, *const c_void, cublasLtMatrixLayout_t, *const c_void, *const c_void, cublasLtMatrixLayout_t, *mut c_void, cublasLtMatrixLayout_t, *const cublasLtMatmulAlgo_t, *mut c_void, usize, cudaStream_t) -> Status;
    cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, c_int, *mut cublasLtMatmulHeuristicResult_t, *mut c_int) -> Status;
    cublasLtMatmulDescCreate(*mut cublasLtMatmulDesc_t, Compute, Type) -> Status;
    cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t) -> Status;
    cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t, Attribute, *const c_void, usize) -> Status;
    cublasLtMatmulPreferenceCreate(*mut cublasLtMatmulPreference_t) -> Status;
    cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) -> Status;
    cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, Preference, *const c_void, usize) -> Status;
    cublasLtMatrixLayoutCreate(*mut cublasLtMatrixLayout_t, Type, u64, u64, i64) -> Status;
    cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t) -> Status;
}

/// The value of an attribute that transposes (`CUBLAS_OP_T`).
const TRANSPOSED: i32 = 1;
/// Sums of FP8 products are carried over to f32 every few steps: those that tensor cores of sm_89 and sm_90 take alone have
/// about 14 bits (`CUBLASLT_MATMUL_DESC_FAST_ACCUM`), which log-probabilities would show.
const FAST_ACCUMULATION: i8 = 0;

/// The library with its version as it counts itself, e.g. 130002; an error if there is none, or none of the major version
/// whose functions are called. Looked for once.
pub(super) fn library() -> Result<&'static (Library, usize), CudaError> {
    static LIBRARY: OnceLock<Result<(Library, usize), CudaError>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(CudaError::clone)
}

fn load() -> Result<(Library, usize), CudaError> {
    let asked = env_vars::get_os(env_vars::DAY0_CUBLASLT).map(PathBuf::from);
    let library = library::find(asked.as_deref(), "cublasLt", None);
    let library =
        library.ok_or_else(|| CudaError::NoProducts { at: asked.map(|path| path.display().to_string()) })?;
    let library = Library::of(library).map_err(|symbol| CudaError::ProductsSymbol { symbol })?;
    // SAFETY: it takes nothing.
    let version = unsafe { (library.cublasLtGetVersion)() };
    let [major, minor, patch] = parts(version);
    if major == MAJOR {
        return Ok((library, version));
    }
    let at = library.file.as_deref().map(|file| file.display().to_string());
    Err(CudaError::ProductsVersion { found: format!("{major}.{minor}.{patch}"), expected: MAJOR, at })
}

/// Version of the library as it counts itself; an error if there is none.
pub fn products_version() -> Result<usize, CudaError> {
    library().map(|(_, version)| *version)
}

/// The file of the library, as far as the system says.
pub fn products_file() -> Option<&'static Path> {
    library().ok()?.0.file.as_deref()
}

/// Major, minor and patch of a version as the library counts it: 10000 · major + 100 · minor + patch, up to version 11
/// 1000 · major (`CUBLAS_VERSION` of cublas_api.h).
fn parts(version: usize) -> [usize; 3] {
    let unit = if version < 100_000 { 1000 } else { 10_000 };
    [version / unit, version % unit / 100, version % 100]
}

/// `Ok` for success.
pub(super) fn check(device: &Device, call: &'static str, status: Status) -> Result<(), CudaError> {
    match status {
        Status::CUBLAS_STATUS_SUCCESS => Ok(()),
        Status::CUBLAS_STATUS_ALLOC_FAILED => Err(device.out_of_memory(call, 0)),
        other => Err(CudaError::Call { call, code: format!("{other:?}") }),
    }
}

/// The library's description of a product: types, transposition and scales, and the layouts of w, x and y.
pub(super) struct Call<'a> {
    library: &'a Library,
    pub description: cublasLtMatmulDesc_t,
    pub layouts: [cublasLtMatrixLayout_t; 3],
}

impl<'a> Call<'a> {
    /// Of x \[M, K\] and w \[N, K\] with y in rows of `stride`; addresses of the scales of x and w where the kind has them.
    pub fn new(
        (library, device): (&'a Library, &Device),
        kind: ProductKind,
        [m, n, k]: [usize; 3],
        stride: usize,
        scales: [u64; 2],
    ) -> Result<Self, CudaError> {
        let (input, output, factors, compute) = kind.types();
        let mut call =
            Self { library, description: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3] };
        // SAFETY: the pointer is valid for the call; what it makes is destroyed in `drop`.
        let made = unsafe { (library.cublasLtMatmulDescCreate)(&raw mut call.description, compute, factors) };
        check(device, "cublasLtMatmulDescCreate", made)?;
        call.set(device, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if input == Type::CUDA_R_8F_E4M3 {
            call.set(device, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &FAST_ACCUMULATION)?;
        }
        if kind.is_scaled() {
            // The library's first matrix is w.
            let vector = Scale::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            let [x, w] = scales;
            call.set(device, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &vector)?;
            call.set(device, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &vector)?;
            call.set(device, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w)?;
            call.set(device, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x)?;
        }
        let of_layouts = [(input, k, n, k), (input, k, m, k), (output, n, m, stride)];
        for (layout, (of, rows, columns, leading)) in call.layouts.iter_mut().zip(of_layouts) {
            let (rows, columns, leading) = (rows as u64, columns as u64, leading as i64);
            // SAFETY: as above.
            let made = unsafe { (library.cublasLtMatrixLayoutCreate)(layout, of, rows, columns, leading) };
            check(device, "cublasLtMatrixLayoutCreate", made)?;
        }
        Ok(call)
    }

    /// Sets an attribute, in the type that the library expects of it.
    fn set<T>(&self, device: &Device, which: Attribute, value: &T) -> Result<(), CudaError> {
        let (at, size) = (std::ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the description is alive, and the value for the call, which copies it.
        let set = unsafe { (self.library.cublasLtMatmulDescSetAttribute)(self.description, which, at, size) };
        check(device, "cublasLtMatmulDescSetAttribute", set)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // SAFETY: each was created once, or is null.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (self.library.cublasLtMatrixLayoutDestroy)(layout);
            }
            if !self.description.is_null() {
                (self.library.cublasLtMatmulDescDestroy)(self.description);
            }
        }
    }
}

/// What a kernel may count on: room, and alignments in bytes of w, x and y.
pub(super) struct Limits<'a> {
    library: &'a Library,
    pub raw: cublasLtMatmulPreference_t,
}

impl<'a> Limits<'a> {
    pub fn new(
        (library, device): (&'a Library, &Device),
        workspace: usize,
        [w, x, y]: [u32; 3],
    ) -> Result<Self, CudaError> {
        let mut limits = Self { library, raw: std::ptr::null_mut() };
        let alignments = [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y),
        ];
        // SAFETY: the pointer is valid for the call; what it makes is destroyed in `drop`.
        let made = unsafe { (library.cublasLtMatmulPreferenceCreate)(&raw mut limits.raw) };
        check(device, "cublasLtMatmulPreferenceCreate", made)?;
        limits.set(device, Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        for (which, bytes) in alignments {
            limits.set(device, which, &bytes)?;
        }
        Ok(limits)
    }

    /// Sets a limit, in the type that the library expects of it.
    fn set<T>(&self, device: &Device, which: Preference, value: &T) -> Result<(), CudaError> {
        let (at, size) = (std::ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the preference is alive, and the value for the call.
        let set = unsafe { (self.library.cublasLtMatmulPreferenceSetAttribute)(self.raw, which, at, size) };
        check(device, "cublasLtMatmulPreferenceSetAttribute", set)
    }
}

impl Drop for Limits<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: created once in `new`.
            unsafe { (self.library.cublasLtMatmulPreferenceDestroy)(self.raw) };
        }
    }
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
