//! Modules that no recipe quantizes unless it says so: where rounding does most harm or loaders refuse it.
//!
//! Sources: ModelOpt `default_disabled_quantizers.yaml`, llm-compressor's MoE examples, and what vLLM 0.33 demands
//! (checkpoint-formats §4.5, 4.7, 4.9: router, lm_head, multi-token prediction).

/// One entry of the default list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exclusion {
    /// `re:` pattern for module names, anchored at the start.
    pub pattern: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Whether these modules are linear layers, which the class `Linear` would claim; embeddings, norms and
    /// convolutions are not and need no `ignore` entry.
    pub is_linear: bool,
}

const fn linear(pattern: &'static str, reason: &'static str) -> Exclusion {
    Exclusion { pattern, reason, is_linear: true }
}

const fn other(pattern: &'static str, reason: &'static str) -> Exclusion {
    Exclusion { pattern, reason, is_linear: false }
}

/// The default list; the first entry that matches gives the reason.
pub const DEFAULT: &[Exclusion] = &[
    other(
        r"re:(.*\.)?(embed_tokens|tok_embeddings|word_embeddings|wte|wpe|embed_positions|embed_in)(\..*)?$",
        "embedding",
    ),
    other(r"re:.*embeddings?(\..*)?$", "embedding"),
    other(r"re:(.*[._])?(layer_?norm|rms_?norm|norm|ln)(_?[0-9a-z]+)?$", "norm"),
    other(r"re:(.*\.)?[^.]*conv[^.]*$", "convolution"),
    linear(r"re:(.*\.)?lm_head$", "output head"),
    linear(r"re:(.*\.)?(output_layer|embed_out|proj_out|output)$", "output head"),
    linear(r"re:(.*\.)?(mlp|moe|block_sparse_moe|feed_forward|ffn|mixer)\.gate$", "router"),
    linear(r"re:(.*[._])?router(\..*)?$", "router"),
    linear(r"re:(.*\.)?shared_expert_gate$", "router"),
    linear(r"re:(.*\.)?mtp(\..*|_.*)?$", "multi-token prediction"),
    linear(
        r"re:(.*\.)?(visual|vision_tower|vision_model|vision_encoder|embed_vision|vision_embed_tokens)(\..*)?$",
        "vision tower",
    ),
    linear(
        r"re:(.*\.)?(multi_modal_projector|mm_projector|connector|vision_projection)(\..*)?$",
        "vision projector",
    ),
    linear(r"re:(.*\.)?(audio_tower|audio_model|embed_audio|audio_encoder)(\..*)?$", "audio tower"),
    linear(r"re:(.*\.)?linear_attn\.in_proj_(a|b|ba)$", "gate of linear attention"),
];

/// The entry that excludes a module, if any.
#[cfg(test)]
fn find(module: &str) -> Option<&'static Exclusion> {
    use crate::checkpoint::name_match::NameMatcher;
    DEFAULT.iter().find(|e| NameMatcher::new(&[e.pattern]).unwrap().matches(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_models() {
        for (module, reason) in [
            ("lm_head", "output head"),
            ("language_model.lm_head", "output head"),
            ("model.embed_tokens", "embedding"),
            ("transformer.wte", "embedding"),
            ("gpt_neox.embed_in", "embedding"),
            ("model.layers.0.input_layernorm", "norm"),
            ("model.norm", "norm"),
            ("model.layers.0.self_attn.q_norm", "norm"),
            ("transformer.h.0.ln_1", "norm"),
            ("model.layers.3.mlp.gate", "router"),
            ("model.layers.3.block_sparse_moe.gate", "router"),
            ("model.layers.3.feed_forward.router", "router"),
            ("model.layers.3.mlp.router", "router"),
            ("model.layers.3.mlp.shared_expert_gate", "router"),
            ("mtp.layers.0.self_attn.q_proj", "multi-token prediction"),
            ("model.visual.blocks.0.attn.qkv", "vision tower"),
            ("vision_tower.vision_model.encoder.layers.0.mlp.fc1", "vision tower"),
            ("model.multi_modal_projector.linear_1", "vision projector"),
            ("model.layers.0.linear_attn.in_proj_a", "gate of linear attention"),
            ("model.layers.0.linear_attn.conv1d", "convolution"),
            ("backbone.layers.0.mixer.conv1d", "convolution"),
        ] {
            assert_eq!(find(module).map(|e| e.reason), Some(reason), "{module}");
        }
        for module in [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.gate_proj",
            "model.layers.0.mlp.experts.3.gate_proj",
            "model.layers.0.block_sparse_moe.experts.7.w1",
            "model.layers.0.mlp.shared_expert.down_proj",
            "model.layers.0.self_attn.kv_a_proj_with_mqa",
            "transformer.h.0.attn.c_proj",
            "gpt_neox.layers.0.attention.query_key_value",
            "model.layers.0.linear_attn.out_proj",
            "model.layers.0.self_attn.o_proj",
            "bert.encoder.layer.0.output.dense",
        ] {
            assert_eq!(find(module), None, "{module}");
        }
    }
}
