//! Linear modules on a device; the twin of [`super::super::linear`].

use std::ops::Range;
use std::sync::Arc;

use super::super::error::ModelError;
use super::super::linear::code_kind;
use super::super::module_rows::ModuleRows;
use super::super::placement::Placement;
use super::super::weights::Weights;
use super::packed::PackedWeight;
use super::place::{OnDevices, Replicated};
use crate::device::cuda::{
    CudaError, Device, DeviceBuffer, Operand, Product, ProductKind, Products, SCALES_ALIGNMENT, Stream,
};
use crate::ops::activation_quant::ActivationQuant;
use crate::ops::cuda::{Act, Columns, add_bias, fake_quantize, quantize_tokens, scale_product};
use crate::ops::packed::{CodeKind, CodeRows, WeightRows};

/// N and K of products of codes are multiples of it.
const CODES_MULTIPLE: usize = 16;
/// Oldest compute capability with FP8 products.
const OLDEST_FP8: (u32, u32) = (8, 9);

/// Modules with one input: y \[T, N\] holds their outputs side by side, in order.
pub(in crate::model) struct DeviceLinear {
    parts: Vec<Part>,
    /// First column, number of columns, and what is added to them.
    biases: Vec<(usize, usize, Replicated)>,
    n: usize,
    k: usize,
}

/// Adjacent modules whose inputs are quantized alike.
struct Part {
    weight: Weight,
    input: Option<ActivationQuant>,
    columns: Range<usize>,
}

/// \[N, K\].
enum Weight {
    /// In the type of activations.
    Dense(Replicated),
    /// As it is stored; computed with as a dense one.
    Packed(PackedWeight),
    /// Bytes below a scale for each row, of which products are taken.
    Codes { kind: CodeKind, codes: Replicated, scales: Replicated },
}

/// Where products are queued, on the device of which replica, and for activations of which type.
#[derive(Clone, Copy)]
pub(in crate::model) struct On<'a> {
    pub replica: usize,
    pub stream: &'a Stream,
    pub products: &'a Products,
    pub act: Act,
}

/// Room for what lies between an input and a product.
pub(in crate::model) struct LinearRoom {
    /// Inputs quantized and back: \[T, K\] of activations.
    quantized: DeviceBuffer,
    /// Codes of inputs \[T, K\], and their scales \[T\].
    codes: [DeviceBuffer; 2],
    /// Products of codes: \[T, N\] of four bytes.
    sums: DeviceBuffer,
    /// A packed weight dequantized: \[N, K\] of the largest.
    dense: DeviceBuffer,
}

impl LinearRoom {
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let empty = || DeviceBuffer::new(device, 1);
        Ok(Self { quantized: empty()?, codes: [empty()?, empty()?], sums: empty()?, dense: empty()? })
    }
}

impl DeviceLinear {
    /// Loads modules, each with its number of outputs, that take `k` inputs and all have biases or none.
    pub fn load(
        place: &OnDevices,
        weights: &Weights<'_>,
        modules: &[(String, usize)],
        k: usize,
        bias: bool,
    ) -> Result<Self, ModelError> {
        let mut group = Self { parts: Vec::new(), biases: Vec::new(), n: 0, k };
        let mut pending: Vec<ModuleRows<'_>> = Vec::new();
        let mut input = None;
        for (name, n) in modules {
            let weight = weights.linear(name, *n, k)?;
            if input != weight.input {
                group.add(place, weights, input, &mut pending)?;
            }
            input = weight.input;
            if bias {
                let bias = place.vector(weights.tensor(&format!("{name}.bias"), &[*n])?)?;
                group.biases.push((group.n, *n, bias));
            }
            group.n += n;
            pending.push(weight.rows);
        }
        group.add(place, weights, input, &mut pending)?;
        Ok(group)
    }

    /// A single module, unquantized.
    pub fn dense(weight: Replicated, [n, k]: [usize; 2]) -> Self {
        let parts = vec![Part { weight: Weight::Dense(weight), input: None, columns: 0..n }];
        Self { parts, biases: Vec::new(), n, k }
    }

    /// Uploads what is pending as one part behind those before.
    fn add(
        &mut self,
        place: &OnDevices,
        weights: &Weights<'_>,
        input: Option<ActivationQuant>,
        pending: &mut Vec<ModuleRows<'_>>,
    ) -> Result<(), ModelError> {
        let n: usize = pending.iter().map(WeightRows::count).sum();
        if n == 0 {
            return Ok(());
        }
        let first = self.parts.last().map_or(0, |part| part.columns.end);
        let takes_codes = |kind: CodeKind| {
            n.is_multiple_of(CODES_MULTIPLE)
                && self.k.is_multiple_of(CODES_MULTIPLE)
                && (kind == CodeKind::Int8 || place.capability() >= OLDEST_FP8)
        };
        let kind =
            input.and_then(|input| code_kind(weights.dtype(), input, self.k)).filter(|k| takes_codes(*k));
        let codes: Option<Vec<&dyn CodeRows>> =
            kind.and_then(|kind| pending.iter().map(|rows| rows.as_codes(kind)).collect());
        let weight = if let (Some(kind), Some(rows)) = (kind, codes) {
            let [codes, scales] = place.codes(kind, &rows, self.k)?;
            Weight::Codes { kind, codes, scales }
        } else if let Some(packed) = PackedWeight::load(place, pending)? {
            Weight::Packed(packed)
        } else {
            let rows: Vec<&dyn WeightRows> = pending.iter().map(|rows| rows as &dyn WeightRows).collect();
            Weight::Dense(place.dense(&rows, self.k)?)
        };
        self.parts.push(Part { weight, input, columns: first..first + n });
        pending.clear();
        Ok(())
    }

    /// Outputs N of all modules together.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The dense weight of a group of one module: the head as the embedding.
    pub fn table(&self) -> Option<&Replicated> {
        match self.parts.as_slice() {
            [Part { weight: Weight::Dense(weight), .. }] => Some(weight),
            _ => None,
        }
    }

    /// y \[rows, N\] from x \[rows, K\], both of activations.
    ///
    /// # Safety
    /// Buffers stay alive and untouched until the stream was synchronized.
    pub unsafe fn forward(
        &self,
        on: On<'_>,
        x: &DeviceBuffer,
        rows: usize,
        room: &mut LinearRoom,
        y: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.forward_columns(on, (x, rows), 0..self.n, room, (y, on.act))?;
            for (first, n, bias) in &self.biases {
                let at = Operand { buffer: y, offset: first * on.act.size() };
                add_bias(
                    on.stream,
                    bias.of(on.replica),
                    Columns { act: on.act, at, rows, n: *n, stride: self.n },
                )?;
            }
        }
        Ok(())
    }

    /// Columns of y without biases, of the given type: \[rows, columns\].
    ///
    /// # Safety
    /// As above.
    pub unsafe fn forward_columns(
        &self,
        on: On<'_>,
        (x, rows): (&DeviceBuffer, usize),
        columns: Range<usize>,
        room: &mut LinearRoom,
        (y, out): (&DeviceBuffer, Act),
    ) -> Result<(), CudaError> {
        let mut held = None;
        for part in &self.parts {
            let both = part.columns.start.max(columns.start)..part.columns.end.min(columns.end);
            if both.is_empty() || rows == 0 {
                continue;
            }
            let (first, n) = (both.start - part.columns.start, both.len());
            let at = Operand { buffer: y, offset: (both.start - columns.start) * out.size() };
            let y = Columns { act: out, at, rows, n, stride: columns.len() };
            // SAFETY: the caller's promise; room is grown only while nothing uses it.
            unsafe {
                match &part.weight {
                    Weight::Codes { kind, codes, scales } => {
                        let weight = (*kind, codes.of(on.replica), scales.of(on.replica));
                        self.product_of_codes(on, (x, part.input), weight, first, room, y)?;
                    }
                    Weight::Packed(weight) => {
                        let x = self.input(on, part.input, (x, rows), &mut room.quantized, &mut held)?;
                        weight.forward(on, x, first, &mut room.dense, y)?;
                    }
                    Weight::Dense(weight) => {
                        let x = self.input(on, part.input, (x, rows), &mut room.quantized, &mut held)?;
                        let offset = first * self.k * on.act.size();
                        let w = Operand { buffer: weight.of(on.replica), offset };
                        dense_product(on, x, (w, self.k), y)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The input as the modules of a part take it; in `quantized`, which holds it as `held` says, where it is quantized.
    ///
    /// # Safety
    /// As above.
    unsafe fn input<'a>(
        &self,
        on: On<'_>,
        quant: Option<ActivationQuant>,
        (x, rows): (&'a DeviceBuffer, usize),
        quantized: &'a mut DeviceBuffer,
        held: &mut Option<ActivationQuant>,
    ) -> Result<&'a DeviceBuffer, CudaError> {
        let Some(quant) = quant else { return Ok(x) };
        if *held != Some(quant) {
            quantized.ensure(rows * self.k * on.act.size())?;
            // SAFETY: the caller's promise.
            unsafe { fake_quantize(on.stream, (on.act, quant), x, quantized, [rows, self.k])? };
            *held = Some(quant);
        }
        Ok(quantized)
    }

    /// y = (codes of x · codes of w) · scales, from row `first` of the weight on: at once where the library has a kernel that
    /// scales FP8 products, else by way of their sums.
    ///
    /// # Safety
    /// As above.
    unsafe fn product_of_codes(
        &self,
        on: On<'_>,
        (x, input): (&DeviceBuffer, Option<ActivationQuant>),
        (kind, codes, scales): (CodeKind, &DeviceBuffer, &DeviceBuffer),
        first: usize,
        room: &mut LinearRoom,
        y: Columns<'_>,
    ) -> Result<(), CudaError> {
        let Some(quant) = input else { unreachable!("codes are kept for quantized inputs (code_kind)") };
        let (rows, n) = (y.rows, y.n);
        let [x_codes, x_scales] = &mut room.codes;
        x_codes.ensure(rows * self.k)?;
        x_scales.ensure(rows * 4)?;
        let of_input = (on.act, quant.element, quant.stored);
        // SAFETY: the caller's promise.
        unsafe { quantize_tokens(on.stream, of_input, x, x_codes, x_scales, [rows, self.k])? };
        let scales = [(&*x_scales).into(), Operand { buffer: scales, offset: first * 4 }];
        let scaled = Product {
            kind: if y.act == Act::Bf16 { ProductKind::Fp8ScaledToBf16 } else { ProductKind::Fp8ScaledToF32 },
            x: (&*x_codes).into(),
            w: Operand { buffer: codes, offset: first * self.k },
            y: y.at,
            shape: [rows, n, self.k],
            stride: y.stride,
            scales: Some(scales),
        };
        if kind == CodeKind::Fp8 && scales[1].offset.is_multiple_of(SCALES_ALIGNMENT) {
            // SAFETY: as above.
            match unsafe { on.products.run(on.stream, &scaled) } {
                Err(CudaError::NoProduct { .. }) => {}
                done => return done,
            }
        }
        room.sums.ensure(rows * n * 4)?;
        let kind = if kind == CodeKind::Int8 { ProductKind::Int8ToInt32 } else { ProductKind::Fp8ToF32 };
        let product = Product { kind, y: (&room.sums).into(), stride: n, scales: None, ..scaled };
        let sums = (&room.sums, kind == ProductKind::Int8ToInt32);
        // SAFETY: as above.
        unsafe {
            on.products.run(on.stream, &product)?;
            scale_product(on.stream, sums, scales, y)
        }
    }
}

/// y = x · wᵀ of a dense weight of `k` columns, both of activations.
///
/// # Safety
/// Buffers stay alive and untouched until the stream was synchronized.
pub(super) unsafe fn dense_product(
    on: On<'_>,
    x: &DeviceBuffer,
    (w, k): (Operand<'_>, usize),
    y: Columns<'_>,
) -> Result<(), CudaError> {
    let kind = match (on.act, y.act) {
        (Act::F32, _) => ProductKind::F32,
        (Act::Bf16, Act::Bf16) => ProductKind::Bf16,
        (Act::Bf16, Act::F32) => ProductKind::Bf16ToF32,
    };
    let (shape, stride) = ([y.rows, y.n, k], y.stride);
    let product = Product { kind, x: x.into(), w, y: y.at, shape, stride, scales: None };
    // SAFETY: the caller's promise.
    unsafe { on.products.run(on.stream, &product) }
}
