//! What can go wrong with a GPU, each with what to do about it.

use cudarc::driver::sys::CUresult;

use crate::base::env_vars;
use crate::base::units::human_bytes;
use crate::record::{Classified, FailureClass};

/// Errors 900 to 908 of the driver.
const REFUSED_RECORDINGS: [CUresult; 9] = [
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
    CUresult::CUDA_ERROR_CAPTURED_EVENT,
    CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD,
];

/// A failure of driver, device or compiler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is not installed.
    #[error("no CUDA driver: libcuda.so could not be loaded")]
    NoDriver,
    /// The driver lacks a function that is needed.
    #[error("the CUDA driver is too old: it has no {symbol}")]
    DriverSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// The driver supports an older CUDA than the compiler makes code for.
    #[error(
        "the CUDA driver supports CUDA {driver}, but the compiler found (NVRTC {compiler}) makes code for newer ones"
    )]
    OldDriver {
        /// CUDA version of the driver.
        driver: String,
        /// Version of the compiler.
        compiler: String,
    },
    /// The driver does not start.
    #[error("the CUDA driver does not start: {code}")]
    Start {
        /// The driver's name for the error.
        code: String,
    },
    /// There is a driver, but no device.
    #[error("the CUDA driver sees no device{}", hidden.as_ref().map_or(String::new(), |v| format!(" (CUDA_VISIBLE_DEVICES is '{v}')")))]
    NoDevice {
        /// The value of `CUDA_VISIBLE_DEVICES`, if it is set.
        hidden: Option<String>,
    },
    /// No such ordinal.
    #[error("there is no device cuda:{ordinal}: {count} visible")]
    NoSuchDevice {
        /// The ordinal asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device is older than the kernels.
    #[error("cuda:{ordinal} has compute capability {}.{}, kernels need 8.0 or newer", capability.0, capability.1)]
    OldDevice {
        /// The device.
        ordinal: usize,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// A call found no memory, on the device or page-locked.
    #[error(
        "cuda:{ordinal} has no {} left: {} of {} are free ({call})",
        if *bytes == 0 { "memory".to_owned() } else { human_bytes(*bytes) }, human_bytes(*free), human_bytes(*total)
    )]
    OutOfMemory {
        /// The device.
        ordinal: usize,
        /// The function.
        call: &'static str,
        /// Bytes asked for; 0 where the call does not say.
        bytes: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// The run-time compiler is not installed.
    #[error("no run-time compiler: libnvrtc.so could not be loaded{}", at.as_ref().map_or(String::new(), |p| format!(" from {p}")))]
    NoCompiler {
        /// Where the user said it was.
        at: Option<String>,
    },
    /// The run-time compiler is unusable.
    #[error("the run-time compiler fails: {what}")]
    Compiler {
        /// The call and its error.
        what: String,
    },
    /// The library of matrix products is not installed.
    #[error("no matrix products: libcublasLt.so could not be loaded{}", at.as_ref().map_or(String::new(), |p| format!(" from {p}")))]
    NoProducts {
        /// Where the user said it was.
        at: Option<String>,
    },
    /// The library of matrix products lacks a function that is needed.
    #[error("libcublasLt.so is too old: it has no {symbol}")]
    ProductsSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// The library of matrix products is of another major version, whose functions may take other arguments.
    #[error("libcublasLt.so{} is version {found}, expected {expected}", at.as_ref().map_or(String::new(), |p| format!(" from {p}")))]
    ProductsVersion {
        /// Its version, e.g. 12.1.3.
        found: String,
        /// The major version that day0 calls.
        expected: usize,
        /// Where the user said it was.
        at: Option<String>,
    },
    /// The library of matrix products has no kernel for a product.
    #[error("cuBLASLt has no kernel for {product}")]
    NoProduct {
        /// Types and shape.
        product: String,
    },
    /// A kernel does not compile.
    #[error("kernel {kernel} does not compile for {architecture}: {log}")]
    Compile {
        /// File name of the kernel.
        kernel: String,
        /// `sm_90`, ….
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// A call of the driver, or of the library of matrix products, failed.
    #[error("{call}: {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// The library's name for the error.
        code: String,
    },
    /// Arguments that no kernel takes.
    #[error("{operation}: {what}")]
    Argument {
        /// The operation.
        operation: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl CudaError {
    /// The error of a call.
    pub(super) fn call(call: &'static str, code: CUresult) -> Self {
        Self::Call { call, code: format!("{code:?}") }
    }

    /// Whether the driver says that work on a stream is not of the kind that it records.
    pub fn refuses_recording(&self) -> bool {
        let Self::Call { code, .. } = self else { return false };
        REFUSED_RECORDINGS.iter().any(|refused| *code == format!("{refused:?}"))
    }

    /// No device, and why that may be.
    pub(in crate::device) fn no_device() -> Self {
        Self::NoDevice { hidden: env_vars::raw(env_vars::CUDA_VISIBLE_DEVICES) }
    }
}

/// `Ok` for success.
pub(super) fn check(call: &'static str, code: CUresult) -> Result<(), CudaError> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(CudaError::call(call, code)) }
}

impl Classified for CudaError {
    fn failure_class(&self) -> FailureClass {
        match self {
            // What is larger than the device never fits, whoever else uses it now.
            Self::OutOfMemory { bytes, total, .. } if bytes > total => FailureClass::UserConfigError,
            Self::OutOfMemory { .. } | Self::Call { .. } => FailureClass::InfraTransient,
            Self::NoProduct { .. } => FailureClass::ModelUnsupported,
            Self::Compile { .. } | Self::Argument { .. } => FailureClass::Unknown,
            _ => FailureClass::UserConfigError,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoDriver => "install the NVIDIA driver, or use --device cpu",
            Self::DriverSymbol { .. } | Self::OldDriver { .. } => {
                "update the NVIDIA driver (580 runs CUDA 13.0), name an older compiler with DAY0_NVRTC, or use --device cpu"
            }
            Self::Start { .. } => "run nvidia-smi to see what the driver says, or use --device cpu",
            Self::NoDevice { hidden: Some(_) } => {
                "unset CUDA_VISIBLE_DEVICES or name a device in it, or use --device cpu"
            }
            Self::NoDevice { hidden: None } => {
                "give the container or job a GPU (--gpus, --gres=gpu:1), or use --device cpu"
            }
            Self::NoSuchDevice { .. } => "day0 doctor lists the devices",
            Self::OldDevice { .. } | Self::NoProduct { .. } => "use --device cpu",
            Self::OutOfMemory { .. } => {
                "free memory of the device (nvidia-smi), use another device, or --device cpu"
            }
            Self::NoCompiler { .. } => {
                "pip install nvidia-cuda-nvrtc==13.0.* and set DAY0_NVRTC to the folder that holds libnvrtc.so.13, or use --device cpu"
            }
            Self::NoProducts { .. } | Self::ProductsSymbol { .. } | Self::ProductsVersion { .. } => {
                "pip install nvidia-cublas==13.0.* and set DAY0_CUBLASLT to the folder that holds libcublasLt.so.13, or use --device cpu"
            }
            Self::Compiler { .. } => {
                "libnvrtc-builtins belongs beside libnvrtc, in the same version; DAY0_NVRTC names the folder of both"
            }
            Self::Call { .. } => {
                "run nvidia-smi to see whether the device is healthy; the same command continues"
            }
            Self::Compile { .. } | Self::Argument { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
