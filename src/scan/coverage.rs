//! Every module against the declared quantization: is it what the config says, with exactly the tensors it needs?

use rayon::prelude::*;
use safetensors::Dtype;

use super::Findings;
use super::modules::{Declared, Found, Module};
use super::table::shown;
use crate::checkpoint::QuantizationConfig;
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::name_match::NameMatcher;
use crate::ops::dequantize::layout_of;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::scalar_scale;
use crate::ops::weight_layout::{Packing, WeightLayout};
use crate::recipe::exclusions;

/// Judges all modules and counts them.
pub(super) fn judge(
    modules: &mut [Module<'_>],
    config: Option<&QuantizationConfig>,
    has_values: bool,
    findings: &mut Findings,
) {
    let not_linear: Vec<&str> =
        exclusions::DEFAULT.iter().filter(|e| !e.is_linear).map(|e| e.pattern).collect();
    // The default list compiles; a test of its own sees to it.
    let not_linear = NameMatcher::new(&not_linear).unwrap_or_default();
    let not_linear: Vec<bool> = modules.par_iter().map(|module| not_linear.matches(module.name)).collect();
    for (module, not_linear) in modules.iter_mut().zip(not_linear) {
        let declared = config.and_then(|c| c.scheme_for(module.name));
        let precision = match (module.found.is_quantized(), declared) {
            (false, None) => {
                if !not_linear {
                    findings.coverage.excluded.push(module.name.to_owned());
                }
                module.found.precision().to_owned()
            }
            (false, Some(_)) => {
                // The class Linear claims no embedding.
                if !not_linear {
                    findings.coverage.unexpected_unquantized.push(module.name.to_owned());
                }
                module.found.precision().to_owned()
            }
            (true, None) => {
                findings.coverage.declaration_mismatch.push(module.name.to_owned());
                module.found.precision().to_owned()
            }
            (true, Some(group)) => match layout_of(module.name, group) {
                Ok(layout) if is_stored_as(module, &layout) => {
                    module.found = Found::of_layout(&layout);
                    module.shape = module.shape.or_else(|| shape_by_layout(module, &layout));
                    let inputs = group.scheme.input_activations.clone();
                    module.declared = Some(Declared { group: group.name.clone(), layout, inputs });
                    check_tensors(module, has_values, findings);
                    layout.precision()
                }
                _ => {
                    findings.coverage.declaration_mismatch.push(module.name.to_owned());
                    module.found.precision().to_owned()
                }
            },
        };
        findings.coverage.quantized += usize::from(module.found.is_quantized());
        *findings.coverage.modules_by_precision.entry(precision).or_default() += 1;
    }
}

/// [N, K] where the tensors alone did not tell: nibbles whose scales are missing, and words whose `weight_shape` is
/// unreadable or, in a remote scan, unread.
fn shape_by_layout(module: &Module<'_>, layout: &WeightLayout) -> Option<[usize; 2]> {
    let two = |t: &TensorInfo| <[usize; 2]>::try_from(t.shape.as_slice()).ok();
    let [n, columns] = two(module.main()?)?;
    match layout.packing {
        Packing::Nibbles => Some([n, columns * 2]),
        Packing::Words => {
            let [_, groups] = two(module.tensors.get("weight_scale")?)?;
            Some([n, groups.checked_mul(layout.group_size()?)?])
        }
        Packing::Sextets => Some([n, columns / 3 * 4]),
        Packing::Bytes => None,
    }
}

/// Whether the codes are those of the layout. Where scales are missing, only name and dtype of the codes can tell.
fn is_stored_as(module: &Module<'_>, layout: &WeightLayout) -> bool {
    if module.found != Found::Unknown {
        return module.found == Found::of_layout(layout);
    }
    let codes = layout.codes([0, 0]);
    module.tensors.get(codes.suffix).is_some_and(|t| t.dtype == codes.dtype)
}

/// Exactly the tensors of the layout, each with its dtype and shape.
fn check_tensors(module: &Module<'_>, has_values: bool, findings: &mut Findings) {
    let Some(declared) = &module.declared else { return };
    let layout = &declared.layout;
    let name = |suffix: &str| format!("{}.{suffix}", module.name);
    let Some(shape) = module.shape else {
        // Known by now unless weight_shape is missing or wrong; a remote scan has not read it.
        let observed = match module.tensors.get("weight_shape") {
            Some(_) if !has_values => return,
            Some(_) => "not [N, K] of weight_packed",
            None => "missing",
        };
        findings.defect("values", name("weight_shape"), observed, "[N, K]");
        return;
    };
    if let Some(group) = layout.group_size().filter(|g| shape[1] % g != 0) {
        let observed = format!("{} columns", shape[1]);
        findings.defect(
            "shapes",
            name("weight_scale"),
            observed,
            format!("a multiple of the group size {group}"),
        );
        return;
    }
    // Float scales may be stored in any float type; vLLM casts them.
    let float_dtype = |suffix| {
        let found = module.tensors.get(suffix).map(|t| t.dtype);
        found.and_then(FloatDtype::of).map_or(Dtype::BF16, FloatDtype::dtype)
    };
    let mut specs = layout.tensors(shape, float_dtype("weight_scale"));
    if let Some(inputs) = &declared.inputs {
        specs.extend(scalar_scale::of_inputs(inputs, layout.dialect, float_dtype("input_scale")));
    }
    for spec in &specs {
        let expected = shown(spec.dtype, &spec.shape);
        let Some(found) = module.tensors.get(spec.suffix) else {
            let check = if spec.suffix.contains("scale") { "scales" } else { "names" };
            findings.defect(check, name(spec.suffix), "missing", expected);
            continue;
        };
        let observed = shown(found.dtype, &found.shape);
        if found.dtype != spec.dtype {
            findings.defect("dtypes", name(spec.suffix), observed, expected);
        } else if !spec.has_shape(&found.shape) {
            findings.defect("shapes", name(spec.suffix), observed, expected);
        }
    }
    for (suffix, tensor) in &module.tensors {
        if !specs.iter().any(|s| s.suffix == *suffix) {
            // vLLM refuses tensors it has no parameter for, e.g. a zero point of a symmetric scheme.
            let observed = shown(tensor.dtype, &tensor.shape);
            findings.defect(
                "names",
                name(suffix),
                observed,
                format!("no such tensor for {}", layout.precision()),
            );
        }
    }
}
