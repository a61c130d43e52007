//! Tests of the whole engine: bits that never depend on the batch, numbers that agree with transformers.

mod architectures;
mod bad_input;
mod batch_invariance;
mod bf16;
mod calibrate;
mod cuda;
mod cuda_packed;
mod cuda_steps;
mod failing_device;
pub(crate) mod fixture;
mod generation;
mod gguf;
mod golden;
mod reference;
mod replicas;
mod sampling;
