//! Tensors of a checkpoint for the graph: found by name, checked against the expected shape, decoded row by row where
//! they are weights of linear modules, else to f32.
//!
//! Plain and compressed checkpoints go the same way: `quantization_config` says which modules are quantized and how.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use safetensors::Dtype;

use super::error::ModelError;
use super::module_rows::ModuleRows;
use crate::checkpoint::declaration::{Declaration, Fp8};
use crate::checkpoint::quant_args::{Amax, Dialect, Dynamic, QuantType, QuantizationArgs, Strategy};
use crate::checkpoint::{Checkpoint, ConfigGroup, QuantizationConfig};
use crate::dense::declared_dtype;
use crate::ops::activation_quant::{ActivationElement, ActivationQuant};
use crate::ops::dequantize::StoredWeight;
use crate::ops::kernel_path::ComputeDtype;
use crate::ops::scalar_scale;

/// Tensors that a quantized module may have besides `weight`.
const QUANTIZED_TENSORS: &[&str] = &[
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_2",
    "weight_zero_point",
    "weight_shape",
    "weight_global_scale",
    "input_scale",
    "input_global_scale",
];

/// Buffers that old checkpoints carry and that are computed from `config.json`.
const IGNORED_SUFFIX: &str = "rotary_emb.inv_freq";

/// How many names an error lists.
const LISTED: usize = 8;

/// The weight of a linear module, and how its input is quantized.
pub struct LinearWeight<'a> {
    /// Its rows.
    pub rows: ModuleRows<'a>,
    /// Quantization of the module's input, if any.
    pub input: Option<ActivationQuant>,
}

/// A checkpoint being read into a graph, which notes what was used.
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    dtype: ComputeDtype,
    quantization: Option<QuantizationConfig>,
    fp8: Option<Fp8>,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Weights<'a> {
    /// Reads from `checkpoint` for products of this type.
    pub fn new(checkpoint: &'a Checkpoint, dtype: ComputeDtype) -> Result<Self, ModelError> {
        let (quantization, fp8) = match checkpoint.declaration()? {
            Some(Declaration::Groups(config)) => (Some(*config), None),
            Some(Declaration::Fp8(config)) => (None, Some(config)),
            None => (None, None),
        };
        if let Some(scheme) = quantization.as_ref().and_then(|q| q.kv_cache_scheme.as_ref()) {
            return Err(ModelError::KvCache { found: scheme.to_string() });
        }
        Ok(Self { checkpoint, dtype, quantization, fp8, used: RefCell::default() })
    }

    /// What linear layers multiply.
    pub fn dtype(&self) -> ComputeDtype {
        self.dtype
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.info(name).is_some()
    }

    /// An unquantized tensor of this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let view = self.checkpoint.require(name)?;
        check_shape(name, shape, &view.shape)?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(self.checkpoint.require_f32(name)?)
    }

    /// The weight of the linear module `module`, quantized or not.
    pub fn linear(&self, module: &str, n: usize, k: usize) -> Result<LinearWeight<'a>, ModelError> {
        if let Some(config) = &self.fp8
            && self.checkpoint.info(&format!("{module}.weight")).is_some_and(|t| t.dtype == Dtype::F8_E4M3)
        {
            return self.fp8_linear(module, config, [n, k]);
        }
        let Some(group) = self.quantization.as_ref().and_then(|q| q.scheme_for(module)) else {
            let rows = self.rows(&format!("{module}.weight"), &[n, k], 0..n)?;
            return Ok(LinearWeight { rows, input: None });
        };
        let input = match &group.scheme.input_activations {
            Some(args) => Some(self.activation_quant(module, group, args, k)?),
            None => None,
        };
        let stored = StoredWeight::declared(self.checkpoint, module, group)?;
        check_shape(&format!("{module}.weight"), &[n, k], &stored.shape)?;
        self.used.borrow_mut().extend(QUANTIZED_TENSORS.iter().map(|t| format!("{module}.{t}")));
        // With inputs left alone these weights are decompressed into the model's dtype: by compressed-tensors, and by
        // the kernels of engines. Other weight-only schemes run in f32 there too.
        let is_rounded = input.is_none() && is_nvfp4(&group.scheme.weights);
        let rounded = is_rounded.then(|| declared_dtype(self.checkpoint.config())).transpose()?;
        Ok(LinearWeight { rows: ModuleRows::stored(self.checkpoint, stored, rounded), input })
    }

    /// Rows `range` of an unquantized tensor, whose last dimension is the row.
    pub fn rows(
        &self,
        name: &str,
        shape: &[usize],
        range: Range<usize>,
    ) -> Result<ModuleRows<'a>, ModelError> {
        let info = self.checkpoint.require(name)?;
        check_shape(name, shape, &info.shape)?;
        self.used.borrow_mut().insert(name.to_owned());
        // Errors of the dtype come now.
        self.checkpoint.require_f32_at(name, 0, &mut [])?;
        Ok(ModuleRows::plain(self.checkpoint, name.to_owned(), *shape.last().unwrap_or(&1), range))
    }

    /// A DeepSeek-style module: inputs have one dynamic scale for each group of a token as wide as a block, else one for
    /// each token.
    fn fp8_linear(
        &self,
        module: &str,
        config: &Fp8,
        shape: [usize; 2],
    ) -> Result<LinearWeight<'a>, ModelError> {
        let group_size = config.block.map(|[_, columns]| columns);
        if !config.dynamic_inputs || group_size.is_some_and(|g| !shape[1].is_multiple_of(g)) {
            let when = if config.dynamic_inputs { "dynamic" } else { "static" };
            let found = format!("float8 inputs, {when}, in groups of {group_size:?}");
            return Err(ModelError::Activations { module: module.to_owned(), inputs: shape[1], found });
        }
        let stored = StoredWeight::fp8(self.checkpoint, module, config.block)?;
        check_shape(&format!("{module}.weight"), &shape, &stored.shape)?;
        self.used.borrow_mut().extend(stored.tensors.iter().cloned());
        let input = ActivationQuant { element: ActivationElement::Fp8, group_size, mx: false, stored: None };
        Ok(LinearWeight { rows: ModuleRows::stored(self.checkpoint, stored, None), input: Some(input) })
    }

    /// The implemented activation schemes: symmetric; 8 bits with one dynamic scale per token or per group of a token, or
    /// one static scale; NVFP4 below its stored global scale; MXFP8 and MXFP4 with dynamic scales.
    fn activation_quant(
        &self,
        module: &str,
        group: &ConfigGroup,
        args: &QuantizationArgs,
        k: usize,
    ) -> Result<ActivationQuant, ModelError> {
        let refused =
            || ModelError::Activations { module: module.to_owned(), inputs: k, found: args.describe() };
        let element = match (args.qtype, args.num_bits) {
            (QuantType::Float, 8) => ActivationElement::Fp8,
            (QuantType::Int, 8) => ActivationElement::Int8,
            (QuantType::Float, 4) => ActivationElement::Fp4,
            _ => return Err(refused()),
        };
        // transformers fails on a ragged last group.
        let group_size = args.group_size.filter(|size| *size > 0 && k.is_multiple_of(*size));
        let is_known = match (args.strategy, args.dynamic, element) {
            _ if !args.symmetric => false,
            (Strategy::Group, Dynamic::Yes, ActivationElement::Fp8 | ActivationElement::Fp4)
                if args.is_mx() =>
            {
                group_size.is_some()
            }
            (Strategy::Token, Dynamic::Yes, ActivationElement::Fp8 | ActivationElement::Int8)
            | (Strategy::Tensor, Dynamic::No, ActivationElement::Fp8 | ActivationElement::Int8) => true,
            (Strategy::Group, Dynamic::Yes, ActivationElement::Fp8 | ActivationElement::Int8)
            | (Strategy::TensorGroup, Dynamic::Local, ActivationElement::Fp4) => group_size.is_some(),
            _ => false,
        };
        if !is_known {
            return Err(refused());
        }
        let stored = match scalar_scale::of_inputs(args, group.dialect, Dtype::F32) {
            None => None,
            Some(tensor) => {
                Some(self.stored_scale(&format!("{module}.{}", tensor.suffix), args, group.dialect)?)
            }
        };
        Ok(ActivationQuant { element, group_size, mx: args.is_mx(), stored })
    }

    /// A static scale of inputs, or NVFP4's global scale as a divisor.
    fn stored_scale(
        &self,
        name: &str,
        args: &QuantizationArgs,
        dialect: Dialect,
    ) -> Result<Amax, ModelError> {
        let view = self.checkpoint.require(name)?;
        if view.num_elements() != 1 {
            return Err(ModelError::Shape { tensor: name.to_owned(), expected: vec![1], found: view.shape });
        }
        let value = self.checkpoint.require_f32(name)?[0];
        let inverted = dialect == Dialect::Modelopt && args.strategy == Strategy::TensorGroup;
        let value = if inverted { 1.0 / value } else { value };
        Amax::try_from(value).map_err(|_| ModelError::StoredScale { tensor: name.to_owned(), value })
    }

    /// Fails if the checkpoint has tensors that nobody asked for.
    pub fn finish(&self, architecture: &str) -> Result<(), ModelError> {
        let used = self.used.borrow();
        let extra: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|name| !used.contains(*name) && !name.ends_with(IGNORED_SUFFIX))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        Err(ModelError::Extra {
            architecture: architecture.to_owned(),
            count: extra.len(),
            names: extra.iter().take(LISTED).map(|name| (*name).to_owned()).collect(),
        })
    }
}

/// FP4 codes below E4M3 scales and a global scale.
fn is_nvfp4(args: &QuantizationArgs) -> bool {
    args.qtype == QuantType::Float && args.num_bits == 4 && !args.is_mx()
}

fn check_shape(tensor: &str, expected: &[usize], found: &[usize]) -> Result<(), ModelError> {
    if expected == found {
        return Ok(());
    }
    Err(ModelError::Shape { tensor: tensor.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
}
