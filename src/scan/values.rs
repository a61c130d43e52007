//! Values of scales: finite and positive, wherever they lie. A scale of zero makes a layer silent, NaN spreads.

use rayon::prelude::*;
use safetensors::Dtype;

use super::Findings;
use super::modules::{Found, Module};
use super::table::Table;
use crate::checkpoint::TensorView;
use crate::ops::fp8;
use crate::record::FailureClass;
use crate::record::scan::Defect;

/// Checks every tensor whose name ends like a scale, of modules and of the KV cache alike.
pub(super) fn check(table: &Table<'_>, modules: &[Module<'_>], findings: &mut Findings) {
    if !table.has_values() {
        return;
    }
    let names: Vec<&str> = table.tensors.keys().copied().filter(|name| is_scale(name)).collect();
    let bad: Vec<(&str, String)> =
        names.par_iter().filter_map(|name| Some((*name, problem(&table.view(name)?)?))).collect();
    for (name, observed) in bad {
        findings.defect("scales", name, observed, "finite and > 0");
    }
    for module in modules.iter().filter(|m| m.tensors.contains_key("weight_shape")) {
        let name = format!("{}.weight_shape", module.name);
        let stored = table.view(&name).and_then(|view| view.to_i64().ok());
        if let (Some([n, k]), Some(stored)) = (module.shape, stored)
            && stored != [n as i64, k as i64]
        {
            findings.defect("values", name, format!("{stored:?}"), format!("{:?}", [n, k]));
        }
    }
    let silent: Vec<Defect> = modules.par_iter().filter_map(|m| underflow(table, m)).collect();
    findings.defects.extend(silent);
}

fn is_scale(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    last.ends_with("_scale") || last.ends_with("_scale_2") || last.ends_with("_scale_inv") || last == "scales"
}

/// What is wrong with the values, if anything.
fn problem(view: &TensorView<'_>) -> Option<String> {
    let values: Vec<f32> = match view.dtype {
        Dtype::F8_E4M3 => view.data.iter().map(|code| fp8::e4m3_to_f32(*code)).collect(),
        // E8M0 has no zero and no sign; 255 is NaN.
        Dtype::U8 | Dtype::F8_E8M0 => {
            view.data.iter().map(|byte| if *byte == 255 { f32::NAN } else { 1.0 }).collect()
        }
        _ => match view.to_f32() {
            Ok(values) => values,
            Err(_) => return Some(format!("dtype {}", view.dtype)),
        },
    };
    if values.is_empty() {
        return Some("no values".to_owned());
    }
    let is_bad = |x: &f32| !x.is_finite() || *x <= 0.0;
    let first = values.iter().position(is_bad)?;
    let count = values.iter().filter(|x| is_bad(x)).count();
    Some(format!("{count} of {} values, the first at {first} is {}", values.len(), values[first]))
}

/// MX formats: scale byte 0 stands for 2⁻¹²⁷, which only groups of zeros get; with other codes it means an erased scale.
fn underflow(table: &Table<'_>, module: &Module<'_>) -> Option<Defect> {
    // Bytes of 32 codes, and their bits without signs.
    let (suffix, group_bytes, magnitudes): (_, _, &[u8]) = match module.found {
        Found::Mxfp4 => ("weight_packed", 16, &[0x77]),
        Found::Mxfp6 => ("weight_packed", 24, &[0xdf, 0xf7, 0x7d]),
        Found::Mxfp8 => ("weight", 32, &[0x7f]),
        _ => return None,
    };
    let name = format!("{}.weight_scale", module.name);
    let scales = table.view(&name)?;
    let codes = table.view(&format!("{}.{suffix}", module.name))?;
    let is_erased = |(scale, group): (&u8, &[u8])| {
        *scale == 0 && group.iter().zip(magnitudes.iter().cycle()).any(|(byte, mask)| byte & mask != 0)
    };
    let count =
        scales.data.iter().zip(codes.data.chunks(group_bytes)).filter(|pair| is_erased(*pair)).count();
    (count > 0).then(|| Defect {
        check: "scales".to_owned(),
        failure_class: FailureClass::QuantCoverageFailure,
        tensor: name,
        observed: format!("{count} of {} scales are byte 0 over codes that are not zero", scales.data.len()),
        expected: "a scale that does not erase its group".to_owned(),
    })
}
