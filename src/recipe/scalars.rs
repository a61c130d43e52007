//! The single numbers that a recipe adds to a checkpoint: static scales of inputs, of keys and of values.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::Recipe;
use super::assignment::{AssignedModule, AssignmentError, ScalarTensor};
use crate::checkpoint::quant_args::{Amax, QuantizationArgs};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::fp8;
use crate::ops::scalar_scale;

/// The scale of a module's inputs, where it is static.
pub(super) fn of_module(module: &AssignedModule, recipe: &Recipe) -> Option<ScalarTensor> {
    let inputs = recipe.groups[module.group].input_activations.as_ref()?;
    let tensor = scalar_scale::of_inputs(inputs, recipe.dialect, module.dtype.dtype())?;
    let value = inputs.amax.map(|amax| scalar_scale::of_inputs_value(inputs, recipe.dialect, amax.get()));
    Some(ScalarTensor {
        name: format!("{}.{}", module.name, tensor.suffix),
        dtype: tensor.dtype,
        shape: tensor.shape,
        value,
        inputs_of: Some(module.name.clone()),
        after: module.weight(),
    })
}

/// The scales of keys and values of every attention module, found by its projections.
pub(super) fn of_kv_cache<'a>(
    tensors: impl Iterator<Item = (&'a str, Dtype)>,
    args: &QuantizationArgs,
    recipe: &Recipe,
) -> Result<Vec<ScalarTensor>, AssignmentError> {
    let mut attention: BTreeMap<&str, (&str, FloatDtype)> = BTreeMap::new();
    for (name, dtype) in tensors {
        for projection in [".k_proj.weight", ".qkv_proj.weight", ".query_key_value.weight"] {
            if let (Some(module), Some(float)) = (name.strip_suffix(projection), FloatDtype::of(dtype)) {
                attention.insert(module, (name, float));
            }
        }
    }
    if attention.is_empty() {
        return Err(AssignmentError::NoAttention { recipe: recipe.name.clone() });
    }
    let value = args.amax.map(|amax: Amax| amax.get() / fp8::MAX);
    let scales = attention.into_iter().flat_map(|(module, (after, float))| {
        scalar_scale::of_kv_cache(recipe.dialect, float.dtype()).map(|tensor| ScalarTensor {
            name: format!("{module}.{}", tensor.suffix),
            dtype: tensor.dtype,
            shape: tensor.shape,
            value,
            inputs_of: None,
            after: after.to_owned(),
        })
    });
    Ok(scales.collect())
}
