//! Where the tensors of the graph are put when a checkpoint is loaded: the graph of every architecture is loaded by one code
//! for memory and for devices.

use super::error::ModelError;
use super::linear::LinearGroup;
use super::module_rows::ModuleRows;
use super::weights::Weights;
use crate::ops::packed::PackedMatrix;

/// A place for tensors.
pub(super) trait Placement {
    /// Linear modules with one input.
    type Linear;
    /// Numbers in f32: weights of norms.
    type Vector;
    /// Rows that are looked up.
    type Table;

    /// Loads modules, each with its number of outputs, that take `k` inputs and all have biases or none.
    fn linear(
        &self,
        weights: &Weights<'_>,
        modules: &[(String, usize)],
        k: usize,
        bias: bool,
    ) -> Result<Self::Linear, ModelError>;

    /// A single unquantized module of these rows: \[N, K\].
    fn module(
        &self,
        weights: &Weights<'_>,
        name: &str,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<Self::Linear, ModelError>;

    /// Puts a vector there.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError>;

    /// Puts rows of `k` elements there.
    fn table(
        &self,
        weights: &Weights<'_>,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<Self::Table, ModelError>;
}

/// In memory, as the CPU's kernels read it.
pub(super) struct InMemory;

impl Placement for InMemory {
    type Linear = LinearGroup;
    type Vector = Vec<f32>;
    type Table = PackedMatrix;

    fn linear(
        &self,
        weights: &Weights<'_>,
        modules: &[(String, usize)],
        k: usize,
        bias: bool,
    ) -> Result<LinearGroup, ModelError> {
        LinearGroup::load(weights, modules, k, bias)
    }

    fn module(
        &self,
        weights: &Weights<'_>,
        name: &str,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<LinearGroup, ModelError> {
        LinearGroup::single_module(name, weights.dtype(), rows, k)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    fn table(
        &self,
        weights: &Weights<'_>,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<PackedMatrix, ModelError> {
        Ok(PackedMatrix::pack(weights.dtype(), &[rows], k)?)
    }
}
