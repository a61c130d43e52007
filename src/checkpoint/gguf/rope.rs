//! Rotary parameters of a GGUF file as `rope_theta` and `rope_scaling` of `config.json`.

use serde_json::{Value as Json, json};

use super::architecture::{Architecture, Extra};
use super::error::GgufProblem;
use super::keys::Keys;
use super::reader::Gguf;

/// GGUF's factors of Llama 3.1's rotary scaling; recognised, not copied.
pub(super) const FREQS: &str = "rope_freqs.weight";
/// Longrope's factors of long inputs.
pub(super) const LONG: &str = "rope_factors_long.weight";
/// Longrope's factors of short inputs.
pub(super) const SHORT: &str = "rope_factors_short.weight";

/// What `config.json` says of the rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    pub theta: f64,
    /// `rope_scaling`.
    pub scaling: Json,
    /// Rotated elements of a head.
    pub dims: usize,
    /// `original_max_position_embeddings` beside it.
    pub original: Option<usize>,
}

/// Reads the parameters of a file with heads of this width and this many positions.
pub(super) fn read(
    gguf: &Gguf,
    file: &[u8],
    keys: &Keys<'_>,
    architecture: &Architecture,
    head_dim: usize,
    max_positions: usize,
) -> Result<Rope, GgufProblem> {
    let theta = keys.float("rope.freq_base")?.unwrap_or(10000.0);
    let dims = keys.count("rope.dimension_count")?.unwrap_or(head_dim);
    let partial = architecture.extra == Extra::Phi3;
    if dims != head_dim && (!partial || dims == 0 || dims > head_dim || dims % 2 != 0) {
        let name = keys.name("rope.dimension_count");
        return Err(GgufProblem::unsupported(&name, &format!("{head_dim} as the other widths"), dims));
    }
    let kind = keys.text("rope.scaling.type")?.unwrap_or("none");
    // Files of 2023 call the factor of linear scaling so.
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => factor,
        None => keys.float("rope.scale_linear")?.unwrap_or(1.0),
    };
    let original = keys.count("rope.scaling.original_context_length")?;
    let values = |name: &str| floats(gguf, file, name, dims / 2);
    let (freqs, long, short) = (values(FREQS)?, values(LONG)?, values(SHORT)?);
    let attention_factor = match keys.float("rope.scaling.attn_factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scaling.yarn_attn_factor")?,
    };
    let rope = |scaling: Json| Rope { theta, scaling, dims, original: original.filter(|_| partial) };
    match (kind, freqs, long, short) {
        ("none" | "linear", None, None, None) if factor == 1.0 && attention_factor.is_none() => {
            Ok(rope(Json::Null))
        }
        ("linear", None, None, None) if factor > 0.0 && attention_factor.is_none() => {
            Ok(rope(json!({"rope_type": "linear", "factor": factor})))
        }
        ("none", Some(freqs), None, None) => Ok(rope(llama3_scaling(&freqs, theta)?)),
        ("yarn", None, None, None) if factor > 0.0 => {
            yarn(keys, factor, original, attention_factor).map(rope)
        }
        ("none" | "longrope", None, Some(long), Some(short)) if partial => {
            let name = keys.name("rope.scaling.original_context_length");
            let original = original.ok_or(GgufProblem::MissingKey { key: name })?;
            let mut scaling = json!({"rope_type": "longrope", "long_factor": long, "short_factor": short});
            let ratio = max_positions as f64 / original as f64;
            let inferred = if ratio > 1.0 { (1.0 + ratio.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
            if let Some(given) = attention_factor.filter(|given| (given / inferred - 1.0).abs() > 1e-6) {
                scaling["attention_factor"] = json!(given);
            }
            Ok(rope(scaling))
        }
        _ => {
            let found = format!("{kind} with factor {factor}");
            let expected = "none, linear, yarn, longrope of phi3, or Llama 3.1's factors";
            Err(GgufProblem::unsupported(&keys.name("rope.scaling.type"), expected, found))
        }
    }
}

/// YaRN as the converter writes it; llama.cpp's own corrections have no counterpart.
fn yarn(
    keys: &Keys<'_>,
    factor: f64,
    original: Option<usize>,
    attention_factor: Option<f64>,
) -> Result<Json, GgufProblem> {
    let name = keys.name("rope.scaling.original_context_length");
    let original = original.ok_or(GgufProblem::MissingKey { key: name })?;
    let mut scaling =
        json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original});
    for (key, field) in
        [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
    {
        if let Some(value) = keys.float(key)? {
            scaling[field] = json!(value);
        }
    }
    if let Some(value) = attention_factor {
        scaling["attention_factor"] = json!(value);
    }
    Ok(scaling)
}

/// A tensor of factors, if it is there.
fn floats(gguf: &Gguf, file: &[u8], name: &str, len: usize) -> Result<Option<Vec<f32>>, GgufProblem> {
    let Some(tensor) = gguf.tensors.get(name) else { return Ok(None) };
    let values = tensor
        .block_type
        .to_f32(&file[tensor.begin..tensor.end])
        .map_err(|error| GgufProblem::tensor(name, "readable values", error))?;
    if values.len() != len {
        return Err(GgufProblem::tensor(name, &format!("{len} factors"), values.len()));
    }
    Ok(Some(values))
}

/// Recognises Llama 3.1's rotary scaling by its factors, one for each of D/2 frequencies, as
/// convert_hf_to_gguf.py computes them: 1 below a wavelength of 2048, `factor` above 8192, smooth between.
pub(super) fn llama3_scaling(factors: &[f32], theta: f64) -> Result<Json, GgufProblem> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const CONTEXT: f64 = 8192.0;
    let factor = f64::from(factors.last().copied().unwrap_or(1.0)).round();
    let dim = (2 * factors.len()) as f64;
    for (i, found) in factors.iter().enumerate() {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / dim);
        let expected = if wavelength < CONTEXT / HIGH {
            1.0
        } else if wavelength > CONTEXT / LOW {
            factor
        } else {
            let smooth = (CONTEXT / wavelength - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        // The converter computes in f32.
        if (f64::from(*found) - expected).abs() > 1e-4 * expected {
            let expected = format!("Llama 3.1's factor {expected:.4} at index {i}");
            return Err(GgufProblem::unsupported(FREQS, &expected, found));
        }
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
        "original_max_position_embeddings": CONTEXT as u64,
    }))
}
