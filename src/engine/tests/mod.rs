//! Tests of the whole engine: bits that never depend on the batch, numbers that agree with transformers.

mod bad_input;
mod batch_invariance;
mod fixture;
mod generation;
mod reference;
mod sampling;
