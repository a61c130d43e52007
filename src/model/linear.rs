//! Linear modules of the graph. Modules that share an input form one group and, where their inputs are quantized
//! alike, one matrix product.
//!
//! Weight-only schemes compute with dequantized weights. Dynamic-activation schemes quantize each row of the input
//! first: y = (q_x · s_x) · (q_w · s_w)ᵀ in f32, as transformers computes these checkpoints. Where codes and inputs are
//! int8 with a scale for each row, the product is taken of the codes, exactly, before the scales; in bf16 mode also where
//! they are FP8, whose codes are bf16 numbers.

use std::ops::Range;

use super::error::ModelError;
use super::input_observer::InputObserver;
use super::module_rows::ModuleRows;
use super::weights::Weights;
use crate::ops::activation_quant::{self, ActivationElement, ActivationQuant};
use crate::ops::elementary;
use crate::ops::kernel_path::{ComputeDtype, KernelPath};
use crate::ops::linear::{Columns, linear, linear_codes, linear_rounded};
use crate::ops::packed::{CodeKind, PackedMatrix, WeightRows};
use crate::ops::unit_rows::RoundedRows;

/// Modules with one input: y \[T, N\] holds their outputs side by side, in order.
pub struct LinearGroup {
    members: Vec<Member>,
    products: Vec<Product>,
    k: usize,
    n: usize,
    observer: InputObserver,
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
        let observer = InputObserver::default();
        let mut group = Self { members: Vec::new(), products: Vec::new(), k, n: 0, observer };
        let mut pending: Vec<ModuleRows<'_>> = Vec::new();
        for (name, n) in modules {
            let weight = weights.linear(name, *n, k)?;
            if group.members.last().is_some_and(|last| last.input != weight.input) {
                group.pack(weights.dtype(), &mut pending)?;
            }
            let columns = group.n..group.n + n;
            group.n += n;
            let bias = bias.then(|| weights.tensor(&format!("{name}.bias"), &[*n])).transpose()?;
            group.members.push(Member { name: name.clone(), columns, input: weight.input, bias });
            pending.push(weight.rows);
        }
        group.pack(weights.dtype(), &mut pending)?;
        Ok(group)
    }

    /// A single unquantized module of these rows: \[N, K\].
    pub fn single_module(
        name: &str,
        dtype: ComputeDtype,
        rows: &ModuleRows<'_>,
        k: usize,
    ) -> Result<Self, ModelError> {
        let matrix = PackedMatrix::pack(dtype, &[rows], k)?;
        let n = matrix.n();
        let members = vec![Member { name: name.to_owned(), columns: 0..n, input: None, bias: None }];
        let products = vec![Product { matrix, input: None, first_column: 0 }];
        Ok(Self { members, products, k, n, observer: InputObserver::default() })
    }

    /// Packs what is pending as one product that ends at the last member.
    fn pack(&mut self, dtype: ComputeDtype, pending: &mut Vec<ModuleRows<'_>>) -> Result<(), ModelError> {
        let Some(last) = self.members.last() else { return Ok(()) };
        let matrix = pack(dtype, last.input, pending, self.k)?;
        let first_column = last.columns.end - matrix.n();
        self.products.push(Product { input: last.input, first_column, matrix });
        pending.clear();
        Ok(())
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

    /// What was seen of the inputs, which all modules share.
    pub(super) fn observer(&self) -> &InputObserver {
        &self.observer
    }

    /// y \[rows, N\] from x \[rows, K\]. `scratch` has room for the quantized input.
    pub fn forward(&self, path: KernelPath, x: &[f32], rows: usize, scratch: &mut [f32], y: &mut [f32]) {
        let x = &x[..rows * self.k];
        self.observer.see(x, rows);
        let mut quantized: Option<ActivationQuant> = None;
        for product in &self.products {
            let mut out = Columns { data: &mut *y, stride: self.n, first: product.first_column };
            if let Some(quant) = product.input.filter(|_| product.matrix.holds_codes()) {
                linear_codes(path, quant, x, rows, &product.matrix, &mut out);
                continue;
            }
            if product.input != quantized
                && let Some(kind) = product.input
            {
                activation_quant::fake_quantize(path, kind, x, self.k, &mut scratch[..rows * self.k]);
                quantized = product.input;
            }
            let input = if product.input.is_some() { &scratch[..rows * self.k] } else { x };
            linear(path, input, rows, &product.matrix, &mut out);
        }
        self.add_biases(path, rows, y);
    }

    /// Whether all its products take rows rounded to bf16. Inputs that are observed are not rounded before.
    pub fn takes_rounded(&self) -> bool {
        !self.observer.is_on() && self.products.iter().all(|p| p.input.is_none() && p.matrix.takes_rounded())
    }

    /// y \[rows, N\] from x \[rows, K\], which is rounded already.
    pub fn forward_rounded(&self, path: KernelPath, x: &RoundedRows, rows: usize, y: &mut [f32]) {
        for product in &self.products {
            let mut out = Columns { data: &mut *y, stride: self.n, first: product.first_column };
            linear_rounded(path, x, rows, &product.matrix, &mut out);
        }
        self.add_biases(path, rows, y);
    }

    /// The only matrix, where there is one, nothing is added to its products and inputs are taken as they are.
    pub fn plain(&self) -> Option<&PackedMatrix> {
        match self.products.as_slice() {
            [only] if only.input.is_none() && self.members.iter().all(|m| m.bias.is_none()) => {
                Some(&only.matrix)
            }
            _ => None,
        }
    }

    fn add_biases(&self, path: KernelPath, rows: usize, y: &mut [f32]) {
        for (columns, bias) in self.members.iter().filter_map(|m| Some((m.columns.clone(), m.bias.as_ref()?)))
        {
            for row in y[..rows * self.n].chunks_exact_mut(self.n) {
                elementary::add(path, &mut row[columns.clone()], bias);
            }
        }
    }
}

/// The codes of weights that products are taken of, for inputs quantized so. FP8 codes in f32 mode are computed with as
/// numbers, for parity.
pub(super) fn code_kind(dtype: ComputeDtype, input: ActivationQuant, k: usize) -> Option<CodeKind> {
    match (input.element, input.group_size, dtype) {
        (ActivationElement::Int8, None, _) if k <= PackedMatrix::MAX_INT8_K => Some(CodeKind::Int8),
        (ActivationElement::Fp8, None, ComputeDtype::Bf16) => Some(CodeKind::Fp8),
        _ => None,
    }
}

/// The weight of one product as its kernels read it: codes where products are taken of codes or where they are decoded in
/// the kernel, else numbers.
fn pack(
    dtype: ComputeDtype,
    input: Option<ActivationQuant>,
    modules: &[ModuleRows<'_>],
    k: usize,
) -> Result<PackedMatrix, ModelError> {
    if let Some(kind) = input.and_then(|input| code_kind(dtype, input, k))
        && let Some(codes) = modules.iter().map(|m| m.as_codes(kind)).collect::<Option<Vec<_>>>()
    {
        return Ok(PackedMatrix::pack_codes(kind, &codes, k)?);
    }
    if dtype == ComputeDtype::Bf16
        && let Some(grouped) = modules.iter().map(ModuleRows::as_grouped).collect::<Option<Vec<_>>>()
        && grouped.windows(2).all(|w| (w[0].grid(), w[0].group()) == (w[1].grid(), w[1].group()))
        && let Some(matrix) = PackedMatrix::pack_grouped(&grouped, k)?
    {
        return Ok(matrix);
    }
    let rows: Vec<&dyn WeightRows> = modules.iter().map(|rows| rows as &dyn WeightRows).collect();
    Ok(PackedMatrix::pack(dtype, &rows, k)?)
}
