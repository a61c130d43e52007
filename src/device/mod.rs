//! Layer 2: what this machine can compute on: CPU features, GPU probe, CUDA devices.

pub mod cpu;
pub mod cuda;
pub mod gpu;
pub mod report;

pub use cpu::{Cpu, CpuFeatures};
pub use gpu::{Cuda, Gpu, KernelFiles};
pub use report::{DeviceReport, name, report};
