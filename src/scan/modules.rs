//! Linear-like modules of a checkpoint, found by the names, dtypes and shapes of their tensors.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::source_view::SourceView;
use super::table::Table;
use crate::checkpoint::header::TensorInfo;
use crate::checkpoint::quant_args::QuantizationArgs;
use crate::ops::float_dtype::FloatDtype;
use crate::ops::weight_layout::{Packing, ScaleKind, WeightLayout};

/// Last parts of names of the tensors that stand for one weight, in all dialects.
const SUFFIXES: [&str; 15] = [
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_global_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "qweight",
    "qzeros",
    "scales",
];

/// One linear-like module.
pub(super) struct Module<'a> {
    /// Name, without suffix.
    pub name: &'a str,
    /// Its tensors by suffix.
    pub tensors: BTreeMap<&'a str, &'a TensorInfo>,
    /// What its weight is stored as.
    pub found: Found,
    /// [N, K] of the dequantized weight, as far as known.
    pub shape: Option<[usize; 2]>,
    /// How the config declares it and stores it, if it does and it is stored so.
    pub declared: Option<Declared>,
}

/// A declared scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    /// Name of the config group.
    pub group: String,
    /// Its layout.
    pub layout: WeightLayout,
    /// How inputs are quantized, if they are.
    pub inputs: Option<QuantizationArgs>,
}

/// What the weight of a module is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Plain floats.
    Float(FloatDtype),
    /// E4M3 codes.
    Fp8,
    /// One integer a byte.
    Int8,
    /// Integers in 32-bit words.
    IntWords,
    /// FP4 with E4M3 scales.
    Nvfp4,
    /// FP4 with E8M0 scales.
    Mxfp4,
    /// FP6 with E8M0 scales.
    Mxfp6,
    /// FP8 with E8M0 scales.
    Mxfp8,
    /// Codes of another dialect.
    Unknown,
}

impl Found {
    pub(super) fn is_quantized(self) -> bool {
        !matches!(self, Self::Float(_))
    }

    /// Name for counts, where the config does not say more.
    pub(super) fn precision(self) -> &'static str {
        match self {
            Self::Float(FloatDtype::Bf16) => "bf16",
            Self::Float(FloatDtype::F16) => "f16",
            Self::Float(FloatDtype::F32) => "f32",
            Self::Fp8 => "fp8_e4m3",
            Self::Int8 => "int8",
            Self::IntWords => "int_packed",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp6 => "mxfp6",
            Self::Mxfp8 => "mxfp8",
            Self::Unknown => "unknown",
        }
    }

    /// What a layout's weights are stored as.
    pub(super) fn of_layout(layout: &WeightLayout) -> Self {
        match (layout.packing, layout.scale) {
            (Packing::Words, _) => Self::IntWords,
            (_, ScaleKind::E4m3UnderGlobal) => Self::Nvfp4,
            (Packing::Nibbles, ScaleKind::E8m0) => Self::Mxfp4,
            (Packing::Sextets, _) => Self::Mxfp6,
            (_, ScaleKind::E8m0) => Self::Mxfp8,
            (_, ScaleKind::Float) => match layout.codes([0, 0]).dtype {
                Dtype::F8_E4M3 => Self::Fp8,
                _ => Self::Int8,
            },
        }
    }
}

impl Module<'_> {
    /// Whether both are stored alike.
    pub(super) fn has_scheme_of(&self, other: &Self) -> bool {
        (self.found, &self.declared) == (other.found, &other.declared)
    }

    /// Config group and precision.
    pub(super) fn scheme(&self) -> String {
        match &self.declared {
            Some(declared) => format!("{} ({})", declared.layout.precision(), declared.group),
            None => self.found.precision().to_owned(),
        }
    }

    /// The tensor with the codes or the plain weight.
    pub(super) fn main(&self) -> Option<&TensorInfo> {
        ["weight_packed", "qweight", "weight"].iter().find_map(|s| self.tensors.get(s).copied())
    }
}

/// All linear-like modules, sorted by name. `source` tells the true shape of a packed weight.
pub(super) fn find<'a>(table: &Table<'a>, source: Option<&SourceView<'_>>) -> Vec<Module<'a>> {
    let mut parts: Vec<(&'a str, &'a str, &'a TensorInfo)> = table
        .tensors
        .iter()
        .filter_map(|(name, info)| {
            let (module, suffix) = name.rsplit_once('.').filter(|(_, suffix)| SUFFIXES.contains(suffix))?;
            Some((module, suffix, *info))
        })
        .collect();
    // Sorted by whole names they nearly are already.
    parts.sort_by(|a, b| a.0.cmp(b.0));
    parts
        .chunk_by(|a, b| a.0 == b.0)
        .filter_map(|parts| {
            let name = parts[0].0;
            let tensors: BTreeMap<&str, &TensorInfo> = parts.iter().map(|part| (part.1, part.2)).collect();
            let found = found(&tensors)?;
            let shape = source
                .and_then(|s| s.get(&format!("{name}.weight")))
                .and_then(|tensor| <[usize; 2]>::try_from(tensor.shape).ok())
                .or_else(|| stored_shape(table, name, &tensors, found));
            Some(Module { name, tensors, found, shape, declared: None })
        })
        .collect()
}

/// What the weight is stored as; `None` for what is no linear layer (norms, convolutions).
fn found(tensors: &BTreeMap<&str, &TensorInfo>) -> Option<Found> {
    if let Some(packed) = tensors.get("weight_packed") {
        let scale = tensors.get("weight_scale").map(|t| t.dtype);
        return Some(match (packed.dtype, scale) {
            (Dtype::I32, _) => Found::IntWords,
            (Dtype::U8, Some(Dtype::F8_E4M3)) => Found::Nvfp4,
            (Dtype::U8, Some(Dtype::U8)) if has_sextets(tensors) => Found::Mxfp6,
            (Dtype::U8, Some(Dtype::U8)) => Found::Mxfp4,
            (Dtype::U8, _) if tensors.contains_key("weight_global_scale") => Found::Nvfp4,
            _ => Found::Unknown,
        });
    }
    if tensors.contains_key("qweight") {
        return Some(Found::Unknown);
    }
    let weight = tensors.get("weight")?;
    if weight.shape.len() != 2 {
        return None;
    }
    Some(match (FloatDtype::of(weight.dtype), weight.dtype) {
        (Some(float), _) => Found::Float(float),
        (None, Dtype::F8_E4M3) if dtype_of(tensors, "weight_scale") == Some(Dtype::U8) => Found::Mxfp8,
        (None, Dtype::F8_E4M3) => Found::Fp8,
        (None, Dtype::I8) => Found::Int8,
        (None, Dtype::U8) if dtype_of(tensors, "weight_scale") == Some(Dtype::F8_E4M3) => Found::Nvfp4,
        (None, _) => Found::Unknown,
    })
}

fn dtype_of(tensors: &BTreeMap<&str, &TensorInfo>, suffix: &str) -> Option<Dtype> {
    tensors.get(suffix).map(|t| t.dtype)
}

/// Whether the 32 codes of a scale take 24 bytes (FP6) rather than 16 (FP4).
fn has_sextets(tensors: &BTreeMap<&str, &TensorInfo>) -> bool {
    let columns = |suffix| tensors.get(suffix).and_then(|t| t.shape.last().copied());
    columns("weight_packed")
        .zip(columns("weight_scale"))
        .is_some_and(|(bytes, groups)| Some(bytes) == groups.checked_mul(24))
}

/// [N, K] from the tensors themselves.
fn stored_shape(
    table: &Table<'_>,
    name: &str,
    tensors: &BTreeMap<&str, &TensorInfo>,
    found: Found,
) -> Option<[usize; 2]> {
    let of = |suffix| <[usize; 2]>::try_from(tensors.get(suffix)?.shape.as_slice()).ok();
    match found {
        Found::Float(_) | Found::Fp8 | Found::Mxfp8 | Found::Int8 => of("weight"),
        Found::Mxfp6 => of("weight_packed").map(|[n, k]| [n, k / 3 * 4]),
        Found::Nvfp4 | Found::Mxfp4 => of("weight_packed").or_else(|| of("weight")).map(|[n, k]| [n, k * 2]),
        Found::IntWords => {
            let [n, words] = of("weight_packed")?;
            let values = table.values(&format!("{name}.weight_shape"))?.view().to_i64().ok()?;
            let &[rows, columns] = values.as_slice() else { return None };
            let columns = usize::try_from(columns).ok()?;
            // A word holds at most 16 codes of two bits; anything else is reported as a defect of weight_shape.
            (usize::try_from(rows) == Ok(n) && columns <= words.saturating_mul(16)).then_some([n, columns])
        }
        Found::Unknown => None,
    }
}
