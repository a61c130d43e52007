//! Linear modules of the graph. Modules that share an input form one group and, where their inputs are quantized
//! alike, one matrix product.
//!
//! Weight-only schemes compute with dequantized weights. Dynamic-activation schemes quantize each row of the input
//! first: y = (q_x · s_x) · (q_w · s_w)ᵀ in f32, as transformers computes these checkpoints.

use std::ops::Range;

use super::error::ModelError;
use super::weights::Weights;
use crate::ops::activation_quant::{self, ActivationQuant};
use crate::ops::elementary;
use crate::ops::kernel_path::KernelPath;
use crate::ops::linear::{Columns, PackedMatrix, linear};

/// Modules with one input: y \[T, N\] holds their outputs side by side, in order.
pub struct LinearGroup {
    members: Vec<Member>,
    products: Vec<Product>,
    k: usize,
    n: usize,
}

/// One module of a group.
struct Member {
    name: String,
    columns: Range<usize>,
    input: Option<ActivationQuant>,
    /// \[N\], added to its outputs.
    bias: Option<Vec<f32>>,
}

/// Adjacent modules whose inputs are quantized alike.
struct Product {
    matrix: PackedMatrix,
    input: Option<ActivationQuant>,
    first_column: usize,
}

impl LinearGroup {
    /// Loads modules, each with its number of outputs, that take `k` inputs and all have biases or none.
    pub fn load(
        weights: &Weights<'_>,
        modules: &[(String, usize)],
        k: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let mut group = Self { members: Vec::new(), products: Vec::new(), k, n: 0 };
        let mut pending: Vec<Vec<f32>> = Vec::new();
        for (name, n) in modules {
            let weight = weights.linear(name, *n, k)?;
            if group.members.last().is_some_and(|last| last.input != weight.input) {
                group.pack(&mut pending);
            }
            let columns = group.n..group.n + n;
            group.n += n;
            let bias = bias.then(|| weights.tensor(&format!("{name}.bias"), &[*n])).transpose()?;
            group.members.push(Member { name: name.clone(), columns, input: weight.input, bias });
            pending.push(weight.data);
        }
        group.pack(&mut pending);
        Ok(group)
    }

    /// A single unquantized module that is already in memory: \[N, K\].
    pub fn dense(name: &str, data: &[f32], k: usize) -> Self {
        let matrix = PackedMatrix::pack(&[data], k);
        let n = matrix.n();
        let members = vec![Member { name: name.to_owned(), columns: 0..n, input: None, bias: None }];
        Self { members, products: vec![Product { matrix, input: None, first_column: 0 }], k, n }
    }

    /// Packs what is pending as one product that ends at the last member.
    fn pack(&mut self, pending: &mut Vec<Vec<f32>>) {
        let Some(last) = self.members.last() else { return };
        let parts: Vec<&[f32]> = pending.iter().map(Vec::as_slice).collect();
        let matrix = PackedMatrix::pack(&parts, self.k);
        let first_column = last.columns.end - matrix.n();
        self.products.push(Product { input: last.input, first_column, matrix });
        pending.clear();
    }

    /// Inputs K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Outputs N of all modules together.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Names of the modules.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|m| m.name.as_str())
    }

    /// Columns of a module in the output.
    pub fn columns(&self, module: &str) -> Option<Range<usize>> {
        self.members.iter().find(|m| m.name == module).map(|m| m.columns.clone())
    }

    /// How a module's input is quantized.
    pub fn input_quant(&self, module: &str) -> Option<ActivationQuant> {
        self.members.iter().find(|m| m.name == module).and_then(|m| m.input)
    }

    /// The only matrix of a group of one module, with the quantization of its input: the head.
    pub fn single(&self) -> (&PackedMatrix, Option<ActivationQuant>) {
        (&self.products[0].matrix, self.products[0].input)
    }

    /// y \[rows, N\] from x \[rows, K\]. `scratch` has room for the quantized input.
    pub fn forward(&self, path: KernelPath, x: &[f32], rows: usize, scratch: &mut [f32], y: &mut [f32]) {
        let x = &x[..rows * self.k];
        let mut quantized: Option<ActivationQuant> = None;
        for product in &self.products {
            if product.input != quantized
                && let Some(kind) = product.input
            {
                activation_quant::fake_quantize(path, kind, x, self.k, &mut scratch[..rows * self.k]);
                quantized = product.input;
            }
            let input = if product.input.is_some() { &scratch[..rows * self.k] } else { x };
            let mut out = Columns { data: &mut *y, stride: self.n, first: product.first_column };
            linear(path, input, rows, &product.matrix, &mut out);
        }
        for (columns, bias) in self.members.iter().filter_map(|m| Some((m.columns.clone(), m.bias.as_ref()?)))
        {
            for row in y[..rows * self.n].chunks_exact_mut(self.n) {
                elementary::add(path, &mut row[columns.clone()], bias);
            }
        }
    }
}
