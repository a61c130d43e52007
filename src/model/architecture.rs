//! The architectures of the built-in engine as data: how each names its modules, which options its `config.json` has
//! and what absent ones mean. Source of every entry: transformers 5.17, `models/<model_type>/{configuration,modeling}_*`.

use crate::ops::gated::Activation;

/// What distinguishes one architecture from another.
#[derive(Debug)]
pub struct Architecture {
    /// Class name, as `architectures` of `config.json` has it.
    pub class: &'static str,
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// What is particular about it, for people.
    pub description: &'static str,
    /// Norms around attention.
    pub attention_norms: BlockNorms,
    /// Norms around the MLP.
    pub mlp_norms: BlockNorms,
    /// What is added to stored norm weights: 1 where they are stored as differences from 1.
    pub norm_offset: f32,
    /// Normalization of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// `qkv_proj` and `gate_up_proj` instead of one module for each part.
    pub fused: bool,
    /// Biases of `q_proj`, `k_proj` and `v_proj`.
    pub qkv_bias: Bias,
    /// Bias of `o_proj`.
    pub output_bias: Bias,
    /// Biases of the MLP's modules.
    pub mlp_bias: Bias,
    /// The field that names the MLP's activation, and what it is without.
    pub activation: (&'static str, Activation),
    /// Constant factors.
    pub scales: Scales,
    /// The field of the attention scores' cap, and the cap where it is absent.
    pub attention_softcap: Option<(&'static str, Option<f64>)>,
    /// The same of logits.
    pub logit_softcap: Option<(&'static str, Option<f64>)>,
    /// Which layers see only the last keys.
    pub window: Window,
    /// Which layers rotate by what.
    pub rope: RopeLayout,
    /// Mixture of experts.
    pub experts: Option<Experts>,
    /// What absent fields mean.
    pub defaults: Defaults,
}

/// Norms of one block: x ← x + post(f(pre(x))).
#[derive(Debug, Clone, Copy)]
pub struct BlockNorms {
    /// Name of the norm before, if any.
    pub pre: Option<&'static str>,
    /// Name of the norm after, if any.
    pub post: Option<&'static str>,
}

/// What one normalization of queries (keys) spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head, with one weight \[D\] for all.
    Head,
    /// All heads of a token together: weight \[heads·D\].
    Token,
}

/// Whether modules have biases.
#[derive(Debug, Clone, Copy)]
pub enum Bias {
    /// They have none.
    Never,
    /// They have.
    Always,
    /// A field says so; its value where it is absent.
    Field(&'static str, bool),
}

/// Constant factors of embeddings, attention scores, residuals and logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// Attention scores by 1/√D.
    Plain,
    /// Embeddings by √hidden_size, attention scores by 1/√`query_pre_attn_scalar`.
    Gemma,
    /// `embedding_multiplier`, `attention_multiplier`, `residual_multiplier`, and logits divided by `logits_scaling`.
    Granite,
}

/// Which layers see only the last `sliding_window` keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// None.
    Never,
    /// All, if there is a `sliding_window`; its value where the field is absent.
    All(Option<usize>),
    /// All, if `use_sliding_window`.
    AllIfUsed,
    /// Those from `max_window_layers` on, if `use_sliding_window`.
    Upper,
    /// Every other one of those below `max_window_layers`, if `use_sliding_window`.
    LowerAlternating,
    /// All but every n-th; n is the field's value, or this where it is absent.
    Pattern(Option<&'static str>, usize),
    /// Those that do not rotate, if `use_sliding_window`.
    NoRope,
}

/// Which layers rotate by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// All alike.
    Same,
    /// All alike, perhaps only a part of each head; of the scaled types only longrope.
    Partial,
    /// Layers with a window by `rope_local_base_freq` or `rope_parameters.sliding_attention`, the others by
    /// `rope_parameters.full_attention`.
    PerLayerType,
    /// All alike but every `no_rope_layer_interval`-th, or as `no_rope_layers` says: these do not rotate.
    SomeLayers,
}

/// Mixture of experts instead of an MLP.
#[derive(Debug)]
pub struct Experts {
    /// Field of the experts' width.
    pub width: &'static str,
    /// Whether the chosen experts' weights sum to 1: always, or by `norm_topk_prob`.
    pub always_normalized: bool,
    /// Field of the width of the expert that every token goes through, gated by `shared_expert_gate`.
    pub shared_width: Option<&'static str>,
    /// Whether `decoder_sparse_step` and `mlp_only_layers` leave some layers dense.
    pub some_layers: bool,
    /// The block in a layer: its router is `<block>.gate`, an expert's modules are `<block>.experts.<i>.<part>`.
    pub block: &'static str,
    /// Names of gate, up and down projection.
    pub parts: [&'static str; 3],
}

/// What absent fields mean; a field without default must be there.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// `head_dim`; hidden_size / heads without.
    pub head_dim: Option<usize>,
    /// Whether an absent `num_key_value_heads` means as many as heads.
    pub key_value_heads: bool,
    /// `max_position_embeddings`.
    pub max_positions: Option<usize>,
    /// `original_max_position_embeddings` beside (not in) the rope parameters.
    pub original_max_positions: Option<usize>,
    /// `rms_norm_eps`.
    pub eps: f64,
    /// `rope_theta`.
    pub theta: f64,
    /// `tie_word_embeddings`.
    pub tied: bool,
}

const PRE_ATTENTION: BlockNorms = BlockNorms { pre: Some("input_layernorm"), post: None };
const PRE_MLP: BlockNorms = BlockNorms { pre: Some("post_attention_layernorm"), post: None };

const LLAMA: Architecture = Architecture {
    class: "LlamaForCausalLM",
    model_type: "llama",
    description: "Llama 1 to 3.3 and relatives",
    attention_norms: PRE_ATTENTION,
    mlp_norms: PRE_MLP,
    norm_offset: 0.0,
    qk_norm: None,
    fused: false,
    qkv_bias: Bias::Field("attention_bias", false),
    output_bias: Bias::Field("attention_bias", false),
    mlp_bias: Bias::Field("mlp_bias", false),
    activation: ("hidden_act", Activation::Silu),
    scales: Scales::Plain,
    attention_softcap: None,
    logit_softcap: None,
    window: Window::Never,
    rope: RopeLayout::Same,
    experts: None,
    defaults: Defaults {
        head_dim: None,
        key_value_heads: true,
        max_positions: Some(2048),
        original_max_positions: None,
        eps: 1e-6,
        theta: 10_000.0,
        tied: false,
    },
};

const MISTRAL: Architecture = Architecture {
    class: "MistralForCausalLM",
    model_type: "mistral",
    description: "sliding window on all layers",
    qkv_bias: Bias::Never,
    output_bias: Bias::Never,
    mlp_bias: Bias::Never,
    window: Window::All(Some(4096)),
    defaults: Defaults { key_value_heads: false, max_positions: None, ..LLAMA.defaults },
    ..LLAMA
};

const MIXTRAL: Architecture = Architecture {
    class: "MixtralForCausalLM",
    model_type: "mixtral",
    description: "mixture of experts, weights of the chosen normalized",
    window: Window::All(None),
    experts: Some(Experts {
        width: "intermediate_size",
        always_normalized: true,
        shared_width: None,
        some_layers: false,
        block: "block_sparse_moe",
        parts: ["w1", "w3", "w2"],
    }),
    defaults: Defaults { eps: 1e-5, theta: 1e6, ..MISTRAL.defaults },
    ..MISTRAL
};

const QWEN2: Architecture = Architecture {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    description: "biases on queries, keys and values",
    qkv_bias: Bias::Always,
    window: Window::Upper,
    ..MISTRAL
};

const QWEN3: Architecture = Architecture {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    description: "queries and keys normalized by head",
    qk_norm: Some(QkNorm::Head),
    qkv_bias: Bias::Field("attention_bias", false),
    output_bias: Bias::Field("attention_bias", false),
    defaults: Defaults { head_dim: Some(128), ..QWEN2.defaults },
    ..QWEN2
};

const QWEN_EXPERTS: Experts = Experts {
    width: "moe_intermediate_size",
    always_normalized: false,
    shared_width: None,
    some_layers: true,
    block: "mlp",
    parts: ["gate_proj", "up_proj", "down_proj"],
};

const QWEN2_MOE: Architecture = Architecture {
    class: "Qwen2MoeForCausalLM",
    model_type: "qwen2_moe",
    description: "mixture of experts with a shared expert",
    qkv_bias: Bias::Field("qkv_bias", true),
    window: Window::LowerAlternating,
    experts: Some(Experts { shared_width: Some("shared_expert_intermediate_size"), ..QWEN_EXPERTS }),
    ..QWEN2
};

const QWEN3_MOE: Architecture = Architecture {
    class: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    description: "Qwen3 with a mixture of experts",
    window: Window::AllIfUsed,
    experts: Some(QWEN_EXPERTS),
    defaults: Defaults { head_dim: None, ..QWEN3.defaults },
    ..QWEN3
};

const GEMMA2: Architecture = Architecture {
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    description: "norms on both sides of each block, capped scores and logits, every other layer with a window",
    attention_norms: BlockNorms { pre: Some("input_layernorm"), post: Some("post_attention_layernorm") },
    mlp_norms: BlockNorms {
        pre: Some("pre_feedforward_layernorm"),
        post: Some("post_feedforward_layernorm"),
    },
    norm_offset: 1.0,
    mlp_bias: Bias::Never,
    activation: ("hidden_activation", Activation::GeluTanh),
    scales: Scales::Gemma,
    attention_softcap: Some(("attn_logit_softcapping", Some(50.0))),
    logit_softcap: Some(("final_logit_softcapping", Some(30.0))),
    window: Window::Pattern(None, 2),
    defaults: Defaults {
        head_dim: Some(256),
        key_value_heads: false,
        max_positions: None,
        tied: true,
        ..LLAMA.defaults
    },
    ..LLAMA
};

const GEMMA3: Architecture = Architecture {
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    description: "the text model: normalized queries and keys, a rotary base of its own for layers with a window",
    qk_norm: Some(QkNorm::Head),
    attention_softcap: None,
    logit_softcap: Some(("final_logit_softcapping", None)),
    window: Window::Pattern(Some("sliding_window_pattern"), 6),
    rope: RopeLayout::PerLayerType,
    defaults: Defaults { theta: 1e6, ..GEMMA2.defaults },
    ..GEMMA2
};

const PHI3: Architecture = Architecture {
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    description: "Phi-3 and Phi-4-mini: fused projections, partial rotation, longrope",
    fused: true,
    window: Window::All(None),
    rope: RopeLayout::Partial,
    defaults: Defaults {
        max_positions: Some(4096),
        original_max_positions: Some(4096),
        eps: 1e-5,
        ..LLAMA.defaults
    },
    qkv_bias: Bias::Never,
    output_bias: Bias::Never,
    mlp_bias: Bias::Never,
    ..LLAMA
};

const OLMO2: Architecture = Architecture {
    class: "Olmo2ForCausalLM",
    model_type: "olmo2",
    description: "norms behind each block, queries and keys normalized over all heads",
    attention_norms: BlockNorms { pre: None, post: Some("post_attention_layernorm") },
    mlp_norms: BlockNorms { pre: None, post: Some("post_feedforward_layernorm") },
    qk_norm: Some(QkNorm::Token),
    mlp_bias: Bias::Never,
    defaults: Defaults { eps: 1e-5, ..LLAMA.defaults },
    ..LLAMA
};

const GRANITE: Architecture = Architecture {
    class: "GraniteForCausalLM",
    model_type: "granite",
    description: "multipliers on embeddings, scores, residuals and logits",
    scales: Scales::Granite,
    ..LLAMA
};

const SMOLLM3: Architecture = Architecture {
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    description: "some layers without rotary embedding",
    window: Window::NoRope,
    rope: RopeLayout::SomeLayers,
    defaults: Defaults {
        key_value_heads: false,
        max_positions: None,
        theta: 2e6,
        tied: true,
        ..LLAMA.defaults
    },
    ..LLAMA
};

/// Every architecture of the built-in engine.
pub static ARCHITECTURES: &[Architecture] = &[
    LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, GEMMA2, GEMMA3, PHI3, OLMO2, GRANITE,
    SMOLLM3,
];
