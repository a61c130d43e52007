//! Simulated quantization, to see what the tasks notice; the definitions follow the built-in recipes.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{D, DType, Tensor};

use super::model::{ActivationHook, Config, Model};

/// A scheme to simulate.
pub struct Scheme {
    /// Name of the recipe it imitates.
    pub name: &'static str,
    weights: fn(&Tensor) -> candle_core::Result<Tensor>,
    activations: Option<ActivationHook>,
}

/// The schemes in the order of the model card.
pub const SCHEMES: &[Scheme] = &[
    Scheme { name: "fp8_dynamic", weights: fp8_weights, activations: Some(fp8_activations) },
    Scheme { name: "w4a16", weights: |w| integer_weights(w, 7.5), activations: None },
    Scheme { name: "w2a16", weights: |w| integer_weights(w, 1.5), activations: None },
];

/// Largest finite value of e4m3.
const E4M3_MAX: f64 = 448.0;
const GROUP: usize = 128;

impl Scheme {
    /// The model under this scheme: every linear layer of the decoder, not the embedding.
    pub fn apply(&self, config: &Config, weights: &BTreeMap<String, Tensor>) -> Result<Model> {
        let weights = weights
            .iter()
            .map(|(name, w)| {
                let linear = name.contains("_proj.");
                Ok((name.clone(), if linear { (self.weights)(w)? } else { w.clone() }))
            })
            .collect::<Result<_>>()?;
        Ok(Model { config: config.clone(), weights, activations: self.activations })
    }
}

fn through_bf16(x: &Tensor) -> candle_core::Result<Tensor> {
    x.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}

/// `w ≈ e4m3(w / scale) · scale`, one bf16 scale an output channel.
fn fp8_weights(w: &Tensor) -> candle_core::Result<Tensor> {
    let scale = through_bf16(&(w.abs()?.max_keepdim(D::Minus1)? / E4M3_MAX)?)?;
    through_e4m3(w, &scale)
}

/// `x ≈ e4m3(x / scale) · scale`, one f32 scale a token.
fn fp8_activations(x: &Tensor) -> candle_core::Result<Tensor> {
    let scale = (x.abs()?.max_keepdim(D::Minus1)? / E4M3_MAX)?.maximum(1e-12)?;
    through_e4m3(x, &scale)
}

fn through_e4m3(x: &Tensor, scale: &Tensor) -> candle_core::Result<Tensor> {
    let codes = x.broadcast_div(scale)?.clamp(-E4M3_MAX, E4M3_MAX)?.to_dtype(DType::F8E4M3)?;
    codes.to_dtype(DType::F32)?.broadcast_mul(scale)
}

/// `w ≈ q · scale`, symmetric, groups of 128, scale = amax / `half_range`, q in [−(half_range + ½), half_range − ½].
fn integer_weights(w: &Tensor, half_range: f64) -> candle_core::Result<Tensor> {
    let (n, k) = w.dims2()?;
    let w = w.reshape((n, k / GROUP, GROUP))?;
    let scale = through_bf16(&(w.abs()?.max_keepdim(D::Minus1)? / half_range)?)?;
    let q = ties_to_even(&w.broadcast_div(&scale)?)?.clamp(-half_range - 0.5, half_range - 0.5)?;
    q.broadcast_mul(&scale)?.reshape((n, k))
}

/// candle rounds halves away from zero; the recipes round them to even.
fn ties_to_even(x: &Tensor) -> candle_core::Result<Tensor> {
    let data: Vec<f32> = x.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| v.round_ties_even()).collect();
    Tensor::from_vec(data, x.shape(), x.device())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn e4m3_rounds_to_nearest_even() {
        // Steps are 2 in [16, 32), 32 in [256, 448]; 2^-10 is half the smallest subnormal.
        let x = [17.0, 19.0, 18.9, 448.0, 272.0, 304.0, 0.0009765625, 0.001, -17.0];
        let expected = [16.0, 20.0, 18.0, 448.0, 256.0, 320.0, 0.0, 0.001953125, -16.0];
        let x = Tensor::new(&x.map(|v: f64| v as f32), &Device::Cpu).unwrap().reshape((1, 9)).unwrap();
        let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
        let y = through_e4m3(&x, &one).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y, expected.map(|v: f64| v as f32));
    }

    #[test]
    fn two_bits_have_four_levels() {
        let w: Vec<f32> = (0..128).map(|i| i as f32 / 127.0 * 3.0 - 1.5).collect();
        let w = Tensor::from_vec(w, (1, 128), &Device::Cpu).unwrap();
        let mut levels = integer_weights(&w, 1.5).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        levels.dedup();
        assert_eq!(levels, [-2.0, -1.0, 0.0, 1.0]);
    }
}
