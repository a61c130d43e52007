//! Values of scales: finite and positive, wherever they lie. A scale of zero makes a layer silent, NaN spreads.

use std::ops::RangeInclusive;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::Findings;
use super::modules::{Found, Module};
use super::table::{Table, Values};
use crate::ops::{e8m0, fp8};
use crate::record::FailureClass;
use crate::record::scan::{Defect, ValueRange};

/// What is wrong with one tensor of scales, and their range.
struct Seen<'a> {
    name: &'a str,
    problem: Option<String>,
    range: Option<ValueRange>,
}

/// Checks every tensor whose name ends like a scale, of modules and of the KV cache alike.
pub(super) fn check(table: &Table<'_>, modules: &[Module<'_>], findings: &mut Findings) {
    if !table.has_values() {
        return;
    }
    let names: Vec<&str> = table.tensors.keys().copied().filter(|name| is_scale(name)).collect();
    let seen: Vec<Seen<'_>> =
        names.par_iter().filter_map(|name| Some(look(name, &table.values(name)?))).collect();
    for Seen { name, problem, range } in seen {
        if let Some(observed) = problem {
            findings.defect("scales", name, observed, "finite and > 0");
        }
        if let Some(range) = range {
            let last = name.rsplit('.').next().unwrap_or(name).to_owned();
            let all = findings.scale_ranges.entry(last).or_insert(range);
            *all = ValueRange { min: all.min.min(range.min), max: all.max.max(range.max) };
        }
    }
    for module in modules.iter().filter(|m| m.tensors.contains_key("weight_shape")) {
        let name = format!("{}.weight_shape", module.name);
        let stored = table.values(&name).and_then(|values| values.view().to_i64().ok());
        if let (Some([n, k]), Some(stored)) = (module.shape, stored)
            && stored != [n as i64, k as i64]
        {
            findings.defect("values", name, format!("{stored:?}"), format!("{:?}", [n, k]));
        }
    }
    let silent: Vec<Defect> = modules.par_iter().filter_map(|m| underflow(table, m)).collect();
    findings.defects.extend(silent);
}

/// Whether a tensor holds scales, by the last part of its name.
pub(super) fn is_scale(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    last.ends_with("_scale") || last.ends_with("_scale_2") || last.ends_with("_scale_inv") || last == "scales"
}

/// The range of values of which each is finite and above zero. Bits of such values are ordered as the values are, and as
/// signed integers all other bits lie outside, so that only the two ends are decoded.
fn sound_range(values: &Values) -> Option<ValueRange> {
    let data: &[u8] = &values.data;
    let range = |min, max| ValueRange { min, max };
    match values.dtype {
        Dtype::F8_E4M3 => {
            let (min, max) = bounds(data.iter().map(|byte| *byte as i8), 1..=0x7e)?;
            Some(range(fp8::e4m3_to_f32(min as u8), fp8::e4m3_to_f32(max as u8)))
        }
        // E8M0 has no zero and no sign; 255 is NaN.
        Dtype::U8 | Dtype::F8_E8M0 => {
            let (min, max) = bounds(data.iter().copied(), 0..=254)?;
            Some(range(e8m0::e8m0_to_f32(min), e8m0::e8m0_to_f32(max)))
        }
        Dtype::BF16 | Dtype::F16 => {
            let is_bf16 = values.dtype == Dtype::BF16;
            let infinity = if is_bf16 { bf16::INFINITY.to_bits() } else { f16::INFINITY.to_bits() } as i16;
            let bits = data.as_chunks::<2>().0.iter().map(|bytes| i16::from_le_bytes(*bytes));
            let (min, max) = bounds(bits, 1..=infinity - 1)?;
            let decode = |bits: i16| {
                let bits = bits as u16;
                if is_bf16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
            };
            Some(range(decode(min), decode(max)))
        }
        Dtype::F32 => {
            let bits = data.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
            let (min, max) = bounds(bits, 1..=f32::INFINITY.to_bits() as i32 - 1)?;
            Some(range(f32::from_bits(min as u32), f32::from_bits(max as u32)))
        }
        _ => None,
    }
}

/// The smallest and the largest of at least one value, where all are allowed.
fn bounds<T: Ord + Copy>(values: impl Iterator<Item = T>, allowed: RangeInclusive<T>) -> Option<(T, T)> {
    let (mut min, mut max) = (*allowed.end(), *allowed.start());
    let mut count = 0usize;
    for value in values {
        min = min.min(value);
        max = max.max(value);
        count += 1;
    }
    (count > 0 && allowed.contains(&min) && allowed.contains(&max)).then_some((min, max))
}

/// Every value; `None` for a type that scales do not have.
fn decode(values: &Values) -> Option<Vec<f32>> {
    let e8m0 = |byte: &u8| if *byte == 255 { f32::NAN } else { e8m0::e8m0_to_f32(*byte) };
    match values.dtype {
        Dtype::F8_E4M3 => Some(values.data.iter().map(|code| fp8::e4m3_to_f32(*code)).collect()),
        Dtype::U8 | Dtype::F8_E8M0 => Some(values.data.iter().map(e8m0).collect()),
        _ => values.view().to_f32().ok(),
    }
}

fn look<'a>(name: &'a str, values: &Values) -> Seen<'a> {
    if let Some(range) = sound_range(values) {
        return Seen { name, problem: None, range: Some(range) };
    }
    let Some(decoded) = decode(values) else {
        return Seen { name, problem: Some(format!("dtype {}", values.dtype)), range: None };
    };
    if decoded.is_empty() {
        return Seen { name, problem: Some("no values".to_owned()), range: None };
    }
    let is_bad = |x: &f32| !x.is_finite() || *x <= 0.0;
    let problem = decoded.iter().position(is_bad).map(|first| {
        let count = decoded.iter().filter(|x| is_bad(x)).count();
        format!("{count} of {} values, the first at {first} is {}", decoded.len(), decoded[first])
    });
    let finite = decoded.iter().copied().filter(|x| x.is_finite());
    let range =
        finite.fold(None, |range: Option<ValueRange>, x| {
            Some(range.map_or(ValueRange { min: x, max: x }, |r| ValueRange {
                min: r.min.min(x),
                max: r.max.max(x),
            }))
        });
    Seen { name, problem, range }
}

/// MX formats: scale byte 0 stands for 2⁻¹²⁷, which only groups of zeros get; with other codes it means an erased scale.
fn underflow(table: &Table<'_>, module: &Module<'_>) -> Option<Defect> {
    // Bytes of 32 codes, and their bits without signs.
    let (suffix, group_bytes, magnitudes): (_, u64, &[u8]) = match module.found {
        Found::Mxfp4 => ("weight_packed", 16, &[0x77]),
        Found::Mxfp6 => ("weight_packed", 24, &[0xdf, 0xf7, 0x7d]),
        Found::Mxfp8 => ("weight", 32, &[0x7f]),
        _ => return None,
    };
    let name = format!("{}.weight_scale", module.name);
    let codes = format!("{}.{suffix}", module.name);
    let scales = table.values(&name)?.data;
    let zeros: Vec<u64> = (0..scales.len() as u64).filter(|i| scales[*i as usize] == 0).collect();
    let available = table.tensors.get(codes.as_str())?.num_bytes();
    let is_erased = |group: &&u64| {
        let at = **group * group_bytes;
        // Where codes are missing, the shapes are wrong, and that is reported already.
        let count = group_bytes.min(available.saturating_sub(at));
        let bytes = table.bytes(&codes, at, count).unwrap_or_default();
        bytes.iter().zip(magnitudes.iter().cycle()).any(|(byte, mask)| byte & mask != 0)
    };
    let count = zeros.iter().filter(is_erased).count();
    (count > 0).then(|| Defect {
        check: "scales".to_owned(),
        failure_class: FailureClass::QuantCoverageFailure,
        tensor: name,
        observed: format!("{count} of {} scales are byte 0 over codes that are not zero", scales.len()),
        expected: "a scale that does not erase its group".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DTYPES: [Dtype; 6] =
        [Dtype::F8_E4M3, Dtype::U8, Dtype::F8_E8M0, Dtype::BF16, Dtype::F16, Dtype::F32];

    proptest! {
        /// Against the values themselves, one at a time.
        #[test]
        fn ranges_are_those_of_the_values(
            dtype in 0..DTYPES.len(),
            data in prop::collection::vec(any::<[u8; 4]>(), 0..20),
            clear in any::<bool>(),
        ) {
            let dtype = DTYPES[dtype];
            let mut data: Vec<u8> = data.into_iter().flatten().collect();
            if clear {
                // Without signs and top exponents most are sound.
                for byte in &mut data {
                    *byte = *byte & 0x3f | 1;
                }
            }
            let values = Values { dtype, data };
            let each = decode(&values).unwrap();
            let sound = !each.is_empty() && each.iter().all(|x| x.is_finite() && *x > 0.0);
            let found = sound_range(&values);
            prop_assert_eq!(found.is_some(), sound);
            if let Some(found) = found {
                let of = |fold: fn(f32, f32) -> f32, start| each.iter().copied().fold(start, fold);
                prop_assert_eq!((found.min, found.max), (of(f32::min, f32::INFINITY), of(f32::max, 0.0)));
            }
        }
    }
}
