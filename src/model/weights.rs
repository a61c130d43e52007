//! Tensors of a checkpoint for the graph: found by name, checked against the expected shape, decoded to f32.
//!
//! Plain and compressed checkpoints go the same way: `quantization_config` says which modules are quantized and how.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::error::ModelError;
use crate::checkpoint::quant_args::{Dynamic, QuantType, QuantizationArgs, Strategy};
use crate::checkpoint::{Checkpoint, QuantizationConfig};
use crate::ops::activation_quant::{ActivationElement, ActivationQuant};
use crate::ops::dequantize::dense_weight;

/// Tensors that a quantized module may have besides `weight`.
const QUANTIZED_TENSORS: &[&str] =
    &["weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale"];

/// Buffers that old checkpoints carry and that are computed from `config.json`.
const IGNORED_SUFFIX: &str = "rotary_emb.inv_freq";

/// How many names an error lists.
const LISTED: usize = 8;

/// The weight of a linear module as computed with: \[N, K\] row-major, dequantized, and how its input is quantized.
pub struct LinearWeight {
    /// \[N, K\].
    pub data: Vec<f32>,
    /// Quantization of the module's input, if any.
    pub input: Option<ActivationQuant>,
}

/// A checkpoint being read into a graph, which notes what was used.
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Option<QuantizationConfig>,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Weights<'a> {
    /// Reads from `checkpoint`.
    pub fn new(checkpoint: &'a Checkpoint) -> Result<Self, ModelError> {
        let quantization = checkpoint.quantization_config()?;
        Ok(Self { checkpoint, quantization, used: RefCell::default() })
    }

    /// An unquantized tensor of this shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let view = self.checkpoint.require(name)?;
        check_shape(name, shape, &view.shape)?;
        self.used.borrow_mut().insert(name.to_owned());
        Ok(self.checkpoint.require_f32(name)?)
    }

    /// The weight of the linear module `module`, quantized or not.
    pub fn linear(&self, module: &str, n: usize, k: usize) -> Result<LinearWeight, ModelError> {
        let Some(group) = self.quantization.as_ref().and_then(|q| q.scheme_for(module)) else {
            let data = self.tensor(&format!("{module}.weight"), &[n, k])?;
            return Ok(LinearWeight { data, input: None });
        };
        let input = match &group.scheme.input_activations {
            Some(args) => Some(activation_quant(module, args, k)?),
            None => None,
        };
        let weight = dense_weight(self.checkpoint, module, group)?;
        check_shape(&format!("{module}.weight"), &[n, k], &weight.shape)?;
        self.used.borrow_mut().extend(QUANTIZED_TENSORS.iter().map(|t| format!("{module}.{t}")));
        Ok(LinearWeight { data: weight.data, input })
    }

    /// Fails if the checkpoint has tensors that nobody asked for. `allowed` may be there unused.
    pub fn finish(&self, architecture: &str, allowed: &[&str]) -> Result<(), ModelError> {
        let used = self.used.borrow();
        let extra: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|name| {
                !used.contains(*name) && !allowed.contains(name) && !name.ends_with(IGNORED_SUFFIX)
            })
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

fn check_shape(tensor: &str, expected: &[usize], found: &[usize]) -> Result<(), ModelError> {
    if expected == found {
        return Ok(());
    }
    Err(ModelError::Shape { tensor: tensor.to_owned(), expected: expected.to_vec(), found: found.to_vec() })
}

/// The implemented activation schemes: dynamic, symmetric, 8 bits, one scale per token or per group of a token.
fn activation_quant(module: &str, args: &QuantizationArgs, k: usize) -> Result<ActivationQuant, ModelError> {
    let element = match args.qtype {
        QuantType::Float => ActivationElement::Fp8,
        QuantType::Int => ActivationElement::Int8,
    };
    let group_size = match (args.strategy, args.group_size) {
        (Strategy::Token, _) => Some(None),
        // transformers fails on a ragged last group.
        (Strategy::Group, Some(size)) if size > 0 && k.is_multiple_of(size) => Some(Some(size)),
        _ => None,
    };
    match group_size {
        Some(group_size) if args.dynamic == Dynamic::Yes && args.symmetric && args.num_bits == 8 => {
            Ok(ActivationQuant { element, group_size })
        }
        _ => Err(ModelError::Activations { module: module.to_owned(), inputs: k, found: args.describe() }),
    }
}
