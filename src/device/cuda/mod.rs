//! CUDA without a toolkit: driver and compiler libraries are looked for at run time, and everything that may be missing
//! or fail is an error with a hint. Kernels (`source`) are compiled for the device that is there and kept on disk
//! (`module`).
//!
//! cudarc declares the libraries' functions and panics when a library or a symbol is missing, so both are asked for
//! first (`library`).

mod choice;
mod counts;
mod cublaslt;
mod cublaslt_call;
mod device;
mod error;
mod library;
mod lists;
mod memory;
mod module;
mod nvrtc;
mod recording;
mod source;
mod stream;

pub use choice::{DeviceChoice, DeviceChoiceError};
pub use counts::DeviceCounts;
pub use cublaslt::{Operand, Product, ProductKind, Products, SCALES_ALIGNMENT};
pub use cublaslt_call::{products_file, products_version};
pub use device::Device;
pub use error::CudaError;
pub use library::check_driver;
pub use lists::WordLists;
pub use memory::{DeviceBuffer, DeviceSlice, PinnedBuffer};
pub use module::{Argument, CubinCache, Kernel, LaunchShape};
pub use nvrtc::{Cubin, compile, file as compiler_file, version as compiler_version};
pub use recording::Recording;
pub(crate) use source::kernel_source;
pub use source::{KernelSource, Variant};
pub use stream::{Event, Stream};

#[cfg(test)]
pub(crate) mod test_device;
#[cfg(test)]
mod tests;
