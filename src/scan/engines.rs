//! Which engine loads which scheme, from which compute capability: a table, each row with where it is written.
//!
//! Read from the loaders' source, not tried on devices. A row that is missing means that the engine refuses the scheme,
//! or that nothing was found that loads it.

use super::tensor_parallel::Problem;
use crate::checkpoint::quant_args::{
    Dialect, Format, QuantType, QuantizationArgs, QuantizationScheme, Strategy,
};
use crate::record::engine::EngineSupport;

/// Schemes as loaders tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// FP8 weights by tensor or channel, FP8 inputs.
    Fp8,
    /// FP8 weights by blocks, FP8 inputs by groups.
    Fp8Block,
    /// FP8 weights only.
    Fp8WeightOnly,
    /// INT8 weights and inputs.
    Int8,
    /// Packed integers, inputs as they are.
    IntWeightOnly,
    /// The same with zero points.
    IntWeightOnlyAsymmetric,
    /// INT4 by groups, FP8 inputs.
    Int4Fp8,
    /// NVFP4 weights only.
    Nvfp4WeightOnly,
    /// NVFP4 weights and inputs.
    Nvfp4,
    /// MXFP4 weights only.
    Mxfp4WeightOnly,
    /// MXFP4 weights, quantized inputs.
    Mxfp4,
    /// MXFP6 weights.
    Mxfp6,
    /// MXFP8 weights only.
    Mxfp8WeightOnly,
    /// MXFP8 weights and inputs.
    Mxfp8,
    /// Something else.
    Other,
}

impl Kind {
    /// The kind of a scheme stored in `format`.
    pub fn of(scheme: &QuantizationScheme, format: Option<Format>) -> Self {
        let weights = &scheme.weights;
        let inputs = scheme.input_activations.as_ref();
        let weight_only = inputs.is_none();
        match (weights.qtype, weights.num_bits, weights.strategy) {
            (QuantType::Float, 4, Strategy::TensorGroup) if weight_only => Self::Nvfp4WeightOnly,
            (QuantType::Float, 4, Strategy::TensorGroup) => Self::Nvfp4,
            (_, 4, _) if weights.is_mx() && weight_only => Self::Mxfp4WeightOnly,
            (_, 4, _) if weights.is_mx() => Self::Mxfp4,
            (_, 6, _) if weights.is_mx() => Self::Mxfp6,
            (_, 8, _) if weights.is_mx() && weight_only => Self::Mxfp8WeightOnly,
            (_, 8, _) if weights.is_mx() => Self::Mxfp8,
            (QuantType::Float, 8, Strategy::Block) if inputs.is_some_and(is_fp8) => Self::Fp8Block,
            (QuantType::Float, 8, _) if weight_only => Self::Fp8WeightOnly,
            (QuantType::Float, 8, _) if inputs.is_some_and(is_fp8) => Self::Fp8,
            (QuantType::Int, 8, _)
                if inputs.is_some_and(|i| i.qtype == QuantType::Int && i.num_bits == 8) =>
            {
                Self::Int8
            }
            (QuantType::Int, 4, Strategy::Group)
                if inputs.is_some_and(is_fp8)
                    && weights.group_size == Some(128)
                    && format == Some(Format::PackQuantized) =>
            {
                Self::Int4Fp8
            }
            (QuantType::Int, 2..=8, Strategy::Group | Strategy::Channel)
                if weight_only && format == Some(Format::PackQuantized) =>
            {
                if weights.symmetric {
                    Self::IntWeightOnly
                } else {
                    Self::IntWeightOnlyAsymmetric
                }
            }
            _ => Self::Other,
        }
    }
}

fn is_fp8(args: &QuantizationArgs) -> bool {
    args.qtype == QuantType::Float && args.num_bits == 8
}

/// Engines whose loaders were read, with the version.
const ENGINES: [&str; 4] = [VLLM, SGLANG, TRANSFORMERS, TENSORRT_LLM];
const VLLM: &str = "vLLM 0.33";
const SGLANG: &str = "SGLang 0.5.23";
const TRANSFORMERS: &str = "transformers 5.23";
const TENSORRT_LLM: &str = "TensorRT-LLM (21156a7)";

/// vLLM's scheme table.
const VLLM_SCHEMES: &str = "vllm compressed_tensors.py, get_min_capability of the schemes";
const SGLANG_SCHEMES: &str = "sglang compressed_tensors/README and scheme files";
const TRANSFORMERS_QUANTIZER: &str = "transformers quantizer_compressed_tensors.py";
/// FP8 needs 8.9 and NVFP4 Blackwell.
const MODELOPT_LOADERS: &str = "vllm modelopt.py (quant_algo), ModelOpt's deployment matrix (unified_hf)";
const TENSORRT_SCHEMES: &str = "tensorrt_llm/models/quant_config_utils.py, _quant_config_from_config_group";

/// One engine and one kind of scheme.
#[derive(Clone, Copy)]
struct Row {
    engine: &'static str,
    dialect: Dialect,
    kind: Kind,
    /// Lowest compute capability × 10; `None` where the source names none.
    min_capability: Option<u16>,
    /// Whether it takes dense layers, and experts.
    dense: bool,
    experts: bool,
    remark: &'static str,
    source: &'static str,
}

const fn row(
    engine: &'static str,
    kind: Kind,
    min_capability: Option<u16>,
    remark: &'static str,
    source: &'static str,
) -> Row {
    let dialect = Dialect::CompressedTensors;
    Row { engine, dialect, kind, min_capability, dense: true, experts: true, remark, source }
}

/// The same for ModelOpt's layout.
const fn modelopt(engine: &'static str, kind: Kind, min_capability: Option<u16>) -> Row {
    let row = row(engine, kind, min_capability, "", MODELOPT_LOADERS);
    Row { dialect: Dialect::Modelopt, ..row }
}

const fn dense_only(row: Row) -> Row {
    Row { experts: false, ..row }
}

const fn experts_only(row: Row) -> Row {
    Row { dense: false, ..row }
}

/// The table.
const ROWS: &[Row] = &[
    row(VLLM, Kind::Fp8, Some(75), "8-bit inputs from 8.9; below, weights only", VLLM_SCHEMES),
    row(VLLM, Kind::Fp8Block, Some(75), "8-bit inputs from 8.9; below, weights only", VLLM_SCHEMES),
    row(VLLM, Kind::Fp8WeightOnly, Some(75), "", VLLM_SCHEMES),
    row(VLLM, Kind::Int8, Some(75), "", VLLM_SCHEMES),
    row(VLLM, Kind::IntWeightOnly, Some(75), "", VLLM_SCHEMES),
    row(VLLM, Kind::IntWeightOnlyAsymmetric, Some(75), "", VLLM_SCHEMES),
    row(VLLM, Kind::Int4Fp8, Some(90), "exactly 9.0", VLLM_SCHEMES),
    row(VLLM, Kind::Nvfp4WeightOnly, Some(75), "", VLLM_SCHEMES),
    row(VLLM, Kind::Nvfp4, Some(75), "4-bit inputs on Blackwell; below, weights only", VLLM_SCHEMES),
    row(
        VLLM,
        Kind::Mxfp4WeightOnly,
        Some(80),
        "10.0 takes it for quantized inputs (vllm#56770)",
        VLLM_SCHEMES,
    ),
    row(VLLM, Kind::Mxfp4, Some(80), "", VLLM_SCHEMES),
    row(VLLM, Kind::Mxfp8WeightOnly, Some(75), "", VLLM_SCHEMES),
    row(VLLM, Kind::Mxfp8, Some(75), "", VLLM_SCHEMES),
    row(SGLANG, Kind::Fp8, None, "", SGLANG_SCHEMES),
    row(SGLANG, Kind::Fp8Block, None, "no quantized output head", SGLANG_SCHEMES),
    row(SGLANG, Kind::Fp8WeightOnly, None, "", SGLANG_SCHEMES),
    dense_only(row(SGLANG, Kind::Int8, None, "experts on NPUs only", SGLANG_SCHEMES)),
    row(SGLANG, Kind::IntWeightOnly, None, "", SGLANG_SCHEMES),
    row(SGLANG, Kind::Nvfp4WeightOnly, None, "", SGLANG_SCHEMES),
    row(SGLANG, Kind::Nvfp4, None, "", SGLANG_SCHEMES),
    experts_only(row(SGLANG, Kind::Mxfp4WeightOnly, None, "experts only", SGLANG_SCHEMES)),
    experts_only(row(SGLANG, Kind::Mxfp4, None, "experts only", SGLANG_SCHEMES)),
    row(TENSORRT_LLM, Kind::Fp8, None, "by channel, with inputs by token, only", TENSORRT_SCHEMES),
    row(TENSORRT_LLM, Kind::Fp8Block, None, "", TENSORRT_SCHEMES),
    row(TENSORRT_LLM, Kind::Nvfp4, None, "", TENSORRT_SCHEMES),
    row(TENSORRT_LLM, Kind::Mxfp4WeightOnly, None, "", TENSORRT_SCHEMES),
    modelopt(VLLM, Kind::Fp8, Some(89)),
    modelopt(VLLM, Kind::Fp8Block, Some(89)),
    modelopt(VLLM, Kind::Fp8WeightOnly, None),
    modelopt(VLLM, Kind::Nvfp4, Some(100)),
    modelopt(VLLM, Kind::Nvfp4WeightOnly, None),
    modelopt(VLLM, Kind::Mxfp8, None),
    modelopt(VLLM, Kind::Mxfp8WeightOnly, None),
    modelopt(SGLANG, Kind::Fp8, Some(89)),
    modelopt(SGLANG, Kind::Nvfp4, Some(100)),
    modelopt(TENSORRT_LLM, Kind::Fp8, Some(89)),
    modelopt(TENSORRT_LLM, Kind::Nvfp4, Some(100)),
];

/// A scheme in use.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// The scheme.
    pub scheme: &'a QuantizationScheme,
    /// How it is stored.
    pub format: Option<Format>,
    /// Whether experts have it.
    pub has_experts: bool,
    /// Whether other layers have it.
    pub has_dense: bool,
}

/// Whether a module belongs to an expert of a mixture.
pub fn is_expert(module: &str) -> bool {
    module.contains(".experts.") || module.starts_with("experts.")
}

/// What each engine makes of all schemes of a checkpoint together. `problems` are those of cutting
/// layers, which engines that cut them share.
pub fn support(uses: &[Use<'_>], problems: &[Problem], dialect: Dialect) -> Vec<EngineSupport> {
    ENGINES.iter().map(|engine| of_engine(engine, uses, problems, dialect)).collect()
}

fn of_engine(engine: &str, uses: &[Use<'_>], problems: &[Problem], dialect: Dialect) -> EngineSupport {
    let mut support = EngineSupport {
        engine: engine.to_owned(),
        loads: !uses.is_empty(),
        min_compute_capability: None,
        remarks: Vec::new(),
        sources: Vec::new(),
    };
    if engine == TRANSFORMERS && dialect == Dialect::Modelopt {
        support.loads = false;
        support.remarks.push("has no loader for ModelOpt's layout".to_owned());
        return support;
    }
    if engine == TRANSFORMERS {
        // It has no table: compressed-tensors reads whatever it defines.
        let remark = "dequantizes to the model's dtype on first use, on any device: no gain in speed";
        support.remarks.push(remark.to_owned());
        if uses.iter().any(|used| Kind::of(used.scheme, used.format) == Kind::Mxfp6) {
            support.remarks.push("MXFP6 from compressed-tensors 0.20 on".to_owned());
        }
        support.sources.push(TRANSFORMERS_QUANTIZER.to_owned());
        return support;
    }
    let mut capability: Option<u16> = None;
    for used in uses {
        let found = match find(engine, used, dialect) {
            Ok(found) => found,
            Err(reason) => {
                support.loads = false;
                push_new(&mut support.remarks, reason);
                continue;
            }
        };
        capability = capability.max(found.min_capability);
        push_new(&mut support.sources, found.source.to_owned());
        if !found.remark.is_empty() {
            push_new(&mut support.remarks, found.remark.to_owned());
        }
    }
    if let Some(first) = problems.first().filter(|_| engine != TENSORRT_LLM) {
        support.loads = false;
        let more = match problems.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let reason = format!("{}: {}, expected {}{more}", first.module, first.observed, first.expected);
        support.remarks.push(reason);
    }
    support.min_compute_capability = capability.map(|c| format!("{}.{}", c / 10, c % 10));
    support
}

/// The row for a scheme, or why there is none.
fn find(engine: &str, used: &Use<'_>, dialect: Dialect) -> Result<&'static Row, String> {
    let kind = Kind::of(used.scheme, used.format);
    let weights = &used.scheme.weights;
    let refused = |what: &str| Err(format!("loads no {kind:?}{what}"));
    let is_it = |r: &&Row| r.engine == engine && r.dialect == dialect && r.kind == kind;
    let Some(row) = ROWS.iter().find(is_it) else { return refused("") };
    if used.has_dense && !row.dense {
        return refused(" outside experts");
    }
    if used.has_experts && !row.experts {
        return refused(" experts");
    }
    let inputs = used.scheme.input_activations.as_ref();
    let by_token = inputs.is_some_and(|i| i.strategy == Strategy::Token);
    let is_modelopt = dialect == Dialect::Modelopt;
    if engine == TENSORRT_LLM
        && !is_modelopt
        && kind == Kind::Fp8
        && !(weights.strategy == Strategy::Channel && by_token)
    {
        return refused(" but by channel with inputs by token");
    }
    if engine == SGLANG && kind == Kind::Fp8WeightOnly && weights.strategy == Strategy::Block {
        return refused(" by blocks");
    }
    Ok(row)
}

fn push_new(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn scheme(weights: &Value, inputs: Option<&Value>) -> QuantizationScheme {
        let mut scheme = json!({"targets": ["Linear"], "weights": weights});
        if let Some(inputs) = inputs {
            scheme["input_activations"] = inputs.clone();
        }
        serde_json::from_value(scheme).unwrap()
    }

    fn float(bits: u8, strategy: &str, group: Option<usize>) -> Value {
        let mut args = json!({"num_bits": bits, "type": "float", "strategy": strategy});
        if let Some(size) = group {
            args["group_size"] = json!(size);
        }
        args
    }

    fn token() -> Value {
        json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true})
    }

    /// Engines that load a scheme on dense layers, with their lowest compute capability.
    fn loaded_by(scheme: &QuantizationScheme, format: Format) -> Vec<(String, Option<String>)> {
        let used = Use { scheme, format: Some(format), has_experts: false, has_dense: true };
        let engines = support(&[used], &[], Dialect::CompressedTensors).into_iter().filter(|e| e.loads);
        engines.map(|e| (e.engine.split(' ').next().unwrap().to_owned(), e.min_compute_capability)).collect()
    }

    fn names(found: &[(String, Option<String>)]) -> Vec<&str> {
        found.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn table_of_schemes() {
        let fp8 = loaded_by(&scheme(&float(8, "channel", None), Some(&token())), Format::FloatQuantized);
        assert_eq!(names(&fp8), ["vLLM", "SGLang", "transformers", "TensorRT-LLM"]);
        assert_eq!(fp8[0].1.as_deref(), Some("7.5"));
        let int4 = json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128});
        let w4a16 = scheme(&int4, None);
        assert_eq!(names(&loaded_by(&w4a16, Format::PackQuantized)), ["vLLM", "SGLang", "transformers"]);
        assert_eq!(names(&loaded_by(&w4a16, Format::IntQuantized)), ["transformers"], "WNA16 must be packed");
        let w4afp8 = loaded_by(&scheme(&int4, Some(&token())), Format::PackQuantized);
        assert_eq!(w4afp8[0], ("vLLM".to_owned(), Some("9.0".to_owned())));
        let nvfp4 = scheme(&float(4, "tensor_group", Some(16)), None);
        assert_eq!(names(&loaded_by(&nvfp4, Format::Nvfp4PackQuantized)), ["vLLM", "SGLang", "transformers"]);
        let mxfp4 = scheme(&float(4, "group", Some(32)), None);
        let found = loaded_by(&mxfp4, Format::Mxfp4PackQuantized);
        assert_eq!(names(&found), ["vLLM", "transformers", "TensorRT-LLM"]);
        assert_eq!(found[0].1.as_deref(), Some("8.0"));
        let mut weights = float(6, "group", Some(32));
        weights["scale_dtype"] = json!("torch.uint8");
        let mxfp6 = scheme(&weights, None);
        let used = Use {
            scheme: &mxfp6,
            format: Some(Format::Mxfp6PackQuantized),
            has_experts: false,
            has_dense: true,
        };
        let found = support(&[used], &[], Dialect::CompressedTensors);
        assert_eq!(found.iter().filter(|e| e.loads).count(), 1);
        assert!(found[2].remarks.iter().any(|r| r == "MXFP6 from compressed-tensors 0.20 on"), "{found:?}");
        let int8 = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
        let inputs = json!({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true});
        let w8a8 = loaded_by(&scheme(&int8, Some(&inputs)), Format::IntQuantized);
        assert_eq!(names(&w8a8), ["vLLM", "SGLang", "transformers"], "TensorRT-LLM would take it for FP8");
    }

    #[test]
    fn layout_of_modelopt() {
        let loaded_by = |scheme: &QuantizationScheme| {
            let used = Use { scheme, format: None, has_experts: false, has_dense: true };
            let engines = support(&[used], &[], Dialect::Modelopt).into_iter().filter(|e| e.loads);
            engines.map(|e| e.engine.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let inputs = json!({"num_bits": 8, "type": "float", "strategy": "tensor"});
        let fp8 = scheme(&float(8, "tensor", None), Some(&inputs));
        assert_eq!(loaded_by(&fp8), ["vLLM", "SGLang", "TensorRT-LLM"]);
        assert_eq!(loaded_by(&scheme(&float(4, "tensor_group", Some(16)), None)), ["vLLM"]);
    }

    #[test]
    fn experts_and_problems_decide_too() {
        let mxfp4 = scheme(&float(4, "group", Some(32)), None);
        let used = |has_dense| Use {
            scheme: &mxfp4,
            format: Some(Format::Mxfp4PackQuantized),
            has_experts: true,
            has_dense,
        };
        let sglang = |has_dense| support(&[used(has_dense)], &[], Dialect::CompressedTensors)[1].clone();
        assert!(sglang(false).loads && !sglang(true).loads);
        let problem = Problem {
            module: "m.down_proj".into(),
            observed: "1536".into(),
            expected: "whole groups".into(),
        };
        let cut = support(&[used(false)], &[problem], Dialect::CompressedTensors);
        assert!(!cut[0].loads && cut[0].remarks.iter().any(|r| r.contains("m.down_proj")), "{cut:?}");
        assert!(cut[2].loads, "transformers cuts nothing");
        assert!(
            support(&[], &[], Dialect::CompressedTensors).iter().all(|e| !e.loads),
            "nothing is quantized"
        );
    }
}
