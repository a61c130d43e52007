//! Layer 2: what this machine can compute on: CPU features, GPU probe.

pub mod cpu;
pub mod gpu;
pub mod report;

pub use cpu::{Cpu, CpuFeatures};
pub use gpu::{Cuda, Gpu};
pub use report::{DeviceReport, report};
