//! One decoder layer as loaded: x ← x + post(attention(pre(x))), x ← x + post(mlp(pre(x))), each norm where the
//! architecture has it.

use super::architecture::{BlockNorms, QkNorm};
use super::config::{LayerConfig, ModelConfig};
use super::error::ModelError;
use super::experts::ExpertBlock;
use super::linear::LinearGroup;
use super::placement::{InMemory, Placement};
use super::weights::Weights;
use crate::ops::gated::{Activation, gated};
use crate::ops::gated_product::{gated_product, is_gated_product};
use crate::ops::kernel_path::KernelPath;
use crate::ops::unit_rows::RoundedRows;

/// A layer's weights.
pub(super) struct Layer<P: Placement = InMemory> {
    pub config: LayerConfig,
    pub attention_norms: Norms<P>,
    pub qkv: P::Linear,
    /// Weights of the norms of queries and of keys.
    pub qk_norms: Option<[P::Vector; 2]>,
    pub output: P::Linear,
    pub mlp_norms: Norms<P>,
    pub mlp: Mlp<P>,
}

/// Weights of the norms around a block: \[hidden\] each.
pub(super) struct Norms<P: Placement = InMemory> {
    pub pre: Option<P::Vector>,
    pub post: Option<P::Vector>,
}

/// What stands in the MLP's place.
pub(super) enum Mlp<P: Placement = InMemory> {
    Dense(GatedMlp<P>),
    Experts(Box<ExpertBlock<P>>),
}

/// down(act(gate(x)) · up(x)).
pub(super) struct GatedMlp<P: Placement = InMemory> {
    pub gate_up: P::Linear,
    pub down: P::Linear,
    /// Inner width.
    pub inner: usize,
}

impl<P: Placement> Layer<P> {
    pub fn load(
        place: &P,
        weights: &Weights<'_>,
        config: &ModelConfig,
        index: usize,
    ) -> Result<Self, ModelError> {
        let name = |module: &str| format!("model.layers.{index}.{module}");
        let architecture = config.architecture;
        let (hidden, layer) = (config.hidden_size, config.layers[index]);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let [qkv_bias, output_bias, _] = config.biases;
        let norm =
            |module: &str, width: usize| place.vector(norm_weight(weights, config, &name(module), width)?);
        let norms = |names: BlockNorms| -> Result<Norms<P>, ModelError> {
            let load = |module: Option<&str>| module.map(|m| norm(m, hidden)).transpose();
            Ok(Norms { pre: load(names.pre)?, post: load(names.post)? })
        };
        let qkv = if architecture.fused {
            vec![(name("self_attn.qkv_proj"), q + 2 * kv)]
        } else {
            [("q", q), ("k", kv), ("v", kv)]
                .map(|(part, n)| (name(&format!("self_attn.{part}_proj")), n))
                .to_vec()
        };
        let widths = architecture.qk_norm.map(|span| match span {
            QkNorm::Head => [config.head_dim; 2],
            QkNorm::Token => [q, kv],
        });
        let qk_norms = widths.map(|[of_queries, of_keys]| {
            Ok::<_, ModelError>([norm("self_attn.q_norm", of_queries)?, norm("self_attn.k_norm", of_keys)?])
        });
        let mlp = match (&config.experts, &architecture.experts) {
            (Some(experts), Some(names)) if layer.experts => {
                Mlp::Experts(Box::new(ExpertBlock::load(place, weights, config, experts, names, index)?))
            }
            _ => Mlp::Dense(GatedMlp::load(place, weights, config, &name("mlp"), config.intermediate_size)?),
        };
        Ok(Self {
            config: layer,
            attention_norms: norms(architecture.attention_norms)?,
            qkv: place.linear(weights, &qkv, hidden, qkv_bias)?,
            qk_norms: qk_norms.transpose()?,
            output: place.linear(weights, &[(name("self_attn.o_proj"), hidden)], q, output_bias)?,
            mlp_norms: norms(architecture.mlp_norms)?,
            mlp,
        })
    }
}

impl Layer {
    /// Its linear modules, grouped.
    pub fn linears(&self) -> Vec<&LinearGroup> {
        let mut groups = vec![&self.qkv, &self.output];
        match &self.mlp {
            Mlp::Dense(mlp) => groups.extend([&mlp.gate_up, &mlp.down]),
            Mlp::Experts(block) => groups.extend(block.linears()),
        }
        groups
    }
}

impl<P: Placement> GatedMlp<P> {
    /// Loads `<parent>.gate_proj` and so on, as the architecture names them, of this inner width.
    pub fn load(
        place: &P,
        weights: &Weights<'_>,
        config: &ModelConfig,
        parent: &str,
        inner: usize,
    ) -> Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let [.., bias] = config.biases;
        let gate_up = if config.architecture.fused {
            vec![(format!("{parent}.gate_up_proj"), 2 * inner)]
        } else {
            vec![(format!("{parent}.gate_proj"), inner), (format!("{parent}.up_proj"), inner)]
        };
        Ok(Self {
            gate_up: place.linear(weights, &gate_up, hidden, bias)?,
            down: place.linear(weights, &[(format!("{parent}.down_proj"), hidden)], inner, bias)?,
            inner,
        })
    }
}

impl GatedMlp {
    /// y \[rows, hidden\] from x \[rows, hidden\].
    pub fn forward(&self, x: &[f32], rows: usize, work: &mut MlpWork<'_>, y: &mut [f32]) {
        let (path, inner) = (work.path, self.inner);
        if self.takes_rounded() {
            let k = self.gate_up.k();
            let x = RoundedRows::new(path, rows, k, &|i, row| row.copy_from_slice(&x[i * k..][..k]));
            self.forward_rounded(&x, rows, path, work.activation, y);
            return;
        }
        self.gate_up.forward(path, x, rows, work.quantized, work.gate_up);
        let gated_rows = &mut work.gated[..rows * inner];
        gated(path, work.activation, &work.gate_up[..2 * rows * inner], inner, gated_rows);
        self.down.forward(path, work.gated, rows, work.quantized, y);
    }
}

impl GatedMlp {
    /// Whether it can be computed from rounded rows without storing what lies between.
    pub fn takes_rounded(&self) -> bool {
        self.gate_up.plain().is_some_and(is_gated_product) && self.down.takes_rounded()
    }

    /// y \[rows, hidden\] from rounded x \[rows, hidden\].
    ///
    /// # Panics
    /// Unless [`Self::takes_rounded`].
    pub fn forward_rounded(
        &self,
        x: &RoundedRows,
        rows: usize,
        path: KernelPath,
        activation: Activation,
        y: &mut [f32],
    ) {
        let Some(gate_up) = self.gate_up.plain() else { unreachable!("checked by takes_rounded") };
        let activated = gated_product(path, activation, x, rows, gate_up);
        self.down.forward_rounded(path, &activated, rows, y);
    }
}

/// How an MLP is computed, and room for its intermediate results.
pub(super) struct MlpWork<'a> {
    /// Kernels.
    pub path: KernelPath,
    /// Activation of the gate.
    pub activation: Activation,
    /// \[rows, 2·inner\].
    pub gate_up: &'a mut [f32],
    /// \[rows, inner\].
    pub gated: &'a mut [f32],
    /// The quantized input of a linear group.
    pub quantized: &'a mut [f32],
}

/// A norm's weight as it multiplies.
pub(super) fn norm_weight(
    weights: &Weights<'_>,
    config: &ModelConfig,
    module: &str,
    width: usize,
) -> Result<Vec<f32>, ModelError> {
    let mut weight = weights.tensor(&format!("{module}.weight"), &[width])?;
    let offset = config.architecture.norm_offset;
    if offset != 0.0 {
        for w in &mut weight {
            *w += offset;
        }
    }
    Ok(weight)
}
