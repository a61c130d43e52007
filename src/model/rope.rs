//! The rotary embedding that `config.json` asks for, and its frequencies. Source: transformers 5.17
//! `modeling_rope_utils.py`; frequencies are rounded to f32 where it rounds.
//!
//! transformers 4 writes `rope_theta` and `rope_scaling {type or rope_type, …}`; transformers 5 writes
//! `rope_parameters {rope_theta, rope_type, …}`, for some models one such object for each kind of layer.

use std::f64::consts::PI;

use serde_json::Value;

use super::config::ConfigError;
use super::config_fields::Fields;

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// R, how many elements of a head are rotated: even, at most D.
    pub rotary_dim: usize,
    /// How frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// `rope_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all.
    Default,
    /// `linear`: all divided by `factor`.
    Linear {
        /// Divisor.
        factor: f32,
    },
    /// `dynamic`: not at all up to `max_position_embeddings`, which is the longest input here.
    Dynamic,
    /// `llama3`: low frequencies divided by `factor`, a smooth transition between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are left alone.
        high_freq_factor: f32,
        /// Context length of pretraining.
        original: usize,
    },
    /// `yarn` (Peng et al., arXiv 2309.00071): low frequencies divided by `factor`, a linear ramp over dimensions.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Context length of pretraining.
        original: usize,
        /// Rotations over the pretraining context at which the ramp begins.
        beta_fast: f64,
        /// Rotations at which it ends.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
        /// Factor of cos and sin.
        attention_factor: f64,
    },
    /// `longrope` (Ding et al., arXiv 2402.13753): a divisor for each frequency, one list for inputs of up to
    /// `original` tokens and one for all positions of longer ones.
    LongRope {
        /// Divisors \[R/2\] of short inputs.
        short: Vec<f32>,
        /// Divisors \[R/2\] of long inputs.
        long: Vec<f32>,
        /// Longest short input.
        original: usize,
        /// Factor of cos and sin.
        attention_factor: f64,
    },
}

impl Rope {
    /// f_i = θ^(−2i/R) for i < R/2, scaled. `long`: for inputs longer than [`Self::longest_short_input`].
    pub fn inverse_frequencies(&self, long: bool) -> Vec<f32> {
        let powers = (0..self.rotary_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / self.rotary_dim as f32;
            self.theta.powf(f64::from(exponent)) as f32
        });
        match &self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic => powers.map(|p| 1.0 / p).collect(),
            RopeScaling::Linear { factor } => powers.map(|p| 1.0 / p / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original } => {
                powers.map(|p| llama3(1.0 / p, *factor, *low, *high, *original as f32)).collect()
            }
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_ramp();
                let ramp = |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                powers
                    .enumerate()
                    .map(|(i, p)| {
                        let kept = 1.0 - ramp(i);
                        1.0 / (*factor as f32 * p) * (1.0 - kept) + 1.0 / p * kept
                    })
                    .collect()
            }
            RopeScaling::LongRope { short, long: long_factors, .. } => {
                let factors = if long { long_factors } else { short };
                powers.zip(factors).map(|(p, factor)| 1.0 / (factor * p)).collect()
            }
        }
    }

    /// Factor of cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// Where longer inputs rotate all their positions differently, the longest that do not.
    pub fn longest_short_input(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }

    /// Dimensions between which yarn goes from the unchanged to the divided frequency.
    fn yarn_ramp(&self) -> (f64, f64) {
        let RopeScaling::Yarn { original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return (0.0, 0.0);
        };
        let dim = self.rotary_dim as f64;
        let at =
            |rotations: f64| dim * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (at(beta_fast), at(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // transformers' guard against an empty ramp.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

fn llama3(f: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = std::f32::consts::TAU / f;
    if wavelength > original / low {
        f / factor
    } else if wavelength < original / high {
        f
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * f / factor + smooth * f
    }
}

/// What the reading of rope parameters needs to know of the rest of the configuration.
pub(super) struct RopeContext {
    /// D.
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// Value of an absent theta.
    pub theta: f64,
    /// Whether only a part of a head may be rotated; then longrope is the only scaled type.
    pub partial: bool,
    /// `original_max_position_embeddings` beside the rope parameters.
    pub original: Option<usize>,
}

impl RopeContext {
    /// The embedding of all layers.
    pub fn read(&self, fields: &Fields<'_>) -> Result<Rope, ConfigError> {
        let nested = parameters(fields)?;
        let outer = fields.optional_number("rope_theta")?;
        let factor = fields.optional_number("partial_rotary_factor")?;
        if !self.partial && factor.is_some_and(|f| f != 1.0) {
            return Err(fields.unsupported("partial_rotary_factor"));
        }
        match nested {
            None => self.unscaled(outer, factor, fields),
            Some(nested) => self.scaled(&nested, outer, factor),
        }
    }

    /// The embeddings of layers without and with a window: [global, local].
    pub fn read_per_layer_type(
        &self,
        fields: &Fields<'_>,
        local_theta: f64,
    ) -> Result<[Rope; 2], ConfigError> {
        let by_type = fields.nested("rope_parameters")?;
        let scaling = fields.nested("rope_scaling")?;
        let (theta, local) =
            (fields.optional_number("rope_theta")?, fields.optional_number("rope_local_base_freq")?);
        if let Some(by_type) = by_type {
            if scaling.is_some() {
                return Err(fields.unsupported("rope_scaling"));
            }
            let one = |kind: &str, outer: Option<f64>, default: f64| {
                let context = Self { theta: default, ..*self };
                match by_type.nested(kind)? {
                    None => Err(by_type.missing(kind)),
                    // transformers reads `truncate` from the outer object here.
                    Some(nested) if nested.get("truncate").is_some() => Err(nested.unsupported("truncate")),
                    Some(nested) => context.scaled(&nested, outer, None),
                }
            };
            let both =
                [one("full_attention", theta, self.theta)?, one("sliding_attention", local, local_theta)?];
            by_type.refuse_unread()?;
            return no_longrope(both, fields);
        }
        let global = match scaling {
            None => self.unscaled(theta, None, fields)?,
            // transformers 5 keeps `default` beside an old `type`, transformers 4 does not.
            Some(nested) if nested.get("rope_type").is_none() => return Err(nested.unsupported("type")),
            Some(nested) => self.scaled(&nested, theta, None)?,
        };
        let local = Self { theta: local_theta, ..*self }.unscaled(local, None, fields)?;
        no_longrope([global, local], fields)
    }

    fn unscaled(
        &self,
        theta: Option<f64>,
        factor: Option<f64>,
        fields: &Fields<'_>,
    ) -> Result<Rope, ConfigError> {
        let rotary_dim =
            self.rotary_dim(factor).ok_or_else(|| fields.unsupported("partial_rotary_factor"))?;
        Ok(Rope { theta: theta.unwrap_or(self.theta), rotary_dim, scaling: RopeScaling::Default })
    }

    fn scaled(
        &self,
        nested: &Fields<'_>,
        outer_theta: Option<f64>,
        outer_factor: Option<f64>,
    ) -> Result<Rope, ConfigError> {
        let theta = agreed(nested, "rope_theta", outer_theta)?.unwrap_or(self.theta);
        let factor = agreed(nested, "partial_rotary_factor", outer_factor)?;
        if !self.partial && factor.is_some_and(|f| f != 1.0) {
            return Err(nested.unsupported("partial_rotary_factor"));
        }
        let rotary_dim =
            self.rotary_dim(factor).ok_or_else(|| nested.unsupported("partial_rotary_factor"))?;
        let (rope_type, old) = (nested.text("rope_type")?, nested.text("type")?);
        let (key, name) = match (rope_type, old) {
            (Some(new), Some(old)) if new != old => return Err(nested.unsupported("type")),
            (Some(new), _) => ("rope_type", new),
            (None, Some(old)) => ("type", old),
            (None, None) => ("rope_type", "default"),
        };
        if self.partial && !matches!(name, "default" | "longrope" | "su") {
            return Err(nested.unsupported(key));
        }
        let scaling = match name {
            "default" => {
                // Present in files that transformers 5 saved, and unused.
                nested.get("original_max_position_embeddings");
                RopeScaling::Default
            }
            "linear" => RopeScaling::Linear { factor: nested.number("factor", None)? as f32 },
            "dynamic" => {
                nested.number("factor", None)?;
                RopeScaling::Dynamic
            }
            "llama3" => RopeScaling::Llama3 {
                factor: nested.number("factor", None)? as f32,
                low_freq_factor: nested.number("low_freq_factor", None)? as f32,
                high_freq_factor: nested.number("high_freq_factor", None)? as f32,
                original: self.original(nested)?,
            },
            "yarn" => self.yarn(nested)?,
            "longrope" => self.longrope(nested, rotary_dim)?,
            // Phi-3's first name of it.
            "su" if self.partial => self.longrope(nested, rotary_dim)?,
            _ => return Err(nested.unsupported(key)),
        };
        nested.refuse_unread()?;
        Ok(Rope { theta, rotary_dim, scaling })
    }

    fn yarn(&self, nested: &Fields<'_>) -> Result<RopeScaling, ConfigError> {
        let original = self.original(nested)?;
        let factor = nested.number("factor", Some(self.max_positions as f64 / original as f64))?;
        let (mscale, all_dim) =
            (nested.optional_number("mscale")?, nested.optional_number("mscale_all_dim")?);
        let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let inferred = match (mscale, all_dim) {
            (Some(m), Some(all)) => scale(m) / scale(all),
            _ => scale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original,
            beta_fast: nested.number("beta_fast", Some(32.0))?,
            beta_slow: nested.number("beta_slow", Some(1.0))?,
            truncate: nested.flag("truncate", true)?,
            attention_factor: nested.number("attention_factor", Some(inferred))?,
        })
    }

    fn longrope(&self, nested: &Fields<'_>, rotary_dim: usize) -> Result<RopeScaling, ConfigError> {
        let original = self.original(nested)?;
        let factor = nested.number("factor", Some(self.max_positions as f64 / original as f64))?;
        let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let factors = |field: &str| -> Result<Vec<f32>, ConfigError> {
            let expected = format!("{} positive numbers", rotary_dim / 2);
            let number = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
            let list = nested.list(field, &expected, number)?.ok_or_else(|| nested.missing(field))?;
            if list.len() == rotary_dim / 2 { Ok(list) } else { Err(nested.wrong(field, expected)) }
        };
        Ok(RopeScaling::LongRope {
            short: factors("short_factor")?,
            long: factors("long_factor")?,
            original,
            attention_factor: nested.number("attention_factor", Some(inferred))?,
        })
    }

    /// Context length of pretraining: within the rope parameters or beside them, and not two different ones.
    fn original(&self, nested: &Fields<'_>) -> Result<usize, ConfigError> {
        let field = "original_max_position_embeddings";
        let inner = nested.get(field).map(|_| nested.positive(field, None)).transpose()?;
        match (inner, self.original) {
            (Some(inner), Some(outer)) if inner != outer => Err(nested.unsupported(field)),
            (Some(inner), _) => Ok(inner),
            // Only Phi-3's classes are known to look there.
            (None, Some(outer)) if self.partial => Ok(outer),
            (None, Some(_)) => Err(nested.missing(field)),
            (None, None) => Ok(self.max_positions),
        }
    }

    /// R for `partial_rotary_factor`, if it is a whole even number of elements.
    fn rotary_dim(&self, factor: Option<f64>) -> Option<usize> {
        let dim = (self.head_dim as f64 * factor.unwrap_or(1.0)) as usize;
        (dim > 0 && dim <= self.head_dim && dim.is_multiple_of(2)).then_some(dim)
    }
}

/// `rope_scaling` or `rope_parameters`; two different ones are refused.
fn parameters<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>, ConfigError> {
    let (old, new) = (fields.nested("rope_scaling")?, fields.nested("rope_parameters")?);
    match (old, new) {
        (Some(_), Some(_)) if fields.get("rope_scaling") != fields.get("rope_parameters") => {
            Err(fields.unsupported("rope_scaling"))
        }
        (old, new) => Ok(old.or(new)),
    }
}

/// A number that may stand within the rope parameters and beside them, but not differently.
fn agreed(nested: &Fields<'_>, field: &str, outer: Option<f64>) -> Result<Option<f64>, ConfigError> {
    match (nested.optional_number(field)?, outer) {
        (Some(inner), Some(outer)) if inner != outer => Err(nested.unsupported(field)),
        (inner, outer) => Ok(inner.or(outer)),
    }
}

/// Layers would have to switch together.
fn no_longrope(ropes: [Rope; 2], fields: &Fields<'_>) -> Result<[Rope; 2], ConfigError> {
    if ropes.iter().any(|rope| rope.longest_short_input().is_some()) {
        return Err(fields.unsupported("rope_parameters"));
    }
    Ok(ropes)
}
