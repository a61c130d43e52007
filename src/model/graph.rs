//! The tensors of a whole model where they were put: embedding, layers, last norm and head.

use super::config::ModelConfig;
use super::error::ModelError;
use super::layer::{Layer, Mlp, norm_weight};
use super::placement::{InMemory, Placement};
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::ops::attention::HeadShape;
use crate::ops::kernel_path::ComputeDtype;

/// A loaded graph.
pub(super) struct Graph<P: Placement = InMemory> {
    pub config: ModelConfig,
    pub heads: HeadShape,
    /// \[V, hidden\], or `None` when rows come from the head.
    pub embedding: Option<P::Table>,
    pub layers: Vec<Layer<P>>,
    pub norm: P::Vector,
    pub head: P::Linear,
    /// Largest inner width of an MLP or expert.
    pub inner: usize,
}

impl<P: Placement> Graph<P> {
    /// Loads every tensor of the checkpoint, of a configuration that was parsed from it.
    pub fn load(
        checkpoint: &Checkpoint,
        config: ModelConfig,
        dtype: ComputeDtype,
        place: &P,
    ) -> Result<Self, ModelError> {
        let weights = Weights::new(checkpoint, dtype)?;
        let (embedding, head) = embedding_and_head(place, &weights, &config)?;
        let layers = (0..config.layers.len()).map(|i| Layer::load(place, &weights, &config, i));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = place.vector(norm_weight(&weights, &config, "model.norm", config.hidden_size)?)?;
        weights.finish(config.architecture.class)?;
        let inner = |layer: &Layer<P>| match &layer.mlp {
            Mlp::Dense(mlp) => mlp.inner,
            Mlp::Experts(block) => block.inner(),
        };
        Ok(Self {
            heads: HeadShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            embedding,
            inner: layers.iter().map(inner).max().unwrap_or(0),
            layers,
            norm,
            head,
            config,
        })
    }
}

/// The embedding, unless the head is it, and the head.
fn embedding_and_head<P: Placement>(
    place: &P,
    weights: &Weights<'_>,
    config: &ModelConfig,
) -> Result<(Option<P::Table>, P::Linear), ModelError> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let (embedding, stored) = ("model.embed_tokens.weight", "lm_head.weight");
    let table = weights.rows(embedding, &[vocab, hidden], 0..vocab)?;
    if !config.tie_word_embeddings {
        let table = place.table(weights, &table, hidden)?;
        return Ok((Some(table), place.linear(weights, &[("lm_head".to_owned(), vocab)], hidden, false)?));
    }
    // A stored head beside a tied embedding: transformers 5 uses it where it differs, others do not.
    if weights.has(stored)
        && weights.tensor(stored, &[vocab, hidden])? != weights.tensor(embedding, &[vocab, hidden])?
    {
        return Err(ModelError::StoredHead);
    }
    Ok((None, place.module(weights, "lm_head", &table, hidden)?))
}
